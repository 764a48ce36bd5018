"""The log of a pod: a line for each event that matters, and one per interval."""

from __future__ import annotations

from typing import Final

from nimpull.core.artifacts import Outcome
from nimpull.core.events import Finished
from nimpull.core.names import display
from nimpull.core.report import ProgressSummary, progress_text
from nimpull.core.units import show_bytes, show_seconds
from nimpull.progress.stream import TextStream
from nimpull.progress.updates import Update, View, sentence

STALL_SHOWN_AFTER: Final = 15.0  # seconds without a byte before a line says so


class LogLines(View):
    """``files``: each finished file has a line of its own."""

    def __init__(self, stream: TextStream, *, files: bool) -> None:
        self._stream = stream
        self._files = files
        self._shown: tuple[int, int] | None = None

    def show(self, update: Update) -> None:
        lines = [f"({update.dropped} lines not shown: the log is read too slowly)"] if update.dropped else []
        for _, event in update.events:
            if isinstance(event, Finished) and self._files:
                lines.append(_file_line(event.outcome))
            else:
                lines.append(sentence(event))
        progress = update.progress
        # The end of a run repeats no line that stands there already.
        moved = (progress.done, progress.files) != self._shown
        if progress.total is not None and (update.due or (update.last and moved)):
            self._shown = (progress.done, progress.files)
            lines.append(_progress_line(progress))
        self._stream.write("".join(f"{line}\n" for line in lines if line))


def _progress_line(progress: ProgressSummary) -> str:
    stalled = progress.stalled >= STALL_SHOWN_AFTER
    still = f", no bytes for {show_seconds(progress.stalled)}" if stalled else ""
    return f"{display(progress.phase) or 'progress'}: {progress_text(progress)}{still}"


def _file_line(outcome: Outcome) -> str:
    took = f" in {show_seconds(outcome.seconds)}" if outcome.fetched else ""
    checked = f", verified by {display(outcome.verified)}" if outcome.verified else ""
    path = display(outcome.artifact.path, 1024)
    return f"{outcome.action.value} {path}: {show_bytes(outcome.size)}{took}{checked}"
