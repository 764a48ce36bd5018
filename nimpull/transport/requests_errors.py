"""What requests and urllib3 raise for an exchange that failed, in our words."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Final

import requests
import urllib3

from nimpull.core.names import Url, display
from nimpull.core.network_failures import (
    NAME_PATIENCE,
    ProxyRefusedError,
    no_tls,
    proxy_refused,
    proxy_unreachable,
    unreachable,
    untrusted,
    unusable,
)
from nimpull.errors import NetworkError, ProxyError, TlsError, TransferError

#: What requests, urllib3, http.client and the socket raise when an exchange fails.
WIRE_ERRORS: Final = (
    urllib3.exceptions.HTTPError,
    requests.exceptions.RequestException,
    http.client.HTTPException,
    OSError,
)
_TUNNEL: Final = re.compile(r"Tunnel connection failed: (\d{3})")
#: getaddrinfo(3): the name does not exist, or has no address. EAI_AGAIN is a resolver that does not answer.
_NO_SUCH_NAME: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
#: Heads that would be no better the next time.
_MALFORMED: Final = (urllib3.exceptions.InvalidHeader, http.client.LineTooLong)
_UNANSWERED: Final = (
    http.client.BadStatusLine,  # RemoteDisconnected is one
    ConnectionResetError,
    BrokenPipeError,
)
#: The first kind that is found anywhere in the chain names the failure.
_REASONS: Final[tuple[tuple[tuple[type[BaseException], ...], str], ...]] = (
    ((socket.gaierror, urllib3.exceptions.NameResolutionError), "the name cannot be resolved (DNS)"),
    ((ConnectionRefusedError,), "the connection was refused"),
    ((urllib3.exceptions.ConnectTimeoutError,), "no connection within the connect timeout"),
    ((TimeoutError, urllib3.exceptions.ReadTimeoutError), "it stalled: nothing came within the read timeout"),
    ((http.client.RemoteDisconnected,), "the connection was closed before any answer"),
    ((ConnectionResetError, BrokenPipeError), "the connection was reset"),
    ((http.client.BadStatusLine,), "what it answers is not HTTP"),
    ((http.client.IncompleteRead,), "the connection closed early, or broke its framing"),
)


def explain(error: BaseException, url: Url, proxy: Url | None) -> TransferError:
    """The failure of a request to ``url`` through ``proxy``, named; secrets in either are not shown."""
    chain = tuple(_chain(error))
    failure = (
        (_proxy_failure(chain, url, proxy) if proxy is not None else None)
        or _tls_failure(chain, url)
        or _network_failure(chain, url, proxy)
    )
    if _names_nothing(chain):
        failure.patience = NAME_PATIENCE
    return failure


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it wraps: causes, and the exceptions urllib3 keeps in its arguments."""
    pending, seen = [error], set()
    while pending:
        part = pending.pop(0)
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        inner = (part.__cause__, part.__context__, getattr(part, "original_error", None), *part.args)
        pending += [item for item in inner if isinstance(item, BaseException)]


def _proxy_failure(chain: tuple[BaseException, ...], url: Url, proxy: Url) -> TransferError | None:
    if proxy.scheme.startswith("socks"):
        return _socks_failure(chain, url, proxy)
    if not any(isinstance(part, urllib3.exceptions.ProxyError) for part in chain):
        return None
    for part in chain:
        tunnel = _TUNNEL.search(str(part))
        if tunnel:
            return proxy_refused(int(tunnel[1]), url, proxy)
    return _tls_failure(chain, proxy) or proxy_unreachable(url, proxy, _reason(chain))


def _socks_failure(chain: tuple[BaseException, ...], url: Url, proxy: Url) -> ProxyError | None:
    import socks

    for part in chain:
        if isinstance(part, socks.SOCKS5AuthError):
            return ProxyRefusedError(
                f"the proxy {proxy} wants other credentials for {url.authority}",
                hint="Check user and password in ALL_PROXY or HTTPS_PROXY.",
            )
        if isinstance(part, socks.SOCKS5Error | socks.SOCKS4Error):  # what it answers, as RFC 1928 numbers it
            return ProxyError(
                f"the proxy {proxy} cannot connect to {url.authority}: {display(part.msg, 120)}",
                hint="Check the address, and whether the host is allowed there, or name it in NO_PROXY.",
            )
        if isinstance(part, socks.GeneralProxyError) and not part.socket_err:  # it answers as no such proxy
            return proxy_unreachable(url, proxy, display(part.msg, 120))
    # urllib3 connects to such a proxy only: what came of it is the proxy's
    unconnected = any(isinstance(part, urllib3.exceptions.ConnectTimeoutError) for part in chain)
    return proxy_unreachable(url, proxy, _reason(chain)) if unconnected else None


def _tls_failure(chain: tuple[BaseException, ...], url: Url) -> TlsError | None:
    for part in chain:
        if isinstance(part, ssl.SSLCertVerificationError):
            return untrusted(url, part.verify_code, part.verify_message)
    for part in chain:
        if isinstance(part, ssl.SSLError) and not isinstance(
            part, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLWantReadError
        ):
            return no_tls(url, part.reason or part)
    return None


def _network_failure(chain: tuple[BaseException, ...], url: Url, proxy: Url | None) -> NetworkError:
    for part in chain:
        if isinstance(part, _MALFORMED) or str(part).startswith("got more than"):  # http.client's 100 lines
            return unusable(url, "its answer has a head that is malformed or too large")
    unanswered = any(isinstance(part, _UNANSWERED) for part in chain)
    return unreachable(url, proxy, _reason(chain), unanswered=unanswered)


def _names_nothing(chain: tuple[BaseException, ...]) -> bool:
    return any(isinstance(part, socket.gaierror) and part.errno in _NO_SUCH_NAME for part in chain)


def _reason(chain: tuple[BaseException, ...]) -> str:
    if _names_nothing(chain):
        return "there is no such name (DNS)"
    for part in chain:
        if type(part) is OSError and part.strerror:  # unreachable, too many open files: no kind of its own
            return display(part.strerror, 120)
    for kinds, text in _REASONS:
        if any(isinstance(part, kinds) for part in chain):
            return text
    for part in chain:
        if isinstance(part, OSError) and part.strerror:
            return display(part.strerror, 120)
    return f"the exchange broke off ({type(chain[-1]).__name__})"
