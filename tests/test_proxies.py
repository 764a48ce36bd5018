"""Proxies: tunnels, absolute form, credentials, refusals, and what NO_PROXY leaves out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from nimpull.core.artifacts import Location
from nimpull.core.names import Url
from nimpull.core.proxies import Proxies
from nimpull.errors import ProxyError, UsageError
from nimpull.settings import load
from tests.calls import FILES, call, plain
from tests.certificates import served
from tests.registry import Registry
from tests.servers import Proxy, ProxyRules, ScriptedServer, SocksProxy
from tests.transporting import CANARY, CONTENT, Rig, closed_port, get, ok


def test_f28_https_is_tunnelled_and_the_password_stays_with_the_proxy(
    rig: Callable[..., Rig], ca: trustme.CA, bundle: str
) -> None:
    with ScriptedServer(ok, tls=served(ca, "registry.test")) as server:
        rules = ProxyRules(authorization="Basic dTpw", names={"registry.test": ("127.0.0.1", server.port)})
        with Proxy(rules) as proxy:
            one = rig(ca_files=(bundle,), https_proxy=f"http://u:p@{proxy.address}")
            assert one.api.request("GET", Url("https://registry.test/v2")).body == b"{}"
            assert [seen.target for seen in proxy.seen] == ["registry.test:443"]
            assert "proxy-authorization" not in server.seen[0].headers


def test_f28_plain_http_goes_through_in_absolute_form(rig: Callable[..., Rig]) -> None:
    with ScriptedServer(lambda seen, peer: peer.file(seen, CONTENT)) as server, Proxy() as proxy:
        one = rig(http_proxy=proxy.address)
        assert get(one.network, Location(server.url("/a"))).content == CONTENT
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
            one.api.request("GET", Url(f"{scheme}://registry.test/v2"))
        assert f"http://{proxy.address}" in caught.value.message
        assert CANARY not in str(caught.value) + caught.value.hint + repr(caught.value)
        assert bool(one.clock.waits) is (code == 503)


def test_f28_a_proxy_that_is_down(rig: Callable[..., Rig]) -> None:
    address = f"127.0.0.1:{closed_port()}"
    with pytest.raises(
        ProxyError, match=rf"cannot reach the proxy http://{address} for registry\.test: .*refused"
    ):
        get(rig(https_proxy=f"http://u:{CANARY}@{address}").network, Location(Url("https://registry.test/")))


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "address",
    [
        "://x",
        f"ftp://u:{CANARY}@127.0.0.1:21",
        f"socks6://u:{CANARY}@127.0.0.1:1080",
        f"http://u:{CANARY}@host:99999999",
        f"http://u:{CANARY}@:80",
        f"http://u:{CANARY}@host:0",
        f"http://u:{CANARY}@[::1",
    ],
)
def test_f28_a_proxy_address_that_cannot_be_one_is_a_mistake_of_whoever_set_it(
    variable: str, address: str
) -> None:
    with pytest.raises(UsageError, match=f"{variable.upper()} is no address of a proxy") as caught:
        load({variable: address})
    assert CANARY not in f"{caught.value!r} {caught.value} {caught.value.hint}"
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("variables", "http", "https"),
    [
        ({"ALL_PROXY": "socks5h://p:1080"}, "socks5h://p:1080", "socks5h://p:1080"),
        ({"all_proxy": "socks5://p", "ALL_PROXY": "http://q"}, "socks5://p", "socks5://p"),
        ({"ALL_PROXY": "socks5://p", "HTTPS_PROXY": "https://q:443"}, "socks5://p", "https://q:443"),
        ({"ALL_PROXY": "p:1", "http_proxy": "q:2"}, "http://q:2", "http://p:1"),
        ({"HTTP_PROXY": "p:1"}, "http://p:1", None),
        ({"ALL_PROXY": "p:1", "NO_PROXY": "registry.test"}, None, None),
        ({}, None, None),
    ],
)
def test_f28_which_variable_speaks(variables: dict[str, str], http: str | None, https: str | None) -> None:
    proxies = load(variables).proxies
    for scheme, expected in (("http", http), ("https", https)):
        found = proxies.proxy_for(Url(f"{scheme}://registry.test/"))
        assert (found and found.reveal()) == expected


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
    proxies = Proxies.parse(https="http://proxy:3128", no_proxy=no_proxy)
    assert (proxies.proxy_for(Url(url)) is None) is bypassed


def test_f28_a_whole_pull_through_a_socks_proxy_that_knows_the_names(
    registry: Registry, tmp_path: Path
) -> None:
    """Answers through requests, bytes through libcurl: nothing goes past it."""
    port = int(registry.datastore_url.split(":")[2].split("/")[0])
    endpoint = registry.datastore_url.replace("127.0.0.1", "hub.invalid")
    with SocksProxy(user=f"u:{CANARY}", names={"hub.invalid": ("127.0.0.1", port)}) as proxy:
        code, text = call(
            registry,
            tmp_path,
            *("nimpull", "download", "hf://default/tiny", "--layout", "local-dir"),
            HF_ENDPOINT=endpoint,
            ALL_PROXY=f"socks5h://u:{CANARY}@{proxy.address}",
        )
    assert code == 0, text
    assert plain(tmp_path) == FILES
    assert ("hub.invalid", port) in proxy.asked
    assert len(proxy.asked) == sum(server.accepted for server in registry.servers)
    assert CANARY not in text
