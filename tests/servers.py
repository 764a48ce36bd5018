"""Loopback servers that misbehave on request: scripted HTTP(S), and a proxy."""

from __future__ import annotations

import select
import socket
import ssl
import struct
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from threading import Event, Lock, Thread
from typing import BinaryIO, Self
from urllib.parse import unquote, urlsplit, urlunsplit

from nimpull.core.names import Url


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came over the wire. Header names are lower case; ``connection`` counts from 0."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    connection: int

    @property
    def span(self) -> tuple[int, int | None] | None:
        """Bytes [start, end) of the Range header."""
        unit, _, span = self.headers.get("range", "").partition("=")
        if unit != "bytes":
            return None
        start, _, last = span.partition("-")
        return int(start), int(last) + 1 if last else None


class Peer:
    """The server's end of one connection."""

    def __init__(self, connection: socket.socket, stopped: Event) -> None:
        self.socket = connection
        self.stopped = stopped

    def send(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def reply(
        self,
        status: int = 200,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        reason: str = "X",
    ) -> None:
        """A well-formed answer, unless ``headers`` say otherwise: they win over Content-Length."""
        self.head(status, {"Content-Length": str(len(body)), **(headers or {})}, reason=reason)
        self.send(body)

    def head(self, status: int, headers: Mapping[str, str], *, reason: str = "X") -> None:
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def file(self, seen: Seen, content: bytes, etag: str = '"v1"') -> None:
        """``content``, or the range of it that was asked for."""
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if seen.span is None:
            self.reply(200, content, headers)
            return
        start, end = seen.span
        part = content[start:end]
        if not part:
            self.reply(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
            return
        span = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        self.reply(206, part, {**headers, "Content-Range": span})

    def chunk(self, octets: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(octets), octets))

    def close(self) -> None:
        # shutdown, because the server's own reference keeps the descriptor
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def reset(self) -> None:
        """RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def stall(self) -> None:
        """Keep the connection open and say nothing, until the server stops."""
        self.stopped.wait()


Answer = Callable[[Seen, Peer], None]


class _Listener:
    """Accepts on a free port of ``host``; one thread per connection; ends them all on exit."""

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.host = host
        self.seen: list[Seen] = []
        self.stopped = Event()
        self._tls = tls
        self._lock = Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[Thread] = []
        self._numbers = count()
        self._listening = socket.create_server((host, 0), backlog=128)
        self.port: int = self._listening.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            still_open = tuple(self._open)
        for connection in still_open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def url(self, path: str = "/", *, host: str = "") -> Url:
        scheme = "https" if self._tls else "http"
        return Url(f"{scheme}://{host or self.host}:{self.port}{path}")

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._start(self._serve, connection, next(self._numbers))

    def _serve(self, connection: socket.socket, number: int) -> None:
        # a head and its body are sent apart: the second would wait 40 ms for the acknowledgement of the first
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open.add(connection)
        # a client that goes away, or refuses the certificate, is part of many tests
        try:
            with suppress(OSError):
                if self._tls:
                    wrapped = self._tls.wrap_socket(connection, server_side=True)
                    with self._lock:
                        self._open.symmetric_difference_update({connection, wrapped})
                    connection = wrapped
                self._converse(connection, number)
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _converse(self, connection: socket.socket, number: int) -> None:
        peer = Peer(connection, self.stopped)
        pending = b""
        while connection.fileno() >= 0:
            while b"\r\n\r\n" not in pending:
                received = connection.recv(65536)
                if not received:
                    return
                pending += received
            head, _, pending = pending.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            pairs = (line.split(":", 1) for line in lines[1:])
            headers = {name.lower(): value.strip() for name, value in pairs}
            length = int(headers.get("content-length", 0))
            if headers.get("expect") == "100-continue":
                peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            while len(pending) < length:
                received = connection.recv(65536)
                if not received:
                    return
                pending += received
            body, pending = pending[:length], pending[length:]
            method, target, _ = lines[0].split(" ", 2)
            seen = Seen(method, target, headers, body, number)
            self.seen.append(seen)
            self._answer(seen, peer)

    def _answer(self, seen: Seen, peer: Peer) -> None:
        raise NotImplementedError


class ScriptedServer(_Listener):
    """Calls ``answer(seen, peer)`` for each request; ``seen`` keeps them all."""

    def __init__(self, answer: Answer, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        super().__init__(host, tls)
        self.answer = answer

    def _answer(self, seen: Seen, peer: Peer) -> None:
        self.answer(seen, peer)


def serve_directory(root: str, files: Mapping[str, bytes], *, user: str = "") -> Answer:
    """The files below ``root``, with ranges; with ``user`` (name:password) to those who know it only."""
    wanted = f"Basic {b64encode(user.encode()).decode()}"

    def answer(seen: Seen, peer: Peer) -> None:
        path = unquote(urlsplit(seen.target).path)
        content = files.get(path.removeprefix(root)) if path.startswith(root) else None
        if user and seen.headers.get("authorization") != wanted:
            peer.reply(401)
        elif content is None:
            peer.reply(404)
        elif seen.method == "HEAD":
            peer.head(200, {"Content-Length": str(len(content))})
        else:
            peer.file(seen, content, f'"{len(content)}"')

    return answer


def in_turn(*answers: Answer) -> Answer:
    """The first request gets the first answer, and so on; the last one repeats."""
    turns = count()

    def answer(seen: Seen, peer: Peer) -> None:
        answers[min(next(turns), len(answers) - 1)](seen, peer)

    return answer


@dataclass(slots=True)
class ProxyRules:
    """``status``: what it answers instead of passing on (0 = pass on). ``names``: host -> address to use.

    ``authorization``: the Proxy-Authorization it wants, or it answers 407.
    """

    status: int = 0
    authorization: str = ""
    names: Mapping[str, tuple[str, int]] = field(default_factory=dict)


class Proxy(_Listener):
    """Tunnels CONNECT, and passes on absolute-form requests, one per connection."""

    def __init__(self, rules: ProxyRules | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__("127.0.0.1", tls)
        self.rules = rules or ProxyRules()

    def _answer(self, seen: Seen, peer: Peer) -> None:
        wanted = self.rules.authorization
        if wanted and seen.headers.get("proxy-authorization") != wanted:
            peer.reply(
                407, b"who are you?", {"Proxy-Authenticate": "Basic"}, reason="Proxy Authentication Required"
            )
        elif self.rules.status:
            peer.reply(self.rules.status, b"<html>no</html>", {"Content-Type": "text/html"})
        elif seen.method == "CONNECT":
            with socket.create_connection(self._upstream(seen.target)) as upstream:
                peer.head(200, {})
                _relay(peer.socket, upstream)
            peer.close()
        else:
            self._pass_on(seen, peer)

    def _upstream(self, authority: str) -> tuple[str, int]:
        host, _, port = authority.rpartition(":")
        return self.rules.names.get(host, (host.strip("[]"), int(port)))

    def _pass_on(self, seen: Seen, peer: Peer) -> None:
        parts = urlsplit(seen.target)
        dropped = {"proxy-authorization", "connection", "expect"}
        target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        lines = [f"{seen.method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in seen.headers.items() if name not in dropped]
        head = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")
        with socket.create_connection(self._upstream(parts.netloc)) as upstream:
            upstream.sendall(head + seen.body)
            upstream.shutdown(socket.SHUT_WR)
            status, _, rest = upstream.recv(65536).partition(b"\r\n")
            peer.send(status + b"\r\nConnection: close\r\n" + rest)
            while received := upstream.recv(65536):
                peer.send(received)
        peer.close()


class PlainServer(ScriptedServer):
    """Answers a TLS hello as a web server on port 80 does."""

    def _converse(self, connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


class SocksProxy(_Listener):
    """SOCKS5 (RFC 1928) with user and password (RFC 1929); ``asked``: the addresses as it was asked for them.

    ``user``: ``name:password`` that it wants, "" = none; ``status``: its answer to a CONNECT, 0 = pass on.
    """

    def __init__(
        self, *, user: str = "", status: int = 0, names: Mapping[str, tuple[str, int]] | None = None
    ):
        super().__init__("127.0.0.1", None)
        self.user = user
        self.status = status
        self.names = names or {}
        self.asked: list[tuple[str, int]] = []

    def _converse(self, connection: socket.socket, number: int) -> None:
        with connection.makefile("rb") as received:
            _, methods = received.read(2)
            offered = received.read(methods)
            wanted = 2 if self.user else 0
            connection.sendall(bytes([5, wanted if wanted in offered else 0xFF]))
            if wanted in offered and self._known(connection, received):
                self._connect(connection, received)

    def _known(self, connection: socket.socket, received: BinaryIO) -> bool:
        if not self.user:
            return True
        received.read(1)
        name, password = (received.read(received.read(1)[0]).decode() for _ in range(2))
        good = f"{name}:{password}" == self.user
        connection.sendall(bytes([1, 0 if good else 1]))
        return good

    def _connect(self, connection: socket.socket, received: BinaryIO) -> None:
        *_, kind = received.read(4)
        host = (
            received.read(received.read(1)[0]).decode() if kind == 3 else socket.inet_ntoa(received.read(4))
        )
        port = int.from_bytes(received.read(2))
        self.asked.append((host, port))
        connection.sendall(bytes([5, self.status, 0, 1, 0, 0, 0, 0, 0, 0]))
        if not self.status:
            with socket.create_connection(self.names.get(host, (host, port))) as upstream:
                _relay(connection, upstream)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _relay(left: socket.socket, right: socket.socket) -> None:
    other = {left: right, right: left}
    while True:
        for source in select.select([left, right], [], [])[0]:
            received = source.recv(65536)
            if not received:
                return
            other[source].sendall(received)
