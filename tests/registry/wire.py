"""HTTP/1.1 on real sockets: requests and answers are values, and a fault may change an answer."""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.registry.content import Blob


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived. Header names are lower case; ``target`` is the raw path with the query."""

    server: str
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""
    client: tuple[str, int] = ("", 0)

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        return {
            name: values[0]
            for name, values in parse_qs(urlsplit(self.target).query, keep_blank_values=True).items()
        }

    @property
    def range(self) -> str:
        return self.headers.get("range", "")

    @property
    def authorization(self) -> str:
        return self.headers.get("authorization", "")


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes out: ``content`` bytes [start, end).

    ``cut``: the connection is closed after that many body bytes; ``reset``: with a TCP reset. ``flip``: the
    file offset of a byte that is inverted on the way. ``hold``: waited for before the byte at ``hold_at``.
    ``rate``: bytes per second of this one answer, 0 = as fast as it goes.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Blob = field(default_factory=lambda: Blob(b""))
    start: int = 0
    end: int = 0
    cut: int | None = None
    reset: bool = False
    flip: int | None = None
    hold: threading.Event | None = None
    hold_at: int = 0
    rate: int = 0

    def with_headers(self, **headers: str | None) -> Answer:
        """``x_repo_commit="…"`` sets a header, None drops it."""
        names = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        kept = {name: value for name, value in self.headers.items() if name.lower() not in names}
        return replace(self, headers=kept | {n: v for n, v in names.items() if v is not None})

    @property
    def json(self) -> Any:
        return json.loads(b"".join(self.content.blocks(self.start, self.end)))


def text(status: int, body: bytes = b"", kind: str = "text/plain", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {"Content-Type": kind, **named}, Blob(body), 0, len(body))


def document(value: object, status: int = 200, **headers: str) -> Answer:
    return text(status, json.dumps(value).encode(), "application/json; charset=utf-8", **headers)


def file(request: Request, content: Blob, headers: Mapping[str, str]) -> Answer:
    """A file with ranges and validators as RFC 9110 sections 13 and 14 have them."""
    etag = headers.get("ETag", "")
    match = request.headers.get("if-match")
    if match is not None and match not in ("*", etag):
        return text(412)
    kept = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.range.strip())
    if_range = request.headers.get("if-range")
    if not wanted or wanted.groups() == ("", "") or if_range not in (None, etag):
        return Answer(200, kept, content, 0, content.size)
    first, last = wanted.groups()
    start = int(first) if first else max(0, content.size - int(last))
    end = min(int(last) + 1, content.size) if first and last else content.size
    if start >= content.size or start >= end:
        return text(416, Content_Range=f"bytes */{content.size}")
    kept["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
    return Answer(206, kept, content, start, end)


Respond = Callable[[Request], Answer]


class Server(ThreadingHTTPServer):
    """One origin on an ephemeral loopback port. ``close`` ends every connection and joins every thread."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(
        self, name: str, respond: Respond, *, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__((address, 0), _Connection)
        self.name = name
        self.respond = respond
        self.tls = tls
        self.accepted = 0
        self.closing = False
        self.failures: list[BaseException] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.server_address[0]!s}:{self.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self.closing = True
        self.shutdown()
        self.drop_connections()
        self._thread.join()
        self.server_close()

    def drop_connections(self) -> None:
        """Every open connection ends now, as when a load balancer restarts."""
        with self._lock:
            for connection in self._open:
                _shut(connection)

    def finish_request(self, request: Any, client_address: Any) -> None:
        connection: socket.socket = request
        with self._lock:
            self._open.add(connection)
            self.accepted += 1
        wrapped = connection
        try:
            if self.tls:  # in the connection's own thread: a slow handshake must not stop the others
                wrapped = self.tls.wrap_socket(connection, server_side=True)
                with self._lock:
                    self._open.add(wrapped)
            super().finish_request(wrapped, client_address)
        finally:
            with self._lock:
                self._open -= {connection, wrapped}
            if wrapped is not connection:
                wrapped.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):  # a client that hung up is no failure
            self.failures.append(error)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # already gone


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "registry"
    sys_version = ""
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *arguments: object) -> None:
        """The request log is ``Registry.requests``."""

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.server.name, self.command, self.path, headers, body, self.client_address[:2])
        self._send(self.server.respond(request))

    do_GET = do_HEAD = do_POST = _serve  # noqa: N815 - the names that http.server calls

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        lower = {name.lower() for name in answer.headers}
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if not lower & {"content-length", "transfer-encoding"} and answer.status not in (204, 304):
            self.send_header("Content-Length", str(answer.end - answer.start))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(answer)
        if answer.cut is not None or answer.reset:
            self._hang_up(answer.reset)

    def _send_body(self, answer: Answer) -> None:
        end = answer.end if answer.cut is None else min(answer.end, answer.start + answer.cut)
        plain = not (answer.rate or answer.hold or self.server.tls)
        intact = answer.flip is None or not answer.start <= answer.flip < end
        if plain and intact and not isinstance(answer.content.content, bytes) and end > answer.start:
            with answer.content.content.open("rb") as source:
                self.connection.sendfile(source, answer.start, end - answer.start)
            return
        self._send_blocks(answer, end)

    def _send_blocks(self, answer: Answer, end: int) -> None:
        at = answer.start
        if answer.hold and answer.hold_at > 0:
            middle = min(end, at + answer.hold_at)
            self._copy(answer, at, middle)
            at = middle
        if answer.hold:
            while not (answer.hold.wait(0.1) or self.server.closing):
                continue
        self._copy(answer, at, end)

    def _copy(self, answer: Answer, at: int, end: int) -> None:
        for block in answer.content.blocks(at, end):
            sent = block
            if answer.flip is not None and at <= answer.flip < at + len(block):
                spoiled = bytearray(block)
                spoiled[answer.flip - at] ^= 0xFF
                sent = bytes(spoiled)
            at += len(block)
            if not answer.rate:
                self.wfile.write(sent)
                continue
            step = max(1, answer.rate // 20)
            for first in range(0, len(sent), step):
                self.wfile.write(sent[first : first + step])
                time.sleep(0.05)

    def _hang_up(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            _shut(self.connection)
