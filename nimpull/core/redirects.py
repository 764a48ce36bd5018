"""Where a server may send us: the hops of a redirect, and every location that a source was told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urljoin, urlsplit, urlunsplit

from nimpull.core.link_local import names_internal
from nimpull.core.names import Url, display
from nimpull.errors import RedirectError

MAX_REDIRECTS: Final = 10
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: Headers of a caller that say nothing about who asks; everything else stays with the origin it was for.
_NEUTRAL: Final = frozenset({"accept", "accept-encoding", "range", "user-agent"})
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
    target = resolve(hop.url, location)
    seen = (*hop.seen, hop.url.reveal())
    if target.reveal() in seen:
        raise _refused(target, hop.url, "it is a loop")
    if len(seen) > MAX_REDIRECTS:
        raise _refused(target, hop.url, f"it is the {len(seen)}th in a row")
    following = replace(hop, url=target, seen=seen)
    # What browsers do, and RFC 9110 allows; 307 and 308 keep the method.
    if status == 303 or (status in (301, 302) and hop.method == "POST"):
        method = "HEAD" if hop.method == "HEAD" else "GET"
        kept = {name: value for name, value in hop.headers.items() if name.lower() != "content-type"}
        following = replace(following, method=method, body=None, headers=kept)
    # The header's name does not say what is secret in it: X-Api-Key is one that libraries send along.
    if target.origin != hop.url.origin:
        if following.body is not None:
            raise _refused(target, hop.url, "it would send the request's body to another host")
        kept = {name: value for name, value in following.headers.items() if name.lower() in _NEUTRAL}
        following = replace(following, headers=kept)
    return following


def resolve(base: Url, location: str) -> Url:
    """``location`` as ``base`` answered with it (a redirect, a next page, a presigned URL), checked.

    Raises RedirectError for one that must not be asked: see :func:`check_location`.
    """
    try:
        parts = urlsplit(urljoin(base.reveal(), location.strip()))
    except ValueError as error:
        raise RedirectError(f"{base} redirects to an unreadable address", hint=_HINT) from error
    # user info in a Location would become an unwanted Authorization header
    target = Url(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")))
    check_location(target, base)
    return target


def check_location(target: Url, source: Url | None = None) -> None:
    """Raises RedirectError for what is not http(s), leaves TLS, or names a link-local or metadata address.

    ``source``: who named ``target``; None where a person did. Names are not looked up: the connection asks
    :func:`nimpull.core.link_local.is_internal` about the address that the name turned out to have.
    """
    if target.scheme not in ("http", "https"):
        raise _refused(target, source, "it leads outside of http")
    if not target.host:
        raise _refused(target, source, "it names no host")
    if source is not None and source.scheme == "https" and target.scheme == "http":
        raise _refused(target, source, "it leaves TLS")
    if names_internal(target.host):
        raise internal(target, source)


def internal(target: Url, source: Url | None = None) -> RedirectError:
    """For a target whose name, or the address that was found for it, is not a registry's."""
    return _refused(target, source, "it is a link-local or metadata address")


def _refused(target: Url, source: Url | None, reason: str) -> RedirectError:
    whence = f"{source} leads to " if source is not None else ""
    return RedirectError(f"{whence}{display(target)}: refused, {reason}", hint=_HINT)
