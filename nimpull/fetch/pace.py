"""How many connections pay: more are added while the total rate grows."""

from __future__ import annotations

from dataclasses import dataclass

_INTERVAL = 0.4  # seconds that a rate is measured over, at least
_FIRST = 0.2  # seconds of the first measurement: a limited connection is found out at once
_SETTLE = 0.2  # seconds after a step that do not count: connections open, congestion windows grow
_LEAST = 8 << 20  # bytes that a rate is measured over, unless they take longer than _LONGEST
_LONGEST = 5.0  # seconds
_IDLE = 0.5  # cores: a process that uses less waits for the network, or for the disk
_GROWTH = 1.1  # a step is kept if it made the whole this much faster
_GROWTH_BUSY = 1.25  # where the connections are not all that is waited for, each costs CPU and memory
_AGAIN = 15.0  # seconds before what did not pay is tried again; doubles each time
_AGAIN_MOST = 300.0


@dataclass(frozen=True, slots=True)
class Reading:
    """``now``: monotonic seconds; ``received``: bytes so far; ``cpu``: seconds the process used so far."""

    now: float
    received: int
    cpu: float


class Pace:
    """Takes a step, looks whether the whole became faster, and goes back where it did not.

    A step doubles the connections; it goes to the most at once where the process is idle, for then each
    connection is limited somewhere else. ``idle``: whether it was, at the last step up.
    """

    def __init__(self, start: int, most: int, reading: Reading) -> None:
        self.connections = start
        self.idle = False
        self._most = most
        self._from = reading
        self._interval = _FIRST
        self._not_before = reading.now
        self._before: tuple[int, float] | None = None  # connections before the step; the rate that keeps it
        self._again = _AGAIN

    def look(self, reading: Reading, work_for_more: bool) -> bool:
        """Whether ``connections`` changed."""
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
            self.connections = before[0]
            self._not_before = reading.now + self._again
            self._again = min(2 * self._again, _AGAIN_MOST)
            return True
        if not rate or not work_for_more or self.connections >= self._most:
            return False
        self.idle = cores < _IDLE
        self._before = self.connections, rate * (_GROWTH if self.idle else _GROWTH_BUSY)
        self.connections = self._most if self.idle else min(self._most, 2 * self.connections)
        self._not_before = reading.now + _SETTLE
        return True

    def refused(self, reading: Reading) -> None:
        """A host asked for a pause: half the connections, and no more for a while."""
        self.connections = max(1, self.connections // 2)
        self._before = None
        self._not_before = reading.now + self._again
        self._again = min(2 * self._again, _AGAIN_MOST)
