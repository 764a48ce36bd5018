"""The drop-in commands, with the arguments and environment that the operator's Jobs give them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nimpull.cli.program import repeat_options
from tests.calls import COMMANDS, FILES, call, invoke, manifest, plain
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


def test_an_option_is_repeated_for_each_of_its_values() -> None:
    assert repeat_options(["-p", "a", "b", "--all"], ["-p"]) == ["-p", "a", "-p", "b", "--all"]
    assert repeat_options(["--include", "*.json", "--local-dir", "d"], ["--include"]) == [
        "--include",
        "*.json",
        "--local-dir",
        "d",
    ]
    assert repeat_options(["--include=x", "repo"], ["--include"]) == ["--include=x", "repo"]


# -- spellings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [(name,) for name in COMMANDS] + [("nimpull", "download"), ("huggingface-cli", "download")]
)
def test_h_is_help(command: tuple[str, ...]) -> None:
    code, text = invoke((*command, "-h"), {"PATH": os.environ["PATH"]})
    assert (code, text[:6]) == (0, "Usage:"), text


INCLUDED = [
    ("--include", "*.json", "*.txt", "--local-dir", "{store}", "default/tiny"),  # huggingface-cli
    ("default/tiny", "--local-dir", "{store}", "--include", "*.json", "*.txt"),
    ("--include", "*.json", "default/tiny", "--local-dir", "{store}"),  # hf
    ("--exclude", "weights/*", "--include", "*", "default/tiny", "--local-dir", "{store}"),
    ("hf://default/tiny/config.json", "--local-dir", "{store}"),
    ("hf://default/tiny@main/config.json", "--local-dir", "{store}", "--format", "quiet"),
]


@pytest.mark.parametrize("arguments", INCLUDED, ids=" ".join)
def test_a_part_of_a_repository_in_the_words_of_either_client(
    registry: Registry, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    store = tmp_path / "store"
    given = [argument.format(store=store) for argument in arguments]
    code, text = call(registry, store, "huggingface-cli", "download", *given)
    assert code == 0, text
    assert plain(store) == {"config.json": FILES["config.json"]}
    assert ("listing: " in text) == ("quiet" not in given)


def test_the_format_json_is_the_report(registry: Registry, tmp_path: Path) -> None:
    arguments = ("download", "default/tiny", "--format", "json", "--max-workers", "1000", "-q")
    code, text = call(registry, tmp_path / "store", "huggingface-cli", *arguments)
    report, _ = json.JSONDecoder().raw_decode(text)
    assert (code, report["status"]["state"]) == (0, "Ready")


NOT_MEANT = [
    (("huggingface-cli", "download", "default/tiny", "--local-dir", ""), "--local-dir"),
    (("huggingface-cli", "download", "hf://default/tiny", "--revision", "main"), "--revision"),
    (("huggingface-cli", "download", "hf://default/tiny", "--repo-type", "dataset"), "--repo-type"),
    (("huggingface-cli", "download", "hf://spaces/default/tiny/x"), "spaces"),
    (("download-to-cache", "--profiles", ""), "--profiles"),
    (("download-to-cache", "--model-uri", ""), "--model-uri"),
    (("download-to-cache", "--lora", "-p", "x"), "--lora"),
    (("download-to-cache", "--lora", "--all"), "--lora"),
    (("create-model-store", "-p", "x", "-m", ""), "--model-store"),
]


@pytest.mark.parametrize(("command", "named"), NOT_MEANT)
def test_what_cannot_be_meant_is_told_and_asks_nothing(
    registry: Registry, tmp_path: Path, command: tuple[str, ...], named: str
) -> None:
    listed = str(manifest(tmp_path / "m.yaml"))
    code, text = call(registry, tmp_path / "store", *command, NIM_MANIFEST_PATH=listed)
    assert code == 2, text
    assert named in text.splitlines()[-1]
    assert not registry.log()


def test_the_manifest_file_is_read_unless_a_model_is_named(registry: Registry, tmp_path: Path) -> None:
    listed = str(manifest(tmp_path / "m.yaml"))
    code, text = call(registry, tmp_path / "a", "download-to-cache", "-p", "a" * 64, "-m", listed)
    assert code == 0, text
    written = tmp_path / "b/not/there/yet/manifest.json"
    arguments = ("--model-uri", "hf://default/tiny", "--manifest-file", str(written))
    code, text = call(registry, tmp_path / "b", "download-to-cache", *arguments)
    assert code == 0, text
    assert len(json.loads(written.read_text())["profiles"]) == 1


def test_a_place_for_the_runtime_manifest_that_cannot_be_is_told_first(
    registry: Registry, tmp_path: Path
) -> None:
    arguments = ("--model-uri", "hf://default/tiny", "--manifest-file", "/proc/none/manifest.json")
    code, text = call(registry, tmp_path / "store", "download-to-cache", *arguments)
    assert (code, "/proc" in text.splitlines()[-1]) == (41, True), text
    assert "--manifest-file" in text.splitlines()[-1]
    assert not registry.log()


def test_a_request_that_cannot_be_read_takes_the_place_of_an_earlier_report(
    registry: Registry, tmp_path: Path
) -> None:
    store, report = tmp_path / "store", tmp_path / "store/.nimpull/report.json"
    listed = {"NIM_MANIFEST_PATH": str(manifest(tmp_path / "m.yaml"))}
    assert call(registry, store, "download-to-cache", "-p", "a" * 64, **listed)[0] == 0
    assert json.loads(report.read_text())["status"]["state"] == "Ready"
    code, text = call(registry, store, "download-to-cache", **listed, NIMPULL_RETRY_SECONDS="soon")
    assert code == 2, text
    document = json.loads(report.read_text())
    assert (document["status"]["state"], document["error"]["reference"]) == ("Failed", "bad-usage")
    code, text = call(registry, tmp_path / "none", "download-to-cache", NIM_MANIFEST_PATH="/none")
    assert (code, (tmp_path / "none").exists()) == (2, False), text
