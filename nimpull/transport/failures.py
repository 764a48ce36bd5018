"""What went wrong on the wire, in the words of nimpull.errors."""

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
from nimpull.errors import NetworkError, ProxyError, TlsError, TransferError

#: What requests, urllib3, http.client and the socket raise when an exchange fails.
WIRE_ERRORS: Final = (
    urllib3.exceptions.HTTPError,
    requests.exceptions.RequestException,
    http.client.HTTPException,
    OSError,
    ssl.SSLError,
)
_TUNNEL: Final = re.compile(r"Tunnel connection failed: (\d{3})")
_CA_HINT: Final = (
    "If a proxy or a private registry signs with its own CA, give its bundle: set SSL_CERT_FILE "
    "(NIMCache: or name the ConfigMap in spec.proxy.certConfigMap)."
)
_NETWORK_HINT: Final = "Check the address, DNS, network policies and HTTPS_PROXY / NO_PROXY of the pod."
_EXPIRED: Final = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED
_WRONG_HOST: Final = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH


#: getaddrinfo(3): the name does not exist, or has no address. EAI_AGAIN is a resolver that does not answer.
_NO_SUCH_NAME: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
#: Seconds. A cluster's DNS may know a name too late, and says no for 30 s more once it has said so (the
#: ``cache`` plugin of CoreDNS as kubeadm and most distributions set it up).
NAME_PATIENCE: Final = 40.0


class ProxyRefusedError(ProxyError):
    """The proxy's answer is no, and will be no again."""

    retryable = False


def explain(error: BaseException, url: Url, proxy: Url | None) -> TransferError:
    """The failure of a request to ``url`` through ``proxy``, named; secrets in either are not shown."""
    chain = tuple(_chain(error))
    if proxy is not None and any(isinstance(part, urllib3.exceptions.ProxyError) for part in chain):
        failure = _proxy_failure(chain, url, proxy)
    else:
        failure = _tls_failure(chain, url) or _network_failure(chain, url, proxy)
    if _names_nothing(chain):
        failure.patience = NAME_PATIENCE
    return failure


def proxy_refused(status: int, url: Url, proxy: Url) -> ProxyError:
    """The proxy itself answered ``status`` instead of passing the request on."""
    if status == 407:
        return ProxyRefusedError(
            f"the proxy {proxy} wants other credentials (407) for {url.host}",
            hint="Check user and password in HTTPS_PROXY (NIMCache: spec.proxy.httpsProxy).",
        )
    refused = ProxyError if status >= 500 else ProxyRefusedError
    return refused(
        f"the proxy {proxy} refuses to connect to {url.host} (HTTP {status})",
        hint="Ask for the host to be allowed there, or name it in NO_PROXY if it is reached directly.",
    )


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


def _proxy_failure(chain: tuple[BaseException, ...], url: Url, proxy: Url) -> TransferError:
    for part in chain:
        tunnel = _TUNNEL.search(str(part))
        if tunnel:
            return proxy_refused(int(tunnel[1]), url, proxy)
    untrusted = _tls_failure(chain, proxy)
    if untrusted:
        return untrusted
    return ProxyError(
        f"cannot reach the proxy {proxy} for {url.host}: {_reason(chain)}",
        hint="Check HTTPS_PROXY (NIMCache: spec.proxy.httpsProxy), or name the host in NO_PROXY.",
    )


def _tls_failure(chain: tuple[BaseException, ...], url: Url) -> TlsError | None:
    for part in chain:
        if isinstance(part, ssl.SSLCertVerificationError):
            return _untrusted(part, url)
    for part in chain:
        if isinstance(part, ssl.SSLError) and not isinstance(
            part, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLWantReadError
        ):
            return TlsError(
                f"no TLS connection to {url.host}: {display(part.reason or part, 120)}",
                hint="Something on the way does not speak TLS on this port. Check the address and the proxy.",
            )
    return None


def _untrusted(error: ssl.SSLCertVerificationError, url: Url) -> TlsError:
    if error.verify_code in _EXPIRED:
        return TlsError(
            f"the certificate of {url.host} is expired, or not valid yet",
            hint=f"Check the clock of the node, then renew the certificate. {_CA_HINT}",
        )
    if error.verify_code in _WRONG_HOST:
        return TlsError(
            f"the certificate of {url.host} is for another host",
            hint=f"Check the address, and who answers for it. {_CA_HINT}",
        )
    return TlsError(
        f"the certificate of {url.host} is not trusted: {display(error.verify_message, 120)}", hint=_CA_HINT
    )


def _network_failure(chain: tuple[BaseException, ...], url: Url, proxy: Url | None) -> NetworkError:
    via = f" through the proxy {proxy}" if proxy is not None else ""
    return NetworkError(f"{display(url.authority, 300)}{via}: {_reason(chain)}", hint=_NETWORK_HINT)


#: The first kind that is found anywhere in the chain names the failure.
_REASONS: Final[tuple[tuple[tuple[type[BaseException], ...], str], ...]] = (
    ((socket.gaierror, urllib3.exceptions.NameResolutionError), "the name cannot be resolved (DNS)"),
    ((ConnectionRefusedError,), "the connection was refused"),
    ((urllib3.exceptions.ConnectTimeoutError,), "no connection within the connect timeout"),
    (
        (TimeoutError, urllib3.exceptions.ReadTimeoutError),
        "it stalled: nothing came within the read timeout",
    ),
    ((ConnectionResetError, BrokenPipeError), "the connection was reset"),
    ((http.client.IncompleteRead,), "the connection closed early, or broke its framing"),
)


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
