"""Registry answers: a wait ends when the run does, so does a slow answer; a broken head is told at once."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import trustme

from nimpull.core.names import Url
from nimpull.errors import Cancelled, NetworkError, ProxyError, TlsError
from tests.certificates import served
from tests.clocks import StepClock
from tests.servers import (
    Answer,
    Peer,
    PlainServer,
    Proxy,
    ProxyRules,
    ScriptedServer,
    Seen,
    SocksProxy,
    in_turn,
)
from tests.transporting import CANARY, Rig, closed_port, ok

STOPS_WITHIN = 15.0  # seconds, on a machine that is busy; what is waited for comes later, or never

# -- cancellation --------------------------------------------------------------------------------------


@contextmanager
def full_backlog() -> Iterator[Url]:
    """A port that no connection is made to any more: the kernel drops what comes."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(listening.getsockname())
        yield Url(f"http://127.0.0.1:{listening.getsockname()[1]}/")


@contextmanager
def answering(answer: Answer, path: str = "/") -> Iterator[Url]:
    with ScriptedServer(answer) as server:
        yield server.url(path)


@contextmanager
def silent_tls() -> Iterator[Url]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield Url(f"https://127.0.0.1:{listening.getsockname()[1]}/")


def never(seen: Seen, peer: Peer) -> None:
    peer.stall()


def half_a_head(seen: Seen, peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nContent-")
    peer.stall()


def half_a_body(seen: Seen, peer: Peer) -> None:
    peer.head(200, {"Content-Length": "10"})
    peer.send(b"abc")
    peer.stall()


@pytest.mark.parametrize(
    "waiting",
    [
        full_backlog,
        silent_tls,
        lambda: answering(never),
        lambda: answering(half_a_head),
        lambda: answering(half_a_body),
    ],
    ids=["connect", "handshake", "answer", "head", "body"],
)
def test_f41_every_wait_ends_when_the_run_does(
    rig: Callable[..., Rig], waiting: Callable[[], Iterator[Url]]
) -> None:
    one = rig(connect_timeout=60.0, read_timeout=60.0)
    with waiting() as url:  # type: ignore[attr-defined]
        stopped: list[float] = []

        def stop() -> None:
            stopped.append(time.monotonic())
            one.cancel.set()

        timer = threading.Timer(0.3, stop)
        timer.start()
        with pytest.raises(Cancelled):
            one.api.request("GET", url)
        assert time.monotonic() - stopped[0] < STOPS_WITHIN
        timer.join()


def test_f41_a_look_up_that_hangs_ends_too(rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    one, released = rig(), threading.Event()

    def hang(*arguments: object, **options: object) -> list[object]:
        one.cancel.set()
        released.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    began = time.monotonic()
    with pytest.raises(Cancelled):
        one.api.request("GET", Url("http://registry.test/"))
    assert time.monotonic() - began < STOPS_WITHIN
    released.set()


# -- slow answers --------------------------------------------------------------------------------------


def dripping(head: bytes) -> Answer:
    """``head``, then its last byte again and again."""

    def answer(seen: Seen, peer: Peer) -> None:
        peer.send(head)
        while not peer.stopped.wait(0.02):
            peer.send(head[-1:])

    return answer


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Long: y", r"it stalled for \d+ s, and its answer's head was not whole"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\nz", r"too slow, \d"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0", r"too slow, 0\.0"),
    ],
    ids=["head", "body", "chunk size"],
)
def test_f15_an_answer_that_trickles_ends_though_no_read_times_out(
    rig: Callable[..., Rig], head: bytes, message: str
) -> None:
    with ScriptedServer(dripping(head)) as server:
        one = rig(clock=StepClock(step=20.0), read_timeout=60.0, retry_budget=0.0)
        with pytest.raises(NetworkError, match=rf"{server.address}: {message}"):
            one.api.request("GET", server.url())
    assert one.clock.waits == []


# -- heads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "no one length"),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", "malformed or too large"),
        (f"Content-Length: {'5' * 5000}\r\n", "no one length"),
        ("Content-Length: -5\r\n", "no one length"),
        (f"X-Long: {'y' * 100_000}\r\n", "malformed or too large"),
        ("X-Many: y\r\n" * 200, "malformed or too large"),
    ],
    ids=["equal", "other", "digits", "negative", "line", "lines"],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_f12_a_head_that_cannot_be_meant_is_told_at_once(
    rig: Callable[..., Rig], method: str, fields: str, message: str
) -> None:
    def answer(seen: Seen, peer: Peer) -> None:
        peer.send(f"HTTP/1.1 200 OK\r\n{fields}\r\nhello".encode())

    with ScriptedServer(answer) as server:
        one = rig()
        with pytest.raises(NetworkError, match=rf"{server.address}: .*{message}") as caught:
            one.api.request(method, server.url())
        assert len(server.seen) == 1
    assert one.clock.waits == []
    assert not caught.value.retryable


def test_f28_what_is_no_socks_proxy(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(ok) as server:
        url = Url("https://registry.invalid/")
        with pytest.raises(ProxyError, match=r"cannot reach the proxy socks5h://.*(invalid data|timeout)"):
            rig(all_proxy=f"socks5h://{server.address}", connect_timeout=0.3, retry_budget=0.0).api.request(
                "GET", url
            )


def test_f17_no_pause_of_a_host_escapes_the_budget(rig: Callable[..., Rig]) -> None:
    refusing = lambda seen, peer: peer.reply(429, b"", {"Retry-After": "9" * 20})  # noqa: E731
    with ScriptedServer(refusing) as server:
        one = rig(retry_budget=60.0)
        assert one.api.request("GET", server.url()).status == 429
        assert [seen.target for seen in server.seen] == ["/", "/"], "at once, and at the end of the budget"
        assert sum(one.clock.waits) == pytest.approx(60)
        # the host is in its pause already
        assert one.api.request("GET", server.url("/another")).status == 429
        assert [seen.target for seen in server.seen] == ["/", "/", "/another"]
        assert sum(one.clock.waits) == pytest.approx(120)


def test_where_no_thread_can_be_started_an_answer_is_waited_for_in_the_caller_s(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a low pids.max."""
    with ScriptedServer(ok) as server:
        one, real = rig(), threading.Thread.start

        def start(self: threading.Thread) -> None:
            if self.name.startswith("ask "):
                raise RuntimeError("can't start new thread")
            real(self)

        monkeypatch.setattr(threading.Thread, "start", start)
        assert one.api.request("GET", server.url()).body == b"{}"
        with pytest.raises(NetworkError, match="refused"):
            rig(retry_budget=0.0).api.request("GET", Url(f"http://127.0.0.1:{closed_port()}/"))


def test_f55_cookies_are_not_kept(rig: Callable[..., Rig]) -> None:
    setting = lambda seen, peer: peer.reply(200, b"{}", {"Set-Cookie": "session=1; Path=/"})  # noqa: E731
    with ScriptedServer(setting) as server:
        one = rig()
        for _ in range(2):
            one.api.request("GET", server.url())
        assert not any("cookie" in seen.headers for seen in server.seen)
        assert len({seen.connection for seen in server.seen}) == 1


# -- the wrong scheme ----------------------------------------------------------------------------------


def test_https_to_a_plain_server_says_how_the_address_is_written(rig: Callable[..., Rig]) -> None:
    with PlainServer(ok) as server, pytest.raises(TlsError, match=r"no TLS connection to 127.+:") as caught:
        rig().api.request("GET", Url(f"https://{server.address}/"))
    assert "must begin with http://" in caught.value.hint
    assert "taken as https" in caught.value.hint


def test_http_to_a_tls_server_says_how_the_address_is_written(
    rig: Callable[..., Rig], ca: trustme.CA
) -> None:
    def nginx(seen: Seen, peer: Peer) -> None:
        peer.reply(400, b"<title>400 The plain HTTP request was sent to HTTPS port</title>")

    with ScriptedServer(nginx) as server, pytest.raises(NetworkError, match="it speaks https") as told:
        rig().api.request("GET", server.url())
    assert "https://" in told.value.hint and not told.value.retryable
    tls = served(ca, "127.0.0.1")
    with ScriptedServer(ok, tls=tls) as server, pytest.raises(NetworkError) as caught:
        rig(retry_budget=1.0).api.request("GET", Url(f"http://{server.address}/"))
    assert "must begin with https://" in caught.value.hint


# -- SOCKS and proxies that speak TLS ------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True])
def test_f28_socks5h_leaves_the_name_to_the_proxy(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str, secure: bool
) -> None:
    tls = served(ca, "registry.invalid") if secure else None
    with ScriptedServer(ok, tls=tls) as server:
        names = {"registry.invalid": ("127.0.0.1", server.port)}
        with SocksProxy(user=f"u:{CANARY}", names=names) as proxy:
            one = rig(ca_files=(bundle,), all_proxy=f"socks5h://u:{CANARY}@{proxy.address}")
            url = Url(f"http{'s' * secure}://registry.invalid/v2")
            for _ in range(2):
                assert one.api.request("GET", url).body == b"{}"
            assert proxy.asked == [("registry.invalid", 443 if secure else 80)], "one connection is kept"
            one.close()


@pytest.mark.parametrize(
    ("given", "status", "message", "asked_again"),
    [
        (f"u:{CANARY}", 0, "wants other credentials for registry.invalid", False),
        ("u:right", 5, r"cannot connect to registry.invalid: .*[Rr]efused", True),
        ("u:right", 2, r"cannot connect to registry.invalid: .*not allowed", True),
    ],
)
def test_f28_a_socks_proxy_that_says_no(
    rig: Callable[..., Rig], given: str, status: int, message: str, asked_again: bool
) -> None:
    with SocksProxy(user="u:right", status=status) as proxy:
        one = rig(all_proxy=f"socks5h://{given}@{proxy.address}", retry_budget=5.0)
        with pytest.raises(ProxyError, match=message) as caught:
            one.api.request("GET", Url("https://registry.invalid/"))
    assert f"socks5h://{proxy.address}" in caught.value.message
    assert CANARY not in f"{caught.value!r} {caught.value.message} {caught.value.hint}"
    assert bool(one.clock.waits) is asked_again


def test_f28_a_socks_proxy_that_is_down(rig: Callable[..., Rig]) -> None:
    address = f"127.0.0.1:{closed_port()}"
    with pytest.raises(ProxyError, match=rf"cannot reach the proxy socks5h://{address} for .*refused"):
        rig(all_proxy=f"socks5h://u:{CANARY}@{address}", retry_budget=1.0).api.request(
            "GET", Url("https://registry.invalid/")
        )


def test_f28_a_proxy_that_speaks_tls_is_verified_with_the_same_cas(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str
) -> None:
    with ScriptedServer(ok, tls=served(ca, "registry.test")) as server:
        rules = ProxyRules(names={"registry.test": ("127.0.0.1", server.port)})
        with Proxy(rules, tls=served(ca, "127.0.0.1")) as proxy:
            one = rig(ca_files=(bundle,), all_proxy=f"https://{proxy.address}")
            assert one.api.request("GET", Url("https://registry.test/")).body == b"{}"
            one.close()
            with pytest.raises(
                (TlsError, ProxyError), match=r"certificate of 127\.0\.0\.1:\d+ is not trusted"
            ):
                rig(all_proxy=f"https://{proxy.address}").api.request("GET", Url("https://registry.test/"))


def test_a_server_that_cuts_connections_is_asked_again_to_the_end_of_the_budget(
    rig: Callable[..., Rig],
) -> None:
    with ScriptedServer(lambda seen, peer: peer.close()) as server:
        one = rig(retry_budget=33.0)
        with pytest.raises(NetworkError, match="closed before any answer"):
            one.api.request("GET", server.url())
        assert sum(one.clock.waits) == pytest.approx(33.0, abs=0.01)
        server.answer = in_turn(lambda seen, peer: peer.close(), ok)
        assert one.api.request("GET", server.url()).status == 200
