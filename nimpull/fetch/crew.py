"""How many connections small files are worth."""

from __future__ import annotations

_COST = 0.0003  # seconds of CPU that a small file takes here; only its order of magnitude counts
_LEAST = 2  # one waits for the network, or the disk, while the other computes


class Crew:
    """As many workers as keep one core busy while all others wait for an answer, at most ``most``.

    Before the first answer the wait for it is what is known. All times are monotonic seconds.
    """

    def __init__(self, most: int) -> None:
        self._most = most
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

    def refused(self, now: float) -> None:
        """A host asked for a pause: half as many at most from now on."""
        self._most = max(1, self.size(now) // 2)

    def size(self, now: float) -> int:
        if self._asked is None:
            return min(_LEAST, self._most)
        waited = now - self._asked if self._fastest is None else self._fastest
        return min(self._most, _LEAST + int(waited / _COST))

    @property
    def settled(self) -> bool:
        """Whether ``size`` does not grow with time alone."""
        return self._fastest is not None
