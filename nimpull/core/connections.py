"""How many connections a fetch is worth, and which of them another one would be better than."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Final, Protocol

_INTERVAL: Final = 0.4  # seconds that a rate is measured over, at least
_FIRST: Final = 0.2  # seconds of the first measurement: a limited connection is found out at once
_SETTLE: Final = 0.2  # seconds after a step that do not count: connections open, congestion windows grow
_LEAST: Final = 8 << 20  # bytes that a rate is measured over, unless they take longer than _LONGEST
_LONGEST: Final = 5.0  # seconds
_IDLE: Final = 0.5  # cores: a process that uses less waits for the network, or for the disk
_GROWTH: Final = 1.1  # a step is kept if it made the whole this much faster
_GROWTH_BUSY: Final = 1.25  # where the connections are not all that is waited for, each costs CPU and memory
_AGAIN: Final = 15.0  # seconds before what did not pay is tried again; doubles each time
_AGAIN_MOST: Final = 300.0

_WINDOW: Final = 5.0  # seconds of waiting for bytes that a speed is measured over, at least
_SIBLINGS: Final = 2  # to the same host: fewer say little about what is usual
_SHARE: Final = 5  # so many times slower than the median of its siblings
_SHARE_OF_ONE: Final = 25  # than its only sibling

_COST: Final = 0.00015  # seconds of CPU that a small file takes here; only its order of magnitude counts
SHARING: Final = 4  # so many times the requests, where they share connections
_LEAST_SMALL: Final = 4  # one is answered while the others are on their way


@dataclass(frozen=True, slots=True)
class Reading:
    """``now``: monotonic seconds; ``received``: bytes so far; ``cpu``: seconds the process used so far."""

    now: float
    received: int
    cpu: float


class ConnectionCount:
    """For large files: takes a step, looks whether the whole became faster, and goes back where it did not.

    A step doubles the connections; it goes to the most at once where the process is idle, for then each
    connection is limited somewhere else. ``idle``: whether it was, at the last step up.
    """

    def __init__(self, start: int, most: int) -> None:
        self.allowed = start
        self.idle = False
        self._most = most
        self._from = Reading(0.0, 0, 0.0)
        self._interval = _FIRST
        self._not_before = 0.0
        self._before: tuple[int, float] | None = None  # connections before the step; the rate that keeps it
        self._again = _AGAIN

    def look(self, reading: Reading, work_for_more: bool) -> bool:
        """Whether ``allowed`` changed."""
        if reading.now < self._not_before or not self._from.received:
            self._from = reading  # before the first bytes there is no rate: connections are opened
            return False
        elapsed, received = reading.now - self._from.now, reading.received - self._from.received
        if elapsed < self._interval or (received < _LEAST and elapsed < _LONGEST):
            return False
        cores = (reading.cpu - self._from.cpu) / elapsed
        self._from, self._interval = reading, _INTERVAL
        rate = received / elapsed
        before, self._before = self._before, None
        if before is not None and rate < before[1]:
            self.allowed = before[0]
            self._rest(reading.now)
            return True
        if not rate or not work_for_more or self.allowed >= self._most:
            return False
        self.idle = cores < _IDLE
        self._before = self.allowed, rate * (_GROWTH if self.idle else _GROWTH_BUSY)
        self.allowed = self._most if self.idle else min(self._most, 2 * self.allowed)
        self._not_before = reading.now + _SETTLE
        return True

    def refused(self, now: float) -> None:
        """A host asked for a pause: half the connections, and no more for a while."""
        self.allowed = max(1, self.allowed // 2)
        self._before = None
        self._rest(now)

    def _rest(self, now: float) -> None:
        self._not_before = now + self._again
        self._again = min(2 * self._again, _AGAIN_MOST)


class SmallCount:
    """For small files: as many as keep one core busy while all others wait for an answer, at most ``most``.

    Before the first answer the wait for it is what is known. All times are monotonic seconds.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._shared = False
        self._asked: float | None = None
        self._fastest: float | None = None

    def asked(self, now: float) -> None:
        """A request goes out."""
        if self._asked is None:
            self._asked = now

    def answered(self, seconds: float) -> None:
        """A file took ``seconds`` from its request to its last byte: the fastest shows the way's length."""
        if self._fastest is None or seconds < self._fastest:
            self._fastest = seconds

    def shared(self) -> None:
        """Requests share connections (HTTP/2): several times as many cost little more."""
        if not self._shared:
            self._shared = True
            self.most *= SHARING

    def refused(self, now: float) -> None:
        """A host asked for a pause: half as many at most from now on."""
        self.most = max(1, self.allowed(now) // 2)

    def allowed(self, now: float) -> int:
        if self._asked is None:
            return min(_LEAST_SMALL, self.most)
        waited = now - self._asked if self._fastest is None else self._fastest
        return min(self.most, _LEAST_SMALL + int(waited / _COST))


class Flow(Protocol):
    """A connection as it is watched."""

    @property
    def host(self) -> str: ...
    @property
    def received(self) -> int:
        """Bytes so far."""
        ...

    def waited(self, now: float) -> float:
        """Seconds so far in which it waited for bytes; those in which it was held back do not count."""
        ...


@dataclass(slots=True)
class _Watched:
    received: int
    waited: float
    window: float = _WINDOW
    speed: float | None = None


class Laggards:
    """Finds a connection that is far slower than its siblings: another one may be luckier.

    A window doubles each time that one is found: where every new connection is as slow, dropping them costs
    less and less.
    """

    def __init__(self) -> None:
        self._watched: dict[Flow, _Watched] = {}
        self._usual: dict[str, float] = {}  # bytes per second of a host's connections, as last compared

    def find(self, connections: Iterable[Flow], now: float) -> Flow | None:
        """The one to drop now. To be called every so often."""
        present = list(connections)
        for gone in self._watched.keys() - set(present):
            del self._watched[gone]
        speeds: dict[str, list[tuple[float, Flow]]] = defaultdict(list)
        for each in present:
            speed = self._speed(each, now)
            if speed is not None:
                speeds[each.host].append((speed, each))
        for host, measured in speeds.items():
            slowest, connection = min(measured, key=lambda each: each[0])
            others = [speed for speed, each in measured if each is not connection]
            share = _SHARE if len(others) >= _SIBLINGS else _SHARE_OF_ONE
            # the others may be far ahead by now, and have left: one drop by what they brought
            usual = median(others) if others else self._usual.pop(host, 0.0)
            if slowest * share < usual:
                watched = self._watched[connection]
                watched.window *= 2
                watched.speed = None
                return connection
            if usual:
                self._usual[host] = usual
        return None

    def _speed(self, connection: Flow, now: float) -> float | None:
        """Bytes per second of the last full window; None before there was one."""
        received, waited = connection.received, connection.waited(now)
        watched = self._watched.setdefault(connection, _Watched(received, waited))
        elapsed = waited - watched.waited
        if elapsed >= watched.window:
            watched.speed = (received - watched.received) / elapsed
            watched.received, watched.waited = received, waited
        return watched.speed
