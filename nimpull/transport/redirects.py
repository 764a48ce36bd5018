"""Where a redirect may lead."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final
from urllib.parse import urljoin, urlsplit, urlunsplit

from nimpull.core.names import Url, display
from nimpull.errors import RedirectError

MAX_REDIRECTS: Final = 10
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: Headers of a caller that say nothing about who asks; everything else stays with the origin it was for.
_NEUTRAL: Final = frozenset({"accept", "accept-encoding", "range", "user-agent"})
_AWS_METADATA_V6: Final = IPv6Address("fd00:ec2::254")
_HINT: Final = "Nothing was fetched from there. Check the registry address, or a proxy that answers for it."


@dataclass(frozen=True, slots=True)
class Hop:
    """One request of a chain. ``seen``: the URLs before it."""

    method: str
    url: Url
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    seen: tuple[str, ...] = ()


def is_redirect(status: int, headers: Mapping[str, str]) -> bool:
    return status in _REDIRECTS and bool(headers.get("location"))


def next_hop(hop: Hop, status: int, location: str) -> Hop:
    """The request that ``location`` asks for (RFC 9110, 15.4). Raises RedirectError if it must not be made.

    A cross-origin hop loses every header that is not neutral and never carries a body.
    """
    target = _resolve(hop.url, location)
    seen = (*hop.seen, hop.url.reveal())
    if target.scheme not in ("http", "https"):
        raise _refused(hop.url, target, "it leads outside of http")
    if not target.host:
        raise _refused(hop.url, target, "it names no host")
    if hop.url.scheme == "https" and target.scheme == "http":
        raise _refused(hop.url, target, "it leaves TLS")
    if target.reveal() in seen:
        raise _refused(hop.url, target, "it is a loop")
    if len(seen) > MAX_REDIRECTS:
        raise _refused(hop.url, target, f"it is the {len(seen)}th in a row")
    following = replace(hop, url=target, seen=seen)
    if status == 303 or (status in (301, 302) and hop.method == "POST"):
        method = "HEAD" if hop.method == "HEAD" else "GET"
        kept = {name: value for name, value in hop.headers.items() if name.lower() != "content-type"}
        following = replace(following, method=method, body=None, headers=kept)
    if target.origin != hop.url.origin:
        if following.body is not None:
            raise _refused(hop.url, target, "it would send the request's body to another host")
        kept = {name: value for name, value in following.headers.items() if name.lower() in _NEUTRAL}
        following = replace(following, headers=kept)
    return following


def refuse_internal(source: Url, target: Url, *, resolve: bool) -> None:
    """Raises RedirectError if ``target`` is a link-local or cloud metadata address.

    ``resolve``: look the name up too; a name that cannot be resolved is left to the connection to report.
    """
    literal = target.host
    with suppress(OSError):
        # inet_aton also reads the spellings that hide an address: 0xa9fea9fe, 2852039166, 169.254.43518
        literal = socket.inet_ntoa(socket.inet_aton(target.host))
    addresses: tuple[str, ...] = (literal,)
    if resolve:
        with suppress(OSError, UnicodeError):
            addresses += _look_up(target.host)
    if any(_is_internal(address) for address in addresses):
        raise _refused(source, target, "it is a link-local or metadata address")


@lru_cache(maxsize=256)
def _look_up(host: str) -> tuple[str, ...]:
    """Kept, because every file of a model is redirected to the same few hosts. Failures are not."""
    return tuple(str(entry[4][0]) for entry in socket.getaddrinfo(host, None))


def _is_internal(text: str) -> bool:
    try:
        address: IPv4Address | IPv6Address = ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_link_local or address == _AWS_METADATA_V6


def _resolve(base: Url, location: str) -> Url:
    try:
        parts = urlsplit(urljoin(base.reveal(), location.strip()))
    except ValueError as error:
        raise RedirectError(f"{base} redirects to an unreadable address", hint=_HINT) from error
    # user info in a Location would become an Authorization header that nobody asked for
    return Url(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")))


def _refused(source: Url, target: Url, reason: str) -> RedirectError:
    return RedirectError(f"{source} redirects to {display(target)}: refused, {reason}", hint=_HINT)
