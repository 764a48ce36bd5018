"""``nimpull prune``: what nobody needs goes, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir

from nimpull.clock import SystemClock
from nimpull.store.presence import Presence
from nimpull.store.tree import Tree
from tests.pulling import noise
from tests.registry import Fault, Registry, faults
from tests.running import nimpull, tree

OLD: Mapping[str, bytes] = {
    "config.json": b"{}\n",
    "model.safetensors": noise(3 << 20, 1),
    "vocab.txt": b"a\n",
}
NEW: Mapping[str, bytes] = {**OLD, "model.safetensors": noise(3 << 20, 2)}
PULL = ("download", "hf://acme/tiny", "--refresh")


@pytest.fixture
def updated(registry: Registry, tmp_path: Path) -> Path:
    """A store with two revisions of one model, of which a marker names the second."""
    store = tmp_path / "store"
    for files in (OLD, NEW):
        registry.add_hub_repo("acme/tiny", files)
        assert nimpull(registry, store, *PULL).code == 0
    return store


def revisions(store: Path) -> set[str]:
    (repository,) = scan_cache_dir(store / "huggingface/hub").repos
    return {revision.commit_hash for revision in repository.revisions}


def plain(store: Path) -> dict[str, bytes]:
    return {path: content for path, content in tree(store).items() if "/snapshots/" in path}


def test_an_old_snapshot_goes_and_what_the_marker_names_stays(registry: Registry, updated: Path) -> None:
    before = tree(updated)
    dry = nimpull(registry, updated, "prune")
    assert (dry.code, tree(updated)) == (0, before)
    assert "unused snapshot: hf://acme/tiny:" in dry.out and "3.1 MiB would be freed" in dry.out
    assert len(revisions(updated)) == 2
    done = nimpull(registry, updated, "prune", "--yes")
    assert done.code == 0 and "3.1 MiB freed." in done.out, done.text
    assert len(revisions(updated)) == 1
    assert not scan_cache_dir(updated / "huggingface/hub").warnings
    assert {path.rpartition("/")[2]: content for path, content in plain(updated).items()} == NEW
    assert nimpull(registry, updated, "verify").code == 0
    asked = len(registry.requests)
    assert nimpull(registry, updated, "download", "hf://acme/tiny").code == 0
    assert len(registry.requests) == asked, "it is complete"
    nimpull(registry, updated, "prune", "--yes")
    assert "there is nothing to remove" in nimpull(registry, updated, "prune", "--yes").out


def test_a_snapshot_that_somebody_else_made_keeps_its_blobs(registry: Registry, updated: Path) -> None:
    old = next(
        each for each in updated.glob("huggingface/hub/models--*/snapshots/*") if each.name in _old(updated)
    )
    other = old.with_name("f" * 40)
    old.rename(other)
    nimpull(registry, updated, "prune", "--yes")
    assert {path.name: path.read_bytes() for path in other.iterdir()} == OLD


def test_a_file_that_was_put_into_a_snapshot_keeps_it(registry: Registry, updated: Path) -> None:
    (old,) = (
        each for each in updated.glob("huggingface/hub/models--*/snapshots/*") if each.name in _old(updated)
    )
    (old / "notes.txt").write_text("mine")
    nimpull(registry, updated, "prune", "--yes")
    assert {path.name: path.read_bytes() for path in old.iterdir()} == {**OLD, "notes.txt": b"mine"}


def _old(store: Path) -> set[str]:
    markers = [json.loads(path.read_text()) for path in (store / ".nimpull/ready").iterdir()]
    named = {row[0].split("/snapshots/")[1].split("/")[0] for marker in markers for row in marker["files"]}
    return revisions(store) - named


def test_a_marker_that_cannot_be_read_may_name_anything(registry: Registry, updated: Path) -> None:
    (updated / ".nimpull/ready/other.json").write_text("torn")
    before = tree(updated)
    assert nimpull(registry, updated, "prune", "--yes").code == 0
    assert tree(updated) == before


def test_half_done_files_go_unless_a_marker_names_their_revision(registry: Registry, updated: Path) -> None:
    registry.add_hub_repo("acme/other", {"large.bin": noise(4 << 20, 3)})
    registry.faults += [
        Fault(faults.truncate(2 << 20), server="cdn", times=1),
        Fault(faults.status(404), server="cdn", skip=1, times=None),
    ]
    assert nimpull(registry, updated, "download", "hf://acme/other").code != 0
    dry = nimpull(registry, updated, "prune")
    assert "half done: hf://acme/other:" in dry.out and "report of a run that failed" in dry.out, dry.text
    assert nimpull(registry, updated, "prune", "--yes").code == 0
    assert not list((updated / ".nimpull/ingest").iterdir())
    assert not list((updated / ".nimpull/reports").iterdir())


def test_nothing_goes_while_a_run_writes(registry: Registry, updated: Path) -> None:
    before = tree(updated)
    with Presence(Tree(str(updated)), owner="pod-a (pid 7)", clock=SystemClock()):
        done = nimpull(registry, updated, "prune", "--yes")
    assert (done.code, "pod-a (pid 7) writes into this store" in done.err) == (43, True), done.text
    assert tree(updated) == before


def test_plain_files_are_never_removed(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for files in (OLD, NEW):
        registry.add_hub_repo("acme/tiny", files)
        assert nimpull(registry, store, *PULL, "--layout", "local-dir").code == 0
    for marker in (store / ".nimpull/ready").iterdir():
        marker.unlink()
    nimpull(registry, store, "prune", "--yes")
    assert tree(store) == NEW
