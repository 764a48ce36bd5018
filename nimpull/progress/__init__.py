"""Shows a run while it happens: a bar on a terminal, a line per interval in a pod's log, or JSON lines.

Workers call :class:`Progress` once per block written; that call only counts. A thread of its own writes, so
that a slow reader of the log, or one that went away, never holds up the download.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from enum import StrEnum
from threading import Event as ThreadEvent
from threading import Lock, Thread
from typing import Final, Self, TextIO

from nimpull.core.events import Advanced, Event, Level, Spent, Waiting, level_of
from nimpull.core.ports import Clock
from nimpull.core.report.contents import ProgressSummary, Timeline
from nimpull.progress.meter import ProgressMeter
from nimpull.progress.recorder import TimelineRecorder
from nimpull.progress.stream import TextStream, await_writer
from nimpull.progress.views import Bar, JsonLines, LogLines, Update

BEAT: Final = 0.25  # seconds between two looks at the clock; a bar moves at this pace
MOST_UNSHOWN: Final = 2000  # events kept for a reader that is slow; the oldest are dropped and counted


class Mode(StrEnum):
    """How a run is shown; the values of ``--progress``, beside ``auto``."""

    BAR = "bar"
    LINES = "lines"
    JSON = "json"
    QUIET = "quiet"


_VIEWS: Final = {Mode.BAR: Bar, Mode.LINES: LogLines, Mode.JSON: JsonLines}


def choose_mode(stream: TextIO, *, dumb: bool = False) -> Mode:
    """A bar where someone watches; lines for a log, or a terminal that is ``dumb``: it moves no cursor."""
    try:
        return Mode.BAR if stream.isatty() and not dumb else Mode.LINES
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
        self._interval = interval if level <= Level.INFO else math.inf
        self._meter = ProgressMeter(clock.monotonic())
        self._recorder = TimelineRecorder(clock.monotonic())
        self._next = clock.monotonic() + self._interval
        self._unshown: deque[tuple[float, Event]] = deque(maxlen=MOST_UNSHOWN)
        self._told = 0
        self._pauses: dict[str, float] = {}
        self._lock = Lock()  # of the counters: writing, which may be slow, is done without it
        self._closing = ThreadEvent()
        self._thread: Thread | None = None
        # At DEBUG lines come too often below a bar; above INFO there is nothing to draw.
        mode = Mode.LINES if mode is Mode.BAR and level is not Level.INFO else mode
        self._view = (
            None if mode is Mode.QUIET else _VIEWS[mode](TextStream(stream), files=level <= Level.DEBUG)
        )

    def __call__(self, event: Event) -> None:
        now = self._clock.monotonic()
        with self._lock:
            self._meter.count(event, now)
            self._recorder.count(event, now)
            if not self._view or isinstance(event, Advanced | Spent) or level_of(event) < self._level:
                return
            if not (isinstance(event, Waiting) and self._is_repeated(event.reason, now)):
                self._unshown.append((self._clock.time(), event))
                self._told += 1

    def _is_repeated(self, reason: str, now: float) -> bool:
        """Equal pauses of many connections are told once per interval."""
        if now - self._pauses.get(reason, -math.inf) < self._interval:
            return True
        self._pauses = {each: at for each, at in self._pauses.items() if now - at < self._interval}
        self._pauses[reason] = now
        return False

    def summary(self) -> ProgressSummary:
        with self._lock:
            return self._meter.summary(self._clock.monotonic())

    def timeline(self) -> Timeline:
        with self._lock:
            return self._recorder.timeline(self._clock.monotonic())

    def beat(self, *, last: bool = False) -> None:
        """Write what is new. One thread at a time: the writing thread, or a test."""
        now = self._clock.monotonic()
        with self._lock:
            events, told, progress = tuple(self._unshown), self._told, self._meter.summary(now)
            self._unshown.clear()
            self._told = 0
        due = now >= self._next
        if due:
            self._next = now + self._interval
        if self._view:
            time, last = self._clock.time(), last and self._level <= Level.INFO
            self._view.show(Update(events, told - len(events), progress, time, due, last))

    def __enter__(self) -> Self:
        thread = Thread(target=self._run, name="nimpull-progress", daemon=True)
        with suppress(RuntimeError):  # no thread is left (pids.max): the last words are written all the same
            thread.start()
            self._thread = thread
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the rest and stop. Leaves a reader that does not read behind after two seconds."""
        self._closing.set()
        if self._thread is None:
            self._end()
        else:
            await_writer(self._thread)
            self._thread = None

    def _run(self) -> None:
        self.beat()
        while not self._closing.wait(BEAT):
            self.beat()
        self._end()

    def _end(self) -> None:
        self.beat(last=True)
        if self._view:
            self._view.close()
