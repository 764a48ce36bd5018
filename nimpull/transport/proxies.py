"""Which proxy a URL goes through, if any."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from nimpull.core.names import Url
from nimpull.errors import ProxyError
from nimpull.transport.policy import TransportPolicy

_Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class _Exemption:
    """One entry of NO_PROXY: a network, or a name that covers its subdomains too; ``port`` None = any."""

    name: str
    network: IPv4Network | IPv6Network | None
    port: int | None

    def covers(self, host: str, address: _Address | None, port: int) -> bool:
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            return address is not None and address in self.network
        return self.name in ("*", host) or host.endswith("." + self.name)


class Proxies:
    """Chooses by scheme, then by NO_PROXY as curl and Go read it.

    ``example.com``, ``.example.com`` and ``*.example.com`` all cover the domain and what is below it; CIDR
    blocks cover literal addresses only (no look-up); ``[v6]:port`` and ``host:port`` bind to a port;
    ``*`` covers all.
    """

    def __init__(self, policy: TransportPolicy) -> None:
        """Raises ProxyError for an address that cannot be one."""
        self._by_scheme = {
            "http": _with_scheme(policy.http_proxy),
            "https": _with_scheme(policy.https_proxy),
        }
        entries = re.split(r"[,\s]+", policy.no_proxy)
        self._exemptions = tuple(_exemption(entry) for entry in entries if entry)

    def choose(self, url: Url) -> Url | None:
        proxy = self._by_scheme.get(url.scheme)
        if proxy is None:
            return None
        _, host, port = url.origin
        host = host.rstrip(".")
        address = _address(host)
        if any(entry.covers(host, address, port) for entry in self._exemptions):
            return None
        return proxy


def is_http(url: Url) -> bool:
    """Whether ``url`` can be read as an http or https address with a host and a valid port."""
    try:
        parts = urlsplit(url.reveal())
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _with_scheme(address: str) -> Url | None:
    text = address.strip()
    if not text:
        return None
    proxy = Url(text if "://" in text else f"http://{text}")
    if not is_http(proxy):
        raise ProxyError(
            f"{proxy} cannot be used as a proxy",
            hint="HTTPS_PROXY and HTTP_PROXY (proxy in the NIMCache) take http://host:port or https://host:port.",
        )
    return proxy


def _address(host: str) -> _Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _exemption(entry: str) -> _Exemption:
    text, port = entry.lower(), None
    match = re.fullmatch(r"(\[[^\]]+\]|[^:]+):(\d{1,5})", text)
    if match:
        text, port = match[1], int(match[2])
    text = text.strip("[]")
    try:
        return _Exemption("", ip_network(text, strict=False), port)
    except ValueError:
        name = text if text == "*" else text.removeprefix("*").strip(".")
        return _Exemption(name, None, port)
