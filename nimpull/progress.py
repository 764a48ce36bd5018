"""Shows a run while it happens: a bar on a terminal, a line per interval in a pod's log, or JSON lines.

The fetch workers call :class:`Progress` once per block written; that call only counts. A thread of its own
writes, so that a slow reader of the log, or one that went away, never holds up the download.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from threading import Condition, Lock, RLock, Thread
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TextIO

from nimpull.core.artifacts import Action, Outcome
from nimpull.core.events import (
    Advanced,
    Event,
    Finished,
    Level,
    Note,
    Phase,
    Planned,
    Waiting,
    level_of,
)
from nimpull.core.names import display
from nimpull.core.ports import Clock
from nimpull.core.reported import Snapshot
from nimpull.core.sentences import progress_text
from nimpull.core.units import show_bytes, show_seconds, show_time

if TYPE_CHECKING:
    from tqdm import tqdm

RATE_WINDOW: Final = 30.0  # seconds; as long as a low-speed limit looks back, so that a stall shows as 0
SAMPLE_SPACING: Final = 0.5  # seconds between two samples of the window
STALL_SHOWN_AFTER: Final = 15.0  # seconds without a byte before a line says so
BACKLOG: Final = 4 << 20  # characters kept for a slow reader; the oldest lines are dropped and counted
BEAT: Final = 0.25  # seconds between two looks at the clock; a bar moves at this pace
_PRESENT: Final = (Action.SKIPPED, Action.LINKED)  # counted by the plan already
CLOSE_PATIENCE: Final = 2.0  # seconds that closing waits for a reader that does not read


class Mode(StrEnum):
    BAR = "bar"
    LINES = "lines"
    JSON = "json"
    QUIET = "quiet"


def choose_mode(stream: TextIO) -> Mode:
    """A bar where someone watches, lines where a log is kept."""
    try:
        return Mode.BAR if stream.isatty() else Mode.LINES
    except ValueError:  # closed already
        return Mode.QUIET


class Progress:
    """Implements :data:`nimpull.core.ports.Emit`; safe to call from any thread.

    ``interval``: seconds between two lines (LINES and JSON). ``level``: above INFO there are no such lines,
    at DEBUG there is a line for each file; a bar is for INFO. Use it as a context manager: the writing thread
    runs inside. Without it nothing is written until :meth:`beat` is called, which tests do.
    """

    def __init__(
        self,
        mode: Mode,
        stream: TextIO,
        clock: Clock,
        interval: float = 10.0,
        level: Level = Level.INFO,
    ) -> None:
        self._clock = clock
        self._level = level
        self._tally = Tally(clock.monotonic())
        self._lock = Lock()
        self._wake = Condition(Lock())
        self._closing = False
        self._thread: Thread | None = None
        interval = interval if level <= Level.INFO else math.inf
        mode = Mode.LINES if mode is Mode.BAR and level is not Level.INFO else mode
        self._sink = _sink(mode, Outlet(stream), clock, interval, files=level <= Level.DEBUG)

    def __call__(self, event: Event) -> None:
        now = self._clock.monotonic()
        with self._lock:
            self._tally.count(event, now)
            if not isinstance(event, Advanced) and level_of(event) >= self._level:
                self._sink.tell(event, now)

    def snapshot(self) -> Snapshot:
        with self._lock:
            return self._tally.snapshot(self._clock.monotonic())

    def beat(self, *, last: bool = False) -> None:
        """Write what is due. One thread at a time: the writing thread, or a test."""
        now = self._clock.monotonic()
        with self._lock:
            lines = self._sink.due(self._tally, now, last=last and self._level <= Level.INFO)
        self._sink.write(lines, self.snapshot())

    def __enter__(self) -> Self:
        self._thread = Thread(target=self._run, name="nimpull-progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the rest and stop. Leaves a reader that does not read behind after two seconds."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread is None:
            self.beat(last=True)
            self._sink.close()
        else:
            self._thread.join(CLOSE_PATIENCE)
            self._thread = None

    def _run(self) -> None:
        closing = False
        while not closing:
            with self._wake:
                closing = self._wake.wait_for(lambda: self._closing, BEAT)
            self.beat(last=closing)
        self._sink.close()


class Tally:
    """Counts events; not safe for threads by itself."""

    def __init__(self, now: float) -> None:
        self.phase = ""
        self.done = 0
        self.total: int | None = None
        self.files = 0
        self.files_total: int | None = None
        self.last_byte = now
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def count(self, event: Event, now: float) -> None:
        match event:
            case Advanced(count):
                self.done = max(0, self.done + count)
                self.last_byte = now
                if now - self._samples[-1][0] >= SAMPLE_SPACING:
                    self._samples.append((now, self.done))
                    self._forget(now)
            case Finished(outcome):
                if outcome.action not in _PRESENT:
                    self.files += 1
            case Planned(files, total, present, files_present):
                self.files_total, self.files = files, files_present
                self.total, self.done = total, present
                self._restart(now)
            case Phase(name):
                self.phase = name
                self.last_byte = now

    def snapshot(self, now: float) -> Snapshot:
        self._forget(now)
        began, had = self._samples[0]
        span = now - began
        rate = max(0.0, (self.done - had) / span) if span > 0 else 0.0
        eta = None
        if self.total is not None and rate > 0:
            eta = max(0, self.total - self.done) / rate
        return Snapshot(self.phase, self.done, self.total, rate, eta, self.files, self.files_total)

    def stalled(self, now: float) -> float:
        """Seconds since the last byte, 0 when there is nothing to wait for."""
        waiting = self.total is not None and self.done < self.total
        return now - self.last_byte if waiting else 0.0

    def _restart(self, now: float) -> None:
        self.last_byte = now
        self._samples = deque([(now, self.done)])

    def _forget(self, now: float) -> None:
        """Keep one sample at or before the window's begin, so that the rate spans the whole window."""
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now - RATE_WINDOW:
            samples.popleft()
        if now - samples[-1][0] > RATE_WINDOW:  # nothing came for a whole window
            samples.clear()
            samples.append((now - RATE_WINDOW, self.done))


class Outlet:
    """Text to a stream that may be closed, broken or slow: it never raises, and goes quiet once it failed.

    A stream with a descriptor is written beside Python's buffer: a thread that blocks would hold the buffer's
    lock, which the interpreter wants at exit and may abort over ("could not acquire lock … at shutdown").
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor: int | None = None
        self.broken = False
        try:
            stream.flush()
            self._descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):  # StringIO has none; a closed stream fails on writing
            self._descriptor = None

    def write(self, text: str) -> int:
        if not self.broken and text:
            try:
                self._put(text)
            except (OSError, ValueError):  # EPIPE, closed file: the download goes on unseen
                self.broken = True
        return len(text)

    def _put(self, text: str) -> None:
        if self._descriptor is None:
            self._stream.write(text)
            self._stream.flush()
            return
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def flush(self) -> None:
        """Everything is written at once."""

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def columns(self) -> int:
        """Width of the terminal; 80 where it has none to tell (a pod's tty before the first resize)."""
        if self._descriptor is not None:
            with suppress(OSError):
                return os.get_terminal_size(self._descriptor).columns or 80
        return 80

    @property
    def encoding(self) -> str:
        return self._stream.encoding or "utf-8"


class _Sink(Protocol):
    def tell(self, event: Event, now: float) -> None:
        """Something other than bytes happened. Called under the lock: quick, no writing."""
        ...

    def due(self, tally: Tally, now: float, *, last: bool) -> list[str]:
        """Take what is to be written now. Called under the lock."""
        ...

    def write(self, lines: list[str], snapshot: Snapshot) -> None:
        """Called outside the lock: may block."""
        ...

    def close(self) -> None: ...


def _sink(mode: Mode, outlet: Outlet, clock: Clock, interval: float, *, files: bool) -> _Sink:
    if mode is Mode.BAR:
        return _Bar(outlet, clock.monotonic(), interval)
    if mode is Mode.LINES:
        return _Lines(outlet, clock.monotonic(), interval, files=files)
    if mode is Mode.JSON:
        return _JsonLines(outlet, clock, interval)
    return _Quiet()


class _Backlog:
    """Lines for a reader that may be slow: the oldest go first, and are counted."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._size = 0
        self._dropped = 0

    def add(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line)
        while self._size > BACKLOG:
            self._size -= len(self._lines.popleft())
            self._dropped += 1

    def take(self) -> tuple[list[str], int]:
        """The lines, and how many were dropped before them."""
        taken = list(self._lines), self._dropped
        self._lines.clear()
        self._size = self._dropped = 0
        return taken


class _Pace:
    """Says when the next line is due, and keeps equal pauses of many workers to one line per interval."""

    def __init__(self, now: float, interval: float) -> None:
        self._interval = interval
        self._next = now + interval
        self._told: dict[str, float] = {}

    def due(self, now: float) -> bool:
        if now < self._next:
            return False
        self._next = now + self._interval
        self._told = {reason: when for reason, when in self._told.items() if now - when < self._interval}
        return True

    def first(self, reason: str, now: float) -> bool:
        if reason in self._told and now - self._told[reason] < self._interval:
            return False
        self._told[reason] = now
        return True


def _sentence(event: Event) -> str:
    """An event as a line of a log, "" for one that has no line of its own."""
    match event:
        case Phase(name, detail):
            return f"{display(name)}: {display(detail)}" if detail else display(name)
        case Planned(files, total, present, files_present):
            return (
                f"plan: {files} files, {show_bytes(total)}; "
                f"here already: {files_present} files, {show_bytes(present)}"
            )
        case Waiting(reason, seconds):
            return f"waiting {show_seconds(seconds)}: {display(reason)}"
        case Note(text, level):
            return ("warning: " if level == "warning" else "") + display(text, 2000)
        case _:
            return ""


def _file_line(outcome: Outcome) -> str:
    took = f" in {show_seconds(outcome.seconds)}" if outcome.fetched else ""
    checked = f", verified by {display(outcome.verified)}" if outcome.verified else ""
    path = display(outcome.artifact.path, 1024)
    return f"{outcome.action.value} {path}: {show_bytes(outcome.size)}{took}{checked}"


class _Lines:
    """A log: a line per event that matters and one per interval."""

    def __init__(self, outlet: Outlet, now: float, interval: float, *, files: bool) -> None:
        self._outlet = outlet
        self._backlog = _Backlog()
        self._pace = _Pace(now, interval)
        self._shown: tuple[int, int] | None = None
        self._files = files

    def tell(self, event: Event, now: float) -> None:
        if isinstance(event, Waiting) and not self._pace.first(event.reason, now):
            return
        line = _file_line(event.outcome) if isinstance(event, Finished) and self._files else _sentence(event)
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


class _JsonLines:
    """One JSON object a line, for programs: every event but bytes, and ``progress`` once per interval."""

    def __init__(self, outlet: Outlet, clock: Clock, interval: float) -> None:
        self._outlet = outlet
        self._clock = clock
        self._backlog = _Backlog()
        self._pace = _Pace(clock.monotonic(), interval)

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


class _Bar:
    """tqdm's bar, moved by the writing thread alone."""

    def __init__(self, outlet: Outlet, now: float, interval: float) -> None:
        self._outlet = outlet
        self._backlog = _Backlog()
        self._pace = _Pace(now, interval)
        self._bar: tqdm[Any] | None = None

    def tell(self, event: Event, now: float) -> None:
        paused = isinstance(event, Waiting) and self._pace.first(event.reason, now)
        if paused or isinstance(event, (Phase, Note)):
            self._backlog.add(_sentence(event))

    def due(self, tally: Tally, now: float, *, last: bool) -> list[str]:
        del tally, now, last
        return self._backlog.take()[0]

    def write(self, lines: list[str], snapshot: Snapshot) -> None:
        for line in lines:
            if self._bar is None:
                self._outlet.write(line + "\n")
            else:
                self._bar.write(line, file=self._outlet)
        if snapshot.total is None:
            return
        bar = self._bar = self._bar or _new_bar(self._outlet, snapshot)
        bar.total = snapshot.total
        bar.n = snapshot.done
        bar.ncols = self._outlet.columns
        bar.set_description_str(display(snapshot.phase, 20), refresh=False)
        bar.set_postfix_str(f"{snapshot.files}/{snapshot.files_total} files", refresh=False)
        bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _new_bar(outlet: Outlet, snapshot: Snapshot) -> tqdm[Any]:
    from tqdm import tqdm

    tqdm.set_lock(RLock())  # the default is a multiprocessing lock, which wants /dev/shm
    tqdm.monitor_interval = 0  # no watching thread: this bar is refreshed by ours
    return tqdm(
        total=snapshot.total,
        initial=snapshot.done,
        unit="iB",
        unit_scale=True,
        unit_divisor=1024,
        file=outlet,
        ncols=outlet.columns,
        mininterval=0,
    )


class _Quiet:
    """Counts only."""

    def tell(self, event: Event, now: float) -> None:
        """Nobody reads."""

    def due(self, tally: Tally, now: float, *, last: bool) -> list[str]:
        del tally, now, last
        return []

    def write(self, lines: list[str], snapshot: Snapshot) -> None:
        """Nobody reads."""

    def close(self) -> None:
        """Nothing is open."""
