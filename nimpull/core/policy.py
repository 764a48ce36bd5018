"""What the network of this cluster asks for, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from nimpull.core.proxies import NO_PROXIES, Proxies


@dataclass(frozen=True, slots=True)
class TransportPolicy:
    """How to reach the registries from here.

    ``ca_files``: PEM bundles, or directories of them, trusted beside the system store; ``ca_directories``:
    the same, where one that is missing is no error. Times are in seconds; ``low_speed_bytes`` is bytes per
    second, averaged over ``low_speed_seconds``. ``retry_budget``: how long one API request may go without an
    answer. ``connections``: kept open per host.
    """

    ca_files: tuple[str, ...] = ()
    ca_directories: tuple[str, ...] = ()
    proxies: Proxies = NO_PROXIES
    connect_timeout: float = 15.0
    read_timeout: float = 60.0
    low_speed_bytes: int = 64 << 10
    low_speed_seconds: float = 30.0
    retry_budget: float = 600.0
    connections: int = 64
    user_agent: str = "nimpull"
