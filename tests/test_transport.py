"""Transport against loopback servers: framing, faults by id, credentials, pacing."""

from __future__ import annotations

import gzip
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from threading import Event

import pytest
import trustme

from nimpull.core.artifacts import Location
from nimpull.core.events import Waiting
from nimpull.core.names import Url
from nimpull.core.ports import Api, Body, Get
from nimpull.errors import (
    Cancelled,
    IntegrityError,
    NetworkError,
    NimpullError,
    ProxyError,
    RedirectError,
    TlsError,
)
from nimpull.transport import Transport, TransportPolicy
from nimpull.transport.pacing import MAX_PAUSE, asked_pause
from nimpull.transport.proxies import Proxies
from nimpull.transport.redirects import refuse_internal
from nimpull.transport.trust import client_context
from tests.certificates import served
from tests.clocks import StepClock
from tests.servers import Peer, Proxy, ProxyRules, ScriptedServer, Seen, in_turn

CANARY = "canary-7f3a"
CONTENT = os.urandom(3 * (1 << 20) + 12345)


class Rig:
    """A Transport with its clock, cancel event and told events."""

    def __init__(self, policy: TransportPolicy, clock: StepClock) -> None:
        self.clock = clock
        self.cancel = Event()
        self.told: list[object] = []
        self.transport = Transport(policy, clock=clock, cancel=self.cancel, emit=self.told.append)


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(*, clock: StepClock | None = None, **policy: object) -> Rig:
        settings: dict[str, object] = {"connect_timeout": 5.0, "read_timeout": 5.0, **policy}
        made.append(Rig(TransportPolicy(**settings), clock or StepClock()))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.transport.close()


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(ca: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return str(path)


def read_all(body: Body, block: int = 1 << 20) -> bytes:
    buffer = memoryview(bytearray(block))
    received = bytearray()
    while count := body.readinto(buffer):
        received += buffer[:count]
    return bytes(received)


def fetch(transport: Transport, server: ScriptedServer) -> bytes:
    with transport(Location(server.url()), 0, None) as body:
        return read_all(body)


def ok(seen: Seen, peer: Peer) -> None:
    peer.reply(200, b"{}")


def status(code: int, **headers: str) -> Callable[[Seen, Peer], None]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda seen, peer: peer.reply(code, b"", named)


def redirect(to: str, code: int = 302) -> Callable[[Seen, Peer], None]:
    return lambda seen, peer: peer.reply(code, b"moved", {"Location": to})


# -- bodies --------------------------------------------------------------------------------------------


def test_ports_are_met(rig: Callable[..., Rig]) -> None:
    transport = rig().transport
    api: Api = transport
    get: Get = transport
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
            one.transport.request("GET", server.url())


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


# -- connecting ----------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_f16_refused_names_the_host_and_stops_inside_the_budget(rig: Callable[..., Rig]) -> None:
    one = rig(retry_budget=100.0)
    url = Url(f"http://127.0.0.1:{closed_port()}/v2?sig={CANARY}")
    with pytest.raises(NetworkError, match=r"127\.0\.0\.1:\d+: the connection was refused") as caught:
        one.transport.request("GET", url)
    assert "attempts" in caught.value.message
    assert 60 < sum(one.clock.waits) <= 100
    assert all(isinstance(event, Waiting) and CANARY not in event.reason for event in one.told)


def resolver_says(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def no(*arguments: object, **options: object) -> None:
        raise socket.gaierror(code, "no")

    monkeypatch.setattr(socket, "getaddrinfo", no)


@pytest.mark.parametrize(
    ("code", "words", "waited"),
    [
        (socket.EAI_NONAME, "there is no such name", range(30, 41)),
        (socket.EAI_AGAIN, "the name cannot be resolved", range(300, 601)),
    ],
    ids=["nxdomain", "no resolver"],
)
def test_f16_a_name_that_does_not_exist_is_given_up_sooner_than_a_resolver_that_is_silent(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, code: int, words: str, waited: range
) -> None:
    resolver_says(monkeypatch, code)
    one = rig()
    with pytest.raises(NetworkError, match=rf"registry\.invalid: {words}.*attempts"):
        one.transport.request("GET", Url("http://registry.invalid/a"))
    assert int(sum(one.clock.waits)) in waited
    with pytest.raises(ProxyError, match=rf"proxy\.invalid.*{words}"):
        rig(http_proxy="http://proxy.invalid:3128").transport(Location(Url("http://a.test/")), 0, None)


def test_f16_a_name_that_was_reached_before_is_not_mistyped(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = rig()
    with ScriptedServer(ok) as server:
        assert one.transport.request("GET", server.url(host="localhost")).status == 200
    resolver_says(monkeypatch, socket.EAI_NONAME)
    with pytest.raises(NetworkError, match="there is no such name"):
        one.transport.request("GET", server.url("/other", host="localhost"))
    assert sum(one.clock.waits) > 300


def test_f16_a_closed_port_behind_the_proxy_names_both(rig: Callable[..., Rig]) -> None:
    with Proxy(ProxyRules(status=502)) as proxy:
        get = rig(https_proxy=f"http://u:{CANARY}@{proxy.address}").transport
        with pytest.raises(ProxyError, match=rf"{proxy.address} refuses to connect to registry\.invalid"):
            get(Location(Url("https://registry.invalid/a")), 0, None)


# -- pacing --------------------------------------------------------------------------------------------


def test_f17_retry_after_pauses_the_host_for_all(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(in_turn(status(429, Retry_After="120"), ok)) as server:
        one = rig()
        with one.transport(Location(server.url()), 0, None) as body:
            assert body.head.status == 429
        assert one.clock.waits == []
        assert one.transport.request("GET", server.url("/other")).status == 200
        assert one.clock.waits == [120.0]


def test_f17_an_api_request_waits_as_told(rig: Callable[..., Rig]) -> None:
    answers = in_turn(status(429, Retry_After="40"), status(429, RateLimit='"api";r=0;t=70'), ok)
    with ScriptedServer(answers) as server:
        one = rig()
        assert one.transport.request("GET", server.url()).body == b"{}"
        assert one.clock.waits == [40.0, 70.0]
        assert one.told == [
            Waiting("127.0.0.1 answers HTTP 429", 40.0),
            Waiting("127.0.0.1 answers HTTP 429", 70.0),
        ]


NOW = 1_795_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "1000000000"}, MAX_PAUSE),
        ({"retry-after": "9" * 400}, MAX_PAUSE),
        ({"retry-after": format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True)}, 90.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, MAX_PAUSE),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"ratelimit": "limit=100, remaining=0, reset=33"}, 33.0),
        ({"ratelimit": '"api";r=0;t=x'}, None),
        ({"retry-after": "3", "ratelimit": '"api";r=0;t=55'}, 3.0),
    ],
)
def test_f17_what_a_server_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_pause(headers, NOW) == seconds


def test_f18_a_storm_passes(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(in_turn(*[status(503)] * 8, ok)) as server:
        one = rig(clock=StepClock(jitter=0.999))
        assert one.transport.request("GET", server.url()).status == 200
        assert one.clock.waits == sorted(one.clock.waits)
        assert len(one.clock.waits) == 8


def test_f18_beyond_the_budget_the_last_answer_is_returned(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(status(503)) as server:
        one = rig(retry_budget=30.0)
        assert one.transport.request("GET", server.url()).status == 503
        assert sum(one.clock.waits) <= 30


@pytest.mark.parametrize("code", [400, 401, 403, 404, 416])
def test_a_no_is_not_asked_again(rig: Callable[..., Rig], code: int) -> None:
    with ScriptedServer(status(code)) as server:
        assert rig().transport.request("GET", server.url()).status == code
        assert len(server.seen) == 1


# -- small answers -------------------------------------------------------------------------------------


def test_an_answer_over_the_limit_is_refused_once(rig: Callable[..., Rig]) -> None:
    bomb = gzip.compress(bytes(10 << 20))
    with ScriptedServer(lambda seen, peer: peer.reply(200, bomb, {"Content-Encoding": "gzip"})) as server:
        with pytest.raises(NetworkError, match="over 1000000 bytes"):
            rig().transport.request("GET", server.url(), max_bytes=1_000_000)
        assert len(server.seen) == 1


def test_a_short_api_answer_is_asked_for_again(rig: Callable[..., Rig]) -> None:
    def short(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Content-Length": "10"})
        peer.send(b"abc")
        peer.close()

    with ScriptedServer(in_turn(short, ok)) as server:
        assert rig().transport.request("GET", server.url()).body == b"{}"


def test_method_body_and_headers_are_sent(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(ok) as server:
        rig(user_agent="nimpull/9").transport.request(
            "POST", server.url("/token"), headers={"X-Org": "acme"}, body=b"credentials=k"
        )
        (seen,) = server.seen
        assert (seen.method, seen.target, seen.body) == ("POST", "/token", b"credentials=k")
        assert seen.headers["x-org"] == "acme"
        assert seen.headers["user-agent"] == "nimpull/9"


def test_a_redirect_is_returned_when_not_followed(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(redirect("/next")) as server:
        reply = rig().transport.request("HEAD", server.url(), follow=False)
        assert (reply.status, reply.headers["location"]) == (302, "/next")


# -- redirects and credentials -------------------------------------------------------------------------


def test_f19_a_loop_is_refused(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(
        lambda seen, peer: redirect("/b" if seen.target == "/a" else "/a")(seen, peer)
    ) as one:
        with pytest.raises(RedirectError, match="loop"):
            rig().transport.request("GET", one.url("/a"))
        assert len(one.seen) == 2


def test_f19_ten_hops_and_no_more(rig: Callable[..., Rig]) -> None:
    def hop(seen: Seen, peer: Peer) -> None:
        number = int(seen.target.strip("/"))
        (redirect(f"/{number + 1}") if number < 10 else ok)(seen, peer)

    with ScriptedServer(hop) as server:
        transport = rig().transport
        assert transport.request("GET", server.url("/0")).status == 200
        server.answer = lambda seen, peer: redirect(f"/{int(seen.target.strip('/')) + 1}")(seen, peer)
        with pytest.raises(RedirectError, match="11th"):
            transport.request("GET", server.url("/0"))


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://169.254.169.254/latest/meta-data",
        "http://[fd00:ec2::254]/latest",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://[bad",
        "http:///nowhere",
    ],
)
def test_f19_unsafe_targets_are_refused(rig: Callable[..., Rig], target: str) -> None:
    with ScriptedServer(redirect(target)) as server, pytest.raises(RedirectError):
        rig().transport(Location(server.url()), 0, None)


def test_f19_a_name_that_leads_to_metadata_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: [entry])
    source, target = Url("https://a.test/"), Url("https://metadata.test/")
    refuse_internal(source, target, resolve=False)
    with pytest.raises(RedirectError, match="metadata"):
        refuse_internal(source, target, resolve=True)


def test_f19_tls_is_not_left(rig: Callable[..., Rig], ca: trustme.CA, bundle: str) -> None:
    with ScriptedServer(ok) as plain:
        answer = redirect(plain.url().reveal())
        with (
            ScriptedServer(answer, tls=served(ca, "127.0.0.1")) as server,
            pytest.raises(RedirectError, match="leaves TLS"),
        ):
            rig(ca_files=(bundle,)).transport(Location(server.url()), 0, None)
        assert plain.seen == []


def test_f55_no_credential_crosses_origins(
    rig: Callable[..., Rig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"default login u password {CANARY}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    secrets = {"Authorization": f"Bearer {CANARY}", "X-Api-Key": CANARY, "Cookie": CANARY}
    with ScriptedServer(lambda seen, peer: peer.file(seen, CONTENT), host="127.0.0.2") as cdn:
        target = f"http://u:{CANARY}@{cdn.address}/blob?X-Amz-Signature=1"
        with ScriptedServer(in_turn(redirect("/same"), redirect(target), redirect(target))) as hub:
            transport = rig().transport
            with transport(Location(hub.url(), secrets), 5, 10) as body:
                assert read_all(body) == CONTENT[5:10]
            transport.request("GET", hub.url(), headers=secrets)
            transport.request("GET", cdn.url())
        for seen in hub.seen:
            assert seen.headers["authorization"] == f"Bearer {CANARY}"
            assert seen.headers["x-api-key"] == CANARY
        for seen in cdn.seen:
            assert CANARY not in str(seen.headers)
        assert cdn.seen[0].headers["range"] == "bytes=5-9"


def test_f55_a_body_does_not_cross_origins(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(ok, host="127.0.0.2") as other:
        answer = redirect(other.url().reveal(), 307)
        with ScriptedServer(answer) as server, pytest.raises(RedirectError, match="body"):
            rig().transport.request("POST", server.url(), body=b"credentials=" + CANARY.encode())
        assert other.seen == []


def test_a_post_becomes_a_get_on_303_and_stays_one_on_307(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(in_turn(redirect("/b", 307), redirect("/c", 303), ok)) as server:
        rig().transport.request("POST", server.url("/a"), body=b"x")
        assert [(seen.method, seen.body) for seen in server.seen] == [
            ("POST", b"x"),
            ("POST", b"x"),
            ("GET", b""),
        ]


# -- TLS -----------------------------------------------------------------------------------------------


def test_f27_an_unknown_authority_is_refused_once(rig: Callable[..., Rig], ca: trustme.CA) -> None:
    with ScriptedServer(ok, tls=served(ca, "127.0.0.1")) as server:
        one = rig()
        with pytest.raises(TlsError, match="not trusted") as caught:
            one.transport.request("GET", server.url())
        assert "proxy.certConfigMap" in caught.value.hint
        assert "SSL_CERT_FILE" in caught.value.hint
        assert one.clock.waits == []


@pytest.mark.parametrize(
    ("issued", "message"),
    [
        (("other.test", False), "another host"),
        (("127.0.0.2", False), "another host"),
        (("127.0.0.1", True), "is expired, or not valid yet"),
    ],
)
def test_f27_wrong_host_and_expired(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str, issued: tuple[str, bool], message: str
) -> None:
    name, expired = issued
    tls = served(ca, name, expired=expired)
    with ScriptedServer(ok, tls=tls) as server, pytest.raises(TlsError, match=message):
        rig(ca_files=(bundle,)).transport.request("GET", server.url())


class PlainSpoken(ScriptedServer):
    """Answers a TLS hello as a web server on port 80 does."""

    def _converse(self, connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def test_f27_plain_http_on_a_tls_port(rig: Callable[..., Rig]) -> None:
    with PlainSpoken(ok) as server:
        url = Url(server.url().reveal().replace("http:", "https:"))
        with pytest.raises(TlsError, match="no TLS connection"):
            rig().transport(Location(url), 0, None)


def test_f27_the_system_store_is_honoured_and_bundles_add_to_it(ca: trustme.CA, tmp_path: Path) -> None:
    store, extra = tmp_path / "store.crt", tmp_path / "extra.pem"
    ca.cert_pem.write_to_path(store)
    trustme.CA(organization_name="another").cert_pem.write_to_path(extra)
    assert len(client_context((), str(store)).get_ca_certs()) == 1
    assert len(client_context((str(extra),), str(store)).get_ca_certs()) == 2


def test_f27_without_a_system_store_the_bundled_list_is_the_last_resort(
    ca: trustme.CA, bundle: str, tmp_path: Path
) -> None:
    missing = str(tmp_path / "none")
    assert len(client_context((), missing).get_ca_certs()) > 50
    assert len(client_context((bundle,), missing).get_ca_certs()) == 1
    # a hashed directory is read when a certificate is looked for: it shows none, but is one
    (tmp_path / "0a1b2c3d.0").symlink_to("ca.pem")
    assert client_context((str(tmp_path),), missing).get_ca_certs() == []


def test_f27_verification_is_never_off_but_not_pedantic(bundle: str) -> None:
    context = client_context((bundle,))
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT


def test_f27_a_bundle_that_cannot_be_read(rig: Callable[..., Rig], tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("not a certificate")
    for name in ("junk.pem", "missing.pem"):
        with pytest.raises(TlsError, match=name):
            rig(ca_files=(str(tmp_path / name),))


# -- proxies -------------------------------------------------------------------------------------------


def test_f28_https_is_tunnelled_and_the_password_stays_with_the_proxy(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str
) -> None:
    with ScriptedServer(ok, tls=served(ca, "registry.test")) as server:
        rules = ProxyRules(authorization="Basic dTpw", names={"registry.test": ("127.0.0.1", server.port)})
        with Proxy(rules) as proxy:
            one = rig(ca_files=(bundle,), https_proxy=f"http://u:p@{proxy.address}")
            assert one.transport.request("GET", Url("https://registry.test/v2")).body == b"{}"
            assert [seen.target for seen in proxy.seen] == ["registry.test:443"]
            assert "proxy-authorization" not in server.seen[0].headers
            one.transport.close()


def test_f28_plain_http_goes_through_in_absolute_form(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(lambda seen, peer: peer.file(seen, CONTENT)) as server, Proxy() as proxy:
        transport = rig(http_proxy=proxy.address).transport
        with transport(Location(server.url("/a")), 0, None) as body:
            assert read_all(body) == CONTENT
        assert proxy.seen[0].target == server.url("/a").reveal()


@pytest.mark.parametrize(
    ("scheme", "code", "message"),
    [
        ("http", 407, "wants other credentials"),
        ("https", 407, "wants other credentials"),
        ("https", 403, "HTTP 403"),
        ("https", 503, "HTTP 503"),
    ],
)
def test_f28_a_proxy_that_says_no(rig: Callable[..., Rig], scheme: str, code: int, message: str) -> None:
    with Proxy(ProxyRules(status=code)) as proxy:
        secret = f"http://user:{CANARY}@{proxy.address}"
        one = rig(http_proxy=secret, https_proxy=secret, retry_budget=20.0)
        with pytest.raises(ProxyError, match=message) as caught:
            one.transport.request("GET", Url(f"{scheme}://registry.test/v2"))
        assert f"http://{proxy.address}" in caught.value.message
        assert CANARY not in str(caught.value) + caught.value.hint + repr(caught.value)
        assert bool(one.clock.waits) is (code == 503)


def test_f28_a_proxy_that_is_down(rig: Callable[..., Rig]) -> None:
    address = f"127.0.0.1:{closed_port()}"
    with pytest.raises(
        ProxyError, match=rf"cannot reach the proxy http://{address} for registry\.test: .*refused"
    ):
        rig(https_proxy=f"http://u:{CANARY}@{address}").transport(
            Location(Url("https://registry.test/")), 0, None
        )


def test_f28_a_proxy_address_that_cannot_be_one(rig: Callable[..., Rig]) -> None:
    for address in (f"socks5://u:{CANARY}@127.0.0.1:1080", f"http://u:{CANARY}@host:99999999"):
        with pytest.raises(ProxyError, match="cannot be used") as caught:
            rig(https_proxy=address)
        assert CANARY not in caught.value.message


@pytest.mark.parametrize(
    ("no_proxy", "url", "bypassed"),
    [
        ("", "https://a.example.com", False),
        ("*", "https://a.example.com", True),
        ("example.com", "https://example.com", True),
        ("example.com", "https://a.example.com", True),
        (".example.com", "https://a.example.com", True),
        ("*.example.com", "https://a.example.com", True),
        ("example.com", "https://badexample.com", False),
        ("EXAMPLE.com", "https://A.Example.Com.", True),
        ("x, example.com", "https://example.com", True),
        ("x example.com", "https://example.com", True),
        ("example.com:8443", "https://example.com", False),
        ("example.com:8443", "https://example.com:8443", True),
        ("10.0.0.0/8", "https://10.1.2.3:5000", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.0.0.0/8", "https://10.example.com", False),
        ("10.1.2.3", "https://10.1.2.3", True),
        ("fd00::/8", "https://[fd00::1]:5000", True),
        ("[::1]", "https://[::1]", True),
        ("[::1]:443", "https://[::1]", True),
        ("[::1]:444", "https://[::1]", False),
        ("svc,.cluster.local", "https://hub.ns.svc.cluster.local", True),
    ],
)
def test_f28_no_proxy(no_proxy: str, url: str, bypassed: bool) -> None:
    proxies = Proxies(TransportPolicy(https_proxy="http://proxy:3128", no_proxy=no_proxy))
    assert (proxies.choose(Url(url)) is None) is bypassed


# -- secrets -------------------------------------------------------------------------------------------


def test_f56_errors_and_settings_hold_no_secret(
    rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    policy = TransportPolicy(https_proxy=f"http://u:{CANARY}@proxy")
    assert CANARY not in repr(policy)
    port = closed_port()
    failing: tuple[tuple[Url, dict[str, str]], ...] = (
        (Url(f"http://127.0.0.1:{port}/a?X-Amz-Signature={CANARY}"), {}),
        (Url(f"http://u:{CANARY}@127.0.0.1:{port}/a"), {}),
        (Url(f"http://[bad/{CANARY}"), {}),
        (Url(f"http://127.0.0.1:port/?{CANARY}"), {}),
        (Url("http://127.0.0.1:1/"), {"Authorization": f"Bearer {CANARY}\n"}),
    )
    for url, headers in failing:
        with pytest.raises(NimpullError) as caught:
            rig().transport(Location(url, headers), 0, None)
        error: BaseException | None = caught.value
        while error is not None:
            assert CANARY not in f"{error!r} {error} {getattr(error, 'hint', '')}"
            error = error.__cause__
    with ScriptedServer(
        lambda seen, peer: peer.head(200, {"Content-Length": "0", "bad header": "x"})
    ) as server:
        rig().transport(Location(server.url(f"/?sig={CANARY}")), 0, None).close()
    assert CANARY not in caplog.text
