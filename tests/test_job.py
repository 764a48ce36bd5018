"""The whole job as a user meets it: a process, a registry on loopback, a store on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry import Fault, Registry, faults
from tests.running import (
    CLOSED,
    CONFIG,
    FILES,
    nimpull,
    snapshot,
    tree,
)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as started:
        started.add_ngc_model("nim", "meta", "tiny", "hf-1", FILES, checksums=True)
        started.add_hub_repo("acme/tiny", FILES)
        started.add_hub_repo("default/tiny", FILES)
        started.add_hub_repo("acme/set", {"train.jsonl": b"{}\n"}, repo_type="dataset")
        yield started


SOURCES = {
    "ngc": ("ngc://nim/meta/tiny:hf-1", "ngc"),
    "hub": ("hf://acme/tiny", "huggingface"),
    "datastore": ("hf://default/tiny", "huggingface"),
}


def source_environment(registry: Registry, source: str) -> dict[str, str]:
    return {"HF_ENDPOINT": registry.datastore_url} if source == "datastore" else {}


@pytest.mark.parametrize("source", SOURCES)
def test_a_model_arrives_whole_and_a_second_run_needs_no_network(
    registry: Registry, tmp_path: Path, source: str
) -> None:
    store = tmp_path / "store"
    uri, directory = SOURCES[source]
    environment = source_environment(registry, source)
    first = nimpull(registry, store, "download", uri, **environment)
    assert first.code == 0, first.text
    fetched = tree(snapshot(store, directory))
    fetched.pop("checksums.blake3", None)
    assert fetched == FILES
    assert first.report["status"]["state"] == "Ready"
    assert {entry["verifiedBy"] for entry in first.report["artifacts"]} <= {"blake3", "sha256", "git"}
    assert 1 <= first.report["transfer"]["connections"] <= len(FILES) + 1
    asked = len(registry.requests)
    again = nimpull(registry, store, "download", uri, **environment)
    assert (again.code, len(registry.requests)) == (0, asked), again.text
    assert (again.report["transfer"]["bytes"], again.report["transfer"]["connections"]) == (0, 0)


def test_local_dir_holds_plain_files(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run = nimpull(registry, store, "download", "hf://acme/tiny", "--layout", "local-dir")
    assert run.code == 0, run.text
    assert tree(store) == FILES


def test_a_dataset_arrives(registry: Registry, tmp_path: Path) -> None:
    run = nimpull(registry, tmp_path / "s", "download", "hf://datasets/acme/set", "--layout", "local-dir")
    assert run.code == 0, run.text
    assert tree(tmp_path / "s") == {"train.jsonl": b"{}\n"}


@pytest.mark.parametrize(
    "uri", ["hf://acme/tiny?file=config.json", "ngc://nim/meta/tiny:hf-1?file=config.json"]
)
def test_one_file_of_a_model(registry: Registry, tmp_path: Path, uri: str) -> None:
    run = nimpull(registry, tmp_path / "s", "download", uri, "--layout", "local-dir")
    assert run.code == 0, run.text
    assert tree(tmp_path / "s") == {"config.json": CONFIG}


def test_include_and_exclude(registry: Registry, tmp_path: Path) -> None:
    arguments = ("hf://acme/tiny", "--layout", "local-dir", "--include", "*.json", "--include", "*.txt")
    run = nimpull(registry, tmp_path / "s", "download", *arguments, "--exclude", "empty*")
    assert run.code == 0, run.text
    assert sorted(tree(tmp_path / "s")) == ["config.json", "tokenizer/vocab.txt"]


@pytest.mark.parametrize(
    ("chosen", "hint"), [((), "is empty at this revision"), (("--include", "*.json"), "--include")]
)
def test_an_empty_repository_is_told_by_what_was_asked(
    registry: Registry, tmp_path: Path, chosen: tuple[str, ...], hint: str
) -> None:
    registry.add_hub_repo("acme/none", {})
    run = nimpull(registry, tmp_path / "s", "download", "hf://acme/none", *chosen)
    assert (run.code, hint in run.text) == (2, True), run.text


def manifest(path: Path) -> Path:
    path.write_text(
        "schema_version: 2.0.0\n"
        "profiles:\n"
        f"- id: {'a' * 64}\n"
        "  tags: {llm_engine: vllm, precision: fp16, tp: '1', gpu: H100, gpu_device: '2330:10de'}\n"
        "  workspace:\n    files:\n"
        "      config.json: {uri: 'ngc://nim/meta/tiny:hf-1?file=config.json'}\n"
        "      model.safetensors: {uri: 'ngc://nim/meta/tiny:hf-1?file=model.safetensors'}\n"
        f"- id: {'b' * 64}\n"
        "  tags: {llm_engine: vllm, precision: fp16, tp: '2', gpu: H100, gpu_device: '2330:10de'}\n"
        "  workspace:\n    files:\n"
        "      config.json: {uri: 'ngc://nim/meta/tiny:hf-1?file=config.json'}\n"
    )
    return path


def test_the_best_profile_of_a_manifest_is_fetched_alone(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    chosen = manifest(tmp_path / "manifest.yaml")
    run = nimpull(registry, store, "download", "--manifest", str(chosen), "--gpu", "H100:1")
    assert run.code == 0, run.text
    assert sorted(tree(snapshot(store, "ngc"))) == ["config.json", "model.safetensors"]
    assert [profile["name"] for profile in run.report["status"]["profiles"]] == ["a" * 64]
    other = nimpull(registry, store, "download", "--manifest", str(chosen), "--profile", "bbbb")
    assert other.code == 0, other.text
    assert other.report["transfer"]["bytes"] == 0, "config.json is shared"


def test_a_nimcache_without_model_takes_what_the_operator_takes(registry: Registry, tmp_path: Path) -> None:
    cache = tmp_path / "nimcache.yaml"
    cache.write_text(
        "apiVersion: apps.nvidia.com/v1alpha1\nkind: NIMCache\nmetadata: {name: tiny}\nspec:\n"
        "  source: {ngc: {authSecret: ngc, modelPuller: 'nimpull:1'}}\n"
        "  storage: {pvc: {create: true, size: 1Gi, volumeAccessMode: ReadWriteMany}}\n"
    )
    listed = manifest(tmp_path / "manifest.yaml")
    arguments = ("-f", str(cache), "--manifest", str(listed), "--gpu", "H100:1")
    run = nimpull(registry, tmp_path / "s", "download", *arguments)
    assert run.code == 0, run.text
    assert {profile["name"][0] for profile in run.report["status"]["profiles"]} == {"a", "b"}


def test_f59_nothing_fits(registry: Registry, tmp_path: Path) -> None:
    chosen = manifest(tmp_path / "manifest.yaml")
    run = nimpull(registry, tmp_path / "s", "download", "--manifest", str(chosen), "--gpu", "L4:1")
    assert run.code == 11
    assert "H100" in run.text


def test_dry_run_fetches_nothing(registry: Registry, tmp_path: Path) -> None:
    run = nimpull(registry, tmp_path / "s", "download", "hf://acme/tiny", "--dry-run")
    assert run.code == 0, run.text
    assert "4 files" in run.out
    assert not registry.log("cdn")
    assert not (tmp_path / "s").exists()


# -- a failure is never a success ------------------------------------------------------------------------

ANSWERS = {
    "401": faults.status(401),
    "403": faults.status(403),
    "404": faults.status(404),
    "429": faults.status(429),
    "500": faults.status(500),
    "html": faults.html(),
}


@pytest.mark.parametrize("answer", [*ANSWERS, "closed"])
@pytest.mark.parametrize("source", SOURCES)
def test_f22_no_first_answer_makes_a_success(
    registry: Registry, tmp_path: Path, source: str, answer: str
) -> None:
    store = tmp_path / "store"
    (store / "lost+found").mkdir(parents=True)
    (store / "config.json").write_bytes(b"an old model")
    environment = source_environment(registry, source)
    if answer == "closed":
        environment = {"NGC_API_ENDPOINT": CLOSED, "NGC_AUTH_ENDPOINT": CLOSED, "HF_ENDPOINT": CLOSED}
    else:
        registry.faults.append(Fault(ANSWERS[answer], times=None))
    run = nimpull(registry, store, "download", SOURCES[source][0], "--layout", "local-dir", **environment)
    assert run.code not in (0, 70), run.text
    assert run.report["status"]["state"] == "Failed"
    assert run.err.rstrip().splitlines()[-1].startswith("nimpull: Failed (")
    assert not (store / ".nimpull" / "ready").exists()
    assert (store / "config.json").read_bytes() == b"an old model"


@pytest.mark.parametrize("source", SOURCES)
def test_f10_a_flipped_byte_is_refused_and_named(registry: Registry, tmp_path: Path, source: str) -> None:
    registry.faults.append(Fault(faults.corrupt(4_000_000), path="safetensors", method="GET", times=None))
    registry.faults.append(Fault(faults.corrupt(4_000_000), server="cdn", times=None))
    store = tmp_path / "store"
    run = nimpull(registry, store, "download", SOURCES[source][0], **source_environment(registry, source))
    assert run.code == 33, run.text
    assert "model.safetensors" in run.text
    assert not any(path.name == "model.safetensors" for path in store.rglob("*"))


def test_f29_too_little_room_is_told_before_the_first_byte(registry: Registry, tmp_path: Path) -> None:
    cache = tmp_path / "nimcache.yaml"
    cache.write_text(
        "apiVersion: apps.nvidia.com/v1alpha1\nkind: NIMCache\nmetadata: {name: tiny}\nspec:\n"
        f"  source: {{hf: {{endpoint: '{registry.hub_url}', namespace: acme, modelName: tiny,\n"
        "    authSecret: hf, pullSecret: ngc, modelPuller: 'nimpull:1'}}\n"
        "  storage: {pvc: {create: true, size: 1Mi, volumeAccessMode: ReadWriteMany}}\n"
    )
    run = nimpull(registry, tmp_path / "s", "download", "-f", str(cache))
    assert run.code == 40, run.text
    assert "short by" in run.text
    assert not registry.log("cdn")


def test_f56_no_secret_is_printed(registry: Registry, tmp_path: Path) -> None:
    registry.faults.append(Fault(faults.status(401), times=None))
    for uri in ("ngc://nim/meta/tiny:hf-1", "hf://acme/tiny"):
        store = tmp_path / uri.partition(":")[0]
        run = nimpull(registry, store, "download", uri, "-o", "json")
        for secret in (registry.ngc.key, registry.hub.token):
            assert secret not in run.text
            assert secret not in json.dumps(run.report)


def test_f36_verify_finds_bit_rot_and_the_next_pull_repairs_only_that(
    registry: Registry, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    nimpull(registry, store, "download", "hf://acme/tiny", "--layout", "local-dir")
    rotten = store / "config.json"
    before = rotten.stat()
    rotten.chmod(0o644)
    rotten.write_bytes(CONFIG.replace(b"Tiny", b"Tinz"))
    os.utime(rotten, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = nimpull(registry, store, "verify")
    assert found.code == 33, found.text
    assert "config.json" in found.out
    repaired = nimpull(registry, store, "download", "hf://acme/tiny", "--layout", "local-dir")
    assert repaired.code == 0, repaired.text
    assert repaired.report["transfer"]["bytes"] == len(CONFIG)
    assert tree(store) == FILES
    assert nimpull(registry, store, "verify").code == 0
    assert "ready: hf://acme/tiny" in nimpull(registry, store, "status").out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("hf://acme/tiny", "--engine", "vllm", "--tp", "2"), "a URI and --engine, --tp do not go together"),
        (("hf://acme/tiny", "--manifest", "m.yaml"), "a URI and --manifest do not go together"),
        (("-f", "cache.yaml", "--all", "--include", "*.json"), "-f does not take --all, --include"),
        (("-f", "cache.yaml", "--layout", "local-dir"), "-f does not take --layout"),
        (("-f", "cache.yaml", "hf://acme/tiny"), "-f does not take a URI"),
        (("--manifest", "m.yaml", "--exclude", "*.bin"), "--exclude without a URI"),
    ],
)
def test_an_option_without_effect_is_refused(
    registry: Registry, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    run = nimpull(registry, tmp_path / "s", "download", *arguments)
    assert (run.code, told in run.err) == (2, True), run.text


def test_bad_usage_is_told_in_a_line(registry: Registry, tmp_path: Path) -> None:
    for arguments in (("download", "nonsense"), ("download",), ("verify",), ("download", "-f", "/missing")):
        run = nimpull(registry, tmp_path / "s", *arguments)
        assert run.code == 2, run.text
        assert "Traceback" not in run.text
