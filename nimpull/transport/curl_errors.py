"""What libcurl says of an exchange that failed, in our words."""

from __future__ import annotations

import errno
import math
import os
from typing import Final

import pycurl

from nimpull.core.names import Url, display
from nimpull.core.network_failures import (
    NAME_PATIENCE,
    no_tls,
    proxy_refused,
    proxy_unreachable,
    unreachable,
    untrusted,
    unusable,
)
from nimpull.errors import NetworkError, TransferError

_PROXY: Final = 97  # CURLE_PROXY: a handshake with a SOCKS proxy
_TOO_LARGE: Final = 100  # CURLE_TOO_LARGE
_WRONG_HOST: Final = 62  # X509_V_ERR_HOSTNAME_MISMATCH: libcurl compares names itself, and gives no result
_REASONS: Final = {
    pycurl.E_COULDNT_RESOLVE_HOST: "there is no such name (DNS)",
    pycurl.E_COULDNT_RESOLVE_PROXY: "there is no such name (DNS)",
    pycurl.E_OPERATION_TIMEDOUT: "no connection within the connect timeout",
    pycurl.E_GOT_NOTHING: "the connection closed early, before any answer",
    pycurl.E_PARTIAL_FILE: "the connection closed early",
    pycurl.E_SEND_ERROR: "the connection was reset",
    pycurl.E_RECV_ERROR: "the connection closed early, or broke its framing",
    pycurl.E_SSL_CONNECT_ERROR: "the connection closed early, in the TLS handshake",
    pycurl.E_FILE_COULDNT_READ_FILE: "it cannot be read",
}
_UNUSABLE: Final = {
    pycurl.E_FTP_WEIRD_SERVER_REPLY: "it does not speak HTTP, or its answer's head is too large",
    _TOO_LARGE: "its answer's head is too large",
    pycurl.E_UNSUPPORTED_PROTOCOL: "it does not speak HTTP",
}


def explain_curl(  # noqa: PLR0911 - one return for each kind
    handle: pycurl.Curl, code: int, text: str, url: Url, proxy: Url | None, *, reached: bool
) -> TransferError:
    """The failure of a request to ``url`` through ``proxy``, named; secrets in either are not shown.

    ``reached``: that host was connected to before: its name is right, whatever is wrong with it now.
    """
    system = int(handle.getinfo(pycurl.OS_ERRNO))
    reason = _reason(code, text, system)
    if url.scheme == "file":
        return NetworkError(f"{url}: {reason}", hint="Check the directory and its disk.")
    if proxy is not None:
        tunnel = int(handle.getinfo(pycurl.HTTP_CONNECTCODE))
        if tunnel >= 300:
            return proxy_refused(tunnel, url, proxy)
        if code in (pycurl.E_COULDNT_RESOLVE_PROXY, pycurl.E_COULDNT_CONNECT, _PROXY):
            return proxy_unreachable(url, proxy, reason)
    if code == pycurl.E_PEER_FAILED_VERIFICATION:
        of_proxy = int(handle.getinfo(pycurl.PROXY_SSL_VERIFYRESULT)) if proxy is not None else 0
        result = of_proxy or int(handle.getinfo(pycurl.SSL_VERIFYRESULT))
        return untrusted(proxy if proxy is not None and of_proxy else url, result or _WRONG_HOST, text)
    if code == pycurl.E_SSL_CONNECT_ERROR and not _broke_off(text, system):
        return no_tls(url, text)
    if code in _UNUSABLE:
        return unusable(url, _UNUSABLE[code])
    failure = unreachable(url, proxy, reason, unanswered=code == pycurl.E_GOT_NOTHING)
    if code == pycurl.E_COULDNT_RESOLVE_HOST:
        failure.patience = math.inf if reached else NAME_PATIENCE
    return failure


def _broke_off(text: str, system: int) -> bool:
    return bool(system) or any(part in text for part in ("reset", "unexpected eof", "SSL_ERROR_SYSCALL"))


def _reason(code: int, text: str, system: int) -> str:
    if system == errno.ECONNREFUSED:
        return "the connection was refused"
    if system in (errno.ECONNRESET, errno.EPIPE):
        return "the connection was reset"
    if code == pycurl.E_COULDNT_CONNECT and system:
        return os.strerror(system)
    return _REASONS.get(code) or (f"{display(text, 120)} ({code})" if text else f"libcurl's error {code}")
