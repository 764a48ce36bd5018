"""What went wrong on the wire, in words: the same for registry answers and for bytes.

Addresses are shown with their port, and without what is secret in them.
"""

from __future__ import annotations

import re
from typing import Final

from nimpull.core.names import Url, display
from nimpull.core.policy import TransportPolicy
from nimpull.errors import NetworkError, ProxyError, TlsError

CA_HINT: Final = (
    "If a proxy or a private registry signs with its own CA, give its bundle: set SSL_CERT_FILE "
    "(NIMCache: or name the ConfigMap in spec.proxy.certConfigMap)."
)
NETWORK_HINT: Final = (
    "Check the address, DNS, HTTPS_PROXY and NO_PROXY; in a cluster, its network policies too."
)
PROXY_HINT: Final = (
    "Check HTTPS_PROXY and ALL_PROXY (NIMCache: spec.proxy.httpsProxy), or name the host in NO_PROXY."
)
_SLOW_HINT: Final = (
    "Something between here and the registry cuts connections, or slows them. Run again later."
)
_EXPIRED: Final = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED
_WRONG_HOST: Final = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH
#: What OpenSSL says, in its versions, of a server that answers a hello with an HTTP status line.
_PLAIN: Final = re.compile(
    r"wrong.version.number|packet.length.too.long|http.request|record.layer", re.IGNORECASE
)
#: Seconds. A cluster's DNS may know a name too late, and says no for 30 s more once it has said so (the
#: ``cache`` plugin of CoreDNS as kubeadm and most distributions set it up).
NAME_PATIENCE: Final = 40.0


class ProxyRefusedError(ProxyError, retryable=False):
    """The proxy's answer is no, and will be no again."""


class PermanentNetworkError(NetworkError, retryable=False):
    """A request that cannot be made, or an answer that is no use: asking again would not help."""


def proxy_refused(status: int, url: Url, proxy: Url) -> ProxyError:
    """The proxy itself answered ``status`` instead of passing the request on."""
    if status == 407:
        return ProxyRefusedError(
            f"the proxy {proxy} wants other credentials (407) for {url.authority}",
            hint="Check user and password in HTTPS_PROXY (NIMCache: spec.proxy.httpsProxy).",
        )
    # A 5xx of a proxy may be a restart; 403 and its like are a rule.
    refused = ProxyError if status >= 500 else ProxyRefusedError
    return refused(
        f"the proxy {proxy} refuses to connect to {url.authority} (HTTP {status})",
        hint="Ask for the host to be allowed there, or name it in NO_PROXY if it is reached directly.",
    )


def proxy_unreachable(url: Url, proxy: Url, reason: str) -> ProxyError:
    return ProxyError(f"cannot reach the proxy {proxy} for {url.authority}: {reason}", hint=PROXY_HINT)


def unreachable(url: Url, proxy: Url | None, reason: str, *, unanswered: bool = False) -> NetworkError:
    """``unanswered``: it took the connection, and ended it instead of answering as HTTP does."""
    via = f" through the proxy {proxy}" if proxy is not None else ""
    hint = NETWORK_HINT
    if unanswered and url.scheme == "http":
        hint = f"It may speak https only: then the address must begin with https://. {hint}"
    return NetworkError(f"{display(url.authority, 300)}{via}: {reason}", hint=hint)


def untrusted(url: Url, result: int, text: object) -> TlsError:
    """``result``: OpenSSL's X509_V_ERR code, ``text``: its words."""
    if result in _EXPIRED:
        return TlsError(
            f"the certificate of {url.authority} is expired, or not valid yet",
            hint=f"Check the clock of the node, then renew the certificate. {CA_HINT}",
        )
    if result in _WRONG_HOST:
        return TlsError(
            f"the certificate of {url.authority} is for another host",
            hint=f"Check the address, and who answers for it. {CA_HINT}",
        )
    return TlsError(f"the certificate of {url.authority} is not trusted: {display(text, 120)}", hint=CA_HINT)


def no_tls(url: Url, text: object) -> TlsError:
    """The handshake failed, as OpenSSL words it in ``text``, but not over a certificate."""
    hint = "Something on the way does not speak TLS on this port. Check the address and the proxy."
    if _PLAIN.search(str(text)):
        hint = (
            "Plain http may be spoken there: then the address must begin with http://. One without a scheme, "
            "as HF_ENDPOINT or NGC_API_ENDPOINT may have it, is taken as https. Else check the proxy."
        )
    return TlsError(f"no TLS connection to {url.authority}: {display(text, 120)}", hint=hint)


def unusable(url: Url, reason: str) -> PermanentNetworkError:
    return PermanentNetworkError(
        f"{url.authority}: {reason}",
        hint="This is not what a registry sends. Check the address and the proxy.",
    )


class StallDetector:
    """Notices an exchange with ``url`` that stalls, or crawls below the policy's low-speed limit.

    Times are those of ``Clock.monotonic``.
    """

    def __init__(self, url: Url, policy: TransportPolicy, now: float) -> None:
        self._url = url
        self._policy = policy
        self._began = self._last = now
        self._seen = self._counted = 0

    def rest(self, now: float) -> None:
        """Until ``now`` the wait was ours."""
        self._began = self._last = now
        self._counted = self._seen

    def problem(self, now: float, received: int, *, answered: bool) -> NetworkError | None:
        """``received``: bytes of the body so far; ``answered``: the head is here, whole."""
        if received > self._seen:
            self._seen, self._last = received, now
        elif now - self._last >= self._policy.read_timeout:
            what = "" if answered else ", and its answer's head was not whole"
            return unstable(self._url, f"it stalled for {now - self._last:.0f} s{what}")
        # Only the body has a rate: a registry may think for a while before its head.
        if not answered:
            self._began = now
        elapsed = now - self._began
        if elapsed < self._policy.low_speed_seconds:
            return None
        brought = received - self._counted
        if brought < self._policy.low_speed_bytes * elapsed:
            limit = f"limit {self._policy.low_speed_bytes / 1024:.0f} KiB/s"
            rate = f"{brought / elapsed / 1024:.1f} KiB/s over {elapsed:.0f} s ({limit})"
            return unstable(self._url, f"too slow, {rate}")
        self._began, self._counted = now, received
        return None


def unstable(url: Url, reason: str) -> NetworkError:
    return NetworkError(f"{display(url.authority, 300)}: {reason}", hint=_SLOW_HINT)
