"""The only opener of sockets: registries' small answers (``api``), and the bytes of files (``loop``).

TLS trust, proxies, per-origin credentials, redirects, timeouts and the low-speed limit are all decided
here, from one :class:`TransportPolicy`.
"""

from nimpull.core.policy import TransportPolicy
from nimpull.transport.api import HttpApi
from nimpull.transport.network import Network

__all__ = ["HttpApi", "Network", "TransportPolicy"]
