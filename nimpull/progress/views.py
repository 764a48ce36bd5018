"""What is new to show, put into words: as a bar on a terminal, the log of a pod, or JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from nimpull.core.artifacts import Outcome
from nimpull.core.events import Event, Finished, Note, Phase, Planned, Waiting
from nimpull.core.names import display
from nimpull.core.report.contents import ProgressSummary
from nimpull.core.report.document import progress_json
from nimpull.core.report.sentences import progress_text
from nimpull.core.units import show_bytes, show_count, show_seconds, show_time
from nimpull.progress.stream import ASCII, TextStream

if TYPE_CHECKING:
    from tqdm import tqdm

STALL_SHOWN_AFTER: Final = 15.0  # seconds without a byte before a line says so
#: Columns left free at the end: the terminal writes ^C there, which must not break the line.
MARGIN: Final = 3
BESIDES: Final = 16  # columns of the percentage, blanks, and a bar that is still one


@dataclass(frozen=True, slots=True)
class Update:
    """``events``: each with its time (since the epoch), without bytes and repeated pauses; ``dropped``: how
    many before them were dropped unread. ``due``: an interval is over; ``last``: the run is.
    """

    events: tuple[tuple[float, Event], ...]
    dropped: int
    progress: ProgressSummary
    time: float
    due: bool
    last: bool


class LogLines:
    """A line for each event that matters, and one per interval; ``files``: and one for each finished file.

    A view is used by the writing thread alone, so it may block. ``close`` is the last call.
    """

    def __init__(self, stream: TextStream, *, files: bool = False) -> None:
        self._stream = stream
        self._files = files
        self._shown: tuple[int, int] | None = None

    def show(self, update: Update) -> None:
        lines = [f"({update.dropped} lines not shown: the log is read too slowly)"] if update.dropped else []
        lines += [sentence(event, files=self._files) for _, event in update.events]
        progress = update.progress
        # The end of a run repeats no line that stands there already.
        moved = (progress.done, progress.files) != self._shown
        if progress.total is not None and (update.due or (update.last and moved)):
            self._shown = (progress.done, progress.files)
            lines.append(_progress_line(progress))
        self._write(lines)

    def _write(self, lines: list[str]) -> None:
        self._stream.write("".join(f"{line}\n" for line in lines if line))

    def close(self) -> None:
        """Lines hold nothing back."""


class JsonLines(LogLines):
    """One JSON object a line, for programs that read along: every event but bytes, and ``progress``."""

    def show(self, update: Update) -> None:
        records = [(time, _record(event)) for time, event in update.events]
        # Where the gap is: before what came after it.
        if update.dropped:
            records.insert(0, (update.time, {"event": "dropped", "lines": update.dropped}))
        if update.due or update.last:
            records.append((update.time, {"event": "progress", **progress_json(update.progress)}))
        objects = ({"time": show_time(time), **record} for time, record in records)
        self._write([json.dumps(each, separators=(",", ":")) for each in objects])


class Bar(LogLines):
    """tqdm's, with the words and units of the log, below the lines for what happens.

    It is drawn with ``#`` where the stream takes only ASCII.
    """

    _bar: tqdm[Any] | None = None

    def show(self, update: Update) -> None:
        lines = [sentence(event) for _, event in update.events]
        # The lines go above the bar, which is drawn anew below them.
        if any(lines) and self._bar is not None:
            self._bar.clear()
        self._write(lines)
        if update.progress.total is not None:
            self._draw(update.progress, update.progress.total)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _draw(self, progress: ProgressSummary, total: int) -> None:
        columns = self._stream.columns - MARGIN
        text = progress_text(progress, percent=False)
        phase = display(progress.phase, 20)
        while len(phase) + BESIDES + len(text) > columns and ", " in text:
            text = text.rpartition(", ")[0]  # what comes last matters least
        form = f"{phase.replace('{', '{{').replace('}', '}}')} {{percentage:3.0f}}%|{{bar}}| {text}"
        done, total = (progress.done, total) if total else (1, 1)  # nothing to fetch is all of it
        if self._bar is None:
            self._bar = self._new_bar(done, total, columns, form)
            return
        self._bar.n, self._bar.total, self._bar.ncols, self._bar.bar_format = done, total, columns, form
        self._bar.refresh()

    def _new_bar(self, done: int, total: int, columns: int, form: str) -> tqdm[Any]:
        from tqdm import tqdm

        tqdm.set_lock(RLock())  # the default is a multiprocessing lock, which wants /dev/shm
        tqdm.monitor_interval = 0  # no watching thread: this bar is refreshed by ours
        bar = tqdm(
            total=total,
            initial=done,
            ncols=columns,
            bar_format=form,
            file=self._stream,
            ascii=self._stream.encoding == ASCII,
            position=0,
        )
        # tqdm pads to the width of the last line, which wraps once the terminal is narrower
        bar.sp = lambda text: self._stream.write(f"\r{text}\x1b[K")
        return bar


def sentence(event: Event, *, files: bool = False) -> str:
    """An event as a line of a log, "" for one that has none of its own; ``files``: finished files have."""
    match event:
        case Phase(name, detail):
            return f"{display(name)}: {display(detail)}" if detail else display(name)
        case Planned(count, total, present, files_present):
            return (
                f"plan: {show_count(count, 'file')}, {show_bytes(total)}; "
                f"here already: {show_count(files_present, 'file')}, {show_bytes(present)}"
            )
        case Waiting(reason, seconds):
            pause = f"waiting {show_seconds(seconds)}" if seconds else "trying again"
            return f"{pause}: {display(reason)}"
        case Note(text, level):
            return ("warning: " if level == "warning" else "") + display(text, 2000)
        case Finished(outcome) if files:
            return _file_line(outcome)
    return ""


def _progress_line(progress: ProgressSummary) -> str:
    stalled = progress.stalled >= STALL_SHOWN_AFTER
    still = f", no bytes for {show_seconds(progress.stalled)}" if stalled else ""
    return f"{display(progress.phase) or 'progress'}: {progress_text(progress)}{still}"


def _file_line(outcome: Outcome) -> str:
    took = f" in {show_seconds(outcome.seconds)}" if outcome.fetched else ""
    checked = f", verified by {display(outcome.verified)}" if outcome.verified else ""
    path = display(outcome.artifact.path, 1024)
    return f"{outcome.action.value} {path}: {show_bytes(outcome.size)}{took}{checked}"


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
    return {}
