"""Connections that are spoken to directly: what is plain, what is handed on, and what keeps a connection."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from time import monotonic

import pytest
import trustme

from nimpull.core.artifacts import Location
from nimpull.core.names import Url
from nimpull.core.proxies import Proxies
from nimpull.errors import NetworkError, ProxyError
from nimpull.transport import Transport, TransportPolicy
from nimpull.transport.line import parse_head
from nimpull.transport.lines import header_block
from nimpull.transport.wire import Wire
from tests.clocks import StepClock
from tests.servers import Answer, Peer, Proxy, ProxyRules, ScriptedServer, Seen, in_turn

CONTENT = bytes(range(256)) * 1000
CANARY = "canary-91c2"


@contextmanager
def transport(**policy: object) -> Iterator[Transport]:
    proxies = Proxies.parse(https=str(policy.pop("https_proxy", "")))
    settings = TransportPolicy(proxies=proxies, **policy)  # type: ignore[arg-type]
    with Transport(settings, clock=StepClock(), cancel=Event(), emit=lambda event: None) as made:
        yield made


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs of requests that did not go over a line."""
    seen: list[str] = []
    real = Wire._send

    def send(self: Wire, hop: object, pools: object) -> object:
        seen.append(hop.url.reveal())  # type: ignore[attr-defined]
        return real(self, hop, pools)  # type: ignore[arg-type]

    monkeypatch.setattr(Wire, "_send", send)
    return seen


def read(get: Transport, url: Url, *, block: int = 1 << 20) -> bytes:
    body = get(Location(url), 0, None)
    buffer, received = memoryview(bytearray(block)), b""
    while count := body.readinto(buffer):
        received += bytes(buffer[:count])
    body.close(reuse=True)
    return received


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
        raw(b"HTTP/1.1 200 OK\r\nX: 1\nContent-Length: 5\r\n\r\nhello"),
        raw(b"HTTP/1.1 200 OK\r\nX: folded\r\n  on\r\nContent-Length: 5\r\n\r\nhello"),
        raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
        raw(
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 90 + b"Z: " + b"z" * 60_000 + b"\r\n",
            b"Content-Length: 5\r\n\r\nhello",
        ),
    ],
    ids=["plain", "spelling", "pieces", "bare", "mixed", "folded", "continue", "chunked", "long"],
)
def test_heads_of_every_kind_are_read_and_keep_the_connection(answer: Answer, pooled: list[str]) -> None:
    with ScriptedServer(in_turn(answer, plain)) as server, transport() as get:
        assert read(get, server.url("/a")) == b"hello"
        assert read(get, server.url("/b"), block=1000) == CONTENT
        assert {seen.connection for seen in server.seen} == {0}
    assert pooled == []


@pytest.mark.parametrize(
    "answer",
    [
        raw(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        raw(b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 5\r\n\r\nhello"),
        raw(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"5\r\nhello\r\n0\r\n\r\n",
        ),
    ],
    ids=["old", "close", "chunked"],
)
def test_a_connection_that_ends_with_its_answer_is_not_used_again(answer: Answer) -> None:
    with ScriptedServer(in_turn(answer, plain)) as server, transport() as get:
        assert read(get, server.url()) == b"hello"
        assert read(get, server.url()) == CONTENT
        assert [seen.connection for seen in server.seen] == [0, 1]


def test_f01_a_kept_connection_that_its_server_ended_costs_no_error() -> None:
    def one_answer(seen: Seen, peer: Peer) -> None:
        peer.file(seen, CONTENT)
        peer.close()

    with ScriptedServer(one_answer) as server, transport() as get:
        for _ in range(3):
            assert read(get, server.url()) == CONTENT
        assert [seen.connection for seen in server.seen] == [0, 1, 2]


def test_f01_a_new_connection_that_ends_without_an_answer_is_an_error() -> None:
    with (
        ScriptedServer(lambda seen, peer: peer.close()) as server,
        transport() as get,
        pytest.raises(NetworkError, match="closed before any answer"),
    ):
        read(get, server.url())
    assert len(server.seen) == 1


def test_f01_an_answer_that_breaks_off_in_its_head_is_an_error_on_a_kept_connection_too() -> None:
    def torn(seen: Seen, peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-")
        peer.close()

    with ScriptedServer(in_turn(plain, torn)) as server, transport() as get:
        assert read(get, server.url()) == CONTENT
        with pytest.raises(NetworkError):
            read(get, server.url())
        assert len(server.seen) == 2


def test_what_is_no_answer_at_all_is_an_error() -> None:
    with (
        ScriptedServer(raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")) as server,
        transport() as get,
        pytest.raises(NetworkError, match="is not HTTP"),
    ):
        read(get, server.url())


def test_a_redirect_on_the_way_is_followed_with_its_own_rules() -> None:
    def first(seen: Seen, peer: Peer) -> None:
        peer.reply(302, b"", {"Location": f"http://127.0.0.2:{other.port}/b"})

    with (
        ScriptedServer(plain, host="127.0.0.2") as other,
        ScriptedServer(first) as server,
        transport() as get,
    ):
        body = get(Location(server.url("/a"), {"Authorization": f"Bearer {CANARY}"}), 10, 20)
        buffer = memoryview(bytearray(100))
        assert bytes(buffer[: body.readinto(buffer)]) == CONTENT[10:20]
        body.close(reuse=True)
    assert server.seen[0].headers["authorization"] == f"Bearer {CANARY}"
    assert "authorization" not in other.seen[0].headers
    assert other.seen[0].headers["range"] == "bytes=10-19"
    assert other.seen[0].headers["host"] == f"127.0.0.2:{other.port}"


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (lambda seen, peer: peer.reply(307, b"moved", {"Location": "/b"}), [0, 0]),
        (lambda seen, peer: peer.reply(307, bytes(100_000), {"Location": "/b"}), [0, 1]),
        (lambda seen, peer: peer.head(307, {"Location": "/b", "Content-Length": "9"}), [0, 1]),
        (lambda seen, peer: peer.head(307, {"Location": "/b"}), [0, 1]),
    ],
    ids=["short", "long", "silent", "endless"],
)
def test_a_redirect_keeps_its_connection_where_its_body_is_here(
    answer: Answer, connections: list[int]
) -> None:
    with ScriptedServer(in_turn(answer, plain)) as server, transport() as get:
        assert read(get, server.url("/a")) == CONTENT
        assert [seen.connection for seen in server.seen] == connections


@pytest.mark.parametrize(
    ("target", "sent", "direct"),
    [
        ("/a/b.bin", "/a/b.bin", True),
        ("/a/.gitattributes", "/a/.gitattributes", True),
        ("/a%2Fb?sig=a%2Bb%3D&x=/../", "/a%2Fb?sig=a%2Bb%3D&x=/../", True),
        ("/a..b/c", "/a..b/c", True),
        ("/a/../b", "/b", False),
        ("/./b", "/b", False),
        ("/..", "/", False),
        ("/a b", "/a%20b", False),
        ("/a%zz", "/a%25zz", False),
        ("/\u00e9", "/%C3%A9", False),
        ("/a#b", "/a", False),
    ],
)
def test_a_target_goes_as_it_is_or_is_put_right_first(
    target: str, sent: str, direct: bool, pooled: list[str]
) -> None:
    with ScriptedServer(plain) as server, transport() as get:
        assert read(get, server.url(target)) == CONTENT
        assert [seen.target for seen in server.seen] == [sent]
    assert bool(pooled) is not direct


@pytest.mark.parametrize(
    "headers",
    [
        {"X": "a\r\nY: b"},
        {"X": "a\n"},
        {"X": " a"},
        {"X": ""},
        {"X Y": "a"},
        {"X:": "a"},
        {"Host": "evil"},
        {"x": "\u2603"},
    ],
)
def test_headers_that_are_not_plain_are_left_to_the_library(headers: dict[str, str]) -> None:
    assert header_block(headers) is None


def test_heads_that_are_not_plain_are_left_to_the_library() -> None:
    assert parse_head(b"HTTP/1.1 206 Partial Content\r\nA: b\r\na: c") == (206, {"a": "b, c"})
    for head in (
        b"HTTP/2 200 OK",
        b"HTTP/1.1 099 X",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\nA : b",
    ):
        assert parse_head(head) is None


def test_f14_silence_before_the_head_is_a_stall_also_after_half_of_it() -> None:
    def half(seen: Seen, peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\n")
        peer.stall()

    with ScriptedServer(half) as server, transport(read_timeout=0.1) as get:
        began = monotonic()
        with pytest.raises(NetworkError, match="stalled"):
            read(get, server.url())
        assert monotonic() - began < 5


@pytest.mark.parametrize(
    ("code", "message"), [(407, "wants other credentials"), (403, "HTTP 403"), (503, "HTTP 503")]
)
def test_f28_a_tunnel_that_is_refused(code: int, message: str) -> None:
    with Proxy(ProxyRules(status=code)) as proxy:
        secret = f"http://user:{CANARY}@{proxy.address}"
        with transport(https_proxy=secret) as get, pytest.raises(ProxyError, match=message) as caught:
            read(get, Url("https://registry.test/a"))
        assert CANARY not in str(caught.value) + caught.value.hint


def test_f28_bytes_come_through_a_tunnel_and_keep_it(tmp_path: object, pooled: list[str]) -> None:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("registry.test").configure_cert(context)
    with ca.cert_pem.tempfile() as bundle, ScriptedServer(plain, tls=context) as server:
        rules = ProxyRules(authorization="Basic dTpw", names={"registry.test": ("127.0.0.1", server.port)})
        with Proxy(rules) as proxy:
            with transport(ca_files=(bundle,), https_proxy=f"http://u:p@{proxy.address}") as get:
                for _ in range(2):
                    assert read(get, Url("https://registry.test/a")) == CONTENT
            assert [seen.target for seen in proxy.seen] == ["registry.test:443"]
        assert [seen.headers["host"] for seen in server.seen] == ["registry.test"] * 2
        assert "proxy-authorization" not in server.seen[0].headers
    assert pooled == []
