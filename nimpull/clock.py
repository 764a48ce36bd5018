"""The real clock; tests pass one that does not wait."""

from __future__ import annotations

import random
import time

from nimpull.core.ports import Cancel


class SystemClock:
    """Implements :class:`nimpull.core.ports.Clock`."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    def wait(self, seconds: float, until: Cancel) -> bool:
        return until.wait(max(0.0, seconds))

    def jitter(self) -> float:
        return random.random()  # noqa: S311 - spreads retries, guards nothing
