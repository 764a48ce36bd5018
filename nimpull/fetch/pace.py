"""How many connections pay: more are added while the total rate grows."""

from __future__ import annotations

_INTERVAL = 0.5  # seconds between two looks
_GROWTH = 1.1  # a step is kept if it made the whole this much faster


class Pace:
    """Doubles the connections while that pays; goes back a step, and stays, once it does not."""

    def __init__(self, start: int, most: int, now: float) -> None:
        self.connections = start
        self._most = most
        self._looked = now
        self._received = 0
        self._rate = 0.0  # with the connections before the last step
        self._settled = start >= most

    def look(self, received: int, now: float, work_for_more: bool) -> bool:
        """``received``: bytes so far. Returns whether ``connections`` changed."""
        elapsed = now - self._looked
        if self._settled or elapsed < _INTERVAL:
            return False
        rate = (received - self._received) / elapsed
        self._looked, self._received = now, received
        if self._rate and rate < self._rate * _GROWTH:
            self._settled = True
            self.connections = max(1, self.connections // 2)
            return True
        if not rate or not work_for_more:
            return False
        self._rate = rate
        self.connections = min(self._most, self.connections * 2)
        return True
