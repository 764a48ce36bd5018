"""What registry answers and the bytes of one run share, so that each rule is applied once."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

from nimpull.core.names import Url
from nimpull.core.patience import DEFAULT_PAUSE, asked_pause
from nimpull.core.policy import TransportPolicy
from nimpull.core.ports import Clock
from nimpull.transport.trust import authorities


class Network:
    """The policy with what comes of it: the CAs that are believed, and the hosts that asked for a rest."""

    def __init__(self, policy: TransportPolicy, clock: Clock) -> None:
        """Raises TlsError if a CA bundle cannot be read."""
        self.policy = policy
        self.authorities = authorities(policy.ca_files, policy.ca_directories)
        self.pauses = HostPauses(clock)
        #: Hosts that were connected to: their names are right, whatever DNS says later.
        self.reached: set[str] = set()

    def proxy_for(self, url: Url) -> Url | None:
        return self.policy.proxies.proxy_for(url)


class HostPauses:
    """When each host that asked for a rest may be asked again. Thread-safe; it never waits itself."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._lock = Lock()

    def note(self, host: str, status: int, headers: Mapping[str, str]) -> None:
        """``host`` answered ``status``: its pause begins, where it asks for one or limits the rate (429)."""
        seconds = asked_pause(headers, self._clock.time())
        if seconds is None and status == 429:
            seconds = DEFAULT_PAUSE
        if seconds:
            # the rest is spread, or all that waits would come back in the same instant
            until = self._clock.monotonic() + seconds * (1 + self._clock.jitter() / 10)
            with self._lock:
                self._until[host] = max(self._until.get(host, 0.0), until)

    def cut(self, host: str, seconds: float) -> None:
        """See ``core.ports.Pauses``."""
        with self._lock:
            self._until[host] = min(self._until.get(host, 0.0), self._clock.monotonic() + seconds)

    def left(self, host: str) -> float:
        """Seconds until ``host`` may be asked again."""
        until = self._until.get(host)
        return 0.0 if until is None else max(0.0, until - self._clock.monotonic())
