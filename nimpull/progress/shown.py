"""Counts what the workers tell, and lets a thread of its own write it in the chosen mode."""

from __future__ import annotations

import math
from enum import StrEnum
from threading import Condition, Lock, Thread
from typing import Final, Self, TextIO

from nimpull.core.events import Advanced, Event, Level, level_of
from nimpull.core.ports import Clock
from nimpull.core.reported import Snapshot
from nimpull.progress.bar import Bar
from nimpull.progress.jsonl import JsonLines
from nimpull.progress.lines import Lines
from nimpull.progress.outlet import Outlet, await_writer
from nimpull.progress.sinks import Quiet, Sink
from nimpull.progress.tally import Tally

BEAT: Final = 0.25  # seconds between two looks at the clock; a bar moves at this pace


class Mode(StrEnum):
    """How a run is shown; the values of ``--progress``, beside ``auto``."""

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
            await_writer(self._thread)
            self._thread = None

    def _run(self) -> None:
        closing = False
        while not closing:
            with self._wake:
                closing = self._wake.wait_for(lambda: self._closing, BEAT)
            self.beat(last=closing)
        self._sink.close()


def _sink(mode: Mode, outlet: Outlet, clock: Clock, interval: float, *, files: bool) -> Sink:
    if mode is Mode.BAR:
        return Bar(outlet, clock.monotonic(), interval)
    if mode is Mode.LINES:
        return Lines(outlet, clock.monotonic(), interval, files=files)
    if mode is Mode.JSON:
        return JsonLines(outlet, clock, interval)
    return Quiet()
