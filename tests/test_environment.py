"""Each variable of docs/environment.md has its effect, or the table says that it has none."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nimpull.core.events import Level
from nimpull.errors import UsageError
from nimpull.settings import Settings, load
from nimpull.wiring.fetch_limits import fetch_limits
from tests.calls import FILES, call
from tests.registry import Registry
from tests.transporting import closed_port

PROFILE = ("download-to-cache", "-p", "a" * 64)
MIB = 1 << 20


# -- secrets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"NGC_API_KEY": " "}, "NGC_API_KEY is set but empty"),
        ({"HF_TOKEN": ""}, "HF_TOKEN is set but empty"),
        ({"NGC_API_KEY": "nvapi-canary\n"}, "NGC_API_KEY had blanks or a newline around it"),
        ({"HF_TOKEN": "hf_canary\n"}, "HF_TOKEN had blanks or a newline around it"),
        ({"NGC_KEY": "nvapi-canary"}, "NGC_KEY is set but nothing reads it; did you mean NGC_API_KEY?"),
        ({"ngc_api_key": "nvapi-canary"}, "ngc_api_key is set but nothing reads it"),
        ({"NVIDIA_API_KEY": "nvapi-canary"}, "did you mean NGC_API_KEY?"),
        ({"HUGGINGFACE_TOKEN": "hf_canary"}, "did you mean HF_TOKEN?"),
        ({"HF_API_KEY": "hf_canary1"}, "did you mean HF_TOKEN?"),
        ({"NGC_API_KEY": "hf_canary"}, "the NGC key begins with hf_"),
        ({"HF_TOKEN": "nvapi-canary"}, "HF_TOKEN begins with nvapi-"),
    ],
)
def test_a_secret_that_cannot_be_meant_is_told(environ: dict[str, str], told: str) -> None:
    settings = load(environ)
    assert [told in doubt for doubt in settings.doubts] == [True]
    assert settings.warnings == settings.doubts
    assert "canary" not in "".join(settings.doubts)


@pytest.mark.parametrize(
    "environ",
    [
        {"NGC_API_KEY": "nvapi-canary", "NVIDIA_API_KEY": "nvapi-canary"},
        {"NGC_CLI_API_KEY": "nvapi-canary", "NGC_KEY": "nvapi-canary"},
        {"HF_TOKEN": "hf_canary", "HUGGING_FACE_HUB_TOKEN": "hf_canary"},
        {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_TOKEN_PATH": "/root/.cache/token"},
        {"NGC_API_KEY_FILE": "/secrets/key"},
    ],
)
def test_what_is_right_or_no_secret_is_not_told(environ: dict[str, str]) -> None:
    assert load(environ).warnings == ()


def test_a_refused_key_says_what_is_wrong_with_the_secret(
    registry: Registry, tmp_path: Path, listed: str
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    flags = {"NIM_MANIFEST_PATH": listed, "NIMPULL_TERMINATION_LOG": str(log)}
    code, text = call(registry, tmp_path / "a", *PROFILE, **flags, NGC_API_KEY="", NGC_KEY="nvapi-canary-key")
    assert code == 20, text
    hint = json.loads(log.read_text())["error"]["hint"]
    assert "NGC_API_KEY is set but empty" in hint
    assert "did you mean NGC_API_KEY?" in hint
    assert "did you mean NGC_API_KEY?" in text.splitlines()[-1]
    assert "canary-key" not in text + hint


# -- where things go ---------------------------------------------------------------------------------------


def test_ngc_home_in_the_store_is_where_models_of_ngc_go(
    registry: Registry, tmp_path: Path, listed: str
) -> None:
    store = tmp_path / "store"
    at_home = {"NIM_MANIFEST_PATH": listed, "NGC_HOME": f"{store}/my/ngc"}
    code, text = call(registry, store, *PROFILE, **at_home)
    assert code == 0, text
    (snapshot,) = (store / "my/ngc/hub").glob("models--nim--meta--tiny/snapshots/hf-1")
    assert (snapshot / "config.json").read_bytes() == FILES["config.json"]
    assert not (store / "ngc").exists()
    assert "outside of the store" not in text
    code, text = call(registry, store, *PROFILE, NIM_MANIFEST_PATH=listed)
    assert code == 0, text
    assert (store / "ngc/hub").is_dir(), "ready there does not mean ready here"
    alone = {"NIM_CACHE_PATH": "", "NGC_HOME": f"{tmp_path}/alone/ngc"}
    code, text = call(registry, store, *PROFILE, NIM_MANIFEST_PATH=listed, **alone)
    assert code == 0, text
    assert list((tmp_path / "alone/ngc/hub").glob("models--nim--meta--tiny/snapshots/hf-1"))


@pytest.mark.parametrize(
    ("name", "command"),
    [("NGC_HOME", PROFILE), ("HF_HOME", ("download-to-cache", "--model-uri", "hf://default/tiny"))],
)
def test_a_home_outside_of_the_store_is_told_and_not_used(
    registry: Registry, tmp_path: Path, listed: str, name: str, command: tuple[str, ...]
) -> None:
    store, home = tmp_path / "store", tmp_path / "scratch"
    code, text = call(registry, store, *command, NIM_MANIFEST_PATH=listed, **{name: str(home)})
    assert code == 0, text
    assert text.count(f"{name}={home} is outside of the store {store}") == 1
    assert not home.exists()


def test_the_hub_cache_of_huggingface_cli(registry: Registry, tmp_path: Path) -> None:
    pull = ("huggingface-cli", "download", "default/tiny")
    caches = {"HF_HOME": tmp_path / "home", "HF_HUB_CACHE": tmp_path / "cache"}
    for name, path in caches.items():
        code, text = call(registry, tmp_path, *pull, **{name: str(path)})
        assert code == 0, text
        hub = path / "hub" if name == "HF_HOME" else path
        assert len(list(hub.glob("models--default--tiny/snapshots/*/config.json"))) == 1
    asked = len(registry.log())
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    assert call(registry, tmp_path, *pull, **offline)[0] == 0
    code, text = call(registry, tmp_path, "huggingface-cli", "download", "default/other", **offline)
    assert (code, "HF_HUB_OFFLINE is set" in text) == (2, True), text
    assert len(registry.log()) == asked


# -- what is logged ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("", {"warnings", "steps"}),
        ("DEFAULT", {"warnings", "steps"}),
        ("DEBUG", {"warnings", "steps", "files"}),
        ("TRACE", {"warnings", "steps", "files"}),
        ("WARNING", {"warnings"}),
        ("critical", set()),
        ("LOUD", {"warnings", "steps", "no level"}),
    ],
)
def test_nim_log_level_says_how_much(
    registry: Registry, tmp_path: Path, listed: str, level: str, shown: set[str]
) -> None:
    signs = {
        "warnings": "NGC_HOME=/elsewhere",
        "steps": "plan:",
        "files": "fetched config.json: 2 B",
        "no level": "NIM_LOG_LEVEL=LOUD is no level",
    }
    flags = {"NIM_MANIFEST_PATH": listed, "NGC_HOME": "/elsewhere/ngc", "NIM_LOG_LEVEL": level}
    code, text = call(registry, tmp_path / "store", *PROFILE, **flags)
    assert code == 0, text
    assert {name for name, sign in signs.items() if sign in text} == shown, text
    assert ("2/2 files" in text) == ("steps" in shown), "progress is a step too"
    assert "nimpull: Ready" in text, "the result is no log line"


def test_the_level_holds_for_json_lines_too(registry: Registry, tmp_path: Path, listed: str) -> None:
    flags = {"NIM_MANIFEST_PATH": listed, "NIM_JSONL_LOGGING": "1"}
    code, text = call(registry, tmp_path / "a", *PROFILE, **flags)
    assert (code, '"event":"progress"' in text) == (0, True)
    code, text = call(registry, tmp_path / "b", *PROFILE, **flags, NIM_LOG_LEVEL="ERROR")
    assert (code, '"event":' in text) == (0, False), text


def test_levels_by_name() -> None:
    names = {"TRACE": 10, "DEBUG": 10, "": 20, "INFO": 20, "warn": 30, "WARNING": 30, "CRITICAL": 40}
    assert {name: load({"NIM_LOG_LEVEL": name}).log_level for name in names} == {
        name: Level(value) for name, value in names.items()
    }


# -- NIM_SDK, NIM_MANIFEST ---------------------------------------------------------------------------------


def test_the_retries_of_a_listing_extend_the_patience() -> None:
    environ = {
        "NIM_MANIFEST_DOWNLOAD_MAX_RETRY_COUNT": "300",
        "NIM_MANIFEST_DOWNLOAD_WAIT_INTERVAL_MS": "3000",
    }
    assert load(environ).retry_seconds == 900.0
    assert load({"NIM_MANIFEST_DOWNLOAD_MAX_RETRY_COUNT": "0"}).retry_seconds == 120.0


def test_a_pod_is_more_patient() -> None:
    """The operator marks a NIMCache Failed for its first failed pod, and does not forget it."""
    in_pod = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
    assert load(in_pod).retry_seconds == 900.0
    assert load({**in_pod, "NIMPULL_RETRY_SECONDS": "5"}).retry_seconds == 5.0
    assert load({**in_pod, "NIM_SDK_DOWNLOAD_MAX_RETRY_COUNT": "0"}).retry_seconds == 0.0


def test_a_person_at_a_terminal_is_told_sooner() -> None:
    """A mistyped host is a mistake to be seen; in a pod a terminal means nothing."""
    assert load({}, terminal=True).retry_seconds == 20.0
    assert load({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, terminal=True).retry_seconds == 900.0
    assert load({"NIMPULL_RETRY_SECONDS": "5"}, terminal=True).retry_seconds == 5.0
    code = "from nimpull.settings import from_process; print(from_process().retry_seconds)"
    environ = {name: value for name, value in os.environ.items() if "RETRY" not in name}
    environ.pop("KUBERNETES_SERVICE_HOST", None)
    ours, theirs = pty.openpty()
    try:
        for stderr, expected in ((theirs, "20.0"), (subprocess.DEVNULL, "120.0")):
            told = subprocess.run(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environ,
                check=True,
                text=True,
            )
            assert told.stdout.strip() == expected
    finally:
        os.close(ours)
        os.close(theirs)


def test_the_patience_is_an_option_too(registry: Registry, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{closed_port()}/m"
    pull = ("nimpull", "download", address, "--store", str(tmp_path))
    code, text = call(registry, tmp_path, *pull, "--retry-seconds", "0", NIMPULL_RETRY_SECONDS="600")
    assert code == 30, text
    assert "the connection was refused (after 1 attempt)" in text
    assert call(registry, tmp_path, *pull, "--retry-seconds", "inf")[0] == 2


def test_a_setting_of_the_sdk_that_does_nothing_is_told() -> None:
    assert load({"NIM_SDK_USE_NATIVE_TLS": "1"}).warnings == ()
    assert load({"NIM_SDK_MAX_PARTS": "8"}).warnings == (
        "NIM_SDK_MAX_PARTS is not known to nimpull and has no effect",
    )


def test_a_named_profile_is_pulled_whatever_the_hardware(
    registry: Registry, tmp_path: Path, listed: str
) -> None:
    """In NIM only with NIM_MANIFEST_ALLOW_UNSAFE; here another node than the one that pulls may serve."""
    flags = {"NIM_MANIFEST_PATH": listed, "NIMPULL_GPUS": "T4:1"}
    text = Path(listed).read_text().replace("tp: '1'", "tp: '8', gpu: h100")
    Path(listed).write_text(text)
    code, text = call(registry, tmp_path / "store", *PROFILE, **flags)
    assert code == 0, text


# -- limits ------------------------------------------------------------------------------------------------


def test_connections_and_memory_can_be_said() -> None:
    asked = load({"NIMPULL_CONNECTIONS": "3", "NIMPULL_MEMORY_LIMIT": "256Mi"})
    found = fetch_limits(asked)
    assert (found.connections, found.small_connections, found.pool) == (3, 3, 32 * MIB)
    assert fetch_limits(load({"NIMPULL_MEMORY_LIMIT": "64Mi"})).connections == 4


@pytest.mark.parametrize(("cpus", "connections"), [(None, 24), (4.0, 24), (0.5, 8), (0.01, 2)])
def test_the_share_of_cpu_sets_the_connections_unless_they_are_said(
    monkeypatch: pytest.MonkeyPatch, cpus: float | None, connections: int
) -> None:
    monkeypatch.setattr("nimpull.wiring.fetch_limits.cpu_limit", lambda: cpus)
    found = fetch_limits(Settings())
    assert found.connections == connections
    assert found.small_connections == 4 * connections
    assert fetch_limits(Settings(connections=20)).connections == 20


@pytest.mark.parametrize("text", ["0.5", "-1", "257", "many"])
def test_a_number_of_connections_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="NIMPULL_CONNECTIONS"):
        load({"NIMPULL_CONNECTIONS": text})


def test_a_memory_limit_that_is_none() -> None:
    with pytest.raises(UsageError, match="NIMPULL_MEMORY_LIMIT"):
        load({"NIMPULL_MEMORY_LIMIT": "512 megabytes"})


def test_the_options_go_before_the_variables(registry: Registry, tmp_path: Path) -> None:
    pull = ("nimpull", "download", "ngc://nim/meta/tiny:hf-1")
    code, text = call(registry, tmp_path, *pull, "--connections", "1", "--memory-limit", "256Mi")
    assert code == 0, text
    for wrong in (("--connections", "0"), ("--memory-limit", "256 MB")):
        code, text = call(registry, tmp_path, *pull, *wrong)
        assert (code, wrong[0] in text) == (2, True), text


# -- the table ---------------------------------------------------------------------------------------------


def test_the_table_names_every_variable_that_is_read() -> None:
    table = (Path(__file__).parents[1] / "docs/environment.md").read_text()
    source = (Path(__file__).parents[1] / "nimpull/settings.py").read_text()
    read = set(
        re.findall(r'"((?:NIM|NGC|HF|AWS|SSL|REQUESTS|HTTP|NO|HUGGING)\w*_[A-Z_0-9]*[A-Z0-9])"', source)
    )
    assert len(read) > 30
    assert {name for name in read if f"`{name}`" not in table} == set()
