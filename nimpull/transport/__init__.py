"""The only opener of sockets: registries' small answers (``api``), and the bytes of files (``loop``).

TLS trust, proxies, per-origin credentials, redirects, timeouts and the low-speed limit are all decided
here, from one :class:`TransportPolicy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nimpull.core.policy import TransportPolicy
from nimpull.transport.network import Network

if TYPE_CHECKING:
    from nimpull.transport.api import HttpApi

__all__ = ["HttpApi", "Network", "TransportPolicy"]


def __getattr__(name: str) -> Any:
    """requests takes 0.1 s of CPU to import: who only brings bytes does without."""
    if name == "HttpApi":
        from nimpull.transport.api import HttpApi

        return HttpApi
    raise AttributeError(name)
