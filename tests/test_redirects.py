"""Where a redirect may lead, and what goes with it: no credential crosses an origin or enters a message."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from nimpull.core import link_local
from nimpull.core.artifacts import Location
from nimpull.core.link_local import is_internal, names_internal
from nimpull.core.names import Url
from nimpull.core.proxies import Proxies
from nimpull.errors import (
    NimpullError,
    RedirectError,
)
from nimpull.transport import TransportPolicy
from tests.certificates import served
from tests.servers import Peer, ScriptedServer, Seen, in_turn
from tests.transporting import CANARY, CONTENT, Rig, closed_port, get, ok, redirect


def test_f19_a_loop_is_refused(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(
        lambda seen, peer: redirect("/b" if seen.target == "/a" else "/a")(seen, peer)
    ) as one:
        with pytest.raises(RedirectError, match="loop"):
            rig().api.request("GET", one.url("/a"))
        assert len(one.seen) == 2


def test_f19_ten_hops_and_no_more(rig: Callable[..., Rig]) -> None:
    def hop(seen: Seen, peer: Peer) -> None:
        number = int(seen.target.strip("/"))
        (redirect(f"/{number + 1}") if number < 10 else ok)(seen, peer)

    with ScriptedServer(hop) as server:
        api = rig().api
        assert api.request("GET", server.url("/0")).status == 200
        server.answer = lambda seen, peer: redirect(f"/{int(seen.target.strip('/')) + 1}")(seen, peer)
        with pytest.raises(RedirectError, match="11th"):
            api.request("GET", server.url("/0"))


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
        get(rig().network, Location(server.url()))


def test_f19_a_name_that_leads_to_metadata_is_never_asked(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that the socket is connected to counts, for a location of any origin."""
    internal = map(ip_address, ("127.0.0.1", "::1", "127.0.0.2"))
    monkeypatch.setattr(link_local, "_METADATA", frozenset(internal))
    with ScriptedServer(ok, host="127.0.0.2") as secret:
        monkeypatch.setattr(socket, "getaddrinfo", resolving(secret.port))
        with pytest.raises(RedirectError, match=r"localhost.*link-local or metadata address"):
            get(rig().network, Location(secret.url(host="localhost")))
        with pytest.raises(RedirectError, match=r"metadata\.test.*link-local or metadata address"):
            rig().api.request("GET", Url(f"http://metadata.test:{secret.port}/"))
        assert secret.seen == []


def resolving(port: int) -> Callable[..., list[object]]:
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", port))
    return lambda *arguments, **options: [entry]


@pytest.mark.parametrize(
    ("host", "internal"),
    [
        ("169.254.169.254", True),
        ("169.254.169.254.", True),
        ("2852039166", True),
        ("0xa9fea9fe", True),
        ("169.254.43518", True),
        ("0251.0376.0251.0376", True),
        ("::ffff:169.254.169.254", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("2002:a9fe:a9fe::", True),
        ("fe80::1%eth0", True),
        ("fd00:ec2::254", True),
        ("100.100.100.200", True),
        ("Metadata.Google.Internal", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("0x7f.1", False),
        ("4294967296", False),
        ("169.254.169.254.example.com", False),
        ("1.2.3.4.5", False),
        ("9" * 5000, False),
        ("", False),
    ],
)
def test_f19_an_address_in_any_spelling(host: str, internal: bool) -> None:
    assert names_internal(host) is internal


@given(st.ip_addresses(v=4))
def test_f19_an_address_is_what_inet_aton_makes_of_it(address: IPv4Address) -> None:
    a, b, c, d = address.packed
    for text in (
        str(int(address)),
        hex(int(address)),
        f"0{a:o}.{b}.{c << 8 | d}",
        f"{a}.{(b << 16) + (c << 8) + d}",
    ):
        assert socket.inet_aton(text) == address.packed
        assert names_internal(text) is is_internal(str(address)), text


def test_f19_tls_is_not_left(rig: Callable[..., Rig], ca: trustme.CA, bundle: str) -> None:
    with ScriptedServer(ok) as plain:
        answer = redirect(plain.url().reveal())
        with (
            ScriptedServer(answer, tls=served(ca, "127.0.0.1")) as server,
            pytest.raises(RedirectError, match="leaves TLS"),
        ):
            get(rig(ca_files=(bundle,)).network, Location(server.url()))
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
            one = rig()
            assert get(one.network, Location(hub.url(), secrets), 5, 10).content == CONTENT[5:10]
            one.api.request("GET", hub.url(), headers=secrets)
            one.api.request("GET", cdn.url())
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
            rig().api.request("POST", server.url(), body=b"credentials=" + CANARY.encode())
        assert other.seen == []


def test_a_post_becomes_a_get_on_303_and_stays_one_on_307(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(in_turn(redirect("/b", 307), redirect("/c", 303), ok)) as server:
        rig().api.request("POST", server.url("/a"), body=b"x")
        assert [(seen.method, seen.body) for seen in server.seen] == [
            ("POST", b"x"),
            ("POST", b"x"),
            ("GET", b""),
        ]


def test_f56_errors_and_settings_hold_no_secret(
    rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    policy = TransportPolicy(proxies=Proxies.parse(https=f"http://u:{CANARY}@proxy"))
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
            get(rig().network, Location(url, headers))
        error: BaseException | None = caught.value
        while error is not None:
            assert CANARY not in f"{error!r} {error} {getattr(error, 'hint', '')}"
            error = error.__cause__
    with ScriptedServer(
        lambda seen, peer: peer.head(200, {"Content-Length": "0", "bad header": "x"})
    ) as server:
        get(rig().network, Location(server.url(f"/?sig={CANARY}")))
    assert CANARY not in caplog.text
