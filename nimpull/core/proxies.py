"""Which proxy a URL goes through, if any."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Self
from urllib.parse import urlsplit

from nimpull.core.names import Url, display
from nimpull.errors import UsageError

#: ``socks5h`` and ``socks4a`` leave names to the proxy to resolve, ``socks5`` and ``socks4`` do not.
SCHEMES: Final = ("http", "https", "socks5", "socks5h", "socks4", "socks4a")
_Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Exemption:
    """One entry of NO_PROXY: a network, or a name that covers its subdomains too; ``port`` None = any."""

    name: str
    network: IPv4Network | IPv6Network | None
    port: int | None

    @classmethod
    def parse(cls, entry: str) -> Self:
        text, port = entry.lower(), None
        match = re.fullmatch(r"(\[[^\]]+\]|[^:]+):(\d{1,5})", text)
        if match:
            text, port = match[1], int(match[2])
        text = text.strip("[]")
        try:
            return cls("", ip_network(text, strict=False), port)
        except ValueError:
            return cls(text if text == "*" else text.removeprefix("*").strip("."), None, port)

    def covers(self, host: str, address: _Address | None, port: int) -> bool:
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            return address is not None and address in self.network
        return self.name in ("*", host) or host.endswith("." + self.name)


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies of this network, by the scheme of what is asked for, and what is reached without one.

    They may hold a password: ``repr`` does not show it.
    """

    http: Url | None = None
    https: Url | None = None
    exemptions: tuple[Exemption, ...] = ()

    @classmethod
    def parse(cls, *, http: str = "", https: str = "", everything: str = "", no_proxy: str = "") -> Self:
        """Of the variables' texts, ``everything`` being ALL_PROXY: used where the scheme has none of its own.

        Raises UsageError, which names the variable, for what cannot be a proxy's address.
        """
        rest = _proxy("ALL_PROXY", everything)
        return cls(
            _proxy("HTTP_PROXY", http) or rest,
            _proxy("HTTPS_PROXY", https) or rest,
            tuple(Exemption.parse(entry) for entry in re.split(r"[,\s]+", no_proxy) if entry),
        )

    def proxy_for(self, url: Url) -> Url | None:
        """Chosen by scheme, then by NO_PROXY as curl and Go read it.

        ``example.com``, ``.example.com`` and ``*.example.com`` all cover the domain and what is below it;
        CIDR blocks cover literal addresses only (no look-up); ``[v6]:port`` and ``host:port`` bind to a
        port; ``*`` covers all.
        """
        # By the scheme of what is asked for; that of the proxy itself says how it is spoken to.
        proxy = self.http if url.scheme == "http" else self.https
        if proxy is None:
            return None
        _, host, port = url.origin
        # An absolute name, "example.com.", is the same host.
        host = host.rstrip(".")
        try:
            address: _Address | None = ip_address(host)
        except ValueError:
            address = None
        if any(entry.covers(host, address, port) for entry in self.exemptions):
            return None
        return proxy


NO_PROXIES: Final = Proxies()


def _proxy(variable: str, text: str) -> Url | None:
    text = text.strip()
    if not text:
        return None
    address = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(address)
        usable = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        userinfo, at, shown = text.rpartition("@")
        raise UsageError(
            f"{variable} is no address of a proxy: “{'…' * bool(userinfo)}{at}{display(shown, 200)}”",
            hint=f"Set {variable} (NIMCache: spec.proxy) to http://host:port; known are "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}.",
        )
    return Url(address)
