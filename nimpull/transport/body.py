"""A data response, read as fast as Python can: bytes go from the socket into the caller's buffer."""

from __future__ import annotations

import io
import socket
import ssl
import struct
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from nimpull.core.names import Url
from nimpull.core.ports import Cancel, Clock, Head
from nimpull.errors import Cancelled, NetworkError
from nimpull.transport.failures import WIRE_ERRORS, explain
from nimpull.transport.policy import TransportPolicy
from nimpull.transport.wire import Answer

_TICK: Final = 0.25  # seconds a receive may block before stall, speed and cancellation are looked at
_STREAM_BLOCK: Final = 1 << 20
_HINT: Final = "It is tried again; if it stays, something between here and the registry cuts connections."


class Meter:
    """Notices a transfer that stalls, or crawls below the policy's low-speed limit."""

    def __init__(self, url: Url, policy: TransportPolicy, clock: Clock, cancel: Cancel) -> None:
        self._url = url
        self._policy = policy
        self._clock = clock
        self._cancel = cancel
        self._began = self._last = self._rested = clock.monotonic()
        self._received = 0

    def resume(self) -> None:
        """The caller waits again; the time it spent elsewhere since ``rest`` is not the network's."""
        away = self._clock.monotonic() - self._rested
        self._began += away
        self._last += away

    def rest(self) -> None:
        self._rested = self._clock.monotonic()

    def stop_if_cancelled(self) -> None:
        if self._cancel.is_set():
            raise Cancelled("stopped while receiving", hint="Run again to continue where it stopped.")

    def count(self, received: int) -> None:
        """``received`` bytes came, perhaps none. Raises NetworkError, Cancelled."""
        self.stop_if_cancelled()
        now = self._clock.monotonic()
        self._received += received
        if received:
            self._last = now
        elif now - self._last >= self._policy.read_timeout:
            raise NetworkError(f"{self._url.host}: it stalled for {now - self._last:.0f} s", hint=_HINT)
        elapsed = now - self._began
        if elapsed < self._policy.low_speed_seconds:
            return
        if self._received < self._policy.low_speed_bytes * elapsed:
            rate = self._received / elapsed / 1024
            limit = self._policy.low_speed_bytes / 1024
            pace = f"{rate:.1f} KiB/s over {elapsed:.0f} s (limit {limit:.0f} KiB/s)"
            raise NetworkError(f"{self._url.host}: too slow, {pace}", hint=_HINT)
        self._began, self._received = now, 0


class OpenBody:
    """Implements :class:`nimpull.core.ports.Body`.

    Framing by Content-Length, or by the close of the connection, is read straight from the socket, past
    http.client and urllib3. Anything else (chunked, or a urllib3 that is not built on http.client) goes
    through the public ``read1``.
    """

    def __init__(self, answer: Answer, meter: Meter) -> None:
        self.head = Head(answer.status, answer.headers, answer.url)
        self._answer = answer
        self._meter = meter
        self._raw = answer.raw
        self._remaining = _content_length(answer)
        self._ended = self._remaining == 0
        self._closed = False
        self._line = None if self._ended else _Line.of(answer)

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; a short count is the end of the body. Raises NetworkError, Cancelled."""
        wanted = len(buffer)
        if self._remaining is not None:
            wanted = min(wanted, self._remaining)
        filled = 0
        self._meter.resume()
        while filled < wanted and not self._ended:
            received = self._receive(buffer[filled:wanted])
            if received is None:
                self._meter.count(0)
                continue
            if received == 0:
                self._meter.stop_if_cancelled()  # which shuts the socket down
                self._end_early_unless_complete(filled)
                break
            filled += received
            self._meter.count(received)
        self._meter.rest()
        if self._remaining is not None:
            self._remaining -= filled
            self._ended = self._ended or self._remaining == 0
        return filled

    def _receive(self, view: memoryview) -> int | None:
        """Some bytes into ``view``; 0 = the peer closed, None = none within a tick."""
        try:
            if self._line is not None:
                return self._line.receive(view)
            block = self._raw.read1(min(len(view), _STREAM_BLOCK), decode_content=False)
        except WIRE_ERRORS as error:
            self._meter.stop_if_cancelled()
            raise self._broken(error) from error
        view[: len(block)] = block
        return len(block)

    def _broken(self, error: BaseException) -> Exception:
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return self._closed_early()
        if isinstance(error, ssl.SSLError):
            return NetworkError(f"{self.head.url.host}: the TLS connection broke off", hint=_HINT)
        return explain(error, self.head.url, self._answer.proxy)

    def _end_early_unless_complete(self, filled: int) -> None:
        if self._remaining is not None and filled < self._remaining:
            raise self._closed_early(self._remaining - filled)
        self._ended = True

    def _closed_early(self, missing: int | None = None) -> NetworkError:
        short = f", {missing} bytes short" if missing else ""
        return NetworkError(f"{self.head.url.host}: the connection closed early{short}", hint=_HINT)

    def abort(self) -> None:
        """See :class:`nimpull.core.ports.Body`; without effect on a body whose end is not known before."""
        if self._line is not None:
            self._line.cut()

    def close(self, *, reuse: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        if reuse and self._at_end():
            if self._line is not None:
                self._line.restore()
            self._raw.release_conn()
        else:
            self._answer.drop()

    def _at_end(self) -> bool:
        """Whether nothing of this response is left on the connection."""
        if self._line is not None:
            return self._remaining == 0  # a body framed by the close leaves no connection to reuse
        if self._remaining:
            return False
        try:
            return not self._raw.read1(1, decode_content=False)
        except WIRE_ERRORS:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Line:
    """The socket under a response, once http.client has read the head."""

    def __init__(self, response: object, reader: io.BufferedReader, sock: socket.socket) -> None:
        self._response = response
        self._reader = reader
        self._socket = sock
        self._timeout = sock.gettimeout()
        self._flags = 0
        self._buffered: int | None = None

    @classmethod
    def of(cls, answer: Answer) -> _Line | None:
        """None where the response is not http.client's, or its framing is not plain.

        urllib3 keeps http.client's response in ``_fp``; forks that replace urllib3 do not, so every step is
        asked for, not assumed.
        """
        response = getattr(answer.raw, "_fp", None)
        reader = getattr(response, "fp", None)
        sock = getattr(getattr(reader, "raw", None), "_sock", None)
        if getattr(response, "chunked", True) or not hasattr(response, "length"):
            return None
        if not isinstance(reader, io.BufferedReader) or not isinstance(sock, socket.socket):
            return None
        return cls(response, reader, sock)

    def receive(self, view: memoryview) -> int | None:
        """What http.client read ahead comes first; 0 = the peer closed, None = none within a tick."""
        if self._buffered is None:
            self._tick()
            self._buffered = self._read_ahead()
        if self._buffered:
            count = self._reader.readinto(view[: min(len(view), self._buffered)])
            self._buffered -= count
            return count
        try:
            return self._socket.recv_into(view, 0, self._flags)
        except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
            return None

    def _read_ahead(self) -> int:
        """Bytes in http.client's buffer; fills it if it is empty, for at most a tick."""
        try:
            return len(self._reader.peek(1))
        except (TimeoutError, BlockingIOError):
            return 0  # the reader is of no use any more, the socket is

    def _tick(self) -> None:
        """Let receives return every tick; on plain sockets let one receive fill the whole buffer.

        MSG_WAITALL works on blocking sockets only, and a Python timeout makes them non-blocking: the
        kernel's own timeout does not.
        """
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(_TICK)
            return
        self._socket.settimeout(None)
        self._set_kernel_timeout(_TICK)
        self._flags = socket.MSG_WAITALL

    def _set_kernel_timeout(self, seconds: float) -> None:
        interval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)

    def cut(self) -> None:
        with suppress(OSError):
            # not SSLSocket's: that takes the TLS state away under the thread that reads
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def restore(self) -> None:
        """Tell http.client and the socket that the body was read, so that the connection can be reused."""
        if self._flags:
            self._set_kernel_timeout(0)
        self._socket.settimeout(self._timeout)
        close = getattr(self._response, "close", None)
        if close is not None:
            close()


def _content_length(answer: Answer) -> int | None:
    """Bytes of the body, None where the head does not say (chunked, or until the close)."""
    if answer.status in (204, 304) or answer.status < 200:
        return 0
    if "transfer-encoding" in answer.headers:
        return None
    text = answer.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None
