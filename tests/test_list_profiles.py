"""The commands that list profiles, from the command line to the text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nimpull.cli.list_profiles import list_model_profiles, list_profiles
from nimpull.cli.main import cli
from nimpull.core.artifacts import Wanted
from nimpull.core.fit import Fitter
from nimpull.core.hardware import Hardware
from nimpull.core.manifest import Profile, ProfileFile
from nimpull.core.names import ModelUri, SafePath
from nimpull.core.plan import needs_of
from nimpull.core.sizes import Size, memory_hint
from nimpull.errors import ManifestError, NoProfileError, UsageError
from tests.gpus import PROFILES, TABLE, example, node
from tests.registry import Fault, Registry, faults
from tests.running import CLOSED, nimpull

V2 = str(PROFILES / "example-v2.yaml")
Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """``nimpull list-profiles ARGUMENTS`` on a machine without GPU and without a manifest of its own."""
    for name in ("NIM_MANIFEST_PATH", "NIMPULL_GPUS"):
        monkeypatch.delenv(name, raising=False)

    def no_gpu(**_: object) -> Hardware:
        return Hardware(notes=("No NVIDIA GPU found.",))

    monkeypatch.setattr("nimpull.detect.detect", no_gpu)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(list_profiles, arguments)

    return invoke


def kept(result: Result) -> list[Profile]:
    assert result.exit_code == 0, result.output
    ids = [each["id"] for each in json.loads(result.stdout)["profiles"]]
    return [profile for profile in example("v2").profiles if profile.id in ids]


def test_table_for_hardware_that_is_not_here(run: Run) -> None:
    result = run("--manifest", V2, "--gpu", "H100:2", "--explain")
    assert result.exit_code == 0
    assert result.stdout.startswith("Hardware: 2x NVIDIA H100 80GB HBM3")
    assert " * tensorrt_llm-h100-fp8-tp2-latency" in result.stdout


def test_environment_names_manifest_and_gpus(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIM_MANIFEST_PATH", V2)
    monkeypatch.setenv("NIMPULL_GPUS", "L40S")
    assert "1x NVIDIA L40S" in run().stdout


def test_a_machine_without_gpu_still_lists(run: Run) -> None:
    result = run("--manifest", V2)
    assert result.exit_code == 0
    assert "Hardware: no GPU found\nNote: No NVIDIA GPU found.\n" in result.stdout
    assert "For other hardware:" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 19),
        (["--engine", "tensorrt_llm"], 12),
        (["--engine", "vllm", "--precision", "FP8"], 1),
        (["--tp", "2"], 5),
        (["--qos", "latency"], 3),
        (["--lora"], 2),
        (["--no-lora"], 17),
        (["--buildable"], 2),
        (["--no-buildable", "--engine", "tensorrt_llm"], 10),
        (["-p", "vllm-bf16-tp4", "-p", "vllm-bf16-tp8"], 2),
    ],
)
def test_filters(run: Run, arguments: list[str], count: int) -> None:
    assert len(kept(run("--manifest", V2, "--gpu", "H100", "-o", "json", *arguments))) == count


def test_ids_for_a_shell_loop(run: Run) -> None:
    result = run("--manifest", V2, "--gpu", "H100", "-o", "ids", "--engine", "vllm", "--tp", "1")
    assert len(result.stdout.splitlines()) == 4
    assert all(len(line) == 64 for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--manifest", "/nonexistent"], UsageError, "/nonexistent"),
        (["--manifest", str(PROFILES / "gpus.csv")], ManifestError, "line 1"),
        (["--manifest", V2, "--gpu", "X9"], UsageError, "unknown GPU"),
        (["--manifest", V2, "-p", "default"], NoProfileError, "no profile “default”"),
    ],
)
def test_failures_have_their_exit_code(
    run: Run, arguments: list[str], error: type[NoProfileError], message: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == error.exit_code
    assert message in result.stderr
    assert result.stdout == ""


def test_drop_in_prints_the_containers_form_and_exits_0(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    del run  # for its environment
    result = CliRunner().invoke(list_model_profiles, ["-m", V2])
    assert result.exit_code == 0
    assert result.stdout.startswith("SYSTEM INFO\n- Free GPUs: <None>\nMODEL PROFILES\n")
    monkeypatch.setenv("NIMPULL_GPUS", "H100")
    monkeypatch.setenv("NIM_MANIFEST_PATH", V2)
    assert "[2330:10de] (0) NVIDIA H100 80GB HBM3" in CliRunner().invoke(list_model_profiles, []).stdout
    failed = CliRunner().invoke(list_model_profiles, ["-m", "/nonexistent"])
    assert failed.exit_code == UsageError.exit_code


def test_no_manifest_is_told_with_the_places(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run()
    assert result.exit_code == UsageError.exit_code
    assert "no model manifest was found at /opt/nim/etc/default/model_manifest.yaml or /etc" in result.stderr
    assert "pull" not in result.stderr.replace("nimpull", "")
    monkeypatch.setenv("NIM_MANIFEST_PATH", "/nonexistent/manifest.yaml")
    assert "no model manifest was found at /nonexistent/manifest.yaml — Set NIM_MANIFEST_PATH" in run().stderr


def test_the_group_knows_the_command() -> None:
    result = CliRunner().invoke(cli, ["list-profiles", "--help"])
    assert result.exit_code == 0
    assert "--explain" in result.stdout


# -- sizes -----------------------------------------------------------------------------------------------

CONFIG = b"{}" * 100
WEIGHTS = bytes(3 << 20)
TINY = "ngc://nim/acme/tiny:1"
HUB = "hf://acme/other:main"


@pytest.fixture
def registry(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    del run  # for its environment
    with Registry() as started:
        started.add_ngc_model(
            "nim", "acme", "tiny", "1", {"config.json": CONFIG, "model.safetensors": WEIGHTS}
        )
        started.add_hub_repo("acme/other", {"lora/adapter.bin": bytes(1 << 20)})
        monkeypatch.setenv("NGC_API_KEY", started.ngc.key)
        monkeypatch.setenv("NGC_API_ENDPOINT", started.ngc_url)
        monkeypatch.setenv("NGC_AUTH_ENDPOINT", started.ngc_url)
        monkeypatch.setenv("HF_TOKEN", started.hub.token)
        monkeypatch.setenv("HF_ENDPOINT", started.hub_url)
        monkeypatch.setenv("NIMPULL_RETRY_SECONDS", "0")
        yield started


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Profile ``aaaa``: configuration and weights; ``bbbb``: the same configuration and another's file."""
    profiles = {
        "a" * 64: ({"tp": "2"}, {"config.json": TINY, "model.safetensors": TINY}),
        "b" * 64: ({"min_vram_per_device_gb": "12"}, {"config.json": TINY, "lora/adapter.bin": HUB}),
    }
    entries = [
        {
            "id": name,
            "tags": {"llm_engine": "vllm", "precision": "bf16"} | tags,
            "workspace": {"files": {path: {"uri": f"{uri}?file={path}"} for path, uri in files.items()}},
        }
        for name, (tags, files) in profiles.items()
    ]
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(json.dumps({"schema_version": "2.0", "profiles": entries}))
    monkeypatch.delenv("NIM_CACHE_PATH", raising=False)
    return "--manifest", str(manifest), "--gpu", "L40S:2", "--store", str(tmp_path / "store")


def sizes(result: Result) -> tuple[list[tuple[int | None, int | None]], dict[str, Any]]:
    """(size, to fetch) of each profile, then of all together; and the document."""
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    parts = [*document["profiles"], document]
    return [(part["sizeBytes"], part["toFetchBytes"]) for part in parts], document


A, B, ALL = len(CONFIG) + len(WEIGHTS), len(CONFIG) + (1 << 20), len(CONFIG) + len(WEIGHTS) + (1 << 20)


def test_without_sizes_nothing_is_asked(run: Run, registry: Registry, arguments: tuple[str, ...]) -> None:
    text = run(*arguments).stdout
    assert "--sizes asks the registry" in text.splitlines()[-1]
    assert "TO FETCH" not in text
    found, _ = sizes(run(*arguments, "-o", "json"))
    assert found == [(None, None)] * 3
    assert run(*arguments, "--sizes", "-o", "ids").stdout.splitlines() == ["a" * 64, "b" * 64]
    assert not registry.requests


def test_sizes_count_shared_files_once(
    run: Run, registry: Registry, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    result = run(*arguments, "--sizes")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    (header,) = [line for line in lines if "NAME" in line]
    assert header.endswith("FILES  SIZE     TO FETCH")
    assert [line.split("  ")[-2:] for line in lines if "aaaa" in line] == [["3.0 MiB", "3.0 MiB"]]
    assert lines[-1].endswith("Together 4.0 MiB, 4.0 MiB of it to fetch, shared files counted once.")
    assert not registry.log("cdn")
    assert not (tmp_path / "store").exists()
    found, document = sizes(run(*arguments, "--sizes", "-o", "json"))
    assert found == [(A, A), (B, B), (ALL, ALL)]
    assert document["sizeNotes"] == []
    only, _ = sizes(run(*arguments, "--sizes", "-o", "json", "-p", "bbbb"))
    assert only == [(B, B), (B, B)]


def test_to_fetch_is_what_the_store_lacks(
    run: Run, registry: Registry, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    pulled = nimpull(registry, store, "download", *arguments[:2], "-p", "aaaa")
    assert pulled.code == 0, pulled.text
    found, _ = sizes(run(*arguments, "--sizes", "-o", "json"))
    assert found == [(A, 0), (B, 1 << 20), (ALL, 1 << 20)]


def test_one_repository_that_refuses_leaves_the_others_known(
    run: Run, registry: Registry, arguments: tuple[str, ...]
) -> None:
    registry.faults.append(Fault(faults.status(404), server="hub", times=None))
    found, document = sizes(run(*arguments, "--sizes", "-o", "json"))
    assert found == [(A, A), (None, None), (None, None)]
    assert [note.startswith("Some sizes are unknown: not-found: ") for note in document["sizeNotes"]] == [
        True
    ]
    text = run(*arguments, "--sizes").stdout
    assert text.count("Note: Some sizes are unknown: not-found: ") == 1
    assert "Together at least 3.0 MiB, 3.0 MiB of it to fetch" in text
    assert [line.split()[-2:] for line in text.splitlines() if "bbbb" in line] == [["?", "?"]]


def test_no_registry_still_lists(
    run: Run, registry: Registry, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGC_API_ENDPOINT", CLOSED)
    monkeypatch.setenv("NGC_AUTH_ENDPOINT", CLOSED)
    result = run(*arguments, "--sizes")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("Note: Some sizes are unknown: network: ") == 1
    assert "How large they are together is unknown." in result.stdout
    assert not registry.requests, "a way that is closed is not tried for each repository"


def test_a_uri_that_names_no_model_is_a_note(
    run: Run, registry: Registry, arguments: tuple[str, ...]
) -> None:
    del registry  # for its environment
    manifest = Path(arguments[1])
    manifest.write_text(manifest.read_text().replace(HUB, "ftp://nowhere"))
    found, document = sizes(run(*arguments, "--sizes", "-o", "json"))
    assert found == [(A, A), (None, None), (None, None)]
    assert "profile bbbbbbbbbbbb" in document["sizeNotes"][0]


def test_f51_a_store_with_a_planted_link_leaves_only_to_fetch_unknown(
    run: Run, registry: Registry, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    del registry  # for its environment
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".nimpull").symlink_to(tmp_path)
    found, document = sizes(run(*arguments, "--sizes", "-o", "json"))
    assert found == [(A, None), (B, None), (ALL, None)]
    assert "not-writable" in document["sizeNotes"][0]


def test_weights_hint_at_the_memory_where_no_tag_says_it(
    run: Run, registry: Registry, arguments: tuple[str, ...]
) -> None:
    del registry  # for its environment
    hint = "about 4.0 GiB on each GPU (3.0 MiB of weights over 2 GPUs and 4.0 GiB)"
    text = run(*arguments, "--sizes", "--explain").stdout
    assert f"     estimated memory: {hint}: should fit in 45.0 GiB\n" in text
    assert text.count("estimated memory") == 1, "the other profile's tag says it"
    assert text.count("     size: 3.0 MiB, 3.0 MiB to fetch\n") == 1
    small = run(*arguments[:2], "--gpu", "T4", "--sizes", "--explain").stdout
    assert f"     estimated memory: {hint}\n" in small, "no promise where the GPUs are too few"


def test_a_uri_without_a_file_is_the_whole_repository() -> None:
    files = tuple(
        ProfileFile(SafePath(path), uri) for path, uri in (("config.json", f"{TINY}?file=x"), ("all", TINY))
    )
    assert needs_of([Profile("a", files=files)]).repositories == {ModelUri.parse(TINY): Wanted()}
    assert needs_of([Profile("a", files=files[:1])]).repositories == {
        ModelUri.parse(TINY): Wanted(frozenset({"x"}))
    }


@pytest.mark.parametrize(
    ("weights", "answer"),
    [(36 << 30, "should fit"), (40 << 30, "may fit"), (42 << 30, "may not fit"), (None, "")],
)
def test_the_hint_keeps_a_tenth_of_the_memory_free(weights: int | None, answer: str) -> None:
    profile = Profile("a", {"tp": "1"})
    hardware = node("L40S")  # 45 GiB, of which engines take 40.5
    verdict = Fitter(hardware, TABLE).verdict(profile)
    hint = memory_hint(profile, verdict, hardware, Size(weights=weights))
    assert hint.endswith(f": {answer} in 45.0 GiB" if answer else "")
    assert bool(hint) == bool(answer)
