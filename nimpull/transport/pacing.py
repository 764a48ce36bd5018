"""When a host may be asked again: Retry-After, RateLimit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import Final

from nimpull.core.ports import Cancel, Clock

MAX_PAUSE: Final = 300.0  # seconds; a server may ask for 10^9, or for a date in another century
DEFAULT_PAUSE: Final = 5.0  # after a 429 that does not say
_RATE_LIMIT_RESET: Final = re.compile(r"(?:^|[;,\s])(?:t|reset)\s*=\s*(\d{1,10})(?:$|[;,\s])")


def asked_pause(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the server asks to wait, in [0, MAX_PAUSE]; None where it does not say.

    Retry-After as seconds or a date (RFC 9110, 10.2.3), else the reset time of ``RateLimit``
    (draft-ietf-httpapi-ratelimit-headers, as the Hub sends it). ``now``: seconds since the epoch.
    """
    text = headers.get("retry-after", "").strip()
    seconds: float | None = None
    if re.fullmatch(r"-?\d{1,12}", text):
        seconds = float(text)
    elif re.fullmatch(r"-?\d+", text):
        seconds = 0.0 if text.startswith("-") else MAX_PAUSE
    elif text:
        seconds = _until(text, now)
    if seconds is None:
        reset = _RATE_LIMIT_RESET.search(headers.get("ratelimit", ""))
        seconds = float(reset[1]) if reset else None
    return None if seconds is None else min(max(seconds, 0.0), MAX_PAUSE)


def _until(text: str, now: float) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now


class Pauses:
    """Hosts that asked for a rest: every worker keeps it. Safe to share between threads."""

    def __init__(self, clock: Clock, cancel: Cancel) -> None:
        self._clock = clock
        self._cancel = cancel
        self._until: dict[str, float] = {}
        self._lock = Lock()

    def begin(self, host: str, seconds: float) -> None:
        with self._lock:
            self._until[host] = max(self._until.get(host, 0.0), self._clock.monotonic() + seconds)

    def left(self, host: str) -> float:
        """Seconds until ``host`` may be asked again."""
        with self._lock:
            return max(0.0, self._until.get(host, 0.0) - self._clock.monotonic())

    def keep(self, host: str) -> None:
        """Return once ``host`` may be asked, or the run is cancelled."""
        if host not in self._until:
            return
        while (seconds := self.left(host)) > 0:
            if self._clock.wait(seconds, self._cancel):
                return
