"""A finished store under the eyes of readers that were not written here, and a pull's faults end to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pods import as_user
from tests.readers import (
    LARGE,
    LOCAL,
    claimed,
    content_requests,
    hf,
    pull,
    pulled,
    reader,
    under_way,
)
from tests.registry import Fault, Registry, Request, faults
from tests.registry.wire import Answer
from tests.running import CLOSED, CONFIG, FILES, WEIGHTS, check, ended, nimpull, snapshot, start, tree

MODEL = "hf://acme/tiny"


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as started:
        started.add_ngc_model("nim", "meta", "tiny", "hf-1", FILES, checksums=True)
        started.add_hub_repo("acme/tiny", FILES)
        yield started


# -- huggingface_hub ---------------------------------------------------------------------------------------

OFFLINE = """
import json, sys
from huggingface_hub import scan_cache_dir, snapshot_download
found = scan_cache_dir()
(repo,) = found.repos
print("ANSWER", json.dumps({
    "path": snapshot_download("acme/tiny"),
    "warnings": [str(each) for each in found.warnings],
    "repo": repo.repo_id,
    "files": sorted(str(each.file_name) for revision in repo.revisions for each in revision.files),
    "refs": sorted(repo.refs),
}))
"""


def test_huggingface_hub_finds_the_model_offline(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    pulled(registry, store, MODEL)
    home = store / "huggingface"
    dead = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": CLOSED}
    code, text = reader(registry, home, sys.executable, "-c", OFFLINE, **dead)
    assert code == 0, text
    answer: dict[str, Any] = json.loads(text.partition("ANSWER ")[2].splitlines()[0])
    found = Path(answer.pop("path"))
    assert answer == {
        "warnings": [],
        "repo": "acme/tiny",
        "files": sorted(path.rpartition("/")[2] for path in FILES),
        "refs": ["main"],
    }
    assert found.is_relative_to(home / "hub")
    assert tree(found) == FILES


def place(store: Path, layout: str) -> tuple[str, ...]:
    """Where the ``hf`` commands look for what was pulled in this layout."""
    if layout == "local-dir":
        return ("--local-dir", str(store))
    return ("--cache-dir", str(store / "huggingface" / "hub"))


@pytest.mark.parametrize("layout", ["local-dir", "cache"])
def test_hf_download_has_nothing_left_to_fetch(registry: Registry, tmp_path: Path, layout: str) -> None:
    store = tmp_path / "store"
    pulled(registry, store, MODEL, "--layout", layout)
    before = content_requests(registry)
    assert before
    asked = len(registry.log("hub"))
    code, text = hf(registry, tmp_path / "home", "download", "acme/tiny", *place(store, layout))
    assert code == 0, text
    assert len(registry.log("hub")) > asked, "it did ask this registry"
    assert content_requests(registry) == before
    found = store if layout == "local-dir" else snapshot(store, "huggingface")
    assert tree(found) == FILES


@pytest.mark.parametrize("layout", ["local-dir", "cache"])
def test_hf_cache_verify_agrees(registry: Registry, tmp_path: Path, layout: str) -> None:
    store = tmp_path / "store"
    pulled(registry, store, MODEL, "--layout", layout)
    command = ("cache", "verify", "acme/tiny", *place(store, layout), "--fail-on-missing-files")
    code, text = hf(registry, tmp_path / "home", *command)
    assert code == 0, text
    (weights,) = (path for path in store.rglob("model.safetensors") if path.is_file())
    spoiled = weights.resolve()
    spoiled.chmod(0o644)
    spoiled.write_bytes(WEIGHTS[:-1] + b"\0")
    code, text = hf(registry, tmp_path / "home", *command)
    assert code == 1, text
    assert "model.safetensors" in text


# -- NIM ---------------------------------------------------------------------------------------------------


def test_a_nim_container_finds_its_tree(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    pulled(registry, store, "ngc://nim/meta/tiny:hf-1")
    (repository,) = (store / "ngc" / "hub").glob("models--*")
    assert repository.name == "models--nim--meta--tiny"
    assert sorted(path.name for path in repository.iterdir()) == ["blobs", "refs", "snapshots"]
    assert {path.name: path.read_text() for path in (repository / "refs").iterdir()} == {"hf-1": "hf-1"}
    assert [path.name for path in (repository / "snapshots").iterdir()] == ["hf-1"]
    links = {
        path.relative_to(repository / "snapshots" / "hf-1").as_posix(): path
        for path in (repository / "snapshots").rglob("*")
        if not path.is_dir()
    }
    assert set(links) == {*FILES, "checksums.blake3"}
    for name, link in links.items():
        target = os.readlink(link)
        assert target == "../" * (name.count("/") + 2) + "blobs/" + link.resolve().name
        assert link.resolve().parent == (repository / "blobs").resolve()
    served = registry.ngc.models["nim", "meta", "tiny"].versions["hf-1"]
    named = {name: link.resolve().name for name, link in links.items()}
    assert named.pop("empty.txt") == served["empty.txt"].digest("blake3"), "never asked for: has no ETag"
    assert named == {path: blob.opaque_etag for path, blob in served.items() if blob.size}
    blobs = list((repository / "blobs").iterdir())
    assert all(path.is_file() and not path.is_symlink() for path in blobs)
    assert {path.name for path in blobs} == {link.resolve().name for link in links.values()}


# -- faults, from the command line to the disk -------------------------------------------------------------


def test_f23_one_listed_file_is_gone(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    gone = Fault(faults.status(404), server="hub", path="/resolve/.*tokenizer/vocab.txt", times=None)
    registry.faults.append(gone)
    run = pull(registry, store, MODEL, *LOCAL)
    assert run.code == 21, run.text
    assert run.report["error"]["reference"] == "not-found"
    assert "tokenizer/vocab.txt" in run.report["error"]["message"]
    assert tree(store) == {path: content for path, content in FILES.items() if "vocab" not in path}
    assert not list((store / ".nimpull" / "ready").glob("*"))
    registry.faults.clear()
    before = len(content_requests(registry))
    again = pulled(registry, store, MODEL, *LOCAL)
    paths = {path.rpartition("/")[2] for _, path in content_requests(registry)[before:]}
    assert paths == {"vocab.txt"}
    assert again.report["transfer"]["bytes"] == len(FILES["tokenizer/vocab.txt"])
    assert tree(store) == FILES


def test_f25_main_moves_between_listing_and_fetch(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    listed = registry.hub.repos["model", "acme/tiny"].branches["main"]
    newer = {**FILES, "config.json": b'{"architectures": ["Newer"]}\n'}

    def move(_request: Request, answer: Answer) -> Answer:
        registry.add_hub_repo("acme/tiny", newer)
        return answer

    moved = Fault(move, server="hub", path="/tree/")
    registry.faults.append(moved)
    run = pulled(registry, store, MODEL, *LOCAL)
    assert moved.hits == 1
    assert registry.hub.repos["model", "acme/tiny"].branches["main"] != listed
    assert run.report["source"]["revision"] == listed
    assert tree(store) == FILES
    refreshed = pulled(registry, store, MODEL, *LOCAL, "--refresh")
    assert refreshed.report["source"]["revision"] != listed
    assert tree(store) == newer


def test_f26_a_complete_store_needs_no_server(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with Registry() as registry:
        registry.add_hub_repo("acme/tiny", FILES)
        pulled(registry, store, MODEL)
        asked = len(registry.requests)
    run = pulled(registry, store, MODEL)
    assert (run.report["status"]["state"], run.report["transfer"]["bytes"]) == ("Ready", 0)
    assert len(registry.requests) == asked
    assert nimpull(registry, store, "verify").code == 0
    refused = pull(registry, store, MODEL, "--refresh")
    assert refused.code == 30, refused.text


def test_f35_a_different_file_is_replaced(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    foreign = CONFIG.replace(b"Tiny", b"Tinz")
    (store / "config.json").write_bytes(foreign)
    (store / "model.safetensors").write_bytes(WEIGHTS)
    with (store / "config.json").open("rb") as held:
        run = pulled(registry, store, MODEL, *LOCAL)
        assert held.read() == foreign, "replaced by a rename: who reads the old file goes on reading it"
    assert tree(store) == FILES
    actions = {entry["path"]: entry["action"] for entry in run.report["artifacts"]}
    assert actions["config.json"] == "fetched"
    assert actions["model.safetensors"] == "skipped", "the right content was there, and was read"


def test_f35_a_directory_is_not_replaced(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "config.json").mkdir(parents=True)
    (store / "config.json" / "mine.txt").write_bytes(b"mine")
    run = pull(registry, store, MODEL, *LOCAL)
    assert run.code == 41, run.text
    assert "config.json" in run.report["error"]["message"]
    assert (store / "config.json" / "mine.txt").read_bytes() == b"mine"
    assert not list((store / ".nimpull" / "ready").glob("*"))


def test_f31_a_complete_store_may_be_read_only(registry: Registry, tmp_path: Path) -> None:
    under, store = as_user(os.geteuid(), os.getegid()), tmp_path / "store"
    pulled(registry, store, MODEL)
    asked = len(registry.requests)
    directories = [store, *(path for path in store.rglob("*") if path.is_dir() and not path.is_symlink())]
    for directory in directories:
        directory.chmod(0o555)
    run = ended(start(registry, store, "download", MODEL, "-o", "json", under=under), store)
    for directory in directories:
        directory.chmod(0o755)
    assert run.code == 0, run.text
    report = json.loads(run.out)
    check(report)
    assert report["status"]["state"] == "Ready"
    assert "the report could not be written" in run.err
    assert len(registry.requests) == asked


def test_f31_a_store_of_someone_else_is_refused_before_the_first_request(
    registry: Registry, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir(mode=0o555)
    under = as_user(os.geteuid(), os.getegid())
    if os.geteuid() == 0:
        os.chown(store, 4711, 4712)
    owner = store.stat()
    run = ended(start(registry, store, "download", MODEL, "-o", "json", under=under), store)
    assert run.code == 41, run.text
    report = json.loads(run.out)
    check(report)
    message = report["error"]["message"]
    for fact in (str(store), f"uid {os.geteuid()}", f"owner {owner.st_uid}:{owner.st_gid}", "mode 0555"):
        assert fact in message
    assert not registry.requests
    assert not list(store.iterdir())


# -- a run that is stopped ----------------------------------------------------------------------------------


def test_f39_after_a_kill_only_the_rest_is_fetched(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with under_way(registry, store, threading.Event()) as (process, journal):
        process.kill()
        process.wait()
        kept = claimed(journal)
    assert not (store / "model.safetensors").exists()
    assert not list((store / ".nimpull" / "ready").glob("*"))
    config = 0 if (store / "config.json").exists() else len(CONFIG)
    assert 0 < kept < len(LARGE)
    run = pulled(registry, store, "hf://acme/large", *LOCAL)
    assert run.report["transfer"]["bytes"] == len(LARGE) - kept + config
    assert tree(store) == {"config.json": CONFIG, "model.safetensors": LARGE}
    assert not list(store.glob(".nimpull/ingest/*"))


def test_f41_sigterm_stops_in_order_and_the_next_run_goes_on(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with under_way(registry, store, threading.Event()) as (process, journal):
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        run = ended(process, store)
        assert time.monotonic() - begun < 30
        kept = claimed(journal)
    config = 0 if (store / "config.json").exists() else len(CONFIG)
    assert run.code == 143, run.text
    check(run.report)
    assert run.report["status"]["state"] == "Failed"
    assert run.report["error"]["reference"] == "cancelled"
    assert "did not let go" not in run.text, "it was not asked, but ended"
    assert not (store / "model.safetensors").exists()
    again = pulled(registry, store, "hf://acme/large", *LOCAL)
    assert again.report["transfer"]["bytes"] == len(LARGE) - kept + config
    assert tree(store) == {"config.json": CONFIG, "model.safetensors": LARGE}


@pytest.mark.parametrize("what", ["data", "ingest", "area"])
def test_f49_what_a_cleaner_takes_away_is_rebuilt(registry: Registry, tmp_path: Path, what: str) -> None:
    store, release = tmp_path / "store", threading.Event()
    with under_way(registry, store, release) as (process, journal):
        assert not (store / "model.safetensors").exists(), "half a file is seen by its name"
        if what == "data":
            (journal.parent / "data").unlink()
        else:
            shutil.rmtree(journal.parent if what == "ingest" else journal.parent.parent)
        registry.faults.clear()
        release.set()
        run = ended(process, store)
    assert run.code == 0, run.text
    assert tree(store) == {"config.json": CONFIG, "model.safetensors": LARGE}


@pytest.mark.parametrize("source", ["ngc://nim/meta/tiny:hf-1", MODEL])
def test_f41_sigterm_is_heard_while_a_listing_does_not_come(
    registry: Registry, tmp_path: Path, source: str
) -> None:
    store, reached, release = tmp_path / "store", threading.Event(), threading.Event()

    def hold(_request: Request, answer: Answer) -> Answer:
        reached.set()
        return replace(answer, hold=release)

    registry.faults.append(Fault(hold, times=None))
    process = start(registry, store, "download", source)
    try:
        assert reached.wait(60), ended(process, store).text
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        run = ended(process, store)
        assert time.monotonic() - begun < 30
    finally:
        release.set()
    assert run.code == 143, run.text
    check(run.report)
    assert run.report["error"]["reference"] == "cancelled"
    assert "did not let go" not in run.text


# -- the report --------------------------------------------------------------------------------------------


def test_every_outcome_has_a_report_by_the_schema(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    asked = ("--report", str(path))
    dry = pull(registry, tmp_path / "s", MODEL, "--dry-run", "-o", "json")
    assert dry.code == 0, dry.text
    planned = json.loads(dry.out)
    check(planned)
    assert planned["status"]["state"] == "InProgress"
    assert len(planned["artifacts"]) == len(FILES)
    pulled(registry, tmp_path / "s", MODEL, *asked)
    ready = json.loads(path.read_text())
    check(ready)
    assert ready["status"]["state"] == "Ready"
    failed = pull(registry, tmp_path / "s", "hf://acme/none", *asked)
    assert failed.code == 21, failed.text
    report = json.loads(path.read_text())
    check(report)
    assert report["status"]["state"] == "Failed"
