"""The log of a pod: a line per event that matters, and one per interval."""

from __future__ import annotations

from typing import Final

from nimpull.core.artifacts import Outcome
from nimpull.core.events import Event, Finished, Waiting
from nimpull.core.names import display
from nimpull.core.reported import Snapshot
from nimpull.core.sentences import progress_text
from nimpull.core.units import show_bytes, show_seconds
from nimpull.progress.outlet import Outlet
from nimpull.progress.sinks import Backlog, Pace, sentence
from nimpull.progress.tally import Tally

STALL_SHOWN_AFTER: Final = 15.0  # seconds without a byte before a line says so


class Lines:
    """A log: a line per event that matters and one per interval."""

    def __init__(self, outlet: Outlet, now: float, interval: float, *, files: bool) -> None:
        self._outlet = outlet
        self._backlog = Backlog()
        self._pace = Pace(now, interval)
        self._shown: tuple[int, int] | None = None
        self._files = files

    def tell(self, event: Event, now: float) -> None:
        if isinstance(event, Waiting) and not self._pace.first(event.reason, now):
            return
        line = _file_line(event.outcome) if isinstance(event, Finished) and self._files else sentence(event)
        if line:
            self._backlog.add(line + "\n")

    def due(self, tally: Tally, now: float, *, last: bool) -> list[str]:
        lines, dropped = self._backlog.take()
        if dropped:
            lines.insert(0, f"({dropped} lines not shown: the log is read too slowly)\n")
        moved = (tally.done, tally.files) != self._shown
        if tally.total is not None and (self._pace.due(now) or (last and moved)):
            self._shown = (tally.done, tally.files)
            text = progress_text(tally.snapshot(now))
            stalled = tally.stalled(now)
            still = f", no bytes for {show_seconds(stalled)}" if stalled >= STALL_SHOWN_AFTER else ""
            lines.append(f"{display(tally.phase) or 'progress'}: {text}{still}\n")
        return lines

    def write(self, lines: list[str], snapshot: Snapshot) -> None:
        del snapshot
        self._outlet.write("".join(lines))

    def close(self) -> None:
        """Nothing is held back."""


def _file_line(outcome: Outcome) -> str:
    took = f" in {show_seconds(outcome.seconds)}" if outcome.fetched else ""
    checked = f", verified by {display(outcome.verified)}" if outcome.verified else ""
    path = display(outcome.artifact.path, 1024)
    return f"{outcome.action.value} {path}: {show_bytes(outcome.size)}{took}{checked}"
