"""All connections that bring bytes, on libcurl's multi interface, turned by one thread.

libcurl connects, handshakes, speaks HTTP/1.1 and HTTP/2, goes through proxies and keeps connections. Where a
redirect may lead, what is trusted, which proxy is taken and which addresses are refused is decided here.
"""

from __future__ import annotations

import os
import re
import select
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import pycurl

from nimpull.core.artifacts import Location
from nimpull.core.link_local import is_internal
from nimpull.core.names import Url
from nimpull.core.network_failures import StallDetector, proxy_refused, unusable
from nimpull.core.patience import BUSY
from nimpull.core.ports import PAUSE, STOP, Receiver
from nimpull.core.redirects import Hop, check_location, internal, is_redirect, next_hop
from nimpull.core.reply import Head, content_length
from nimpull.errors import LimitError, NetworkError, NimpullError, TransferError
from nimpull.transport.curl_errors import explain_curl
from nimpull.transport.network import Network

_BUFFER: Final = 512 << 10  # bytes that libcurl reads at a time; it has one such buffer for all connections
_UNWANTED: Final = 64 << 10  # bytes of a body nobody wants that are read, so that its connection can be kept
_SUPPRESS_CONNECT_HEADERS: Final = 265  # CURLOPT_SUPPRESS_CONNECT_HEADERS, which pycurl has no name for
_QUICK_EXIT: Final = 244  # CURLOPT_QUICK_EXIT: a look-up that hangs does not keep the process
_WEB: Final = pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS
_FIELD: Final = re.compile(r"^([^:\n]*):(.*)$", re.MULTILINE)
_Handle = pycurl.Curl


class _Lent(socket.socket):
    """pycurl makes a descriptor of its own of it, and lets it go."""

    def __del__(self) -> None:
        self.close()


class CurlResponse:
    """Implements :class:`nimpull.core.ports.Response`: one request, and those that redirects lead to."""

    def __init__(self, loop: Loop, handle: _Handle, hop: Hop, span: str, receiver: Receiver) -> None:
        self.hop = hop
        self.proxy: Url | None = None
        self.handle = handle
        self.received = 0  # bytes of the body
        self.error: BaseException | None = None  # why a callback stopped it
        self.refused = ""  # the address that it must not be connected to
        self.answered = self.paused = False
        self.head: Head | None = None
        self._loop = loop
        self._span = span
        self._receiver = receiver
        self._asked_host = hop.url.host
        self.lines: list[bytes] = []  # of heads, as libcurl gives them
        self._wanted = self._short = False
        self._followed = False
        self.watch: StallDetector | None = None

    # -- libcurl's callbacks -------------------------------------------------------------------------------

    def read_head(self) -> None:
        """What came of it so far: an answer's head is looked at once something comes behind it."""
        text = b"".join(self.lines).decode("latin-1").replace("\r\n", "\n")
        # those before the last are of 1xx, and of a proxy that asked who we are and was told
        heads = [each for each in text.split("\n\n")[:-1] if each.strip("\n")]
        if heads and not self.answered:
            self._wanted = self._judge_head(heads[-1].lstrip("\n"))

    def _judge_head(self, text: str) -> bool:
        """Whether the body behind it is wanted."""
        line, _, fields = text.partition("\n")
        version, _, rest = line.partition(" ")
        if not version.startswith("HTTP/") or not (rest[:3].isascii() and rest[:3].isdigit()):
            raise unusable(self.hop.url, "it does not speak HTTP")
        if version == "HTTP/2":
            self._loop.multiplexed.add(self.hop.url.authority)
        status = int(rest[:3])
        if status < 200:
            return False
        headers = _parse_fields(fields)
        lengths = headers["content-length"].split(",") if "content-length" in headers else ()
        try:
            length = content_length(lengths)
        except ValueError as error:
            raise unusable(self.hop.url, str(error)) from None
        if status == 407 and self.proxy is not None:
            raise proxy_refused(status, self.hop.url, self.proxy)
        if status in BUSY:
            for host in {self.hop.url.host, self._asked_host}:  # the one that led there rests too
                self._loop.network.pauses.note(host, status, headers)
        self.head = Head(status, headers, self.hop.url, version == "HTTP/2")
        self.answered = True
        self._followed = is_redirect(status, headers)
        self._short = length is not None and length <= _UNWANTED
        return not self._followed and self._receiver.head(self.head)

    def on_data(self, octets: bytes) -> int | None:
        try:
            if not self.answered:
                self._answer()
            answer = self._receiver.data(octets) if self._wanted else None if self._short else STOP
        except BaseException as error:  # noqa: BLE001 - libcurl is not to see it
            self.error = error
            return STOP
        if answer == PAUSE:
            self.paused = True
        else:
            self.received += len(octets)
        return answer

    def _answer(self) -> None:
        """Its head is whole; a local file has none."""
        if self.hop.url.scheme == "file":
            self.answered, partial = True, bool(self._span)
            fields = {"content-range": f"bytes {self._span}/*"} if partial else {}
            self._wanted = self._receiver.head(Head(206 if partial else 200, fields, self.hop.url))
        else:
            self.read_head()

    def on_socket(self, purpose: int, address: Any) -> Any:
        """Refuses what the name turned out to be, whoever answered for it; not where a proxy is."""
        del purpose
        peer = str(address.addr[0]) if isinstance(address.addr, tuple) else ""
        if self.proxy is None and is_internal(peer):
            self.refused = peer
            return pycurl.SOCKET_BAD
        try:
            return _Lent(address.family, address.socktype, address.protocol)
        except OSError as error:
            self.error = LimitError.of(error) or NetworkError(
                f"{self.hop.url.host}: {error.strerror}", hint=_FILES_HINT
            )
            return pycurl.SOCKET_BAD

    # -- for the receiver's side ---------------------------------------------------------------------------

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self.handle.pause(pycurl.PAUSE_CONT)

    def drop(self) -> None:
        self._loop.release(self)

    # -- for the loop ----------------------------------------------------------------------------------------

    def ended(self, error: BaseException | None) -> None:
        """Follow the redirect, or tell the receiver."""
        if error is None and not self.answered:  # there is no body
            try:
                self._answer()
            except Exception as caught:  # noqa: BLE001 - told below
                error = caught
        if error is None and self._followed and self.head is not None:
            try:
                hop = next_hop(self.hop, self.head.status, self.head.headers["location"])
            except NimpullError as refused:
                error = refused
            else:
                self.hop, self.head, self.answered, self.watch, self.lines = hop, None, False, None, []
                self._loop.follow(self)
                return
        self._receiver.ended(error)

    def problem(self, now: float, network: Network) -> BaseException | None:
        """What is wrong with its head, or with its pace at ``now``; None = nothing yet."""
        if not self.answered and self.lines and b" 407" not in self.lines[0]:
            try:
                self.read_head()
            except Exception as error:  # noqa: BLE001 - the receiver hears of it
                return error
        if self.watch is None:
            self.watch = StallDetector(self.hop.url, network.policy, now)
        if self.paused:
            self.watch.rest(now)
        return self.watch.problem(now, self.received, answered=self.answered)

    def fields(self) -> list[str]:
        lines = [f"{name}: {value}" for name, value in self.hop.headers.items()]
        return lines if not self._span else [*lines, f"Range: bytes={self._span}"]

    @property
    def span(self) -> str:
        return self._span


_FILES_HINT: Final = "Raise the limit of open files (ulimit -n), or allow fewer connections (--connections)."


class Loop:
    """Implements :class:`nimpull.core.ports.Connections`."""

    def __init__(self, network: Network) -> None:
        self.most = 0  # responses that were under way at one time
        self.network = network
        policy = network.policy
        self._own_headers = {"User-Agent": policy.user_agent, "Accept-Encoding": "identity"}
        self.multiplexed: set[str] = set()  # hosts (with port) that were seen to speak HTTP/2
        self._open: dict[_Handle, CurlResponse] = {}
        self._idle: list[_Handle] = []
        self._due: float | None = None  # libcurl's next time-out, real monotonic seconds
        self._poll = select.epoll()
        self._peek = select.poll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._bell, select.EPOLLIN)
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, 2 * policy.connections)

    # -- see ports.Connections -----------------------------------------------------------------------------

    def ask(
        self,
        location: Location,
        start: int,
        end: int | None,
        receiver: Receiver,
        *,
        fresh: bool = False,
        small: bool = False,
    ) -> CurlResponse:
        """See :meth:`nimpull.core.ports.Connections.ask`."""
        span = f"{start}-{'' if end is None else end - 1}" if start or end is not None else ""
        hop = Hop("GET", location.url, {**self._own_headers, **location.headers})
        handle = self._idle.pop() if self._idle else self._new_handle()
        # segments of one file over one connection would share its rate: HTTP/2 is for many small files
        version = pycurl.CURL_HTTP_VERSION_2TLS if small else pycurl.CURL_HTTP_VERSION_1_1
        handle.setopt(pycurl.HTTP_VERSION, version)
        # to wait for a connection that others have is for HTTP/2: over HTTP/1.1 the request would wait for
        # their answer, which may never come
        handle.setopt(pycurl.PIPEWAIT, small and location.url.authority in self.multiplexed)
        handle.setopt(pycurl.FRESH_CONNECT, fresh)
        response = CurlResponse(self, handle, hop, span, receiver)
        self.start(response)
        return response

    def turn(self, seconds: float) -> None:
        if self._due is not None:
            seconds = min(seconds, max(0.0, self._due - time.monotonic()))
        for descriptor, events in self._poll.poll(seconds):
            if descriptor == self._bell:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._bell)
                continue
            mask = pycurl.CSELECT_IN if events & ~select.EPOLLOUT else 0
            if events & select.EPOLLOUT:
                mask |= pycurl.CSELECT_OUT
            self._multi.socket_action(descriptor, mask)
        if self._due is not None and self._due <= time.monotonic():
            self._due = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        self._finish()

    def check(self, now: float) -> None:
        for response in tuple(self._open.values()):
            error = response.problem(now, self.network)
            if error is not None:
                self.release(response)
                response.ended(error)

    def wake(self) -> None:
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        for response in tuple(self._open.values()):
            self.release(response)
        for handle in self._idle:
            handle.close()
        self._idle.clear()
        self._multi.close()
        self._poll.close()

    # -- handles ---------------------------------------------------------------------------------------------

    def _new_handle(self) -> _Handle:
        handle = pycurl.Curl()
        for option, value in (
            (pycurl.NOSIGNAL, 1),
            (_QUICK_EXIT, 1),
            (pycurl.FOLLOWLOCATION, 0),
            (pycurl.CONNECTTIMEOUT_MS, max(1, int(self.network.policy.connect_timeout * 1000))),
            (pycurl.BUFFERSIZE, _BUFFER),
            (pycurl.CAINFO, self.network.authorities.path),
            (pycurl.PROXY_CAINFO, self.network.authorities.path),
            (pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2),
            (pycurl.NOPROXY, ""),  # ours decides
            (pycurl.PROXYAUTH, pycurl.HTTPAUTH_ANY),  # Basic, Digest, NTLM, Negotiate: what the proxy wants
            (_SUPPRESS_CONNECT_HEADERS, 1),
            (pycurl.NETRC, pycurl.NETRC_IGNORED),
        ):
            handle.setopt(option, value)
        return handle

    def start(self, response: CurlResponse) -> None:
        """The request of ``response.hop``. One that must not be made ends in the next turn."""
        handle, url = response.handle, response.hop.url
        local = url.scheme == "file"
        response.proxy = None if local else self.network.proxy_for(url)
        self._open[handle] = response
        self.most = max(self.most, len(self._open))
        try:
            if not local:
                check_location(url)
            fields = response.fields()
            if any("\n" in field or "\r" in field for field in fields):
                raise NetworkError(
                    f"a header for {url.authority} holds a line break",
                    hint="Check the secret that the API key is read from: something is copied with it.",
                )
            handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_FILE if local else _WEB)
            handle.setopt(pycurl.URL, url.reveal())
            handle.setopt(pycurl.PROXY, response.proxy.reveal() if response.proxy else "")
            handle.setopt(pycurl.HTTPHEADER, fields)
            if local and response.span:
                handle.setopt(pycurl.RANGE, response.span)
            else:
                handle.unsetopt(pycurl.RANGE)
            handle.setopt(pycurl.HEADERFUNCTION, response.lines.append)
            handle.setopt(pycurl.WRITEFUNCTION, response.on_data)
            handle.setopt(pycurl.OPENSOCKETFUNCTION, response.on_socket)
        except (NimpullError, UnicodeEncodeError, pycurl.error) as error:
            response.error = error
            if not isinstance(error, NimpullError):  # it quotes the URL, or a header
                response.error = NetworkError(
                    f"cannot make a request of the address {url}", hint="Check how it is spelled."
                )
            handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_FILE)
            handle.setopt(pycurl.URL, "file:///dev/null/nothing")
        self._multi.add_handle(handle)

    def follow(self, response: CurlResponse) -> None:
        """The next request of a chain, by the handle of the one before."""
        self._idle.remove(response.handle)
        self.start(response)

    def release(self, response: CurlResponse) -> None:
        """It is not under way any more; its handle is for others."""
        if self._open.pop(response.handle, None) is not None:
            self._multi.remove_handle(response.handle)
            self._idle.append(response.handle)

    def _finish(self) -> None:
        queued = 1
        while queued:
            queued, good, bad = self._multi.info_read()
            ended = [(handle, 0, "") for handle in good] + bad
            for handle, code, text in ended:
                response = self._open.get(handle)
                if response is None:
                    continue
                error = response.error
                if error is None and response.refused:
                    error = internal(response.hop.url)
                if error is None and code and not (code == pycurl.E_WRITE_ERROR and response.answered):
                    error = self._explain(response, code, text)
                if not code and response.hop.url.scheme == "http":
                    self._end_if_more_came(handle)
                self.release(response)
                if response.answered:
                    self.network.reached.add((response.proxy or response.hop.url).host)
                response.ended(error)

    def _explain(self, response: CurlResponse, code: int, text: str) -> TransferError:
        url, proxy = response.hop.url, response.proxy
        reached = (proxy or url).host in self.network.reached
        return explain_curl(response.handle, code, text, url, proxy, reached=reached)

    def _end_if_more_came(self, handle: pycurl.Curl) -> None:
        """Bytes behind a whole answer would be taken for the next: its connection is not asked again.

        libcurl reads only as far as the answer goes. The connection is cut off from its descriptor, which is
        libcurl's: it finds it dead, and opens another one.
        """
        descriptor = int(handle.getinfo(pycurl.ACTIVESOCKET))
        if descriptor < 0:
            return
        self._peek.register(descriptor, select.POLLIN)
        more_came = self._peek.poll(0)
        self._peek.unregister(descriptor)
        others = (each for each in self._open if each is not handle)
        # or another response is on its way already
        if not more_came or any(each.getinfo(pycurl.ACTIVESOCKET) == descriptor for each in others):
            return
        ours, theirs = socket.socketpair()
        with ours, theirs:
            os.dup2(ours.fileno(), descriptor, inheritable=False)

    # -- sockets ---------------------------------------------------------------------------------------------

    def _watch_socket(self, what: int, descriptor: int, multi: Any, data: Any) -> None:
        del multi, data
        if what == pycurl.POLL_REMOVE:
            with suppress(OSError, ValueError):  # it is closed already
                self._poll.unregister(descriptor)
            return
        events = select.EPOLLIN if what & pycurl.POLL_IN else 0
        if what & pycurl.POLL_OUT:
            events |= select.EPOLLOUT
        try:
            self._poll.register(descriptor, events)
        except FileExistsError:
            self._poll.modify(descriptor, events)

    def _set_timer(self, milliseconds: int) -> None:
        self._due = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000


def _parse_fields(text: str) -> Mapping[str, str]:
    """By lower-case name; of one that comes twice, both values."""
    headers: dict[str, str] = {}
    for name, value in _FIELD.findall(text):
        key = name.strip().lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return headers
