"""What a later run believes: the record, ready markers, verification; and what it must not follow."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from nimpull.core.artifacts import Artifact
from nimpull.errors import Cancelled, NotWritableError, StoreError, StoreIOError
from nimpull.store.layouts import FoundBy, StoreLayout
from nimpull.store.ready import Ready, marker_of, missing_of
from nimpull.store.record import StoredFile
from nimpull.store.store import Store
from nimpull.store.tree import Tree
from tests.committing import HUB, NGC, artifact, commit, digest_of, listing, open_store, take, tree_of

WEIGHTS = b"\0\1\2\3" * 1000
CONFIG = b"{}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "store")) as opened:
        yield opened


def fill(store: Store, layout: StoreLayout) -> tuple[Artifact, Artifact]:
    config, weights = artifact("config.json", CONFIG), artifact("dir/weights.bin", WEIGHTS)
    commit(store, layout, config, CONFIG, etag="c0ffee")
    commit(store, layout, weights, WEIGHTS, etag="beef-2")
    layout.finish(listing(config, weights))
    return config, weights


def mark(store: Store, layout: StoreLayout, *artifacts: Artifact) -> Ready:
    files = store.files_of(layout, artifacts)
    ready = Ready("profile-1", layout.name, 1.5, files, (str(NGC),), ("profile-1",))
    store.mark_ready(ready)
    return ready


def blob(store: Store, layout: StoreLayout, one: Artifact) -> Path:
    return Path(os.path.realpath(Path(store.root, layout.path_of(one))))


def flip(path: Path, *, keep_time: bool) -> None:
    status = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + (0 if keep_time else 1)))


def test_where_no_thread_can_be_started_all_is_verified_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, store.nim_cache())

    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", start)
    assert store.verify(workers=4).files == 2


# -- the record ----------------------------------------------------------------------------------------


def test_a_second_run_trusts_by_stat_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, store.nim_cache())
    with open_store(store.root) as again:
        assert len(again.record.entries) == 2
        monkeypatch.setattr(Tree, "open", None)  # whoever reads content fails
        layout = again.nim_cache()
        for content, path in ((CONFIG, "config.json"), (WEIGHTS, "dir/weights.bin")):
            trusted = layout.committed(artifact(path, content))
            assert trusted is not None
            assert (trusted.size, trusted.digest) == (len(content), digest_of(content))


@pytest.mark.parametrize("damage", ["truncated", "extended", "flipped", "zeros", "replaced", "gone"])
def test_f34_a_file_that_changed_is_not_trusted(store: Store, damage: str) -> None:
    layout = store.nim_cache()
    config, weights = fill(store, layout)
    path = blob(store, layout, weights)
    path.chmod(0o644)
    if damage == "truncated":
        os.truncate(path, 10)
    elif damage == "extended":
        os.truncate(path, len(WEIGHTS) + 1)
    elif damage == "flipped":
        flip(path, keep_time=False)
    elif damage == "zeros":
        path.unlink()
        path.write_bytes(bytes(len(WEIGHTS)))
    elif damage == "replaced":
        path.unlink()
        path.write_bytes(WEIGHTS[::-1])
    else:
        path.unlink()
    with open_store(store.root) as again:
        layout = again.nim_cache()
        assert layout.committed(weights) is None
        assert take(layout, weights, FoundBy.HASH) is None
        assert take(layout, weights, FoundBy.ELSEWHERE) is None
        assert layout.committed(config) is not None


def test_a_touched_file_is_read_and_then_trusted(store: Store) -> None:
    layout = store.nim_cache()
    _, weights = fill(store, layout)
    os.utime(blob(store, layout, weights))
    assert layout.committed(weights) is None
    assert take(layout, weights, FoundBy.HASH) is not None
    assert layout.committed(weights) is not None


def test_the_same_name_with_another_digest_is_not_trusted(store: Store) -> None:
    layout = store.nim_cache()
    fill(store, layout)
    assert layout.committed(artifact("dir/weights.bin", WEIGHTS[::-1])) is None


def test_without_a_digest_only_the_own_record_counts(store: Store) -> None:
    layout = store.workspace()
    bare = Artifact(artifact("x", b"x").path, 1, (), NGC.with_path("x"))
    Path(store.root, "x").write_bytes(b"x")
    assert layout.committed(bare) is None
    assert take(layout, bare, FoundBy.HASH) is None
    commit(store, layout, bare, b"x")
    assert layout.committed(bare) is not None


def test_without_a_digest_only_the_same_registry_counts(store: Store) -> None:
    layout = store.workspace()
    here = Artifact(artifact("x", b"x").path, 1, (), NGC, endpoint="https://here.test")
    commit(store, layout, here, b"x")
    assert layout.committed(here) is not None
    for endpoint in ("https://there.test", ""):
        there = replace(here, endpoint=endpoint)
        assert layout.find(there) is None
    with Store(store.root) as again:
        assert again.workspace().committed(here) is not None


def test_torn_and_foreign_record_lines_are_skipped(store: Store) -> None:
    config, _ = fill(store, store.nim_cache())
    record = Path(store.root, ".nimpull/record")
    (file,) = record.iterdir()
    lines = file.read_bytes().splitlines()
    file.write_bytes(lines[0] + b'\n[]\n{"path": 1}\nnull\n\xff\n' + lines[1][:30])
    with open_store(store.root) as again:
        assert again.nim_cache().committed(config) is not None
        assert len(again.record.entries) == 1


# -- ready markers -------------------------------------------------------------------------------------


def test_f26_a_marker_is_believed_offline(store: Store) -> None:
    layout = store.nim_cache()
    ready = mark(store, layout, *fill(store, layout))
    with Store(store.root) as again:
        assert again.ready("profile-1") == ready
        assert again.ready("profile-2") is None
    assert ready.size == len(CONFIG) + len(WEIGHTS)


def test_f65_a_marker_whose_files_were_only_touched_holds_again(store: Store) -> None:
    """Some servers set the time of a file once more after its commit."""
    layout = store.nim_cache()
    _, weights = fill(store, layout)
    ready = mark(store, layout, *fill(store, layout))
    os.utime(blob(store, layout, weights), (1, 1))
    again = store.ready("profile-1")
    assert again and {file.mtime_ns for file in again.files} != {file.mtime_ns for file in ready.files}
    assert missing_of(store.tree, again) == (), "and the marker says so, so that it is read but once"


@pytest.mark.parametrize("damage", ["blob", "link", "changed", "version", "torn", "escape", "other"])
def test_f26_a_marker_that_no_longer_holds_is_none(store: Store, damage: str) -> None:
    layout = store.nim_cache()
    config, weights = fill(store, layout)
    mark(store, layout, config, weights)
    marker = Path(store.root, marker_of("profile-1"))
    document = json.loads(marker.read_bytes())
    if damage == "blob":
        blob(store, layout, weights).unlink()
    elif damage == "link":
        Path(store.root, layout.path_of(weights)).unlink()
    elif damage == "changed":
        path = blob(store, layout, weights)
        path.chmod(0o644)
        path.write_bytes(WEIGHTS[::-1])
    elif damage == "version":
        marker.write_text(json.dumps({**document, "version": 2}))
    elif damage == "torn":
        marker.write_text(json.dumps(document)[:-20])
    elif damage == "escape":
        document["files"][0][0] = "../outside"
        marker.write_text(json.dumps(document))
    else:
        marker.write_text(json.dumps({**document, "selection": "another"}))
    assert store.ready("profile-1") is None


def test_a_selection_with_any_text_has_a_marker(store: Store) -> None:
    (Path(store.root) / "file").write_bytes(b"content")
    time = (Path(store.root) / "file").stat().st_mtime_ns
    file = StoredFile("file", 7, time, digest_of(b"content"))
    ready = Ready("hf://a/b:main ../../x\n", "nim-cache", 0.0, (file,))
    path = store.mark_ready(ready)
    assert path.startswith(".nimpull/ready/") and path.count("/") == 2
    assert store.ready(ready.selection) == ready


def test_f26_ten_thousand_files_are_checked_in_under_a_second(store: Store) -> None:
    digest = digest_of(b"")
    files = []
    for number in range(10_000):
        descriptor = os.open(f"{store.root}/{number}", os.O_CREAT | os.O_WRONLY, 0o444)
        files.append(StoredFile(str(number), 0, os.fstat(descriptor).st_mtime_ns, digest))
        os.close(descriptor)
    store.mark_ready(Ready("many", "workspace", 0.0, tuple(files)))
    start = time.process_time()
    assert store.ready("many") is not None
    assert time.process_time() - start < 1.0


def test_nothing_is_marked_ready_that_is_not_committed(store: Store) -> None:
    layout = store.nim_cache()
    config, weights = fill(store, layout)
    blob(store, layout, weights).unlink()
    with pytest.raises(StoreIOError, match=r"weights\.bin"):
        mark(store, layout, config, weights)


# -- verification --------------------------------------------------------------------------------------


def test_f36_bit_rot_is_found_and_only_that_file_comes_again(store: Store) -> None:
    layout = store.nim_cache()
    config, weights = fill(store, layout)
    mark(store, layout, config, weights)
    assert store.verify().sound
    flip(blob(store, layout, weights), keep_time=True)
    assert store.ready("profile-1") is not None, "a stat cannot see this one"
    found = store.verify()
    (mismatch,) = found.mismatches
    assert (mismatch.path, mismatch.expected) == (
        "ngc/hub/models--nim--meta--llama-3_1-8b-instruct/blobs/beef-2",
        digest_of(WEIGHTS),
    )
    assert mismatch.found != mismatch.expected
    assert (found.files, found.bytes) == (2, len(CONFIG) + len(WEIGHTS))
    with open_store(store.root) as again:
        layout = again.nim_cache()
        assert again.ready("profile-1") is None
        assert layout.committed(config) is not None
        for question in (layout.committed, layout.find):
            assert question(weights) is None
        commit(again, layout, weights, WEIGHTS, etag="beef-2")
        assert again.verify().sound
        assert blob(again, layout, weights).read_bytes() == WEIGHTS


def test_verify_names_what_is_missing(store: Store) -> None:
    layout = store.nim_cache()
    config, weights = fill(store, layout)
    mark(store, layout, config, weights)
    Path(store.root, layout.path_of(config)).unlink()
    path = blob(store, layout, weights)
    path.unlink()
    found = store.verify()
    assert set(found.missing) == {
        layout.path_of(config),
        layout.path_of(weights),
        str(path.relative_to(os.path.realpath(store.root))),
    }
    assert not found.sound


def test_verify_can_be_cancelled(store: Store) -> None:
    fill(store, store.nim_cache())
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        Store(store.root, cancel).verify()


class SetAfter(threading.Event):
    """Set once it was looked at ``looks`` times: how long a hash takes plays no part."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks
        self.looked = 0

    def is_set(self) -> bool:
        self.looked += 1
        return self.looked > self.looks


def test_f41_a_stop_is_heard_in_the_middle_of_a_file_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(9 << 20))
    cancel = SetAfter(3)
    with pytest.raises(Cancelled, match=r"stopped while reading .*/weights"):
        Tree(str(tmp_path), cancel).hash("weights", "sha256")
    assert cancel.looked == 4
    digest, _ = Tree(str(tmp_path)).hash("weights", "sha256")
    assert digest.hex == hashlib.sha256(bytes(9 << 20)).hexdigest()


def test_status_counts_a_shared_file_once(store: Store) -> None:
    layout = store.nim_cache()
    config, weights = fill(store, layout)
    mark(store, layout, config, weights)
    assert take(layout, artifact("weights.bin", WEIGHTS, HUB), FoundBy.ELSEWHERE) is not None
    ingest = Path(store.root, ".nimpull/ingest/0123")
    ingest.mkdir(parents=True)
    (ingest / "data").write_bytes(bytes(8192))
    (ingest / "artifact").write_text(json.dumps({"identity": "ngc://a/b:1?file=x", "size": 9000}))
    (ingest.parent / "4567.whole").write_bytes(b"in flight")
    status = store.status()
    assert (status.files, status.bytes) == (2, len(CONFIG) + len(WEIGHTS))
    assert [(one.ready.selection, one.changed) for one in status.selections] == [("profile-1", ())]
    (partial,) = status.partial
    assert (partial.name, partial.identity, partial.size) == ("0123", "ngc://a/b:1?file=x", 9000)
    assert partial.bytes >= 8192
    blob(store, layout, config).unlink()
    assert store.status().selections[0].changed == (layout.path_of(config),)


# -- planted links -------------------------------------------------------------------------------------

MODEL = "ngc/hub/models--nim--meta--llama-3_1-8b-instruct"


@pytest.mark.parametrize(
    "place",
    [
        "ngc",
        "ngc/hub",
        MODEL,
        f"{MODEL}/blobs",
        f"{MODEL}/snapshots",
        f"{MODEL}/snapshots/{NGC.revision}",
        f"{MODEL}/snapshots/{NGC.revision}/dir",
    ],
)
def test_f51_a_planted_link_is_not_followed(store: Store, tmp_path: Path, place: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    planted = Path(store.root, place)
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.symlink_to(outside)
    layout = store.nim_cache()
    weights = artifact("dir/weights.bin", WEIGHTS)
    with pytest.raises(NotWritableError, match="is a link or a file, not a directory"):
        commit(store, layout, weights, WEIGHTS, etag="beef")
    assert tree_of(outside) == {}
    assert planted.is_symlink()


@pytest.mark.parametrize("name", [f"{MODEL}/blobs/beef", f"{MODEL}/snapshots/{NGC.revision}/dir/weights.bin"])
def test_f51_a_planted_file_link_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    planted = Path(store.root, name)
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.symlink_to(outside)
    layout = store.nim_cache()
    weights = artifact("dir/weights.bin", WEIGHTS)
    assert layout.committed(weights) is None
    with pytest.raises(NotWritableError, match="it is a link to"):
        commit(store, layout, weights, WEIGHTS, etag="beef")
    assert outside.read_bytes() == b"untouched"
    assert outside.stat().st_mode & 0o200, "not even its mode"


@pytest.mark.parametrize("place", [".nimpull", ".nimpull/new"])
def test_f51_a_planted_state_directory_is_refused_at_the_start(tmp_path: Path, place: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    planted = tmp_path / "store" / place
    planted.parent.mkdir(parents=True)
    planted.symlink_to(outside)
    with pytest.raises(NotWritableError):
        open_store(str(tmp_path / "store"))
    assert tree_of(outside) == {}


@pytest.mark.parametrize(
    "path",
    ["../victim", "a/../../victim", "a/./b", "/etc/passwd", "a//b", "..", ".", "a/..", "a/\0b", "\ud800"],
)
def test_f51_no_path_leads_out_of_the_root(tmp_path: Path, path: str) -> None:
    """Whatever a record, a marker or a listing says: the lowest level refuses it, for every call."""
    victim, root = tmp_path / "victim", tmp_path / "store"
    victim.write_bytes(b"keep")
    (root / "a").mkdir(parents=True)
    (root / "staged").write_bytes(b"x")
    tree = Tree(str(root))
    calls: tuple[Callable[[], object], ...] = (
        lambda: tree.lstat(path),
        lambda: tree.read(path),
        lambda: tree.readlink(path),
        lambda: tree.names(path),
        lambda: tree.open(path),
        lambda: tree.open_at(path, os.O_RDWR | os.O_CREAT),
        lambda: tree.write(path, b"x"),
        lambda: tree.create(path, b"x"),
        lambda: tree.rename("staged", path),
        lambda: tree.rename(path, "taken"),
        lambda: tree.symlink("target", path),
        lambda: tree.link("staged", path),
        lambda: tree.link(path, "taken"),
        lambda: tree.unlink(path),
        lambda: tree.remove_directory(path),
        lambda: tree.sync(path),
    )
    for held in (False, True):
        with tree.holding() if held else nullcontext():
            for call in calls:
                with pytest.raises(NotWritableError, match="is no path below"):
                    call()
    assert victim.read_bytes() == b"keep"
    assert sorted(os.listdir(tmp_path)) == ["store", "victim"]


def test_f51_verify_does_not_touch_what_a_planted_record_names(store: Store, tmp_path: Path) -> None:
    fill(store, store.nim_cache())
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep")
    os.utime(victim, ns=(1, 1))
    line = {"path": "../victim", "size": 4, "mtimeNs": 1, "digest": f"sha256:{'0' * 64}", "identity": "x"}
    Path(store.root, ".nimpull/record/planted.jsonl").write_text(json.dumps({**line, "etag": ""}) + "\n")
    with Store(store.root) as again:
        found = again.verify()
        assert (found.sound, found.files) == (True, 2), "a line that leads out of the store is none"
        with suppress(StoreError):
            again.remove(["../victim"])
    assert victim.read_bytes() == b"keep"
    assert victim.stat().st_mtime_ns == 1


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_f51_what_is_planted_while_directories_are_held_is_not_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "store"
    outside.mkdir()
    (root / "a/b").mkdir(parents=True)
    (root / "staged").write_bytes(b"x")
    tree = Tree(str(root))
    with tree.holding():
        assert tree.lstat("a/b/file") is None
        (root / "a/b").rename(root / "a/moved")
        (root / "a/b").symlink_to(outside)
        tree.rename("staged", "a/b/file")
        (root / "c").symlink_to(outside)
        with pytest.raises(NotWritableError, match="is a link or a file"):
            tree.create("c/d/file", b"x")
    assert tree_of(outside) == {}
    with pytest.raises(NotWritableError, match="is a link or a file"):
        tree.lstat("a/b/file")


def test_held_directories_are_few_and_end_with_the_block(tmp_path: Path) -> None:
    tree = Tree(str(tmp_path))
    before = descriptors()
    with tree.holding(), tree.holding():
        for number in range(200):
            assert tree.create(f"d{number}/e/file", b"x")
            assert tree.read(f"d{number}/e/file") == b"x"
        assert before < descriptors() <= before + 64
    assert descriptors() == before
    with pytest.raises(ZeroDivisionError), tree.holding():
        assert tree.lstat("d1/e/file") is not None
        raise ZeroDivisionError
    assert descriptors() == before


def test_a_small_file_is_made_where_nothing_stands(tmp_path: Path) -> None:
    tree = Tree(str(tmp_path))
    before = os.umask(0o077)
    try:
        assert tree.create("a/b", b"one")
    finally:
        os.umask(before)
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o644
    (tmp_path / "link").symlink_to(tmp_path / "a/b")
    assert not tree.create("a/b", b"two")
    assert not tree.create("link", b"two")
    assert (tmp_path / "a/b").read_bytes() == b"one"


def test_f49_a_directory_that_is_taken_away_as_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.mkdir
    taken: list[str] = []

    def mkdir(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(name, mode, dir_fd=dir_fd)
        if not taken:
            taken.append(name)
            os.rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", mkdir)
    Tree(str(tmp_path)).create("a/b", b"x")
    assert (tmp_path / "a/b").read_bytes() == b"x"
    assert taken == ["a"]
