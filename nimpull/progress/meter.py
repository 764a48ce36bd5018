"""How far a run is: bytes, files, rate and time left, counted from events."""

from __future__ import annotations

from collections import deque
from typing import Final

from nimpull.core.artifacts import Action
from nimpull.core.events import Advanced, Event, Finished, Phase, Planned
from nimpull.core.report.contents import ProgressSummary

RATE_WINDOW: Final = 30.0  # seconds; as long as a low-speed limit looks back, so that a stall shows as 0
SAMPLE_SPACING: Final = 0.5  # seconds between two samples of the window
_PRESENT: Final = (Action.SKIPPED, Action.LINKED)  # counted by the plan already


class ProgressMeter:
    """Counts events; not safe for threads by itself. ``now``: seconds of one monotonic clock."""

    def __init__(self, now: float) -> None:
        self._phase = ""
        self._done = 0
        self._total: int | None = None
        self._files = 0
        self._files_total: int | None = None
        self._last_byte = now
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def count(self, event: Event, now: float) -> None:
        match event:
            case Advanced(count):
                self._done = max(0, self._done + count)
                self._last_byte = now
                if now - self._samples[-1][0] >= SAMPLE_SPACING:
                    self._samples.append((now, self._done))
                    self._forget(now)
            case Finished(outcome):
                if outcome.action not in _PRESENT:
                    self._files += 1
            # The rate is of this fetch alone: what was there already came in no time.
            case Planned(files, total, present, files_present):
                self._files_total, self._files = files, files_present
                self._total, self._done = total, present
                self._last_byte = now
                self._samples = deque([(now, present)])
            case Phase(name):
                self._phase = name
                self._last_byte = now

    def summary(self, now: float) -> ProgressSummary:
        self._forget(now)
        began, had = self._samples[0]
        span = now - began
        rate = max(0.0, (self._done - had) / span) if span > 0 else 0.0
        missing = 0 if self._total is None else max(0, self._total - self._done)
        return ProgressSummary(
            self._phase,
            self._done,
            self._total,
            rate,
            missing / rate if self._total is not None and rate > 0 else None,
            self._files,
            self._files_total,
            now - self._last_byte if missing else 0.0,
        )

    def _forget(self, now: float) -> None:
        """Keep one sample at or before the window's begin, so that the rate spans the whole window."""
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now - RATE_WINDOW:
            samples.popleft()
        if now - samples[-1][0] > RATE_WINDOW:  # nothing came for a whole window
            samples.clear()
            samples.append((now - RATE_WINDOW, self._done))
