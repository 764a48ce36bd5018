"""A data response, read as fast as Python can: bytes go from the socket into the caller's buffer."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from threading import Lock
from types import TracebackType
from typing import Final, Self

from nimpull.core.names import Url
from nimpull.core.ports import Cancel, Clock, Head
from nimpull.errors import Cancelled, NetworkError
from nimpull.transport.policy import TransportPolicy
from nimpull.transport.requests_errors import WIRE_ERRORS, explain
from nimpull.transport.streams import Stream, content_length
from nimpull.transport.wire import Answer

_HINT: Final = "Something between here and the registry cuts connections, or slows them. Run again later."


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


class Gauge:
    """How many data responses are open, and the ``most`` that were at one time. Thread-safe."""

    def __init__(self) -> None:
        self.most = 0
        self._open = 0
        self._lock = Lock()

    def opened(self) -> None:
        with self._lock:
            self._open += 1
            self.most = max(self.most, self._open)

    def closed(self) -> None:
        with self._lock:
            self._open -= 1


class OpenBody:
    """Implements :class:`nimpull.core.ports.Body` over the stream of an answer."""

    def __init__(self, answer: Answer[Stream], meter: Callable[[Url], Meter], gauge: Gauge) -> None:
        """``meter`` makes one for the first byte that has to be waited for."""
        gauge.opened()
        self._gauge = gauge
        self.head = Head(answer.status, answer.headers, answer.url)
        self._proxy = answer.proxy
        self._stream = answer.stream
        self._new_meter = meter
        self._meter: Meter | None = None
        self._remaining = content_length(answer.status, answer.headers)
        self._ended = self._remaining == 0
        self._failure: NetworkError | None = None
        self._closed = False

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; a short count is what came before the end, or before what the next call raises.

        Raises NetworkError, Cancelled.
        """
        if self._failure is not None:
            raise self._failure
        wanted = len(buffer)
        if self._remaining is not None:
            wanted = min(wanted, self._remaining)
        filled = self._stream.ahead(buffer[:wanted])
        if filled < wanted and not self._ended:
            filled = self._wait_for(buffer, filled, wanted)
        if self._remaining is not None:
            self._remaining -= filled
            self._ended = self._ended or self._remaining == 0
        return filled

    def _wait_for(self, buffer: memoryview, filled: int, wanted: int) -> int:
        meter = self._meter = self._meter or self._new_meter(self.head.url)
        meter.resume()
        try:
            while filled < wanted:
                received = self._receive(buffer[filled:wanted], meter)
                if received == 0:
                    meter.stop_if_cancelled()  # which shuts the socket down
                    self._end_early_unless_complete(filled)
                    break
                filled += received or 0
                meter.count(received or 0)
        except NetworkError as error:
            if not filled:
                raise
            self._failure = error
        meter.rest()
        return filled

    def _receive(self, view: memoryview, meter: Meter) -> int | None:
        """Some bytes into ``view``; 0 = the peer closed, None = none within a tick."""
        try:
            return self._stream.receive(view)
        except WIRE_ERRORS as error:
            meter.stop_if_cancelled()
            raise self._broken(error) from error

    def _broken(self, error: BaseException) -> Exception:
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return self._closed_early()
        if isinstance(error, ssl.SSLError):
            return NetworkError(f"{self.head.url.host}: the TLS connection broke off", hint=_HINT)
        return explain(error, self.head.url, self._proxy)

    def _end_early_unless_complete(self, filled: int) -> None:
        if self._remaining is not None and filled < self._remaining:
            raise self._closed_early(self._remaining - filled)
        self._ended = True

    def _closed_early(self, missing: int | None = None) -> NetworkError:
        short = f", {missing} bytes short" if missing else ""
        return NetworkError(f"{self.head.url.host}: the connection closed early{short}", hint=_HINT)

    def abort(self) -> None:
        """See :class:`nimpull.core.ports.Body`; without effect on a body whose socket is urllib3's own."""
        self._stream.abort()

    def close(self, *, reuse: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        self._gauge.closed()
        if reuse and self._at_end():
            self._stream.release()
        else:
            self._stream.drop()

    def _at_end(self) -> bool:
        """Whether nothing of this response is left on the connection."""
        if self._remaining:
            return False
        try:
            return self._stream.at_end(bounded=self._remaining == 0)
        except WIRE_ERRORS:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
