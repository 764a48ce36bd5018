"""What registry answers and the bytes of one run share, so that each rule is applied once."""

from __future__ import annotations

from nimpull.core.names import Url
from nimpull.core.ports import Clock
from nimpull.transport.pauses import Pauses
from nimpull.transport.policy import TransportPolicy
from nimpull.transport.trust import authorities


class Network:
    """The policy with what comes of it: the CAs that are believed, and the hosts that asked for a rest."""

    def __init__(self, policy: TransportPolicy, clock: Clock) -> None:
        """Raises TlsError if a CA bundle cannot be read."""
        self.policy = policy
        self.authorities = authorities(policy.ca_files, policy.ca_directories)
        self.pauses = Pauses(clock)
        #: Hosts that were connected to: their names are right, whatever DNS says later.
        self.reached: set[str] = set()

    def proxy_for(self, url: Url) -> Url | None:
        return self.policy.proxies.proxy_for(url)
