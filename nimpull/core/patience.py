"""When to ask again: what a host asks for, and how long work goes on without progress."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

MAX_PAUSE: Final = 300.0  # seconds; a server may ask for 10^9, or for a date in another century
DEFAULT_PAUSE: Final = 5.0  # after a 429 that does not say
#: Statuses that another attempt may not meet (RFC 9110, 15.5 and 15.6; RFC 8470; RFC 6585).
BUSY: Final = frozenset({408, 421, 425, 429, 500, 502, 503, 504})
#: Bytes. After as many the host is well: only a connection ended, and the next need not wait.
_MANY: Final = 1 << 20
_INSTANT: Final = 0.001  # seconds: what rounding leaves of a budget is none
_SECONDS: Final = re.compile(r"(-?)(\d+)")
_RATE_LIMIT_RESET: Final = re.compile(r"(?:^|[;,\s])(?:t|reset)\s*=\s*(\d{1,10})(?:$|[;,\s])")


def asked_pause(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the server asks to wait, in [0, MAX_PAUSE]; None where it does not say.

    Retry-After as seconds or a date (RFC 9110, 10.2.3), else the reset time of ``RateLimit``
    (draft-ietf-httpapi-ratelimit-headers, as the Hub sends it). ``headers`` have lower-case names; ``now``:
    seconds since the epoch.
    """
    text = headers.get("retry-after", "").strip()
    seconds: float | None = None
    if found := _SECONDS.fullmatch(text):
        # a number may have more digits than Python converts
        seconds = 0.0 if found[1] else float(found[2]) if len(found[2]) <= 12 else MAX_PAUSE
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


def backoff(failures: int, jitter: float, patience: float = math.inf) -> float:
    """Seconds before the next attempt: 1, 2, 4 … 60, between half and all of it by ``jitter`` in [0, 1).

    ``patience``: seconds after which the cause is given up; never more than an eighth of it at once.
    """
    ceiling: float = min(60.0, patience / 8, 2.0 ** min(max(failures - 1, 0), 16))
    return ceiling * (0.5 + jitter / 2)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one piece of work goes on without progress: seconds count, attempts do not.

    ``budget``: seconds; ``since``: the ``monotonic`` time of the last progress, or of the beginning.
    """

    budget: float
    since: float
    failures: int = 0

    @property
    def ends(self) -> float:
        """The ``monotonic`` time of the last attempt."""
        return self.since + self.budget

    def progressed(self, now: float) -> Patience:
        return Patience(self.budget, now)

    def failed(
        self, now: float, jitter: float, *, patience: float = math.inf, asked: float = 0.0, brought: int = 0
    ) -> tuple[Patience, float | None]:
        """An attempt failed at ``now``: what is left, and the seconds to wait; None = give up.

        ``patience``: of the cause, in seconds (``TransferError.patience``); ``asked``: what the host asks to
        wait; ``brought``: bytes that this attempt added to what is there. A pause that would outlast the
        budget, ours or the host's, is cut to its end, where one last attempt is made.
        """
        if brought > 0:
            self = self.progressed(now)  # noqa: PLW0642 - the same work, seen after its progress
        after = replace(self, failures=self.failures + 1)
        left = min(self.budget, patience) - (now - self.since)
        if left < _INSTANT:
            return after, None
        pause = 0.0 if brought >= _MANY else backoff(after.failures, jitter, patience)
        return after, min(max(asked, pause), left)
