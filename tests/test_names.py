"""The drop-in commands, with the arguments and environment that the operator's Jobs give them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from nimpull.cli.names import spread
from tests.registry import Registry

FILES = {"config.json": b"{}", "weights/model.bin": b"\1" * 3_000_000}
COMMANDS = {
    "nimpull": "nimpull.__main__:main",
    "download-to-cache": "nimpull.__main__:download_to_cache",
    "create-model-store": "nimpull.__main__:create_model_store",
    "huggingface-cli": "nimpull.__main__:hugging_face",
    "check-cache-env": "nimpull.__main__:check_cache_env",
}


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as started:
        started.add_ngc_model("nim", "meta", "tiny", "hf-1", FILES)
        started.add_hub_repo("default/tiny", FILES)
        yield started


def call(registry: Registry, store: Path, *command: str, **environment: str) -> tuple[int, str]:
    """As the Job does: nothing in the environment but what the operator and the secrets set."""
    known = {
        "PATH": os.environ["PATH"],
        "NIM_CACHE_PATH": str(store),
        "NGC_API_KEY": registry.ngc.key,
        "NGC_API_ENDPOINT": registry.ngc_url,
        "NGC_AUTH_ENDPOINT": registry.ngc_url,
        "HF_TOKEN": registry.hub.token,
        "HF_ENDPOINT": registry.datastore_url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": f"{store}/huggingface/hub",
        "NIMPULL_RETRY_SECONDS": "0",
    }
    return invoke(command, {**known, **environment})


def invoke(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """(exit code, stdout then stderr) of one of nimpull's scripts with this environment and no other."""
    module, function = COMMANDS[command[0]].split(":")
    done = subprocess.run(
        [sys.executable, "-c", f"from {module} import {function} as run; run()", *command[1:]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def manifest(path: Path) -> Path:
    path.write_text(
        f"schema_version: '2.0'\nprofiles:\n- id: {'a' * 64}\n"
        "  tags: {llm_engine: vllm, precision: fp16, tp: '1'}\n"
        "  workspace:\n    files:\n"
        "      config.json: {uri: 'ngc://nim/meta/tiny:hf-1?file=config.json'}\n"
        "      engine/model.bin: {uri: 'ngc://nim/meta/tiny:hf-1?file=weights/model.bin'}\n"
    )
    return path


def plain(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path.relative_to(store).parts[0] not in (".nimpull", ".cache", "huggingface")
    }


def test_profiles_of_a_manifest_into_the_nim_cache(registry: Registry, tmp_path: Path) -> None:
    store, listed = tmp_path / "store", str(manifest(tmp_path / "m.yaml"))
    for asked in (("--profiles", "a" * 64), ("-p", "a" * 64), ("--all",)):
        code, text = call(registry, store, "download-to-cache", *asked, NIM_MANIFEST_PATH=listed)
        assert code == 0, text
    (snapshot,) = (store / "ngc/hub").glob("models--nim--meta--tiny/snapshots/hf-1")
    assert {path: (snapshot / path).read_bytes() for path in FILES} == FILES


def test_unknown_profiles_fail(registry: Registry, tmp_path: Path) -> None:
    listed = str(manifest(tmp_path / "m.yaml"))
    code, text = call(registry, tmp_path / "s", "download-to-cache", "-p", "f" * 64, NIM_MANIFEST_PATH=listed)
    assert code == 11, text
    assert "no-profile" in text.splitlines()[-1]
    assert text.startswith("Error: Not all of the provided profiles are supported.\n")
    assert f"\nUnknown profiles provided: {{'{'f' * 64}'}}\nAll valid profiles: {{'{'a' * 64}'}}\n" in text


def test_model_free_writes_the_runtime_manifest(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    written = store / "model_manifest.json"
    arguments = ("--model-uri", "hf://default/tiny", "--manifest-file", str(written))
    code, text = call(registry, store, "download-to-cache", *arguments)
    assert code == 0, text
    files = json.loads(written.read_text())["profiles"][0]["workspace"]["files"]
    assert set(files) == set(FILES)
    (snapshot,) = (store / "huggingface/hub/hub").glob("models--default--tiny/snapshots/*")
    assert {path: (snapshot / path).read_bytes() for path in FILES} == FILES


def test_hugging_face_local_dir(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    arguments = ("download", "default/tiny", "--local-dir", str(store), "--repo-type", "model")
    code, text = call(registry, store, "huggingface-cli", *arguments)
    assert code == 0, text
    assert plain(store) == FILES
    assert text.splitlines()[0] == str(store), "stdout has the path alone"
    code, text = call(
        registry, tmp_path / "other", "huggingface-cli", "download", "default/typo", *arguments[2:]
    )
    assert code == 21, text


def test_create_model_store_from_a_repository_and_from_a_profile(registry: Registry, tmp_path: Path) -> None:
    whole, profile = tmp_path / "whole", tmp_path / "profile"
    arguments = ("--model-repo", "ngc://nim/meta/tiny:hf-1", "--model-store", str(whole))
    code, text = call(registry, tmp_path / "cache", "create-model-store", *arguments)
    assert code == 0, text
    assert plain(whole) == FILES
    listed = str(manifest(tmp_path / "m.yaml"))
    arguments = ("-p", "a" * 64, "-m", str(profile))
    code, text = call(
        registry, tmp_path / "cache", "create-model-store", *arguments, NIM_MANIFEST_PATH=listed
    )
    assert code == 0, text
    assert plain(profile) == {"config.json": b"{}", "engine/model.bin": FILES["weights/model.bin"]}


def test_spread_repeats_the_option_for_each_value() -> None:
    assert spread(["-p", "a", "b", "--all"], ["-p"]) == ["-p", "a", "-p", "b", "--all"]
    assert spread(["--include", "*.json", "--local-dir", "d"], ["--include"]) == [
        "--include",
        "*.json",
        "--local-dir",
        "d",
    ]
    assert spread(["--include=x", "repo"], ["--include"]) == ["--include=x", "repo"]
