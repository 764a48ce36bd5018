"""The drop-in commands, with the arguments and environment that the operator's Jobs give them."""

from __future__ import annotations

import json
from pathlib import Path

from nimpull.cli.names import spread
from tests.calls import FILES, call, manifest, plain
from tests.registry import Registry


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
