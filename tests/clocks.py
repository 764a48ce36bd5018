"""A clock that tests move, so that none of them waits."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from nimpull.core.ports import Cancel


class StepClock:
    """Each look at ``monotonic`` moves it by ``step`` seconds; ``wait`` moves it and returns at once.

    ``waits``: the seconds of every wait, in order. Thread-safe.
    """

    def __init__(self, step: float = 0.0, *, now: float = 1_795_000_000.0, jitter: float = 0.0) -> None:
        self.step = step
        self.waits: list[float] = []
        self._now = 1000.0
        self._offset = now - self._now
        self._jitter = jitter
        self._lock = Lock()

    def monotonic(self) -> float:
        with self._lock:
            self._now += self.step
            return self._now

    def time(self) -> float:
        with self._lock:
            return self._now + self._offset

    def wait(self, seconds: float, until: Cancel) -> bool:
        with self._lock:
            self.waits.append(seconds)
            self._now += seconds
        return until.is_set()

    def jitter(self) -> float:
        return self._jitter


class HandClock:
    """Time that a test moves; ``wait`` moves it by what was asked, and runs ``meanwhile`` first."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now
        self.waits: list[float] = []
        self.meanwhile: Callable[[], None] | None = None

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def wait(self, seconds: float, until: Cancel) -> bool:
        if self.meanwhile:
            self.meanwhile()
        self.waits.append(seconds)
        self.now += seconds
        return until.is_set()

    def jitter(self) -> float:
        return 0.0
