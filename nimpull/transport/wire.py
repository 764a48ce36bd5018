"""One exchange: pools, proxy, redirects; errors come out named."""

from __future__ import annotations

import logging
import math
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, Generic, TypeVar, cast
from urllib.parse import urlsplit
from weakref import WeakSet

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ProxyError

from nimpull.core.link_local import is_internal
from nimpull.core.names import Url
from nimpull.core.redirects import Hop, internal, is_redirect, next_hop
from nimpull.errors import NetworkError, TransferError
from nimpull.transport.failures import proxy_refused
from nimpull.transport.lines import Lines, Route
from nimpull.transport.policy import TransportPolicy
from nimpull.transport.requests_errors import WIRE_ERRORS, explain
from nimpull.transport.streams import Pooled, Stream, content_length, let_go
from nimpull.transport.trust import Authorities

_PORTS: Final = {"http": 80, "https": 443}
_HOSTS: Final = 64  # hosts whose pools are kept
_UNREADABLE: Final = (ValueError, urllib3.exceptions.LocationValueError)
S_co = TypeVar("S_co", bound=Stream, covariant=True)


@dataclass(frozen=True, slots=True)
class Answer(Generic[S_co]):
    """A response whose body is still on the wire. ``proxy``: the one it came through."""

    stream: S_co
    status: int
    headers: Mapping[str, str]
    url: Url
    proxy: Url | None


class Wire:
    """Sends requests over pooled connections. Safe to share between threads.

    The environment and .netrc are never read: trust and proxies come from the policy alone.
    """

    def __init__(self, policy: TransportPolicy, trusted: Authorities, gate: Callable[[str], None]) -> None:
        """``gate(host)`` is called before each request to ``host``, and may wait or raise."""
        # their lines carry whole URLs, presigned queries too
        for name in ("urllib3.connection", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._gate = gate
        self._policy = policy
        self._proxies = policy.proxies
        self._context = trusted.context()
        self._lock = Lock()
        self._connections: WeakSet[HTTPConnection] = WeakSet()
        self._reached: set[str] = set()
        self._aborted = False
        self._adapter = self._pools(policy.connections)
        self._lines = Lines(self._route, most=policy.connections, read_timeout=policy.read_timeout)
        self._own_headers = {"User-Agent": policy.user_agent, "Accept-Encoding": "identity"}
        self._timeout = urllib3.Timeout(connect=policy.connect_timeout, read=policy.read_timeout)

    def close(self) -> None:
        self._lines.close()
        self._adapter.close()

    def abort(self) -> None:
        """Wake every thread that waits for an answer; its request fails, and so does every later one."""
        with self._lock:
            self._aborted = True
            connections = tuple(self._connections)
        for connection in connections:
            _shut(connection)

    def _opened(self, connection: HTTPConnection) -> None:
        if connection.proxy is None and is_internal(connection.sock.getpeername()[0]):
            connection.close()
            raise internal(Url(f"http://{connection.host}:{connection.port}/"))
        with self._lock:
            self._connections.add(connection)
            self._reached.add(connection.host.lower())
            aborted = self._aborted
        if aborted:  # while it was being made
            _shut(connection)

    def exchange(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        follow: bool = True,
    ) -> Answer[Pooled]:
        """The first answer that is not a followed redirect, over urllib3's pools.

        Raises NetworkError, TlsError, ProxyError, RedirectError.
        """
        hop = Hop(method, url, {**self._own_headers, **headers}, body)
        return self._chain(hop, lambda hop: self._send(hop, self._adapter), follow=follow)

    def get(self, url: Url, headers: Mapping[str, str], *, fresh_connection: bool = False) -> Answer[Stream]:
        """The same for bytes: over a line where that can be."""

        def send(hop: Hop) -> Answer[Stream]:
            answer = self._ask(hop.url, hop.headers, fresh=fresh_connection)
            if answer is not None:
                return answer
            return self._send(hop, self._pools(1) if fresh_connection else self._adapter)

        return self._chain(Hop("GET", url, {**self._own_headers, **headers}), send)

    def _chain(self, hop: Hop, send: Callable[[Hop], Answer[S_co]], *, follow: bool = True) -> Answer[S_co]:
        while True:
            self._gate(hop.url.host)
            answer = send(hop)
            if answer.status == 407 and answer.proxy is not None:
                answer.stream.drop()
                raise proxy_refused(answer.status, hop.url, answer.proxy)
            if not follow or not is_redirect(answer.status, answer.headers):
                return answer
            self._let_go(answer)
            hop = self._follow(hop, answer)

    def _let_go(self, answer: Answer[Stream]) -> None:
        try:
            let_go(answer.stream, content_length(answer.status, answer.headers))
        except WIRE_ERRORS:
            answer.stream.drop()

    def _pools(self, connections: int) -> _Pools:
        return _Pools(self._context, connections, self._opened)

    def _follow(self, hop: Hop, answer: Answer[S_co]) -> Hop:
        return next_hop(hop, answer.status, answer.headers["location"])

    def _ask(self, url: Url, headers: Mapping[str, str], *, fresh: bool) -> Answer[Stream] | None:
        try:
            found = self._lines.get(url, headers, lambda: self._gate(url.host), fresh=fresh)
        except WIRE_ERRORS as error:
            raise self._broken(error, url) from error
        if found is None:
            return None
        (status, named, stream), proxy = found
        return Answer(stream, status, named, url, proxy)

    def _send(self, hop: Hop, pools: _Pools) -> Answer[Pooled]:
        if not is_http(hop.url):
            raise _unreadable(None, hop.url)
        proxy = self._proxies.proxy_for(hop.url)
        try:
            raw = pools.open(hop, proxy, self._timeout)
        except _UNREADABLE as error:
            if isinstance(error, ssl.SSLError):  # a ValueError too, where the certificate is refused
                raise self._explain(error, hop.url, proxy) from error
            raise _unreadable(error, hop.url) from None  # the cause quotes the URL or the header
        except WIRE_ERRORS as error:
            raise self._broken(error, hop.url) from error
        headers = {name.lower(): value for name, value in raw.headers.items()}
        return Answer(Pooled(raw), raw.status, headers, hop.url, proxy)

    def _broken(self, error: Exception, url: Url) -> TransferError:
        self._gate(url.host)  # a broken connection may be the end of the run
        return self._explain(error, url, self._proxies.proxy_for(url))

    def _route(self, url: Url) -> Route | None:
        """None for what is not one connection of plain TLS or TCP: a forwarding proxy, TLS within TLS."""
        proxy = self._proxies.proxy_for(url)
        scheme, host, port = url.origin
        if proxy is not None and (scheme == "http" or proxy.scheme == "https"):
            return None
        name = f"[{host}]" if ":" in host else host
        shown = name if port == _PORTS[scheme] else f"{name}:{port}"
        return Route(shown, self._adapter.connector(url, proxy, self._policy.connect_timeout), proxy)

    def _explain(self, error: Exception, url: Url, proxy: Url | None) -> TransferError:
        failure = explain(error, url, proxy)
        if (proxy or url).host in self._reached:  # the name is right: whatever is wrong now may pass
            failure.patience = math.inf
        return failure


def _shut(connection: HTTPConnection) -> None:
    sock = connection.sock
    if sock is not None:
        with suppress(OSError):
            # not SSLSocket's: that takes the TLS state away under the thread that reads
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def is_http(url: Url) -> bool:
    """Whether ``url`` can be read as an http or https address with a host and a valid port."""
    try:
        parts = urlsplit(url.reveal())
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _unreadable(error: Exception | None, url: Url) -> NetworkError:
    if isinstance(error, requests.exceptions.InvalidHeader):
        return NetworkError(
            f"a header for {url.host} holds a line break or begins with a blank",
            hint="Check the secret that the API key is read from: it is copied with something around it.",
        )
    return NetworkError(f"cannot make a request of the address {url}", hint="Check how it is spelled.")


class _Pools(HTTPAdapter):
    """The pools of requests, with one TLS context for registries and proxies alike."""

    def __init__(
        self, context: ssl.SSLContext, connections: int, opened: Callable[[HTTPConnection], None]
    ) -> None:
        """``opened`` is told each connection once it has a socket."""
        self._context = context
        self._classes = {
            "http": _telling(HTTPConnectionPool, HTTPConnection, opened),
            "https": _telling(HTTPSConnectionPool, HTTPSConnection, opened),
        }
        super().__init__(pool_connections=_HOSTS, pool_maxsize=connections, max_retries=0)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, ssl_context=self._context, **options)
        self.poolmanager.pool_classes_by_scheme = self._classes

    def proxy_manager_for(self, proxy: str, **options: Any) -> urllib3.ProxyManager:
        contexts = {"ssl_context": self._context, "proxy_ssl_context": self._context}
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **contexts, **options)
        manager.pool_classes_by_scheme = self._classes
        return manager

    def connector(self, url: Url, proxy: Url | None, timeout: float) -> Callable[[], HTTPConnection]:
        """Makes open connections to the origin of ``url``; ``timeout`` in seconds."""
        manager = self.proxy_manager_for(proxy.reveal()) if proxy else self.poolmanager
        pool = manager.connection_from_url(url.reveal())
        return lambda: _open_connection(pool, timeout)

    def open(self, hop: Hop, proxy: Url | None, timeout: urllib3.Timeout) -> urllib3.BaseHTTPResponse:
        """Send one request; its body is not read, not decoded, and no redirect is followed."""
        prepared = requests.Request(hop.method, hop.url.reveal(), dict(hop.headers), data=hop.body).prepare()
        address = str(prepared.url)
        target = self.request_url(prepared, {hop.url.scheme: proxy.reveal()} if proxy else {})
        manager = self.proxy_manager_for(proxy.reveal()) if proxy else self.poolmanager
        return manager.connection_from_url(address).urlopen(
            hop.method,
            target,
            body=hop.body,
            headers=prepared.headers,
            redirect=False,
            retries=False,
            timeout=timeout,
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
        )


def _telling(
    pool: type[HTTPConnectionPool],
    connection: type[HTTPConnection],
    opened: Callable[[HTTPConnection], None],
) -> type[HTTPConnectionPool]:
    """``pool`` with connections that call ``opened`` when they are made."""

    def connect(self: HTTPConnection) -> None:
        connection.connect(self)
        opened(self)

    telling = type(connection.__name__, (connection,), {"connect": connect})
    return type(pool.__name__, (pool,), {"ConnectionCls": telling})


def _open_connection(pool: HTTPConnectionPool, timeout: float) -> HTTPConnection:
    """As ``urlopen`` makes one, tunnel and errors included; it is the caller's."""
    connection = pool._new_conn()
    connection.timeout = timeout
    try:
        if pool.proxy:
            pool._prepare_proxy(connection)
        else:
            connection.connect()
    except (OSError, urllib3.exceptions.HTTPError) as error:
        reached = connection.has_connected_to_proxy or not pool.proxy
        connection.close()
        if reached:
            raise
        raise ProxyError("cannot connect to the proxy", error) from error
    return cast(HTTPConnection, connection)
