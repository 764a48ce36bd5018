"""The only opener of sockets: registries' small answers, and the bytes of files.

TLS trust, proxies, per-origin credentials, redirects, timeouts and the low-speed limit are all decided
here, from one :class:`TransportPolicy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from threading import Thread
from typing import Final, Self

import tenacity

from nimpull.core.artifacts import Location
from nimpull.core.events import Waiting
from nimpull.core.names import Url, display
from nimpull.core.patience import BUSY, backoff
from nimpull.core.ports import Body, Cancel, Clock, Emit, Reply
from nimpull.errors import Cancelled, IntegrityError, NetworkError, NimpullError, ProxyError, TransferError
from nimpull.transport.body import Gauge, Meter, OpenBody
from nimpull.transport.failures import WIRE_ERRORS, ProxyRefusedError, explain
from nimpull.transport.pauses import Pauses
from nimpull.transport.policy import TransportPolicy
from nimpull.transport.streams import Pooled
from nimpull.transport.trust import authorities
from nimpull.transport.wire import Answer, Wire

__all__ = ["Transport", "TransportPolicy"]

_WATCH_INTERVAL: Final = 0.5  # seconds
_API_BLOCK: Final = 64 << 10
_STOPPED_HINT: Final = "Run again to continue where it stopped."


class _Unsettled(Exception):
    """An attempt that is worth another: ``reply`` if the server answered, else ``error``."""

    def __init__(
        self, reason: str, *, reply: Reply | None = None, error: TransferError | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reply = reply
        self._error = error
        self.patience = error.patience if error else math.inf

    def error_after(self, attempts: int) -> TransferError:
        kind = type(self._error) if self._error else NetworkError
        hint = self._error.hint if self._error else ""
        times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        return kind(f"{self.reason} (after {times})", hint=hint)


class OversizeError(NetworkError):
    """An answer larger than the caller is ready to hold; asking again would not help."""

    retryable = False


class Transport:
    """Implements :class:`nimpull.core.ports.Api` and :class:`nimpull.core.ports.Get`. Thread-safe."""

    def __init__(self, policy: TransportPolicy, *, clock: Clock, cancel: Cancel, emit: Emit) -> None:
        """Raises TlsError if a CA bundle cannot be read."""
        self._policy = policy
        self._clock = clock
        self._cancel = cancel
        self._emit = emit
        self._pauses = Pauses(clock)
        self.authorities = authorities(policy.ca_files, policy.ca_directories)
        self._wire = Wire(policy, self.authorities, self._gate)
        self._closed = False
        self._gauge = Gauge()
        Thread(target=self._watch, name="transport-cancel", daemon=True).start()

    @property
    def connections(self) -> int:
        """The most that brought files at one time, so far."""
        return self._gauge.most

    def close(self) -> None:
        self._closed = True
        self._wire.close()

    def _watch(self) -> None:
        """A thread that waits for the head of an answer cannot look at ``cancel`` itself."""
        while not self._closed:
            if self._cancel.wait(_WATCH_INTERVAL):
                self._wire.abort()
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- Api -------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        url: Url,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int = 64 << 20,
        follow: bool = True,
    ) -> Reply:
        """See :meth:`nimpull.core.ports.Api.request`. An answer over ``max_bytes`` is a NetworkError."""
        began = self._clock.monotonic()

        def send() -> Answer[Pooled]:
            return self._wire.exchange(method, url, headers or {}, body, follow=follow)

        def attempt() -> Reply:
            return self._attempt(send, max_bytes)

        def unsettled(state: tenacity.RetryCallState) -> _Unsettled:
            failure = state.outcome.exception() if state.outcome else None
            assert isinstance(failure, _Unsettled)  # noqa: S101 - the one kind that is retried
            return failure

        def pause(state: tenacity.RetryCallState) -> float:
            failure = unsettled(state)
            host = failure.reply.url.host if failure.reply else url.host
            seconds = backoff(state.attempt_number, self._clock.jitter(), failure.patience)
            return max(self._pauses.left(host), seconds)

        def spent(state: tenacity.RetryCallState) -> bool:
            budget = min(self._policy.retry_budget, unsettled(state).patience)
            return self._clock.monotonic() + state.upcoming_sleep > began + budget

        def rest(seconds: float) -> None:
            self._clock.wait(seconds, self._cancel)

        def tell(state: tenacity.RetryCallState) -> None:
            self._emit(Waiting(unsettled(state).reason, state.upcoming_sleep))

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Unsettled),
            wait=pause,
            stop=spent,
            sleep=rest,
            before_sleep=tell,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except _Unsettled as last:
            if last.reply is not None:
                return last.reply
            attempts = retrying.statistics["attempt_number"]
            raise last.error_after(attempts) from last.__cause__

    def _attempt(self, send: Callable[[], Answer[Pooled]], max_bytes: int) -> Reply:
        try:
            reply = self._read_whole(send(), max_bytes)
        except (OversizeError, ProxyRefusedError):
            raise
        except (NetworkError, ProxyError) as error:
            raise _Unsettled(error.message, error=error) from error
        if reply.status in BUSY:
            self._pauses.note(reply.url.host, reply.status, reply.headers)
            raise _Unsettled(f"{reply.url.host} answers HTTP {reply.status}", reply=reply)
        return reply

    def _read_whole(self, answer: Answer[Pooled], max_bytes: int) -> Reply:
        blocks: list[bytes] = []
        size = 0
        meter = self._meter(answer.url)
        try:
            while block := answer.stream.raw.read1(_API_BLOCK, decode_content=True):
                blocks.append(block)
                size += len(block)
                meter.count(len(block))
                if size > max_bytes:
                    raise OversizeError(
                        f"{answer.url}: the answer is over {max_bytes} bytes",
                        hint="This is not what a registry sends. Check the address.",
                    )
        except WIRE_ERRORS as error:
            answer.stream.drop()
            meter.stop_if_cancelled()
            raise explain(error, answer.url, answer.proxy) from error
        except NimpullError:
            answer.stream.drop()
            raise
        answer.stream.release()
        return Reply(answer.status, answer.headers, b"".join(blocks), answer.url)

    # -- Get -------------------------------------------------------------------------------------------

    def __call__(
        self, location: Location, start: int, end: int | None, *, fresh_connection: bool = False
    ) -> Body:
        """See :class:`nimpull.core.ports.Get`.

        A content coding on a 2xx is IntegrityError: the bytes would not be the file's. Waits while the host
        has asked for a pause.
        """
        headers = location.headers
        if start or end is not None:
            headers = {**headers, "Range": f"bytes={start}-{'' if end is None else end - 1}"}
        answer = self._wire.get(location.url, headers, fresh_connection=fresh_connection)
        if answer.status in (429, 503):
            self._pauses.note(answer.url.host, answer.status, answer.headers)
        coding = answer.headers.get("content-encoding", "").strip().lower()
        if coding and coding != "identity" and answer.status < 300:
            answer.stream.drop()
            raise IntegrityError(
                f"{answer.url.host} sent {answer.url} with Content-Encoding {display(coding, 40)}, "
                "which was not asked for; nothing was decoded",
                hint="A proxy or cache on the way rewrites downloads. Take the host out of it (NO_PROXY).",
            )
        return OpenBody(answer, self._meter, self._gauge)

    get = __call__

    # -- both ------------------------------------------------------------------------------------------

    def _meter(self, url: Url) -> Meter:
        return Meter(url, self._policy, self._clock, self._cancel)

    def _gate(self, host: str) -> None:
        while (seconds := self._pauses.left(host)) > 0 and not self._clock.wait(seconds, self._cancel):
            pass
        if self._cancel.is_set():
            raise Cancelled("stopped before the next request", hint=_STOPPED_HINT)
