"""Bodies that are read as they arrive: framing, reuse of connections, and what breaks on the way."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from threading import Event

import pytest
import trustme

from nimpull.core.artifacts import Location
from nimpull.core.ports import Api, Get
from nimpull.errors import (
    Cancelled,
    IntegrityError,
    NetworkError,
)
from tests.certificates import served
from tests.clocks import StepClock
from tests.servers import Peer, ScriptedServer, Seen, in_turn
from tests.transporting import CONTENT, Rig, fetch, ok, read_all, status


def test_ports_are_met(rig: Callable[..., Rig]) -> None:
    one = rig()
    api: Api = one.api
    get: Get = one.transport
    assert callable(api.request)
    assert callable(get)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("block", [1 << 20, 1000, 5 << 20])
def test_bytes_arrive_whole_and_the_connection_is_reused(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str, secure: bool, block: int
) -> None:
    tls = served(ca, "127.0.0.1") if secure else None
    content = CONTENT if block > 1000 else CONTENT[:65537]
    with ScriptedServer(lambda seen, peer: peer.file(seen, content), tls=tls) as server:
        get = rig(ca_files=(bundle,)).transport
        for _ in range(3):
            body = get(Location(server.url()), 0, None)
            assert read_all(body, block) == content
            body.close(reuse=True)
        assert [seen.connection for seen in server.seen] == [0, 0, 0]
        assert "range" not in server.seen[0].headers
        assert server.seen[0].headers["accept-encoding"] == "identity"


def test_ranges_and_statuses_are_passed_on(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(lambda seen, peer: peer.file(seen, CONTENT)) as server:
        get = rig().transport
        with get(Location(server.url()), 100, 2_000_000) as body:
            assert body.head.status == 206
            assert body.head.headers["content-range"] == f"bytes 100-1999999/{len(CONTENT)}"
            assert read_all(body) == CONTENT[100:2_000_000]
        with get(Location(server.url()), 7, None) as body:
            assert server.seen[-1].headers["range"] == "bytes=7-"
            assert read_all(body) == CONTENT[7:]
        with get(Location(server.url()), len(CONTENT), None) as body:
            assert body.head.status == 416


def test_a_readinto_fills_the_buffer_though_the_bytes_come_in_pieces(rig: Callable[..., Rig]) -> None:
    def pieces(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Content-Length": "200000"})
        for start in range(0, 200000, 1000):
            peer.send(CONTENT[start : start + 1000])

    with ScriptedServer(pieces) as server, rig().transport(Location(server.url()), 0, None) as body:
        buffer = memoryview(bytearray(150_000))
        assert body.readinto(buffer) == 150_000
        assert bytes(buffer) == CONTENT[:150_000]
        assert body.readinto(buffer) == 50_000
        assert body.readinto(buffer) == 0


def chunked(seen: Seen, peer: Peer) -> None:
    peer.head(200, {"Transfer-Encoding": "chunked"})
    for start in range(0, len(CONTENT), 99_999):
        peer.chunk(CONTENT[start : start + 99_999])
    peer.send(b"0\r\n\r\n")


def test_chunked_and_empty_bodies_keep_the_connection(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(in_turn(chunked, ok, status(200), ok)) as server:
        get = rig().transport
        for expected in (CONTENT, b"{}", b"", b"{}"):
            body = get(Location(server.url()), 0, None)
            assert read_all(body) == expected
            body.close(reuse=True)
        assert {seen.connection for seen in server.seen} == {0}


def test_a_body_without_length_ends_with_the_connection(rig: Callable[..., Rig]) -> None:
    def until_close(seen: Seen, peer: Peer) -> None:
        peer.head(200, {})
        peer.send(CONTENT)
        peer.close()

    with ScriptedServer(until_close) as server, rig().transport(Location(server.url()), 0, None) as body:
        assert read_all(body) == CONTENT


def test_without_http_client_below_the_public_interface_is_used(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nimpull.transport.lines.SPEAKABLE", False)
    with ScriptedServer(lambda seen, peer: peer.file(seen, CONTENT)) as server:
        get = rig().transport
        for _ in range(2):
            body = get(Location(server.url()), 0, None)
            assert read_all(body) == CONTENT
            body.close(reuse=True)
        assert {seen.connection for seen in server.seen} == {0}


def test_an_unread_body_is_not_given_back(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(lambda seen, peer: peer.file(seen, CONTENT)) as server:
        get = rig().transport
        body = get(Location(server.url()), 0, None)
        body.readinto(memoryview(bytearray(10)))
        body.close(reuse=True)
        with get(Location(server.url()), 0, 10) as body:
            assert read_all(body) == CONTENT[:10]
        assert [seen.connection for seen in server.seen] == [0, 1]


def test_connections_are_counted_at_their_most(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(ok) as server:
        get = rig().transport
        assert get.connections == 0
        for together in (1, 3, 2):
            bodies = [get(Location(server.url()), 0, None) for _ in range(together)]
            for body in bodies * 2:
                body.close()
        assert get.connections == 3


def test_a_fresh_connection_is_fresh(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(ok) as server:
        get = rig().transport
        for fresh in (False, True, False):
            body = get(Location(server.url()), 0, None, fresh_connection=fresh)
            read_all(body)
            body.close(reuse=True)
        assert [seen.connection for seen in server.seen] == [0, 1, 0]


@pytest.mark.parametrize("direct", [True, False])
def test_f01_a_reset_is_named(rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    def broken(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Content-Length": "1000000"})
        peer.reset()

    if not direct:
        monkeypatch.setattr("nimpull.transport.lines.SPEAKABLE", False)
    with ScriptedServer(broken) as server, pytest.raises(NetworkError, match="reset"):
        fetch(rig().transport, server)


@pytest.mark.parametrize("direct", [True, False])
def test_f02_a_short_body_is_named(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    def short(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Content-Length": "1000000"})
        peer.send(CONTENT[:400_000])
        peer.close()

    if not direct:
        monkeypatch.setattr("nimpull.transport.lines.SPEAKABLE", False)
    with ScriptedServer(short) as server, pytest.raises(NetworkError, match="closed early"):
        fetch(rig().transport, server)


def test_f04_broken_chunks_are_named(rig: Callable[..., Rig]) -> None:
    def broken(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Transfer-Encoding": "chunked"})
        peer.chunk(b"fine")
        peer.send(b"zz\r\nnot a chunk")
        peer.close()

    with ScriptedServer(broken) as server, pytest.raises(NetworkError, match="framing"):
        fetch(rig().transport, server)


def test_f11_a_content_coding_is_refused(rig: Callable[..., Rig]) -> None:
    packed = gzip.compress(b"weights" * 100)
    with (
        ScriptedServer(lambda seen, peer: peer.reply(200, packed, {"Content-Encoding": "gzip"})) as server,
        pytest.raises(IntegrityError, match="gzip"),
    ):
        rig().transport(Location(server.url()), 0, None)


def test_f13_a_portal_page_comes_with_its_head(rig: Callable[..., Rig]) -> None:
    page = b"<html>sign in</html>"
    with ScriptedServer(lambda seen, peer: peer.reply(200, page, {"Content-Type": "text/html"})) as server:
        body = rig().transport(Location(server.url()), 0, None)
        assert body.head.headers["content-type"] == "text/html"
        assert body.head.url.host == "127.0.0.1"
        assert read_all(body) == page
        body.close()


def test_f14_no_answer_is_a_stall(rig: Callable[..., Rig]) -> None:
    with (
        ScriptedServer(lambda seen, peer: peer.stall()) as server,
        pytest.raises(NetworkError, match="stalled"),
    ):
        rig(read_timeout=0.1).transport(Location(server.url()), 0, None)


@pytest.mark.parametrize("secure", [False, True])
def test_f14_silence_after_the_head_is_a_stall(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str, secure: bool
) -> None:
    def silent(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Content-Length": "1000000"})
        peer.send(b"x" * 100)
        peer.stall()

    tls = served(ca, "127.0.0.1") if secure else None
    clock = StepClock(step=3.0)
    with ScriptedServer(silent, tls=tls) as server, pytest.raises(NetworkError, match="stalled for"):
        fetch(rig(clock=clock, ca_files=(bundle,)).transport, server)


def test_f01_what_came_before_a_failure_is_returned_before_it_is_raised(rig: Callable[..., Rig]) -> None:
    def cut(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Content-Length": "1000"})
        peer.send(b"x" * 600)
        peer.close()

    buffer = memoryview(bytearray(1000))
    with ScriptedServer(cut) as server, rig().transport(Location(server.url()), 0, None) as body:
        assert body.readinto(buffer) == 600
        for _ in range(2):
            with pytest.raises(NetworkError, match="400 bytes short"):
                body.readinto(buffer[600:])


@pytest.mark.parametrize("direct", [True, False])
def test_f15_a_trickle_is_dropped(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    def drip(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Content-Length": "1000000"})
        while not peer.stopped.wait(0.01):
            peer.send(b"x")

    if not direct:
        monkeypatch.setattr("nimpull.transport.lines.SPEAKABLE", False)
    # twelve seconds pass at each look: under the read timeout, over the low-speed window in three
    with ScriptedServer(drip) as server, pytest.raises(NetworkError, match=r"too slow, 0\.\d KiB/s"):
        fetch(rig(clock=StepClock(12.0), read_timeout=60.0).transport, server)


def test_f15_the_callers_own_time_is_not_slowness(rig: Callable[..., Rig]) -> None:
    clock = StepClock()
    buffer = memoryview(bytearray(1000))
    with ScriptedServer(lambda seen, peer: peer.file(seen, CONTENT)) as server:
        body = rig(clock=clock).transport(Location(server.url()), 0, None)
        for _ in range(50):
            assert body.readinto(buffer) == 1000
            clock.wait(20, Event())
        body.close()


def test_f41_a_receive_ends_when_cancelled(rig: Callable[..., Rig]) -> None:
    def silent(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Content-Length": "1000000"})
        peer.stall()

    one = rig()
    with ScriptedServer(silent) as server, one.transport(Location(server.url()), 0, None) as body:
        one.cancel.set()
        with pytest.raises(Cancelled):
            body.readinto(memoryview(bytearray(10)))
        with pytest.raises(Cancelled):
            one.api.request("GET", server.url())


@pytest.mark.parametrize("secure", [False, True])
def test_f41_a_wait_for_the_head_ends_when_cancelled(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str, secure: bool
) -> None:
    one = rig(ca_files=(bundle,), read_timeout=30.0)

    def cancel_then_stall(seen: Seen, peer: Peer) -> None:
        one.cancel.set()
        peer.stall()

    tls = served(ca, "127.0.0.1") if secure else None
    with ScriptedServer(cancel_then_stall, tls=tls) as server:
        began = time.monotonic()
        with pytest.raises(Cancelled):
            one.transport(Location(server.url()), 0, None)
        assert time.monotonic() - began < 5
