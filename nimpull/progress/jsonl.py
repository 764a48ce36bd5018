"""JSON lines, for programs that read along."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nimpull.core.events import Advanced, Event, Finished, Note, Phase, Planned, Waiting
from nimpull.core.names import display
from nimpull.core.ports import Clock
from nimpull.core.reported import Snapshot
from nimpull.core.units import show_time
from nimpull.progress.outlet import Outlet
from nimpull.progress.sinks import Backlog, Pace
from nimpull.progress.tally import Tally


class JsonLines:
    """One JSON object a line, for programs: every event but bytes, and ``progress`` once per interval."""

    def __init__(self, outlet: Outlet, clock: Clock, interval: float) -> None:
        self._outlet = outlet
        self._clock = clock
        self._backlog = Backlog()
        self._pace = Pace(clock.monotonic(), interval)

    def tell(self, event: Event, now: float) -> None:
        if isinstance(event, Waiting) and not self._pace.first(event.reason, now):
            return
        self._backlog.add(self._line(_record(event)))

    def due(self, tally: Tally, now: float, *, last: bool) -> list[str]:
        lines, dropped = self._backlog.take()
        if dropped:
            lines.insert(0, self._line({"event": "dropped", "lines": dropped}))
        if self._pace.due(now) or last:
            shown = tally.snapshot(now)
            lines.append(
                self._line(
                    {
                        "event": "progress",
                        "phase": display(shown.phase),
                        "bytesDone": shown.done,
                        "bytesTotal": shown.total,
                        "bytesPerSecond": round(shown.rate),
                        "etaSeconds": None if shown.eta is None else round(shown.eta),
                        "filesDone": shown.files,
                        "filesTotal": shown.files_total,
                        "stalledSeconds": round(tally.stalled(now)),
                    }
                )
            )
        return lines

    def _line(self, record: Mapping[str, Any]) -> str:
        return json.dumps({"time": show_time(self._clock.time()), **record}, separators=(",", ":")) + "\n"

    def write(self, lines: list[str], snapshot: Snapshot) -> None:
        del snapshot
        self._outlet.write("".join(lines))

    def close(self) -> None:
        """Nothing is held back."""


def _record(event: Event) -> dict[str, Any]:
    match event:
        case Phase(name, detail):
            return {"event": "phase", "phase": display(name), "detail": display(detail)}
        case Planned(files, total, present, files_present):
            return {
                "event": "planned",
                "files": files,
                "bytesTotal": total,
                "bytesPresent": present,
                "filesPresent": files_present,
            }
        case Finished(outcome):
            return {
                "event": "finished",
                "path": display(outcome.artifact.path, 1024),
                "action": outcome.action.value,
                "size": outcome.size,
                "bytesFetched": outcome.fetched,
                "seconds": round(outcome.seconds, 3),
                "verifiedBy": display(outcome.verified),
            }
        case Waiting(reason, seconds):
            return {"event": "waiting", "reason": display(reason), "seconds": round(seconds, 3)}
        case Note(text, level):
            return {"event": "note", "level": display(level), "text": display(text, 2000)}
        case Advanced(count):
            return {"event": "advanced", "bytes": count}
