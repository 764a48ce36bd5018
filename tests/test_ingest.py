"""Ingests: what survives of a run that ended anywhere, and what a volume that refuses is called."""

from __future__ import annotations

import errno
import json
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimpull.core.artifacts import Artifact
from nimpull.core.ports import Verified
from nimpull.core.ranges import Checkpoint
from nimpull.errors import NimpullError, NoSpaceError, NotWritableError, StoreIOError, StoreLimitError
from nimpull.store.area import IngestArea
from nimpull.store.durable import store_error
from nimpull.store.ingest import FLUSH_INTERVAL, FileIngest, present_of, remove_ingest
from nimpull.store.journal import journal_line, parse_journal
from nimpull.store.tree import Tree
from tests.committing import artifact, digest_of
from tests.pulling import MIB, PlainLayout, noise

CONTENT = noise(2 * MIB + 100)
ONE = artifact("sub/model", CONTENT)


def area(root: Path) -> IngestArea:
    return IngestArea(Tree(str(root)), PlainLayout(root))


def checkpoint(start: int, end: int) -> Checkpoint:
    return Checkpoint(start, end, bytes.fromhex(digest_of(CONTENT[start:end], "blake3").hex))


@contextmanager
def aligned(content: bytes) -> Iterator[memoryview]:
    with mmap.mmap(-1, max(1, len(content))) as memory:
        memory[: len(content)] = content
        with memoryview(memory) as view, view[: len(content)] as part:
            yield part


def half(root: Path, one: Artifact = ONE) -> FileIngest:
    """An ingest whose first MiB is written and claimed."""
    ingest = area(root).open(one)
    ingest.begin(len(CONTENT), '"v1"')
    with aligned(CONTENT[:MIB]) as block:
        ingest.write(block, 0)
    ingest.record(checkpoint(0, MIB))
    return ingest


def test_a_claim_survives_and_its_bytes_read_back(tmp_path: Path) -> None:
    half(tmp_path).close()
    again = area(tmp_path).open(ONE)
    assert again.checkpoints == (checkpoint(0, MIB),)
    assert again.validator == '"v1"'
    back = bytearray(MIB)
    assert again.read(memoryview(back), 0) == MIB
    assert back == CONTENT[:MIB]
    again.close()
    assert present_of(Tree(str(tmp_path)), [ONE]) == MIB


@pytest.mark.parametrize("offset", [0, 4096, 1000])
@pytest.mark.parametrize("length", [1, 4096, 5000, MIB])
def test_blocks_land_at_their_offset_aligned_or_not(tmp_path: Path, offset: int, length: int) -> None:
    ingest = area(tmp_path).open(ONE)
    ingest.begin(len(CONTENT), "")
    with aligned(CONTENT[offset : offset + length]) as block:
        ingest.write(block, offset)
    ingest.write(memoryview(CONTENT[:7]), offset + length)
    ingest.close()
    data = Path(tmp_path, ingest.path).read_bytes()
    assert data[:offset] == bytes(offset)
    assert data[offset : offset + length + 7] == CONTENT[offset : offset + length] + CONTENT[:7]
    assert len(data) == len(CONTENT)


def test_a_commit_makes_files_visible_read_only_and_leaves_nothing(tmp_path: Path) -> None:
    store = area(tmp_path)
    ingest = store.open(ONE)
    ingest.begin(len(CONTENT), "")
    ingest.write(memoryview(CONTENT), 0)
    small = artifact("small", b"abc")
    batch = [
        Verified(ingest, len(CONTENT), digest_of(CONTENT), "etag"),
        Verified(store.stage(small, memoryview(b"abc")), 3, digest_of(b"abc")),
    ]
    store.commit(batch)
    assert (tmp_path / "sub/model").read_bytes() == CONTENT
    assert (tmp_path / "small").read_bytes() == b"abc"
    assert (tmp_path / "small").stat().st_mode & 0o777 == 0o444
    assert list((tmp_path / ".nimpull/ingest").iterdir()) == []


def test_a_staged_file_of_a_killed_run_is_written_anew(tmp_path: Path) -> None:
    small = artifact("small", b"abc")
    first = area(tmp_path).stage(small, memoryview(b"other"))
    Path(tmp_path, first.path).chmod(0o444)
    area(tmp_path).stage(small, memoryview(b"abc"))
    assert Path(tmp_path, first.path).read_bytes() == b"abc"


def test_f32_a_file_shorter_than_what_was_written_is_never_placed(tmp_path: Path) -> None:
    store = area(tmp_path)
    staged = store.stage(ONE, memoryview(b"abc"))
    with pytest.raises(StoreIOError, match="holds 3 bytes where 4"):
        store.commit([Verified(staged, 4, digest_of(b"abcd"))])
    assert not (tmp_path / "sub/model").exists()


def test_bytes_of_two_lines_count_once(tmp_path: Path) -> None:
    ingest = half(tmp_path)
    before = present_of(Tree(str(tmp_path)), [ONE])
    for start, end in ((0, MIB // 4), (MIB // 2, MIB)):
        ingest.record(checkpoint(start, end))
    ingest.close()
    assert present_of(Tree(str(tmp_path)), [ONE]) <= before


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"identity": "ngc://other"},
        {"digest": ""},
        {"size": 7},
        {"size": None},
        {"validator": 1},
    ],
)
def test_f43_a_header_of_something_else_starts_the_file_over(
    tmp_path: Path, change: dict[str, object]
) -> None:
    ingest = half(tmp_path)
    ingest.close()
    header = Path(tmp_path, ingest.path).with_name("artifact")
    header.write_text(json.dumps({**json.loads(header.read_text()), **change}))
    again = area(tmp_path).open(ONE)
    assert again.checkpoints == ()
    again.begin(len(CONTENT), "")
    again.close()
    assert present_of(Tree(str(tmp_path)), [ONE]) == 0


@given(st.binary(max_size=300))
def test_f43_no_bytes_make_a_claim(garbage: bytes) -> None:
    good = journal_line(checkpoint(0, MIB))
    assert parse_journal(garbage, len(CONTENT)) == ()
    assert checkpoint(0, MIB) in parse_journal(garbage + b"\n" + good, len(CONTENT))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_f43_a_flipped_or_torn_line_is_ignored(position: int, mask: int) -> None:
    good = journal_line(checkpoint(0, MIB))
    position %= len(good) - 1
    flipped = bytearray(good)
    flipped[position] ^= mask
    assert parse_journal(bytes(flipped), len(CONTENT)) == ()
    assert parse_journal(good[:position], len(CONTENT)) == ()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["artifact", "journal"]))
def test_f43_garbage_in_any_file_is_never_a_traceback(tmp_path: Path, garbage: bytes, name: str) -> None:
    ingest = half(tmp_path)
    ingest.close()
    Path(tmp_path, ingest.path).with_name(name).write_bytes(garbage)
    area(tmp_path).open(ONE).close()


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, NoSpaceError, "free"),
        (errno.EDQUOT, NoSpaceError, "quota"),
        (errno.EROFS, NotWritableError, "uid"),
        (errno.EACCES, NotWritableError, "gid"),
        (errno.EIO, StoreIOError, "Input/output"),
        (errno.ESTALE, StoreIOError, "Stale"),
        (errno.EMFILE, StoreLimitError, "open files"),
    ],
)
def test_f30_f32_what_a_volume_refuses_has_a_name(
    tmp_path: Path, code: int, kind: type[NimpullError], words: str
) -> None:
    error = store_error(OSError(code, os.strerror(code)), "write", str(tmp_path / "not" / "there"))
    assert isinstance(error, kind)
    assert words in error.message
    assert error.hint


def test_f51_a_link_planted_in_the_place_of_the_data_is_not_followed(tmp_path: Path) -> None:
    half(tmp_path).close()
    outside = tmp_path / "outside"
    outside.write_bytes(b"keep")
    data = Path(tmp_path, half(tmp_path).path)
    data.unlink()
    data.symlink_to(outside)
    with pytest.raises(NotWritableError, match="it is a link"):
        area(tmp_path).open(ONE)
    assert outside.read_bytes() == b"keep"


@pytest.mark.parametrize("place", [".nimpull", ".nimpull/ingest", ".nimpull/ingest/NAME"])
def test_f51_a_link_planted_above_the_data_is_not_followed(tmp_path: Path, place: str) -> None:
    """Also not one that came after the area was looked at: each access walks anew."""
    root, outside = tmp_path / "store", tmp_path / "outside"
    root.mkdir()
    store = area(root)
    ingest = store.open(ONE)
    ingest.begin(len(CONTENT), "")
    planted = root / place.replace("NAME", Path(ingest.path).parent.name)
    planted.rename(outside)
    before = {path: path.stat().st_mode for path in outside.rglob("*")}
    planted.symlink_to(outside)
    steps = (
        lambda: store.commit([Verified(ingest, len(CONTENT), digest_of(CONTENT))]),
        lambda: store.stage(artifact("small", b"abc"), memoryview(b"abc")),
        lambda: store.open(ONE),
        lambda: store.sweep([ONE]),
        lambda: ingest.begin(len(CONTENT), "other"),
        lambda: remove_ingest(Tree(str(root)), str(Path(ingest.path).parent)),
    )
    for step in steps[place.endswith("NAME") * 2 :]:
        with pytest.raises(NotWritableError, match="is a link"):
            step()
    assert {path: path.stat().st_mode for path in outside.rglob("*")} == before
    ingest.close()


def test_a_journal_that_cannot_be_opened_leaves_no_descriptor(tmp_path: Path) -> None:
    ingest = half(tmp_path)
    ingest.close()
    journal = tmp_path / ingest.path.replace("/data", "/journal")
    journal.unlink()
    journal.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(NotWritableError):
            FileIngest(ONE, Tree(str(tmp_path)), str(Path(ingest.path).parent), time.monotonic)
    assert len(os.listdir("/proc/self/fd")) == before


def test_f32_a_late_error_of_one_descriptor_leaves_none_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest, real, closed = half(tmp_path), os.close, []

    def close(descriptor: int) -> None:
        real(descriptor)
        closed.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", close)
    with pytest.raises(StoreIOError, match="cannot close"):
        ingest.close()
    monkeypatch.undo()
    assert len(closed) == 3 or not hasattr(os, "O_DIRECT")


def test_f40_what_is_journaled_is_flushed_every_few_seconds_bytes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, flushed = [0.0], []

    def flush(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fdatasync", flush)
    ingest = IngestArea(Tree(str(tmp_path)), PlainLayout(tmp_path), monotonic=lambda: now[0]).open(ONE)
    ingest.begin(len(CONTENT), "")
    for moment in (1.0, FLUSH_INTERVAL, FLUSH_INTERVAL + 1, 2 * FLUSH_INTERVAL):
        now[0] = moment
        ingest.record(checkpoint(0, MIB))
    ingest.close()
    assert flushed == ["data", "journal"] * 2


def test_f42_what_goes_through_the_page_cache_is_flushed_and_dropped_every_so_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nimpull.store.ingest.WRITE_BACK", 10_000)
    done: list[str] = []

    def flush(descriptor: int) -> None:
        done.append("flush")

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        done.append("drop")

    ingest = area(tmp_path).open(ONE)
    ingest.begin(len(CONTENT), "")
    monkeypatch.setattr(os, "fdatasync", flush)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    for number in range(5):  # nothing of it is aligned as O_DIRECT needs it
        ingest.write(memoryview(CONTENT)[:4000], 1 + number * 4000)
    ingest.close()
    assert done == ["flush", "drop"]
