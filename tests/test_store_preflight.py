"""What is found out before the first byte: who may write, one file system, room, names."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nimpull.core.names import SafePath
from nimpull.core.ports import Verified
from nimpull.core.units import show_bytes
from nimpull.errors import ListingError, NoSpaceError, NotWritableError, StoreIOError
from nimpull.store import preflight
from nimpull.store.area import IngestArea
from nimpull.store.store import Store
from nimpull.store.tree import Tree
from tests.committing import artifact, commit, digest_of, open_store, tree_of
from tests.pods import mounted

NOBODY = 65534


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory whose parents every user may enter."""
    path = Path(tempfile.mkdtemp(prefix="nimpull-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def unprivileged() -> Iterator[int]:
    """As a user to whom modes apply; gives its uid."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield os.geteuid()
    finally:
        os.seteuid(before)


def test_a_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    preflight.probe(str(tmp_path / "made" / "here"))
    assert tree_of(tmp_path / "made" / "here") == {}
    assert list((tmp_path / "made/here/.nimpull/new").iterdir()) == []


@pytest.mark.parametrize("below", ["", "deeper/store"])
def test_f31_a_foreign_directory_is_refused_with_the_facts(open_directory: Path, below: str) -> None:
    volume = open_directory / "volume"
    volume.mkdir()
    volume.chmod(0o555)
    with unprivileged() as uid, pytest.raises(NotWritableError) as caught:
        open_store(str(volume / below))
    owner = volume.stat()
    assert str(volume) in caught.value.message
    assert f"uid {uid}, gid {os.getegid()}" in caught.value.message
    assert f"owner {owner.st_uid}:{owner.st_gid}, mode 0555" in caught.value.message
    assert "fsGroup" in caught.value.hint


def test_f31_a_store_below_a_directory_that_may_not_be_entered(open_directory: Path) -> None:
    locked = open_directory / "locked"
    (locked / "store").mkdir(parents=True)
    locked.chmod(0o700)
    os.chown(locked, 12345, 12345)
    with unprivileged() as uid, pytest.raises(NotWritableError, match=f"locked cannot be written.*uid {uid}"):
        preflight.probe(str(locked / "store"))
    with unprivileged(), pytest.raises(NotWritableError, match="Permission denied"):
        Tree(str(locked / "store")).names("")


@pytest.mark.parametrize("below", ["", "/deeper/store"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a-file", "a-file is a file, not a directory"),
        ("a-link", "a-link is a link to “nowhere”, which leads to no directory"),
        ("to-file", "to-file is a link to “a-file”, which leads to no directory"),
        ("/proc/nimpull", "no directory can be made in /proc: No such file or directory"),
    ],
)
def test_a_root_that_cannot_be_a_directory_is_told_as_such(
    tmp_path: Path, name: str, reason: str, below: str
) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-link").symlink_to("nowhere")
    (tmp_path / "to-file").symlink_to("a-file")
    with pytest.raises(NotWritableError) as caught:
        preflight.probe(f"{tmp_path / name}{below}")
    assert caught.value.message.endswith(reason)
    assert "--store" in caught.value.hint


def test_f31_a_read_only_mount_is_named_as_such(tmp_path: Path) -> None:
    with mounted("-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(tmp_path)):
        with pytest.raises(NotWritableError, match="Read-only file system") as caught:
            open_store(str(tmp_path))
        assert "readOnly" in caught.value.hint


def test_a_complete_store_opens_on_a_read_only_mount(tmp_path: Path) -> None:
    one = artifact("model.bin", b"content")
    with open_store(str(tmp_path)) as store:
        commit(store, store.nim_cache(), one, b"content")
    with mounted("--bind", str(tmp_path), str(tmp_path)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(tmp_path)], check=True)
        with Store(str(tmp_path)) as store:
            assert store.nim_cache().committed(one) is not None
            assert store.verify().sound


def test_f33_a_mount_below_the_root_is_found_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "ngc").mkdir()
    with mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path / "ngc")):
        with pytest.raises(NotWritableError, match="another file system") as caught:
            open_store(str(tmp_path))
        assert str(tmp_path / "ngc") in caught.value.message
        assert "subPath" in caught.value.hint


def test_f33_a_deeper_mount_is_found_for_the_paths_that_are_wanted(tmp_path: Path) -> None:
    deep = tmp_path / "ngc" / "hub"
    deep.mkdir(parents=True)
    with open_store(str(tmp_path)) as store, mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(deep)):
        preflight.check_one_file_system(store.tree, ("huggingface/hub/x", "plain"))
        with pytest.raises(NotWritableError, match="another file system"):
            preflight.check_one_file_system(store.tree, ("ngc/hub/models--a/blobs/x",))


def test_f33_a_rename_across_file_systems_is_never_a_copy(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(below)):
        (below / "staged").touch()
        with pytest.raises(StoreIOError) as caught:
            Tree(str(tmp_path)).rename("below/staged", "file")
        assert "one file system" in caught.value.hint
        assert (below / "staged").exists()
    assert not (tmp_path / "file").exists()


def test_f29_too_little_room_says_by_how_much(tmp_path: Path) -> None:
    with mounted("-t", "tmpfs", "-o", "size=32m", "tmpfs", str(tmp_path)):
        free = preflight.room(str(tmp_path)).bytes or 0
        need = 40 << 20
        with pytest.raises(NoSpaceError) as caught:
            preflight.check_room(str(tmp_path), need)
        wanted = need + preflight.RESERVE
        assert caught.value.message == (
            f"{tmp_path}: needs {show_bytes(wanted)}, has {show_bytes(free)}, "
            f"short by {show_bytes(wanted - free)}"
        )
        preflight.check_room(str(tmp_path), free - preflight.RESERVE)


def test_f29_inodes_count_too(tmp_path: Path) -> None:
    with (
        mounted("-t", "tmpfs", "-o", "size=32m,nr_inodes=10", "tmpfs", str(tmp_path)),
        pytest.raises(NoSpaceError, match=r"needs 100 inodes, has \d, short by 9\d inodes"),
    ):
        preflight.check_room(str(tmp_path), 0, files=100)


def test_f29_a_file_system_that_counts_nothing_is_not_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some FUSE drivers answer statfs(2) with zeros."""
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, *[0] * 7, 255)))
    assert preflight.room(str(tmp_path)) == preflight.Room(None, None)
    preflight.check_room(str(tmp_path), 1 << 40, files=1 << 20)


def test_f29_directories_and_links_take_inodes_too(tmp_path: Path) -> None:
    (tmp_path / "there/a").mkdir(parents=True)
    tree = Tree(str(tmp_path))
    state = preflight.inodes_for(tree, (), each=1)
    assert preflight.inodes_for(tree, ("there/a/x", "there/b/c/y", "there/b/z"), each=1) - state == 3 + 2
    assert preflight.inodes_for(tree, ("there/a/x", "there/b/c/y", "there/b/z"), each=2) - state == 2 * (
        3 + 2
    )


def test_a_volume_without_modes_is_filled_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", refuse)
    tmp_path.chmod(0o2775)
    before, one = os.umask(0o077), artifact("dir/a.bin", b"a")
    try:
        with open_store(str(tmp_path / "store")) as store:
            area = IngestArea(store.tree, store.nim_cache())
            area.commit([Verified(area.stage(one, memoryview(b"a")), 1, digest_of(b"a"))])
            assert store.nim_cache().committed(one) is not None
            area.close()
    finally:
        os.umask(before)


def test_f37_names_that_differ_in_case_only() -> None:
    names = tuple(map(SafePath, ("README.md", "readme.md")))
    preflight.check_names(names, folding=False)
    with pytest.raises(ListingError, match=r"README\.md” and “readme\.md” cannot both exist"):
        preflight.check_names(names, folding=True)


def test_f37_names_that_differ_in_unicode_form_only() -> None:
    names = tuple(map(SafePath, ("caf\u00e9", "cafe\u0301")))
    preflight.check_names(names, folding=False)
    with pytest.raises(ListingError):
        preflight.check_names(names, folding=True)


def test_f37_a_file_cannot_be_a_directory_too() -> None:
    with pytest.raises(ListingError):
        preflight.check_names(map(SafePath, ("a/b", "a")), folding=False)
    preflight.check_names(map(SafePath, ("a/b", "A")), folding=False)
    with pytest.raises(ListingError):
        preflight.check_names(map(SafePath, ("a/b", "A")), folding=True)


def test_f37_folding_is_found_out_by_trying(tmp_path: Path) -> None:
    upper, lower = tmp_path / "X", tmp_path / "x"
    upper.touch()
    assert preflight.folds_names(Tree(str(tmp_path))) == lower.exists()


def test_on_a_volume_of_a_group_new_directories_are_the_groups(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)
    before = os.umask(0o077)
    try:
        with open_store(str(tmp_path)) as store:
            commit(store, store.nim_cache(), artifact("a.bin", b"a"), b"a")
    finally:
        os.umask(before)
    for name in ("ngc", "ngc/hub", ".nimpull/record"):
        status = (tmp_path / name).stat()
        assert status.st_mode & 0o2070 == 0o2070, name
        assert status.st_gid == tmp_path.stat().st_gid
