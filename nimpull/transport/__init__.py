"""The only opener of sockets: registries' small answers, and the bytes of files.

TLS trust, proxies, per-origin credentials, redirects, timeouts and the low-speed limit are all decided
here, from one :class:`TransportPolicy`.
"""

from __future__ import annotations

from threading import Thread
from typing import Final, Self

from nimpull.core.artifacts import Location
from nimpull.core.names import Url, display
from nimpull.core.ports import Body, Cancel, Clock, Emit
from nimpull.errors import Cancelled, IntegrityError
from nimpull.transport.api import HttpApi
from nimpull.transport.body import Gauge, Meter, OpenBody
from nimpull.transport.network import Network
from nimpull.transport.policy import TransportPolicy
from nimpull.transport.wire import Wire

__all__ = ["HttpApi", "Network", "Transport", "TransportPolicy"]

_WATCH_INTERVAL: Final = 0.5  # seconds
_STOPPED_HINT: Final = "Run again to continue where it stopped."


class Transport:
    """Implements :class:`nimpull.core.ports.Get`. Thread-safe."""

    def __init__(
        self,
        policy: TransportPolicy,
        *,
        clock: Clock,
        cancel: Cancel,
        emit: Emit,
        network: Network | None = None,
    ) -> None:
        """Raises TlsError if a CA bundle cannot be read."""
        self._policy = policy
        self._clock = clock
        self._cancel = cancel
        self._emit = emit
        network = network or Network(policy, clock)
        self._pauses = network.pauses
        self._wire = Wire(policy, network.authorities, self._gate)
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
        # aws-chunked is how an upload was framed; some servers of S3's kind keep it with the object
        if coding not in ("", "identity", "aws-chunked") and answer.status < 300:
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
