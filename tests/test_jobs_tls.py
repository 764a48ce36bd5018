"""Jobs with ``proxy`` in their NIMCache: through it, over TLS, trusting what the CA init container made.

The addresses are the public ones: the proxy knows where they are, as a company's does. The CA init container
runs as the operator writes it, and its ``/ca-certs`` is mounted over ``/etc/ssl``, where then only the bundle
is whole.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pytest
import trustme

from tests.calls import FILES
from tests.certificates import of_an_old_company, served
from tests.cluster import Cluster, a_cluster, check_ready, on_this_node, stock
from tests.jobs import DATASTORE, JOBS, TLS_JOBS, Job, plain_tree
from tests.pods import ca_certs, mounting
from tests.registry import Registry
from tests.servers import Proxy, ProxyRules

HUB, NGC, AUTH = "huggingface.co", "api.ngc.nvidia.com", "authn.nvidia.com"
PUBLIC = ("127.0.0.1", HUB, NGC, AUTH)  # the first is the CDN's
CLI = TLS_JOBS["hf-model-env-proxy-ca-cli"]
PASSWORD = "proxy-canary-51b0"
PASSING = ProxyRules()
WANTED = "Basic " + base64.b64encode(f"job:{PASSWORD}".encode()).decode()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA(organization_name="Corp")


@pytest.fixture(scope="session")
def etc_ssl(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Path:
    return ca_certs(tmp_path_factory.mktemp("init"), authority.cert_pem.bytes())


class Behind(Protocol):
    """A cluster whose world is behind a proxy; ``tls``: what the registries show instead of good names."""

    def __call__(self, rules: ProxyRules = ..., *, tls: ssl.SSLContext | None = ...) -> Cluster: ...


@pytest.fixture
def behind(tmp_path: Path, commands: Path, authority: trustme.CA) -> Iterator[Behind]:
    with ExitStack() as world:

        def make(rules: ProxyRules = PASSING, *, tls: ssl.SSLContext | None = None) -> Cluster:
            registry = world.enter_context(Registry(tls=tls or served(authority, *PUBLIC)))
            ngc, hub = (("127.0.0.1", server.server_address[1]) for server in registry.servers[:2])
            proxy = world.enter_context(Proxy(replace(rules, names={HUB: hub, NGC: ngc, AUTH: ngc})))
            stock(registry)
            places = {"proxy.corp:3128": proxy.address, "/scratch": str(tmp_path / "scratch")}
            secrets = {"NGC_API_KEY": registry.ngc.key, "HF_TOKEN": registry.hub.token}
            return Cluster(
                tmp_path, commands, registry, proxy, places, secrets, on_this_node(tmp_path), world
            )

        yield make


@pytest.fixture
def cluster(behind: Behind) -> Cluster:
    return behind()


@pytest.fixture
def under(etc_ssl: Path) -> tuple[str, ...]:
    return mounting({etc_ssl: "/etc/ssl"})


@pytest.mark.parametrize("kind", TLS_JOBS)
def test_the_job_ends_ready_through_the_proxy_and_again_offline(
    cluster: Cluster, under: tuple[str, ...], kind: str
) -> None:
    job = TLS_JOBS[kind]
    code, text = cluster.run(job, under=under)
    assert code == 0, text
    job.check(cluster.store(job))
    check_ready(cluster, job)
    tunnels = [seen for seen in cluster.proxy.seen if seen.method == "CONNECT"]
    assert len(tunnels) == len(cluster.proxy.seen) == sum(each.accepted for each in cluster.registry.servers)

    cluster.world.close()
    left = cluster.inventory()
    code, text = cluster.run(replace(job, secrets=()), under=under)
    assert code == 0, text
    assert cluster.inventory() == left


# -- F27 ---------------------------------------------------------------------------------------------------


def failed(cluster: Cluster, job: Job, code: int, text: str) -> str:
    """The error's reference, once exit code, message and last line agree."""
    error = cluster.message()["error"]
    assert code == error["exitCode"], text
    last = text.splitlines()[-1]
    assert last.startswith(f"nimpull: Failed ({error['reference']}, exit {code}, ")
    assert error["message"] in last and error["hint"] in last
    assert cluster.report(job)["error"] == error
    return str(error["reference"])


@dataclass(frozen=True, slots=True)
class Bad:
    names: tuple[str, ...]
    expired: bool
    message: str


EXPIRED = Bad(PUBLIC, True, "is expired, or not valid yet")
OTHER_HOST = Bad(("127.0.0.1",), False, "is for another host")


@pytest.mark.parametrize("kind", ["hf-model-env-proxy-ca-cli", "ngc-proxy-ca", "ngc-native-proxy-ca"])
@pytest.mark.parametrize("bad", [EXPIRED, OTHER_HOST], ids=["expired", "other-host"])
def test_f27_a_bad_certificate_ends_the_job_at_once(
    behind: Behind, authority: trustme.CA, under: tuple[str, ...], kind: str, bad: Bad
) -> None:
    cluster = behind(tls=served(authority, *bad.names, expired=bad.expired))
    code, text = cluster.run(TLS_JOBS[kind], {"NIMPULL_RETRY_SECONDS": "60"}, under=under)
    assert failed(cluster, TLS_JOBS[kind], code, text) == "tls-untrusted"
    assert bad.message in cluster.message()["error"]["message"]
    assert len(cluster.proxy.seen) == 1, "a certificate does not become good by asking again"
    assert cluster.registry.requests == []


@pytest.mark.parametrize("kind", ["hf-model-env-proxy-ca-modelfree", "ngc-proxy-ca"])
def test_f27_without_the_ca_the_job_names_both_ways_to_bring_it_in(cluster: Cluster, kind: str) -> None:
    code, text = cluster.run(TLS_JOBS[kind], {"NIMPULL_RETRY_SECONDS": "60"})
    assert failed(cluster, TLS_JOBS[kind], code, text) == "tls-untrusted"
    hint = cluster.message()["error"]["hint"]
    assert "proxy.certConfigMap" in hint and "SSL_CERT_FILE" in hint
    assert len(cluster.proxy.seen) == 1 and cluster.registry.requests == []


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR"])
def test_f27_a_variable_brings_the_ca_in_too(cluster: Cluster, authority: trustme.CA, variable: str) -> None:
    place = cluster.root / "corp"
    place.mkdir()
    authority.cert_pem.write_to_path(place / "corp.pem")
    value = place if variable == "SSL_CERT_DIR" else place / "corp.pem"
    code, text = cluster.run(CLI, {variable: str(value)})
    assert code == 0, text


def test_f27_a_ca_without_key_usage_passes_the_init_container_and_is_believed(
    tmp_path: Path, behind: Behind
) -> None:
    company = tmp_path / "company"
    company.mkdir()
    certificate, tls = of_an_old_company(company, *PUBLIC)
    under = mounting({ca_certs(company, certificate.read_bytes()): "/etc/ssl"})
    code, text = behind(tls=tls).run(CLI, under=under)
    assert code == 0, text


# -- F28 ---------------------------------------------------------------------------------------------------


def proxied(**variables: str) -> Job:
    """The Hub's Job with these proxy variables alone."""
    kept = {name: value for name, value in CLI.env.items() if "proxy" not in name.lower()}
    return replace(CLI, env={**kept, **variables})


WITH_PASSWORD = f"http://job:{PASSWORD}@proxy.corp:3128"


@pytest.mark.parametrize(
    "variables",
    [
        {"HTTPS_PROXY": WITH_PASSWORD},
        {"https_proxy": WITH_PASSWORD},
        {"HTTPS_PROXY": WITH_PASSWORD, "HTTP_PROXY": "", "NO_PROXY": "", "http_proxy": "", "no_proxy": ""},
        {"HTTPS_PROXY": "http://127.0.0.1:1", "https_proxy": WITH_PASSWORD},
        {"HTTPS_PROXY": WITH_PASSWORD.removeprefix("http://")},
    ],
    ids=["upper", "lower", "others-empty", "lower-wins", "no-scheme"],
)
def test_f28_a_proxy_with_credentials_in_either_case(
    behind: Behind, under: tuple[str, ...], variables: Mapping[str, str]
) -> None:
    cluster = behind(ProxyRules(authorization=WANTED))
    code, text = cluster.run(proxied(**variables), under=under)
    assert code == 0, text
    written = json.dumps([cluster.report(CLI), cluster.message()])
    assert PASSWORD not in text + written
    assert WANTED.removeprefix("Basic ") not in text + written


@dataclass(frozen=True, slots=True)
class Refusing:
    rules: ProxyRules
    address: str
    message: str
    hint: str = "HTTPS_PROXY"


REFUSING = {
    "407-wrong": Refusing(
        ProxyRules(authorization=WANTED), "http://job:canary-bad@proxy.corp:3128", "wants other credentials"
    ),
    "407-none": Refusing(
        ProxyRules(authorization=WANTED), "http://proxy.corp:3128", "wants other credentials"
    ),
    "403": Refusing(ProxyRules(status=403), WITH_PASSWORD, "HTTP 403", "Ask for the host to be allowed"),
    "down": Refusing(PASSING, "http://job:canary-bad@127.0.0.1:1", "the proxy http://127.0.0.1:1 for "),
    "no address": Refusing(PASSING, "://job:canary-bad@x", "HTTPS_PROXY is no address of a proxy"),
}


@pytest.mark.parametrize("case", REFUSING.values(), ids=REFUSING)
@pytest.mark.parametrize("kind", ["hf-model-env-proxy-ca-cli", "ngc-proxy-ca"])
def test_f28_a_proxy_that_refuses_fails_the_job_and_nothing_goes_past_it(
    behind: Behind, kind: str, case: Refusing
) -> None:
    job = TLS_JOBS[kind]
    job = replace(job, env={**job.env, "HTTPS_PROXY": case.address, "https_proxy": case.address})
    cluster = behind(case.rules)
    code, text = cluster.run(job)
    mistyped = case.address.startswith(":")
    assert failed(cluster, job, code, text) == ("bad-usage" if mistyped else "proxy-failed")
    error = cluster.message()["error"]
    assert case.message in error["message"] and case.hint in error["hint"]
    assert "canary" not in text + json.dumps([cluster.report(job), cluster.message()])
    assert cluster.registry.requests == []
    assert sum(server.accepted for server in cluster.registry.servers) == 0


SERVICE = "nemodatastore-sample.nemo.svc.cluster.local"


@pytest.mark.parametrize(
    ("host", "no_proxy", "direct"),
    [
        (SERVICE, "10.0.0.0/8,.svc,.cluster.local", True),
        (SERVICE, "cluster.local", True),
        (SERVICE, "10.0.0.0/8,.svc", False),
        (SERVICE, "{port}", False),
        (SERVICE, f"{SERVICE}:{{port}}", True),
        (SERVICE, f"{SERVICE}:1", False),
        ("127.0.0.1", "10.0.0.0/8,127.0.0.0/8", True),
        ("127.0.0.1", "10.0.0.0/8,192.168.0.0/16", False),
        ("127.0.0.1", "127.0.0.1:{port}", True),
    ],
)
def test_f28_no_proxy_of_a_service_in_the_cluster(
    tmp_path: Path, commands: Path, host: str, no_proxy: str, direct: bool
) -> None:
    with a_cluster(tmp_path, commands) as cluster:
        check_exemption(cluster, host, no_proxy, direct)


def check_exemption(cluster: Cluster, host: str, no_proxy: str, direct: bool) -> None:
    port = cluster.registry.servers[1].server_address[1]
    hosts = cluster.root / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {SERVICE}\n")
    cluster.proxy.rules.names = {SERVICE: ("127.0.0.1", port)}
    exempt = no_proxy.format(port=port)
    variables = {"http_proxy": "http://proxy.corp:3128", "no_proxy": exempt, "NO_PROXY": exempt}
    env = {**DATASTORE, **variables, "HF_ENDPOINT": f"http://{host}:{port}/v1/hf"}
    job = replace(JOBS["datastore-model-cli"], env=env, check=plain_tree(FILES))
    code, text = cluster.run(job, under=mounting({hosts: "/etc/hosts"}))
    assert code == 0, text
    job.check(cluster.store(job))
    asked = [seen.target for seen in cluster.proxy.seen if f"{host}:{port}" in seen.target]
    assert bool(asked) is not direct
