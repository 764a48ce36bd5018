"""Kept connections that are spoken to directly.

http.client and urllib3 cost several times the CPU that a small file needs otherwise. A line sends a request
and reads the head of its answer itself where that is plain: HTTP/1.1, one line a header, no transfer coding.
Every other answer is handed to http.client from its first byte. urllib3 makes the connections: names, TLS and
proxies are its own.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from urllib3.connection import HTTPConnection

from nimpull.transport.streams import Stream

TICK: Final = 0.25  # seconds a receive may block before stall, speed and cancellation are looked at
_AHEAD: Final = 64 << 10  # bytes: a head, and most small files behind it
#: A status line of a final answer and field lines, each on one line of its own (RFC 9112, 4 and 5).
_PLAIN: Final = re.compile(
    r"HTTP/1\.1 ([2-5]\d\d)(?: [^\r\n]*+)?+((?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]++:[^\r\n]*+)*+)"
)
#: Line ends that RFC 9112 (2.2) lets a reader take, and http.client does.
_BARE_ENDS: Final = (b"\n\n", b"\n\r\n")
_QUIET: Final = (TimeoutError, BlockingIOError, ssl.SSLWantReadError)

#: Status, headers with lower-case names, and the body.
Reply = tuple[int, Mapping[str, str], Stream]


def parse_head(octets: bytes | bytearray) -> tuple[int, dict[str, str]] | None:
    """An answer's head without its empty line; None where it is not plain."""
    plain = _PLAIN.fullmatch(octets.decode("latin-1"))
    if plain is None:
        return None
    headers: dict[str, str] = {}
    for line in plain[2].split("\r\n")[1:]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return None if "transfer-encoding" in headers else (int(plain[1]), headers)


class Line:
    """One connection, and what was read of it beyond the last head. Implements :class:`Stream`.

    Used by one thread at a time; ``abort`` by any.
    """

    def __init__(
        self, connection: HTTPConnection, read_timeout: float, keep: Callable[[Line], None] | None
    ) -> None:
        """``connection`` is open; ``keep`` takes the line once its answer is read, None = it ends with it."""
        self._connection = connection
        self._socket: socket.socket = connection.sock
        self._read_timeout = read_timeout
        self._keep = keep
        self._last = False
        self._ahead = bytearray(_AHEAD)
        self._view = memoryview(self._ahead)
        self._start = self._end = 0
        self._flags = 0
        self._tick()

    def _tick(self) -> None:
        """Let receives return every tick; on plain sockets let one receive fill the whole buffer.

        MSG_WAITALL works on blocking sockets only, and a Python timeout makes them non-blocking: the
        kernel's own timeout does not.
        """
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(TICK)
            return
        self._socket.settimeout(None)
        self._set_kernel_timeout(TICK)
        self._flags = socket.MSG_WAITALL

    def _set_kernel_timeout(self, seconds: float) -> None:
        interval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)

    # -- asking ----------------------------------------------------------------------------------------

    def ask(self, request: bytes, waiting: Callable[[], None]) -> Reply:
        """Status, headers and body of the answer. ``waiting`` is called every tick, and may raise.

        Raises what the wire raises, TimeoutError after the read timeout.
        """
        self._start = self._end = 0
        self._socket.sendall(request)
        quiet = 0.0
        while True:
            try:
                count = self._socket.recv_into(self._view[self._end :])
            except _QUIET:
                waiting()
                quiet += TICK
                if quiet >= self._read_timeout:
                    raise TimeoutError from None
                continue
            if not count:
                raise http.client.RemoteDisconnected("closed without an answer")
            self._end += count
            quiet = 0.0
            end = self._ahead.find(b"\r\n\r\n", 0, self._end)
            if end >= 0:
                parsed = parse_head(self._ahead[:end])
                if parsed is None:
                    return self._hand_over()
                self._start = end + 4
                status, headers = parsed
                self._last = "close" in headers.get("connection", "").lower()
                return status, headers, self
            if self._end == _AHEAD or any(self._ahead.find(each, 0, self._end) >= 0 for each in _BARE_ENDS):
                return self._hand_over()

    @property
    def answering(self) -> bool:
        """Whether any byte of the answer came."""
        return self._end > 0

    def _hand_over(self) -> Reply:
        if not isinstance(self._socket, ssl.SSLSocket):
            self._set_kernel_timeout(0)
        self._socket.settimeout(self._read_timeout)
        response = http.client.HTTPResponse(_Replay(self), method="GET")  # type: ignore[arg-type]
        response.begin()
        headers: dict[str, str] = {}
        for name, value in response.msg.items():
            key = name.lower()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        return response.status, headers, _Handed(self, response)

    # -- the body --------------------------------------------------------------------------------------

    def ahead(self, view: memoryview) -> int:
        start = self._start
        count = min(len(view), self._end - start)
        if count:
            self._start += count
            view[:count] = self._view[start : start + count]
        return count

    def receive(self, view: memoryview) -> int | None:
        try:
            return self._socket.recv_into(view, 0, self._flags)
        except _QUIET:
            return None

    def receive_patiently(self, view: memoryview) -> int:
        """For http.client: blocks until the read timeout."""
        return self.ahead(view) or self._socket.recv_into(view)

    def at_end(self, *, bounded: bool) -> bool:
        return bounded and self._start == self._end  # a body framed by the close leaves nothing to reuse

    def abort(self) -> None:
        with suppress(OSError):
            # not SSLSocket's: that takes the TLS state away under the thread that reads
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def release(self) -> None:
        if self._last or self._keep is None:
            self.drop()
        else:
            self._keep(self)

    def release_handed(self, *, last: bool) -> None:
        """http.client has read the whole answer; ``last``: the connection ends with it."""
        self._tick()
        self._last = last
        self.release()

    def drop(self) -> None:
        self._connection.close()


class _Replay(io.RawIOBase):
    """A line as the socket that http.client reads: what came already, then the rest."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def makefile(self, mode: str) -> io.BufferedReader:  # noqa: ARG002 - http.client asks for "rb"
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._line.receive_patiently(memoryview(buffer))


class _Handed:
    """An answer that http.client unframes. Implements :class:`Stream`."""

    def __init__(self, line: Line, response: http.client.HTTPResponse) -> None:
        self._line = line
        self._response = response

    def ahead(self, view: memoryview) -> int:  # noqa: ARG002 - http.client unframes it
        return 0

    def receive(self, view: memoryview) -> int | None:
        block = self._response.read1(len(view))
        view[: len(block)] = block
        return len(block)

    def at_end(self, *, bounded: bool) -> bool:  # noqa: ARG002 - http.client knows its framing
        return not self._response.read1(1)

    def abort(self) -> None:
        self._line.abort()

    def release(self) -> None:
        self._line.release_handed(last=self._response.will_close)

    def drop(self) -> None:
        self._line.drop()
