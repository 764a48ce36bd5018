"""Bodies as they arrive over libcurl: framing, reuse of connections, and what breaks on the way."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import trustme

from nimpull.core.artifacts import Location
from nimpull.core.names import Url
from nimpull.core.ports import PAUSE, STOP, Connections
from nimpull.errors import LimitError, NetworkError, NimpullError, ProxyError
from nimpull.transport.loop import Loop
from tests.certificates import served
from tests.clocks import StepClock
from tests.servers import Answer, Peer, Proxy, ProxyRules, ScriptedServer, Seen, in_turn
from tests.transporting import CANARY, CONTENT, Rig, Whole, closed_port, get, ok, status


@pytest.mark.parametrize("secure", [False, True])
def test_a_request_for_a_small_file_does_not_wait_for_the_answer_to_another(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str, secure: bool
) -> None:
    """libcurl may let it wait for a connection that others could share; one of HTTP/1.1 is not shared."""

    def answer(seen: Seen, peer: Peer) -> None:
        if seen.target == "/silent":
            peer.stall()
        peer.reply(200, b"{}")

    tls = served(ca, "127.0.0.1") if secure else None
    with (
        ScriptedServer(answer, tls=tls) as server,
        looping(rig(ca_files=(bundle,), read_timeout=60.0)) as loop,
    ):
        for _ in range(20):  # it depends on how far the first one's connection is
            silent, other = Whole(), Whole()
            response = loop.ask(Location(server.url("/silent")), 0, None, silent, small=True)
            loop.ask(Location(server.url("/other")), 0, None, other, small=True)
            until = time.monotonic() + 30
            while not other.done and time.monotonic() < until:
                loop.turn(0.1)
            assert other.done
            response.drop()


@contextmanager
def looping(one: Rig) -> Iterator[Loop]:
    loop = Loop(one.network)
    yield loop
    loop.close()


def test_the_port_is_met(rig: Callable[..., Rig]) -> None:
    with looping(rig()) as loop:
        connections: Connections = loop
        assert connections is loop


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("size", [len(CONTENT), 65537])
def test_bytes_arrive_whole_and_the_connection_is_reused(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str, secure: bool, size: int
) -> None:
    tls = served(ca, "127.0.0.1") if secure else None
    with ScriptedServer(lambda seen, peer: peer.file(seen, CONTENT[:size]), tls=tls) as server:
        with looping(rig(ca_files=(bundle,))) as loop:
            for _ in range(3):
                assert get(loop, Location(server.url())).content == CONTENT[:size]
            assert loop.most == 1
        assert [seen.connection for seen in server.seen] == [0, 0, 0]
        assert "range" not in server.seen[0].headers
        assert server.seen[0].headers["accept-encoding"] == "identity"


def test_ranges_and_statuses_are_passed_on(rig: Callable[..., Rig]) -> None:
    with (
        ScriptedServer(lambda seen, peer: peer.file(seen, CONTENT)) as server,
        looping(rig()) as loop,
    ):
        part = get(loop, Location(server.url()), 100, 2_000_000)
        assert part.status == 206
        assert part.headers["content-range"] == f"bytes 100-1999999/{len(CONTENT)}"
        assert part.content == CONTENT[100:2_000_000]
        assert get(loop, Location(server.url()), 7).content == CONTENT[7:]
        assert server.seen[-1].headers["range"] == "bytes=7-"
        assert get(loop, Location(server.url()), len(CONTENT)).status == 416


def test_a_fresh_connection_is_one(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(ok) as server, looping(rig()) as loop:
        for fresh in (False, True):
            get(loop, Location(server.url()), fresh=fresh)
        assert [seen.connection for seen in server.seen] == [0, 1]


def raw(*parts: bytes) -> Answer:
    def answer(seen: Seen, peer: Peer) -> None:
        for part in parts:
            peer.send(part)

    return answer


def plain(seen: Seen, peer: Peer) -> None:
    peer.file(seen, CONTENT)


@pytest.mark.parametrize(
    "answer",
    [
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        raw(b"HTTP/1.1 200 \r\nCONTENT-LENGTH:5 \r\n\r\nhello"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 5\r\n\r", b"\nhel", b"lo"),
        raw(b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"),
        raw(b"HTTP/1.1 200 OK\r\nX: folded\r\n  on\r\nContent-Length: 5\r\n\r\nhello"),
        raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    ],
    ids=["plain", "spelling", "pieces", "bare", "folded", "continue", "chunked"],
)
def test_heads_of_every_kind_are_read_and_keep_the_connection(
    rig: Callable[..., Rig], answer: Answer
) -> None:
    with ScriptedServer(in_turn(answer, plain, status(200), ok)) as server, looping(rig()) as loop:
        for expected in (b"hello", CONTENT, b"", b"{}"):
            assert get(loop, Location(server.url())).content == expected
        assert {seen.connection for seen in server.seen} == {0}


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: " + b"9" * 5000 + b"\r\n",
        b"Content-Length: -1\r\n",
        b"X: " + b"x" * 2_000_000 + b"\r\n",
        b"X: y\r\n" * 100_000,
    ],
    ids=["twice", "two", "long", "negative", "large field", "many fields"],
)
def test_a_head_that_cannot_be_trusted_is_a_network_error_at_once(
    rig: Callable[..., Rig], head: bytes
) -> None:
    one = rig(read_timeout=60.0)
    began = time.monotonic()
    answer = raw(b"HTTP/1.1 200 OK\r\n" + head + b"\r\nhello")
    with ScriptedServer(answer) as server, pytest.raises(NetworkError) as caught:
        get(one.network, Location(server.url()))
    assert not caught.value.retryable
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("answer", [raw(b"SSH-2.0-x\r\n\r\n"), raw(b"HTTP/1.1 abc\r\n\r\n")])
def test_what_is_no_http_is_a_network_error(rig: Callable[..., Rig], answer: Answer) -> None:
    def once(seen: Seen, peer: Peer) -> None:
        answer(seen, peer)
        peer.close()

    with ScriptedServer(once) as server, pytest.raises(NetworkError, match="HTTP"):
        get(rig().network, Location(server.url()))


def test_f01_a_kept_connection_that_its_server_ended_costs_no_error(rig: Callable[..., Rig]) -> None:
    def one_answer(seen: Seen, peer: Peer) -> None:
        peer.file(seen, CONTENT)
        peer.close()

    with ScriptedServer(one_answer) as server, looping(rig()) as loop:
        for _ in range(3):
            assert get(loop, Location(server.url())).content == CONTENT
        assert [seen.connection for seen in server.seen] == [0, 1, 2]


def broken(*parts: bytes, reset: bool = False) -> Answer:
    def answer(seen: Seen, peer: Peer) -> None:
        raw(*parts)(seen, peer)
        if reset:
            peer.reset()
        else:
            peer.close()

    return answer


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(broken(), "closed early, before any answer", id="f01 no answer"),
        pytest.param(broken(HEAD, reset=True), "reset", id="f01 reset"),
        pytest.param(broken(HEAD, bytes(4000)), "closed early", id="f02 short"),
        pytest.param(broken(CHUNKED, b"4\r\nfine\r\nzz\r\nno"), "framing", id="f04 chunks"),
    ],
)
def test_f01_f02_f04_what_broke_is_named(rig: Callable[..., Rig], answer: Answer, words: str) -> None:
    with ScriptedServer(answer) as server, pytest.raises(NetworkError, match=words) as caught:
        get(rig().network, Location(server.url()))
    assert caught.value.retryable
    assert server.address in caught.value.message


def test_a_body_that_is_not_wanted_is_not_read(rig: Callable[..., Rig]) -> None:
    class Refusing(Whole):
        def data(self, octets: bytes) -> int | None:
            super().data(octets)
            return STOP

    with ScriptedServer(plain) as server, looping(rig()) as loop:
        refusing = Refusing()
        loop.ask(Location(server.url()), 0, None, refusing)
        while not refusing.done:
            loop.turn(1.0)
        assert refusing.error is None
        assert len(refusing.content) < 200_000
        assert get(loop, Location(server.url())).content == CONTENT
        assert [seen.connection for seen in server.seen] == [0, 1]


def test_a_receiver_that_has_no_room_gets_the_same_bytes_again(rig: Callable[..., Rig]) -> None:
    class Hesitating(Whole):
        def __init__(self) -> None:
            super().__init__()
            self.pauses = 0

        def data(self, octets: bytes) -> int | None:
            if self.pauses <= len(self.received) // 100_000:
                self.pauses += 1
                return PAUSE
            return super().data(octets)

    with ScriptedServer(plain) as server, looping(rig()) as loop:
        one = Hesitating()
        response = loop.ask(Location(server.url()), 0, None, one)
        while not one.done:
            loop.turn(0.01)
            response.resume()
        assert one.content == CONTENT
        assert one.pauses > 20


def test_a_bug_in_a_receiver_ends_its_response_only(rig: Callable[..., Rig]) -> None:
    class Broken(Whole):
        def data(self, octets: bytes) -> int | None:
            raise ZeroDivisionError("a bug")

    with ScriptedServer(plain) as server, looping(rig()) as loop:
        one = Broken()
        loop.ask(Location(server.url()), 0, None, one)
        while not one.done:
            loop.turn(1.0)
        assert isinstance(one.error, ZeroDivisionError)
        assert get(loop, Location(server.url())).content == CONTENT


def test_a_local_file_is_read_in_the_same_way(rig: Callable[..., Rig], tmp_path: Path) -> None:
    path = tmp_path / "a b"
    path.write_bytes(CONTENT)
    (tmp_path / "empty").touch()
    with looping(rig(http_proxy="http://127.0.0.1:9")) as loop:
        assert get(loop, Location(Url(path.as_uri()))).content == CONTENT
        part = get(loop, Location(Url(path.as_uri())), 5, 2_000_000)
        assert (part.status, part.content) == (206, CONTENT[5:2_000_000])
        assert get(loop, Location(Url((tmp_path / "empty").as_uri()))).content == b""
        with pytest.raises(NetworkError, match=r"file:///.*gone"):
            get(loop, Location(Url((tmp_path / "gone").as_uri())))


# -- slow ------------------------------------------------------------------------------------------------


def trickling_head(seen: Seen, peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nX: ")
    while not peer.stopped.wait(0.01):
        peer.send(b"x")


def silent(seen: Seen, peer: Peer) -> None:
    peer.send(HEAD + b"x" * 100)
    peer.stall()


def trickling(seen: Seen, peer: Peer) -> None:
    peer.send(HEAD)
    while not peer.stopped.wait(0.01):
        peer.send(b"x")


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(lambda seen, peer: peer.stall(), "stalled", id="f14 no answer"),
        pytest.param(trickling_head, "stalled.*head was not whole", id="f14 trickling head"),
        pytest.param(silent, "stalled|too slow, 0.0", id="f14 body"),
        pytest.param(trickling, r"too slow, 0\.\d KiB/s", id="f15 trickle"),
    ],
)
def test_f14_f15_what_stalls_or_trickles_is_dropped(
    rig: Callable[..., Rig], answer: Answer, words: str, tls: bool
) -> None:
    ca = trustme.CA()
    one = rig(read_timeout=60.0)
    one.network.authorities.pem = ca.cert_pem.bytes()
    # twelve seconds pass at each look: under the read timeout, over the low-speed window in three
    with (
        ScriptedServer(answer, tls=served(ca, "127.0.0.1") if tls else None) as server,
        pytest.raises(NetworkError, match=words),
    ):
        get(one.network, Location(server.url()), clock=StepClock(12.0))


def test_f14_a_body_that_stalls_is_told_from_one_that_crawls(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(silent) as server, pytest.raises(NetworkError, match="stalled for"):
        get(rig().network, Location(server.url()), clock=StepClock(3.0))


def test_f15_time_in_which_it_is_held_back_is_not_slowness(rig: Callable[..., Rig]) -> None:
    class Waiting(Whole):
        released = False

        def data(self, octets: bytes) -> int | None:
            return super().data(octets) if self.released else PAUSE

    one, clock = Waiting(), StepClock(20.0)
    with ScriptedServer(plain) as server, looping(rig(read_timeout=60.0)) as loop:
        response = loop.ask(Location(server.url()), 0, None, one)
        for _ in range(50):
            loop.turn(0.005)
            if response.paused:
                loop.check(clock.monotonic())
        assert not one.done
        one.released = True
        response.resume()
        while not one.done:
            loop.turn(1.0)
        assert one.error is None
        assert one.content == CONTENT


# -- an end that does not wait ---------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [silent, trickling_head, lambda seen, peer: peer.stall()])
@pytest.mark.parametrize("secure", [False, True])
def test_f41_a_close_waits_for_nobody(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str, answer: Answer, secure: bool
) -> None:
    with ScriptedServer(answer, tls=served(ca, "127.0.0.1") if secure else None) as server:
        loop = Loop(rig(ca_files=(bundle,), read_timeout=60.0).network)
        loop.ask(Location(server.url()), 0, None, Whole())
        while not server.seen:
            loop.turn(0.01)
        began = time.monotonic()
        loop.close()
        assert time.monotonic() - began < 15


def test_f41_a_handshake_ends_with_the_loop(rig: Callable[..., Rig]) -> None:
    class Deaf(ScriptedServer):
        def _converse(self, connection: object, number: int) -> None:
            self.stopped.wait()

    with Deaf(ok) as server:
        loop = Loop(rig(connect_timeout=60.0, read_timeout=60.0).network)
        loop.ask(Location(Url(server.url().reveal().replace("http:", "https:"))), 0, None, Whole())
        for _ in range(10):
            loop.turn(0.01)
        began = time.monotonic()
        loop.close()
        assert time.monotonic() - began < 15


def test_a_socket_that_this_process_may_not_have_is_a_limit(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*arguments: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("nimpull.transport.loop._Lent", no)
    with ScriptedServer(ok) as server, looping(rig()) as loop:
        receiver = Whole()
        loop.ask(Location(server.url()), 0, None, receiver)
        while not receiver.done:
            loop.turn(0.1)
    assert isinstance(receiver.error, LimitError)


def test_a_turn_ends_when_another_thread_wakes_it(rig: Callable[..., Rig]) -> None:
    with looping(rig()) as loop:
        waker = Thread(target=loop.wake)
        began = time.monotonic()
        waker.start()
        loop.turn(60.0)
        assert time.monotonic() - began < 30
        waker.join()


# -- proxies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_f28_a_tunnel_through_a_proxy_with_a_password(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str, secure: bool
) -> None:
    with ScriptedServer(plain, tls=served(ca, "registry.test")) as server:
        rules = ProxyRules(authorization="Basic dTpw", names={"registry.test": ("127.0.0.1", server.port)})
        with Proxy(rules, tls=served(ca, "127.0.0.1") if secure else None) as proxy:
            address = f"{'https' if secure else 'http'}://u:p@{proxy.address}"
            one = rig(ca_files=(bundle,), https_proxy=address)
            assert get(one.network, Location(Url("https://registry.test/a"))).content == CONTENT
            assert "proxy-authorization" not in server.seen[0].headers


@pytest.mark.parametrize(
    ("code", "message"), [(407, "wants other credentials"), (403, "HTTP 403"), (503, "HTTP 503")]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_f28_a_proxy_that_says_no(rig: Callable[..., Rig], scheme: str, code: int, message: str) -> None:
    with Proxy(ProxyRules(status=code)) as proxy:
        secret = f"http://user:{CANARY}@{proxy.address}"
        one = rig(http_proxy=secret, https_proxy=secret)
        if scheme == "http" and code != 407:  # nothing tells it from the server's own answer
            assert get(one.network, Location(Url("http://registry.test/a"))).status == code
            return
        with pytest.raises(ProxyError, match=message) as caught:
            get(one.network, Location(Url(f"{scheme}://registry.test/a")))
    assert CANARY not in str(caught.value) + caught.value.hint + repr(caught.value)


@pytest.mark.parametrize("scheme", ["http", "socks5h", "socks4"])
def test_f28_a_proxy_that_is_down(rig: Callable[..., Rig], scheme: str) -> None:
    address = f"127.0.0.1:{closed_port()}"
    one = rig(all_proxy=f"{scheme}://u:{CANARY}@{address}")
    with pytest.raises(
        ProxyError, match=rf"cannot reach the proxy {scheme}://{address} for a\.test"
    ) as caught:
        get(one.network, Location(Url("http://a.test/")))
    assert CANARY not in f"{caught.value!r} {caught.value.hint}"


def test_f56_a_header_with_a_line_break_is_not_sent_and_not_shown(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(ok) as server, pytest.raises(NimpullError, match="line break") as caught:
        get(rig().network, Location(server.url(), {"Authorization": f"Bearer {CANARY}\nX: y"}))
    assert CANARY not in f"{caught.value!r} {caught.value.hint}"
    assert server.seen == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_f28_a_proxy_that_wants_digest_authentication_gets_it(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str, scheme: str
) -> None:
    """RFC 7616: the password is never sent."""

    class Challenging(Proxy):
        def _answer(self, seen: Seen, peer: Peer) -> None:
            given = seen.headers.get("proxy-authorization", "")
            if given.startswith('Digest username="user"'):
                super()._answer(seen, peer)
                return
            challenge = 'Digest realm="r", nonce="n0nce", qop="auth", algorithm=MD5'
            peer.reply(407, b"who are you?", {"Proxy-Authenticate": challenge})

    tls = served(ca, "registry.test") if scheme == "https" else None
    with ScriptedServer(plain, tls=tls) as server:
        rules = ProxyRules(names={"registry.test": ("127.0.0.1", server.port)})
        with Challenging(rules) as proxy:
            secret = f"http://user:{CANARY}@{proxy.address}"
            one = rig(ca_files=(bundle,), http_proxy=secret, https_proxy=secret)
            port = "" if scheme == "https" else f":{server.port}"
            host = "registry.test" if scheme == "https" else "127.0.0.1"
            assert get(one.network, Location(Url(f"{scheme}://{host}{port}/a"))).content == CONTENT
        assert CANARY not in str(proxy.seen)
