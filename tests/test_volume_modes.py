"""Volumes that cannot all that a disk can: what is tried out, and pulls onto mounts that refuse (F64)."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nimpull.core.abilities import Abilities, WriteMode
from nimpull.errors import StoreIOError
from nimpull.store import durable, preflight
from nimpull.store.tree import INGESTS, TEMPORARY, Tree
from nimpull.store.trial import try_out
from tests.calls import FILES
from tests.pods import mounted as volume_mounted
from tests.pulling import MIB, noise
from tests.refusing_mounts import KINDS, missing, mounted
from tests.registry import Registry
from tests.running import Run, ended, nimpull, start

mounting = pytest.mark.skipif(bool(missing()), reason=missing() or "mounts")
TINY = "hf://default/tiny"


def test_a_disk_can_all(tmp_path: Path) -> None:
    found = preflight.probe(str(tmp_path / "store"))
    assert found.mode is not WriteMode.SEQUENTIAL
    assert found.offsets and found.replacing and found.links and found.symlinks
    assert os.listdir(tmp_path / "store" / ".nimpull" / "new") == []


@pytest.mark.parametrize(
    ("abilities", "mode", "missing"),
    [
        (Abilities(), "direct", ()),
        (Abilities(links=False, symlinks=False), "plain", ("no hard links", "no symbolic links")),
        (Abilities(direct=False), "plain", ("no O_DIRECT",)),
        (Abilities(offsets=False), "sequential", ("no writes at an offset",)),
        (Abilities(replacing=False), "sequential", ("no rename over a file",)),
    ],
)
def test_a_mode_follows_from_what_a_volume_can(
    abilities: Abilities, mode: str, missing: tuple[str, ...]
) -> None:
    assert (abilities.mode.value, abilities.missing) == (mode, missing)


@mounting
def test_f64_what_a_mount_refuses_is_found_out_at_once(tmp_path: Path) -> None:
    for kind, expected in zip(KINDS, (WriteMode.SEQUENTIAL, WriteMode.PLAIN), strict=True):
        with mounted(kind, tmp_path / f"{kind}.behind", tmp_path / kind) as root:
            begun = time.monotonic()
            found = try_out(Tree(str(root)))
            assert time.monotonic() - begun < 10
            assert found.mode is expected
            assert not (found.links or found.symlinks)


@mounting
@pytest.mark.parametrize("layout", ["cache", "local-dir"])
@pytest.mark.parametrize("kind", KINDS)
def test_f64_a_pull_onto_a_mount_that_refuses(
    registry: Registry, tmp_path: Path, kind: str, layout: str
) -> None:
    (tmp_path / "scratch").mkdir()
    with mounted(kind, tmp_path / "behind", tmp_path / "mount") as root:
        run = _pull(registry, tmp_path, root, layout)
        assert run.code == 0, run.text
        assert _content(root, layout) == dict(FILES)
        store = run.report["store"]
        assert store["mode"] == {"sequential": "sequential", "copying": "plain"}[kind]
        assert "no hard links" in store["lacks"]
        asked = len(registry.log())
        again = _pull(registry, tmp_path, root, layout, HF_ENDPOINT="http://127.0.0.1:1")
        assert again.code == 30, "another endpoint is another source"
        again = _pull(registry, tmp_path, root, layout)
        assert again.code == 0, again.text
        assert len(registry.log()) == asked
        checked = nimpull(registry, root, "verify", "--store", str(root))
        assert checked.code == 0, checked.text
    assert not list((tmp_path / "scratch").rglob("data"))


@mounting
def test_f64_a_killed_pull_goes_on_from_scratch(registry: Registry, tmp_path: Path) -> None:
    """The bytes that were assembled outside of the volume are there for the next run."""
    (tmp_path / "scratch").mkdir()
    with mounted("sequential", tmp_path / "behind", tmp_path / "mount") as root:
        for _ in range(4):
            arguments = ("download", TINY, "--store", str(root), "--layout", "local-dir")
            process = start(registry, root, *arguments, NIMPULL_SCRATCH=str(tmp_path / "scratch"))
            assert process.stderr
            process.stderr.readline()  # it has begun
            process.kill()
            ended(process, root)
        run = _pull(registry, tmp_path, root, "local-dir")
        assert run.code == 0, run.text
        assert _content(root, "local-dir") == dict(FILES)


@mounting
def test_f64_no_place_to_assemble_is_told_at_once(registry: Registry, tmp_path: Path) -> None:
    with mounted("sequential", tmp_path / "behind", tmp_path / "mount") as root:
        asked = len(registry.log())
        environment = {"NIMPULL_SCRATCH": "/proc/none"}
        run = nimpull(registry, root, "download", TINY, "--store", str(root), **environment)
        assert run.code == 41, run.text
        assert "NIMPULL_SCRATCH" in run.text.splitlines()[-1]
        assert len(registry.log()) == asked


def test_f65_a_time_that_moved_after_the_commit_is_no_reason_to_fetch(
    registry: Registry, tmp_path: Path
) -> None:
    """CIFS and s3fs set the time of a file once more after it was closed."""
    store = tmp_path / "store"
    assert nimpull(registry, store, "download", TINY, "--layout", "local-dir").code == 0
    for name in FILES:
        os.utime(store / name, (1, 1))
    asked = len(registry.log())
    run = nimpull(registry, store, "download", TINY, "--layout", "local-dir")
    assert run.code == 0, run.text
    assert len(registry.log()) == asked
    name = max(FILES, key=lambda name: len(FILES[name]))
    (store / name).chmod(0o644)
    (store / name).write_bytes(FILES[name][::-1])
    run = nimpull(registry, store, "download", TINY, "--layout", "local-dir")
    assert run.code == 0, run.text
    assert (store / name).read_bytes() == FILES[name]


def test_hub_caches_hold_files_where_links_are_not_wanted(registry: Registry, tmp_path: Path) -> None:
    """HF_HUB_DISABLE_SYMLINKS, as huggingface_hub means it since April 2026."""
    store = tmp_path / "store"
    run = nimpull(registry, store, "download", TINY, HF_HUB_DISABLE_SYMLINKS="1")
    assert run.code == 0, run.text
    assert _content(store, "cache") == dict(FILES)
    assert not [path for path in store.rglob("*") if path.is_symlink()]


def _pull(registry: Registry, tmp_path: Path, root: Path, layout: str, **environment: str) -> Run:
    known = {"NIMPULL_SCRATCH": str(tmp_path / "scratch"), **environment}
    return nimpull(registry, root, "download", TINY, "--store", str(root), "--layout", layout, **known)


def _content(root: Path, layout: str) -> dict[str, bytes]:
    """What a reader finds, by name."""
    above = root
    if layout == "cache":
        (above,) = root.glob("huggingface/hub/models--*/snapshots/*")
    return {name: (above / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("replacing", [True, False], ids=["renamed", "written-in-place"])
def test_f64_what_the_volume_reads_back_otherwise_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replacing: bool
) -> None:
    root = tmp_path / "store"
    abilities = replace(preflight.probe(str(root)), offsets=False, replacing=replacing)
    tree = Tree(str(root))
    tree.adapt(abilities, preflight.make_scratch(str(tmp_path), str(root)))
    tree.write(f"{INGESTS}/file", b"weights" * 1000)
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, block: real(file, bytes(len(block))))
    with pytest.raises(StoreIOError, match="other bytes than were written"):
        tree.rename(f"{INGESTS}/file", "model.bin")
    assert tree.names("") == (".nimpull",)
    monkeypatch.undo()
    assert tree.rename(f"{INGESTS}/file", "model.bin") == ""
    assert (root / "model.bin").read_bytes() == b"weights" * 1000


@mounting
@pytest.mark.parametrize(("room", "code"), [(8, 0), (2, 40)], ids=["for-the-largest", "for-none"])
def test_f64_as_many_files_come_at_a_time_as_fit_into_scratch(tmp_path: Path, room: int, code: int) -> None:
    """Room for two of five files: all come. Room for none: that is told before the first byte."""
    files = {f"model-{number}.bin": noise(3 * MIB, number) for number in range(5)} | dict(FILES)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with (
        Registry() as registry,
        volume_mounted("-t", "tmpfs", "-o", f"size={room}m", "tmpfs", str(scratch)),
        mounted("sequential", tmp_path / "behind", tmp_path / "mount") as root,
    ):
        registry.add_hub_repo("default/tiny", files)
        run = _pull(registry, tmp_path, root, "local-dir")
        assert run.code == code, run.text
        if code:
            assert "NIMPULL_SCRATCH" in run.text.splitlines()[-1]
            assert not any("model-" in request.target for request in registry.requests)
        else:
            assert {name: (root / name).read_bytes() for name in files} == files


@pytest.mark.parametrize("leaves", [None, b"theirs"])
def test_f64_a_name_that_another_run_writes_in_this_moment_is_written_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: bytes | None
) -> None:
    """Where no file replaces another, each run removes what stands: two that end together meet there."""
    (tmp_path / "store").mkdir()
    tree = Tree(str(tmp_path / "store"))
    tree.adapt(Abilities(offsets=False, replacing=False), str(tmp_path))
    (tmp_path / INGESTS).mkdir(parents=True)
    (tmp_path / TEMPORARY).mkdir()
    copy = durable.copy_in_order

    def meet(source: int, target: int) -> None:
        copy(source, target)
        monkeypatch.setattr(durable, "copy_in_order", copy)
        (tmp_path / "store/tag").unlink()
        if leaves is not None:
            (tmp_path / "store/tag").write_bytes(leaves)

    monkeypatch.setattr(durable, "copy_in_order", meet)
    tree.write("tag", b"ours, and longer than theirs")
    assert (tmp_path / "store/tag").read_bytes() == b"ours, and longer than theirs"


def test_f64_a_file_that_opens_by_one_name_at_a_time_has_no_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SMB: a lease is for one name of a file, and the client answers EINVAL to the other one."""
    opened: dict[int, tuple[int, str]] = {}  # inode and name by descriptor
    real_open, real_close = os.open, os.close

    def open_leased(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        file = real_open(path, flags, mode, dir_fd=dir_fd)
        status = os.fstat(file)
        if any(inode == status.st_ino and name != path for inode, name in opened.values()):
            real_close(file)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        opened[file] = status.st_ino, path
        return file

    def close(file: int) -> None:
        opened.pop(file, None)
        real_close(file)

    monkeypatch.setattr(os, "open", open_leased)
    monkeypatch.setattr(os, "close", close)
    assert "no hard links" in preflight.probe(str(tmp_path / "store")).missing


def test_f64_a_directory_that_is_kept_open_tells_what_it_holds_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CIFS answers what it answered when a directory was opened: every claim was missed there, for ever."""
    told: dict[int, list[str]] = {}
    real_list, real_close = os.listdir, os.close

    def close(file: int) -> None:
        told.pop(file, None)
        real_close(file)

    monkeypatch.setattr(os, "listdir", lambda file: told.setdefault(file, real_list(file)))
    monkeypatch.setattr(os, "close", close)
    tree = Tree(str(tmp_path))
    with tree.holding():
        tree.create("claims/one", b"")
        assert tree.names("claims") == ("one",)
        tree.create("claims/two", b"")
        assert tree.names("claims") == ("one", "two")
