"""The connections of requests: our trust alone, no link-local address, and a socket that can be shut."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

from nimpull.core.link_local import is_internal
from nimpull.core.names import Url
from nimpull.core.redirects import internal
from nimpull.transport.network import Network

_HOSTS: Final = 64  # whose pools are kept
thread = threading.local()  # .exchange: the one that this thread carries out


@dataclass(slots=True)
class Exchange:
    """One request on a thread of its own. ``moved`` counts what shows that it goes on, ``received`` bytes."""

    moved: int = 0
    received: int = 0
    answered: bool = False
    connection: HTTPConnection | None = None

    def shut(self) -> None:
        """From another thread: what the exchange waits for ends now, where it has a socket yet."""
        sock = self.connection.sock if self.connection else None
        if sock is not None:
            with suppress(OSError):
                # not SSLSocket's: that takes the TLS state away under the thread that reads
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class Adapter(HTTPAdapter):
    """requests' pools, with one TLS context for registries and proxies alike."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._context = network.authorities.context()
        super().__init__(pool_connections=_HOSTS, pool_maxsize=network.policy.connections, max_retries=0)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, ssl_context=self._context, **options)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> urllib3.PoolManager:
        known = proxy in self.proxy_manager
        options["ssl_context"] = self._context
        if not proxy.lower().startswith("socks"):
            options["proxy_ssl_context"] = self._context
        manager: urllib3.PoolManager = super().proxy_manager_for(proxy, **options)
        if not known:
            self._watch(manager)
        return manager

    def cert_verify(self, *_: Any) -> None:
        """Nothing: the context verifies, and requests would add certifi's list to what it trusts."""

    def _watch(self, manager: urllib3.PoolManager) -> None:
        """The connections of its pools are told to the exchange of their thread, and looked at."""
        pools: Mapping[str, Any] = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = {
            scheme: type("Pool", (pool,), {"ConnectionCls": _watched(pool.ConnectionCls, self._network)})
            for scheme, pool in pools.items()
        }


def _watched(kind: type[Any], network: Network) -> type[Any]:
    class Watched(kind):  # type: ignore[misc]
        def _new_conn(self) -> socket.socket:
            """Before a byte is sent, and whatever name led there. Through a proxy the address is not ours."""
            opened: socket.socket = super()._new_conn()
            direct = self.proxy is None and not hasattr(self, "_socks_options")
            if direct and is_internal(str(opened.getpeername()[0])):
                opened.close()
                raise internal(Url(f"http://{self.host}:{self.port}/"))
            network.reached.add(str(self.host).lower())
            return opened

        def putrequest(self, *arguments: Any, **options: Any) -> None:
            thread.exchange.connection = self  # also one that was kept
            thread.exchange.moved += 1
            super().putrequest(*arguments, **options)

    return Watched
