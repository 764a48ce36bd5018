"""Small requests: connecting, when to ask again, and what an answer may be."""

from __future__ import annotations

import errno
import gzip
import os
import socket
from collections.abc import Callable

import pytest

from nimpull.core.artifacts import Location
from nimpull.core.events import Waiting
from nimpull.core.names import Url
from nimpull.errors import (
    NetworkError,
    ProxyError,
)
from tests.clocks import StepClock
from tests.servers import Peer, Proxy, ProxyRules, ScriptedServer, Seen, in_turn
from tests.transporting import CANARY, Rig, closed_port, get, ok, redirect, status

# -- connecting ----------------------------------------------------------------------------------------


def test_f16_refused_names_the_host_and_stops_inside_the_budget(rig: Callable[..., Rig]) -> None:
    one = rig(retry_budget=100.0)
    url = Url(f"http://127.0.0.1:{closed_port()}/v2?sig={CANARY}")
    with pytest.raises(NetworkError, match=r"127\.0\.0\.1:\d+: the connection was refused") as caught:
        one.api.request("GET", url)
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
        one.api.request("GET", Url("http://registry.invalid/a"))
    assert int(sum(one.clock.waits)) in waited
    with pytest.raises(ProxyError, match=rf"proxy\.invalid.*{words}"):
        rig(http_proxy="http://proxy.invalid:3128").api.request("GET", Url("http://a.test/"))


@pytest.mark.parametrize("code", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EMFILE])
def test_f16_what_the_kernel_says_of_a_connection_is_told(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socket.socket, "connect", no)
    with pytest.raises(NetworkError, match=rf"127\.0\.0\.1:9: {os.strerror(code)}"):
        rig().api.request("GET", Url("http://127.0.0.1:9/a"))


def test_f16_a_name_that_was_reached_before_is_not_mistyped(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = rig()
    with ScriptedServer(ok) as server:
        assert one.api.request("GET", server.url(host="localhost")).status == 200
    resolver_says(monkeypatch, socket.EAI_NONAME)
    with pytest.raises(NetworkError, match="there is no such name"):
        one.api.request("GET", server.url("/other", host="localhost"))
    assert sum(one.clock.waits) > 300


def test_f16_a_closed_port_behind_the_proxy_names_both(rig: Callable[..., Rig]) -> None:
    with Proxy(ProxyRules(status=502)) as proxy:
        one = rig(https_proxy=f"http://u:{CANARY}@{proxy.address}")
        with pytest.raises(ProxyError, match=rf"{proxy.address} refuses to connect to registry\.invalid"):
            get(one.network, Location(Url("https://registry.invalid/a")))


# -- pacing --------------------------------------------------------------------------------------------


def test_f17_retry_after_pauses_the_host_for_all(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(in_turn(status(429, Retry_After="120"), ok)) as server:
        one = rig()
        assert get(one.network, Location(server.url())).status == 429
        assert one.clock.waits == []
        assert one.api.request("GET", server.url("/other")).status == 200
        assert one.clock.waits == [120.0]


def test_f17_an_api_request_waits_as_told(rig: Callable[..., Rig]) -> None:
    answers = in_turn(status(429, Retry_After="40"), status(429, RateLimit='"api";r=0;t=70'), ok)
    with ScriptedServer(answers) as server:
        one = rig()
        assert one.api.request("GET", server.url()).body == b"{}"
        assert one.clock.waits == [40.0, 70.0]
        assert one.told == [
            Waiting(f"{server.address} answers HTTP 429", 40.0),
            Waiting(f"{server.address} answers HTTP 429", 70.0),
        ]


def test_f18_a_storm_passes(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(in_turn(*[status(503)] * 8, ok)) as server:
        one = rig(clock=StepClock(jitter=0.999))
        assert one.api.request("GET", server.url()).status == 200
        assert one.clock.waits == sorted(one.clock.waits)
        assert len(one.clock.waits) == 8


def test_f18_beyond_the_budget_the_last_answer_is_returned(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(status(503)) as server:
        one = rig(retry_budget=30.0)
        assert one.api.request("GET", server.url()).status == 503
        assert sum(one.clock.waits) <= 30


@pytest.mark.parametrize("code", [400, 401, 403, 404, 416])
def test_a_no_is_not_asked_again(rig: Callable[..., Rig], code: int) -> None:
    with ScriptedServer(status(code)) as server:
        assert rig().api.request("GET", server.url()).status == code
        assert len(server.seen) == 1


# -- small answers -------------------------------------------------------------------------------------


def test_an_answer_over_the_limit_is_refused_once(rig: Callable[..., Rig]) -> None:
    bomb = gzip.compress(bytes(10 << 20))
    with ScriptedServer(lambda seen, peer: peer.reply(200, bomb, {"Content-Encoding": "gzip"})) as server:
        with pytest.raises(NetworkError, match="over 1000000 bytes"):
            rig().api.request("GET", server.url(), max_bytes=1_000_000)
        assert len(server.seen) == 1


def test_a_short_api_answer_is_asked_for_again(rig: Callable[..., Rig]) -> None:
    def short(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Content-Length": "10"})
        peer.send(b"abc")
        peer.close()

    with ScriptedServer(in_turn(short, ok)) as server:
        assert rig().api.request("GET", server.url()).body == b"{}"


def test_method_body_and_headers_are_sent(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(ok) as server:
        rig(user_agent="nimpull/9").api.request(
            "POST", server.url("/token"), headers={"X-Org": "acme"}, body=b"credentials=k"
        )
        (seen,) = server.seen
        assert (seen.method, seen.target, seen.body) == ("POST", "/token", b"credentials=k")
        assert seen.headers["x-org"] == "acme"
        assert seen.headers["user-agent"] == "nimpull/9"


def test_a_redirect_is_returned_when_not_followed(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(redirect("/next")) as server:
        reply = rig().api.request("HEAD", server.url(), follow=False)
        assert (reply.status, reply.headers["location"]) == (302, "/next")
