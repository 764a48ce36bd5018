"""Registries' small answers, through requests; tenacity asks again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final

import requests
import tenacity

from nimpull.core.events import Waiting
from nimpull.core.names import Url
from nimpull.core.network_failures import (
    PermanentNetworkError,
    StallDetector,
    proxy_refused,
    unusable,
)
from nimpull.core.patience import BUSY, Patience
from nimpull.core.ports import Cancel, Clock, Emit
from nimpull.core.redirects import Hop, check_location, is_redirect, next_hop
from nimpull.core.reply import Reply, content_length
from nimpull.errors import Cancelled, NetworkError, TransferError
from nimpull.transport.network import Network
from nimpull.transport.requests_connections import Adapter, Exchange, thread
from nimpull.transport.requests_errors import WIRE_ERRORS, explain

_TICK: Final = 0.2  # seconds between two looks at the cancel event and at an exchange that takes its time
_MOMENT: Final = 0.001  # seconds: what rounding leaves of a pause is none
_BLOCK: Final = 64 << 10
_SKIPPED: Final = 16 << 10  # bytes of a redirect's own page that are read, so that its connection is kept
_STOPPED_HINT: Final = "Run again to continue where it stopped."


class HttpApi:
    """Implements :class:`nimpull.core.ports.Api`. Thread-safe.

    Each exchange has a thread of its own: a look-up, a handshake and a head can only be waited for, and who
    waits must be able to leave at any moment. A thread that was left ends with its socket.
    """

    def __init__(self, network: Network, *, clock: Clock, cancel: Cancel, emit: Emit) -> None:
        """Raises TlsError for a system store that is damaged."""
        # their lines carry whole URLs, presigned queries too
        for name in ("urllib3.connection", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.network = network
        self._clock = clock
        self._cancel = cancel
        self._emit = emit
        self._session = _Session()
        self._session.trust_env = False  # neither .netrc nor the environment's proxies and bundles
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        policy = network.policy
        self._session.headers = {"User-Agent": policy.user_agent, "Accept-Encoding": "identity"}
        self._timeout = (policy.connect_timeout, policy.read_timeout)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, Adapter(network))

    def close(self) -> None:
        self._session.close()

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
        hop = Hop(method, url, headers or {}, body)
        retries = _Retries(url.host, self.network, self._clock)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Unsettled),
            wait=retries.pause,
            stop=retries.given_up,
            sleep=self._rest,
            before_sleep=lambda state: self._emit(Waiting(str(retries.last), state.upcoming_sleep)),
            reraise=True,
        )
        try:
            return retrying(self._attempt, hop, max_bytes, follow, retries.ends)
        except _Unsettled as last:
            if last.reply is not None:
                return last.reply
            raise last.error_after(retrying.statistics["attempt_number"]) from last.__cause__

    def _rest(self, seconds: float) -> None:
        if self._clock.wait(seconds, self._cancel):
            raise Cancelled("stopped while waiting for the next attempt", hint=_STOPPED_HINT)

    def _attempt(self, hop: Hop, max_bytes: int, follow: bool, ends: float) -> Reply:
        try:
            reply = self._follow(hop, max_bytes, follow, ends)
        except TransferError as error:
            if not error.retryable:
                raise
            raise _Unsettled(error.message, error=error) from error
        if reply.status in BUSY:
            self.network.pauses.note(reply.url.host, reply.status, reply.headers)
            raise _Unsettled(f"{reply.url.authority} answers HTTP {reply.status}", reply=reply)
        return reply

    def _follow(self, hop: Hop, max_bytes: int, follow: bool, ends: float) -> Reply:
        """The first answer that is not a followed redirect. ``ends``: when patience does, and no host's pause
        is waited for any longer."""
        check_location(hop.url)
        while True:
            while (left := self._rests(hop.url.host, ends)) > _MOMENT:
                self._rest(left)
            reply = self._ask(hop, max_bytes)
            if not follow or not is_redirect(reply.status, reply.headers):
                return reply
            hop = next_hop(hop, reply.status, reply.headers["location"])

    def _rests(self, host: str, ends: float) -> float:
        return min(self.network.pauses.left(host), ends - self._clock.monotonic())

    def _ask(self, hop: Hop, max_bytes: int) -> Reply:
        """One exchange, watched from here: it ends with its answer, its failure, or the run."""
        exchange, outcome = Exchange(), Future[Reply]()

        def carry_out() -> None:
            thread.exchange = exchange
            try:
                outcome.set_result(self._send(hop, max_bytes, exchange))
            except BaseException as error:  # noqa: BLE001 - raised where the answer is waited for
                outcome.set_exception(error)

        if self._cancel.is_set():
            raise Cancelled("stopped before the next request", hint=_STOPPED_HINT)
        try:
            threading.Thread(target=carry_out, name=f"ask {hop.url.host}", daemon=True).start()
        except RuntimeError:  # no thread is left (pids.max): then without the freedom to leave
            carry_out()
        watch = StallDetector(hop.url, self.network.policy, self._clock.monotonic())
        moved = 0
        while not wait([outcome], _TICK).done:
            now = self._clock.monotonic()
            if exchange.moved != moved:
                moved = exchange.moved
                watch.rest(now)
            problem = watch.problem(now, exchange.received, answered=exchange.answered)
            if self._cancel.is_set() or problem:
                exchange.shut()
                raise problem or Cancelled("stopped while waiting for an answer", hint=_STOPPED_HINT)
        return outcome.result()

    def _send(self, hop: Hop, max_bytes: int, exchange: Exchange) -> Reply:
        proxy = self.network.proxy_for(hop.url)
        request = self._prepared(hop)
        try:
            with self._session.send(
                request,
                proxies={hop.url.scheme: proxy.reveal()} if proxy else {},
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            ) as response:
                return self._read(hop, response, max_bytes, exchange, proxy)
        except WIRE_ERRORS as error:
            failure = explain(error, hop.url, proxy)
            if (proxy or hop.url).host in self.network.reached:  # the name is right: this may pass
                failure.patience = float("inf")
            raise failure from error

    def _prepared(self, hop: Hop) -> requests.PreparedRequest:
        """Raises NetworkError without its cause, which quotes the URL or the header."""
        headers = dict(hop.headers)
        try:
            for value in headers.values():
                value.encode("latin-1")
            return self._session.prepare_request(
                requests.Request(hop.method, hop.url.reveal(), headers, data=hop.body)
            )
        except (requests.exceptions.InvalidHeader, UnicodeEncodeError):
            raise PermanentNetworkError(
                f"a header for {hop.url.authority} holds a line break, a blank or a character that none may",
                hint="Check the secret that the API key is read from: it is copied with something around it.",
            ) from None
        except ValueError:  # InvalidURL is one
            raise PermanentNetworkError(
                f"cannot make a request of the address {hop.url}", hint="Check how it is spelled."
            ) from None

    def _read(
        self, hop: Hop, response: requests.Response, max_bytes: int, exchange: Exchange, proxy: Url | None
    ) -> Reply:
        status, raw = response.status_code, response.raw
        exchange.answered = True
        exchange.moved += 1
        if status == 407 and proxy is not None:
            raise proxy_refused(status, hop.url, proxy)
        try:
            length = content_length(raw.headers.getlist("content-length"))
        except ValueError as error:
            raise unusable(hop.url, str(error)) from error
        headers = {name.lower(): value for name, value in raw.headers.items()}
        blocks: list[bytes] = []
        if not is_redirect(status, headers) or (length is not None and length <= _SKIPPED):
            while block := raw.read1(_BLOCK, decode_content=True):
                blocks.append(block)
                exchange.received += len(block)
                if exchange.received > max_bytes:
                    raise unusable(hop.url, f"the answer to {hop.url} is over {max_bytes} bytes")
        body = b"".join(blocks)
        if status == 400 and hop.url.scheme == "http" and b"HTTPS" in body[:_BLOCK]:  # nginx, Apache, Go
            raise PermanentNetworkError(
                f"{hop.url.authority}: it speaks https, and was asked in plain http",
                hint="Write https:// before the address.",
            )
        return Reply(status, headers, body, hop.url)


class _Session(requests.Session):
    def resolve_redirects(self, *_: Any, **__: Any) -> Iterator[Any]:
        """None: ours decide each hop, and this would read a redirect's page, however long, to look ahead."""
        return iter(())


class _Unsettled(Exception):
    """An attempt that is worth another: ``reply`` if the server answered, else ``error``."""

    def __init__(
        self, reason: str, *, reply: Reply | None = None, error: TransferError | None = None
    ) -> None:
        super().__init__(reason)
        self.reply = reply
        self.error = error

    def error_after(self, attempts: int) -> TransferError:
        kind = type(self.error) if self.error else NetworkError
        hint = self.error.hint if self.error else ""
        times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        return kind(f"{self} (after {times})", hint=hint)


class _Retries:
    """The patience of one request, as tenacity asks for it. ``last``: of the latest attempt."""

    def __init__(self, host: str, network: Network, clock: Clock) -> None:
        self.last: _Unsettled | None = None
        self._host = host
        self._network = network
        self._clock = clock
        self._patience = Patience(network.policy.retry_budget, clock.monotonic())
        self._pause: float | None = None

    @property
    def ends(self) -> float:
        return self._patience.ends

    def pause(self, state: tenacity.RetryCallState) -> float:
        """Seconds; tenacity asks for them first, then whether it is :meth:`given_up`."""
        failure = state.outcome.exception() if state.outcome else None
        assert isinstance(failure, _Unsettled)  # noqa: S101 - the one kind that is retried
        self.last = failure
        self._patience, self._pause = self._patience.failed(
            self._clock.monotonic(),
            self._clock.jitter(),
            patience=failure.error.patience if failure.error else float("inf"),
            asked=self._network.pauses.left(failure.reply.url.host if failure.reply else self._host),
        )
        return self._pause or 0.0

    def given_up(self, _state: tenacity.RetryCallState) -> bool:
        return self._pause is None
