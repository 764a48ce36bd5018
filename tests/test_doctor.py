"""``nimpull doctor`` in environments that are each broken in one way: it names it, and exits as a pull."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme

from nimpull.core.abilities import Abilities
from nimpull.core.diagnosis import Diagnosis, Mark, exit_code_of, judge_key, judge_machine, judge_store, page
from nimpull.errors import ProxyError, TlsError
from tests.calls import call
from tests.certificates import served
from tests.registry import Registry
from tests.servers import Peer, PlainServer, Proxy, ProxyRules, ScriptedServer, Seen
from tests.transporting import closed_port, ok

CANARY = "doctor-canary"
KEY = f"nvapi-{CANARY}{'x' * 60}"


def examined(
    registry: Registry, store: Path, *uris: str, **environ: str
) -> tuple[int, dict[str, dict[str, Any]]]:
    """(exit code, findings by subject); no secret is in them."""
    environ = {"NGC_API_KEY": KEY, "HF_TOKEN": f"hf_{'y' * 34}", **environ}
    code, text = call(
        registry, store, "nimpull", "doctor", *uris, "--store", str(store), "-o", "json", **environ
    )
    findings = json.loads(text)
    assert CANARY not in text
    return code, {each["subject"]: each for each in findings}


def marks(findings: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: each["mark"] for name, each in findings.items() if each["mark"] != "ok"}


def test_where_all_is_well_it_says_so_and_leaves_nothing(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "not" / "there"
    code, findings = examined(registry, store)
    assert code == 0
    assert marks(findings) in ({}, {"gpus": "warning"})
    assert "it can be made" in findings["store"]["text"]
    assert findings["ngc key"]["text"] == "NGC_API_KEY is set and well-formed"
    for name, address in (("ngc", registry.ngc_url), ("hub", registry.datastore_url)):
        assert f"{address}: HTTP" in findings[name]["text"]
    assert {request.method for request in registry.requests} == {"HEAD"}
    assert not any(request.authorization for request in registry.requests)
    assert not store.parent.exists()
    text = call(registry, store, "nimpull", "doctor", "--store", str(store))[1]
    assert text.splitlines()[0].startswith("ok ")
    assert "0 problems" in text.splitlines()[-1]


def test_only_what_the_uris_need_is_asked(registry: Registry, tmp_path: Path) -> None:
    _, findings = examined(registry, tmp_path, "hf://default/tiny", HF_TOKEN="")
    assert "hub" in findings and not {"ngc", "ngc login", "ngc key"} & findings.keys()
    assert "HF_TOKEN would hold one" in findings["hub token"]["text"]
    code, findings = examined(
        registry, tmp_path, NIM_REPOSITORY_OVERRIDE=f"{registry.ngc_url}/m?sig={CANARY}"
    )
    assert code == 0
    assert "mirror" in findings and not {"ngc", "ngc login", "hub"} & findings.keys()


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[dict[str, dict[str, str]]]:
    """name -> the variables of an environment that is broken in this way."""
    unknown = trustme.CA()
    (tmp_path / "junk.pem").write_text("no certificate")
    closed = f"127.0.0.1:{closed_port()}"

    def yesterday(seen: Seen, peer: Peer) -> None:
        peer.head(200, {"Content-Length": "0", "Date": formatdate(1_700_000_000, usegmt=True)})

    with (
        ScriptedServer(ok, tls=served(unknown, "127.0.0.1")) as untrusted,
        PlainServer(ok) as plain,
        ScriptedServer(yesterday) as late,
        ScriptedServer(lambda seen, peer: peer.reply(503)) as failing,
        Proxy(ProxyRules(status=407)) as refusing,
    ):
        yield {
            "proxy address": {"HTTPS_PROXY": f"://u:{CANARY}@x"},
            "proxy down": {"HTTP_PROXY": f"http://u:{CANARY}@{closed}"},
            "proxy login": {"HTTP_PROXY": f"http://u:{CANARY}@{refusing.address}"},
            "bundle": {"SSL_CERT_FILE": str(tmp_path / "junk.pem")},
            "untrusted": {"HF_ENDPOINT": untrusted.url().reveal()},
            "refused": {"HF_ENDPOINT": f"http://{closed}"},
            "name": {"HF_ENDPOINT": "http://hub.invalid"},
            "plain": {"HF_ENDPOINT": plain.address},
            "number": {"NIMPULL_RETRY_SECONDS": "soon"},
            "clock": {"HF_ENDPOINT": late.url().reveal()},
            "trouble": {"HF_ENDPOINT": failing.url().reveal()},
            "key": {"NGC_API_KEY": f"{CANARY}\n"},
        }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("proxy address", ("environment", 2, "HTTPS_PROXY is no address of a proxy")),
        ("proxy down", ("ngc", 32, "cannot reach the proxy")),
        ("proxy login", ("ngc", 32, "wants other credentials")),
        ("bundle", ("cas", 31, "junk.pem")),
        ("untrusted", ("hub", 31, "is not trusted")),
        ("refused", ("hub", 30, "the connection was refused")),
        ("name", ("hub", 30, "hub.invalid")),
        ("plain", ("hub", 31, "must begin with http://")),
        ("number", ("environment", 2, "NIMPULL_RETRY_SECONDS")),
        ("clock", ("hub", 0, "ahead")),
        ("trouble", ("hub", 0, "HTTP 503")),
        ("key", ("ngc key", 0, "unknown form")),
    ],
)
def test_each_kind_of_broken_environment_is_named(
    registry: Registry,
    tmp_path: Path,
    broken: dict[str, dict[str, str]],
    name: str,
    expected: tuple[str, int, str],
) -> None:
    subject, code, words = expected
    found, findings = examined(registry, tmp_path / "s", **broken[name])
    finding = findings[subject]
    assert found == code, findings
    assert words in finding["text"] + finding["hint"]
    assert finding["mark"] == ("problem" if code else "warning")
    assert finding["hint"]


def test_a_store_that_cannot_be_is_named_with_the_exit_code_of_a_pull(
    registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, findings = examined(registry, tmp_path / "file" / "store")
    assert code == 41
    assert findings["store"]["mark"] == "problem"
    assert "is a file, not a directory" in findings["store"]["text"]
    assert "hub" in findings, "the rest is looked at all the same"


# -- what no test environment has --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("abilities", "free", "inodes", "mark", "words"),
    [
        (Abilities(), 1 << 40, 10**6, Mark.OK, "1.0 TiB free"),
        (Abilities(), None, None, Mark.OK, "room unknown"),
        (Abilities(), 0, 10**6, Mark.PROBLEM, "no room is left"),
        (Abilities(), 1 << 40, 0, Mark.PROBLEM, "no inode is left"),
        (Abilities(), 1 << 20, 10**6, Mark.WARNING, "1.0 MiB free"),
        (Abilities(links=False), 1 << 40, None, Mark.OK, "plain: no hard links"),
        (None, 1 << 40, None, Mark.OK, "it can be made"),
    ],
)
def test_what_is_said_of_a_volume(
    abilities: Abilities | None, free: int | None, inodes: int | None, mark: Mark, words: str
) -> None:
    found = judge_store("/s", abilities, free, inodes)
    assert (found.mark, words in found.text) == (mark, True), found
    assert found.exit_code == (40 if mark is Mark.PROBLEM else 0)


def test_what_is_said_of_limits() -> None:
    assert judge_machine(None, None, None).mark is Mark.OK
    assert judge_machine(512 << 20, 0.5, 1024).text == "memory 512.0 MiB, 0.5 CPU, 1024 open files"
    assert judge_machine(64 << 20, None, None).mark is Mark.WARNING
    assert judge_machine(None, None, 64).mark is Mark.WARNING


@pytest.mark.parametrize(
    ("subject", "key", "mark"),
    [
        ("ngc key", "", Mark.OK),
        ("ngc key", KEY, Mark.OK),
        ("ngc key", "eyJh.eyJi.sig", Mark.OK),
        ("ngc key", "QUJD" * 21, Mark.OK),
        ("ngc key", "nvapi-cut", Mark.WARNING),
        ("ngc key", f"hf_{'y' * 34}", Mark.WARNING),
        ("hub token", f"hf_{'y' * 34}", Mark.OK),
        ("hub token", "hf_cut", Mark.WARNING),
        ("hub token", KEY, Mark.WARNING),
    ],
)
def test_keys_are_judged_by_their_form_and_never_shown(subject: str, key: str, mark: Mark) -> None:
    found = judge_key(subject, "VARIABLE", key)
    assert found.mark is mark
    assert not key or key not in f"{found}"


def test_the_first_problem_gives_the_exit_code_and_the_page_fits_the_terminal() -> None:
    findings = [
        Diagnosis("environment", Mark.WARNING, "a doubt " * 20, "a hint"),
        Diagnosis.of("hub", TlsError("not trusted", hint="give the bundle")),
        Diagnosis.of("ngc", ProxyError("down", hint="up")),
    ]
    assert exit_code_of(findings) == 31
    assert exit_code_of(findings[:1]) == exit_code_of([]) == 0
    lines = page(findings, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "2 problems, 1 warning."
    assert [line.split()[0] for line in lines if line[:1].strip()][:3] == ["warning", "problem", "problem"]
