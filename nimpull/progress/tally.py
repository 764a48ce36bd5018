"""How far a run is: bytes, files, rate and time left, counted from events."""

from __future__ import annotations

from collections import deque
from typing import Final

from nimpull.core.artifacts import Action
from nimpull.core.events import Advanced, Event, Finished, Phase, Planned
from nimpull.core.reported import Snapshot

RATE_WINDOW: Final = 30.0  # seconds; as long as a low-speed limit looks back, so that a stall shows as 0
SAMPLE_SPACING: Final = 0.5  # seconds between two samples of the window
_PRESENT: Final = (Action.SKIPPED, Action.LINKED)  # counted by the plan already


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
