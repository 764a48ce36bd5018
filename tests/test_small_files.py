"""Small files: committed in groups, durable before they have names, over as many connections as pay."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from nimpull.core.artifacts import Artifact
from nimpull.core.events import Advanced
from nimpull.core.ports import Verified
from nimpull.errors import StoreIOError
from nimpull.fetch import FetchLimits
from nimpull.store import area as ingest_area
from nimpull.store.area import Barrier, IngestArea, find_syncfs
from nimpull.store.tree import Tree
from tests.clocks import StepClock
from tests.committing import artifact, digest_of
from tests.pulling import PlainLayout, noise, pulling, serve
from tests.servers import Peer, Seen

FILES = {f"dir-{number % 3}/file-{number}": noise(1000 + number, number) for number in range(40)}
WANTED = [artifact(path, content) for path, content in FILES.items()]
GROUPS = FetchLimits(batch_files=20, small_connections=4)


class Volume:
    """In syncfs's place: counts, and fails on the calls in ``bad``."""

    def __init__(self, bad: range = range(0)) -> None:
        self.calls = 0
        self._bad = bad
        self._numbers = count()

    def __call__(self, descriptor: int) -> None:
        self.calls += 1
        if next(self._numbers) in self._bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def volume(monkeypatch: pytest.MonkeyPatch) -> Callable[[range], Volume]:
    def make(bad: range = range(0)) -> Volume:
        made = Volume(bad)
        monkeypatch.setattr(ingest_area, "find_syncfs", lambda descriptor: made)
        return made

    return make


@pytest.fixture
def synced_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What fsync was called for, by name."""
    names: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


def stage_all(area: IngestArea) -> list[Verified]:
    return [
        Verified(
            area.stage(one, memoryview(FILES[one.path])), len(FILES[one.path]), digest_of(FILES[one.path])
        )
        for one in WANTED
    ]


# -- durable before visible ----------------------------------------------------------------------------


def test_f40_no_file_of_a_group_has_its_name_before_all_are_durable(
    tmp_path: Path, volume: Callable[[], Volume]
) -> None:
    synced = volume()

    class Watching(PlainLayout):
        def place(self, artifact: Artifact, staged: str, **facts: Any) -> tuple[str, ...]:
            assert synced.calls == 1
            return super().place(artifact, staged, **facts)

    area = IngestArea(Tree(str(tmp_path)), Watching(tmp_path))
    staged = stage_all(area)
    assert synced.calls == 0
    area.commit(staged)
    assert {path: (tmp_path / path).read_bytes() for path in FILES} == FILES
    assert {(tmp_path / path).stat().st_mode & 0o777 for path in FILES} == {0o444}
    area.close()


def test_f40_without_syncfs_each_file_is_synced_when_it_is_written(
    tmp_path: Path, synced_names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_area, "find_syncfs", lambda descriptor: None)
    area = IngestArea(Tree(str(tmp_path)), PlainLayout(tmp_path))
    staged = stage_all(area)
    assert sum(name.endswith(".whole") for name in synced_names) == len(FILES)
    synced_names.clear()
    area.commit(staged)
    assert set(synced_names) == {
        str(tmp_path / ".nimpull/ingest"),
        *(str(tmp_path / f"dir-{n}") for n in range(3)),
    }
    area.close()


def test_a_few_files_leave_the_rest_of_the_file_system_alone(
    tmp_path: Path, volume: Callable[[], Volume], synced_names: list[str]
) -> None:
    synced = volume()
    area = IngestArea(Tree(str(tmp_path)), PlainLayout(tmp_path))
    area.commit(stage_all(area)[:3])
    assert synced.calls == 0
    assert sum(name.endswith(".whole") for name in synced_names) == 3
    area.close()


def test_the_umask_takes_nothing_from_a_committed_file(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        area = IngestArea(Tree(str(tmp_path)), PlainLayout(tmp_path))
        area.commit(stage_all(area))
    finally:
        os.umask(before)
    assert {(tmp_path / path).stat().st_mode & 0o777 for path in FILES} == {0o444}
    area.close()


# -- what was not written ------------------------------------------------------------------------------


def test_f32_a_group_that_was_not_written_comes_once_more(
    tmp_path: Path, volume: Callable[[range], Volume]
) -> None:
    volume(range(1))
    with pulling(tmp_path, serve(FILES)) as pull:
        outcomes = pull.run(*WANTED, limits=GROUPS)
    assert pull.committed(*WANTED) == FILES
    assert [each.artifact for each in outcomes] == WANTED
    # the other group too, where it was written before the error was told
    again = len(pull.server.seen) - len(FILES)
    assert again in (GROUPS.batch_files, len(FILES))
    told = sum(each.count for each in pull.events if isinstance(each, Advanced))
    assert told == sum(map(len, FILES.values()))
    assert pull.leftovers() == []


def test_f32_what_is_not_written_twice_ends_the_run(
    tmp_path: Path, volume: Callable[[range], Volume]
) -> None:
    volume(range(99))
    with pulling(tmp_path, serve(FILES)) as pull, pytest.raises(StoreIOError, match="Input/output"):
        pull.run(*WANTED, limits=GROUPS)
    assert not any((tmp_path / path).exists() for path in FILES)


def test_f32_an_error_is_of_every_file_written_before_it_was_told(
    tmp_path: Path, volume: Callable[[range], Volume]
) -> None:
    volume(range(1))
    area = IngestArea(Tree(str(tmp_path)), PlainLayout(tmp_path))
    staged = stage_all(area)
    for group in (staged[:20], staged[20:]):
        with pytest.raises(StoreIOError, match="Input/output"):
            area.commit(group)
    assert not any((tmp_path / path).exists() for path in FILES)
    area.commit(stage_all(area))
    assert {path: (tmp_path / path).read_bytes() for path in FILES} == FILES
    area.close()


def test_f32_a_short_file_keeps_all_of_its_group_from_being_placed(tmp_path: Path) -> None:
    area = IngestArea(Tree(str(tmp_path)), PlainLayout(tmp_path))
    staged = stage_all(area)
    staged[-1] = replace(staged[-1], size=staged[-1].size + 1)
    with pytest.raises(StoreIOError, match=r"holds \d+ bytes where"):
        area.commit(staged)
    assert not any((tmp_path / path).exists() for path in FILES)
    area.close()


@pytest.mark.parametrize("call", ["pwrite", "close"])
def test_f32_a_file_that_cannot_be_written_is_written_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real = getattr(os, call)
    calls = count()

    def broken(descriptor: int, *arguments: Any) -> Any:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        result = real(descriptor, *arguments)
        if name.endswith(".whole") and next(calls) in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return result

    monkeypatch.setattr(os, call, broken)
    bad = range(3, 4)
    with pulling(tmp_path, serve(FILES)) as pull:
        pull.run(*WANTED, limits=GROUPS)
        assert pull.committed(*WANTED) == FILES
        assert len(pull.server.seen) == len(FILES), "its content is still here: it is not asked for again"
    bad = range(99, 9999)
    more = {f"more-{number}": noise(500, number) for number in range(80)}
    with pulling(tmp_path, serve(more)) as pull, pytest.raises(StoreIOError, match="Input/output"):
        pull.run(*(artifact(path, content) for path, content in more.items()), limits=GROUPS)


# -- syncfs itself -------------------------------------------------------------------------------------


def test_syncfs_is_used_where_it_tells_what_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for directory, expected in (("/dev/shm", True), ("/proc", False)):
        descriptor = os.open(directory, os.O_RDONLY)
        found = find_syncfs(descriptor)
        assert (found is not None) is expected
        if found is not None:
            found(descriptor)
            with pytest.raises(OSError, match="Bad file descriptor"):
                found(-1)
        os.close(descriptor)
    real = os.uname()
    for release, expected in (("5.7.19", False), ("5.8.0-rc1", True), ("10.0", True), ("strange", False)):
        old = os.uname_result((real.sysname, real.nodename, release, real.version, real.machine))
        monkeypatch.setattr(os, "uname", lambda old=old: old)
        descriptor = os.open("/dev/shm", os.O_RDONLY)
        made = Barrier(descriptor)
        os.close(descriptor)
        assert made.whole is expected
        made.close()


# -- connections ---------------------------------------------------------------------------------------


def test_one_connection_is_enough_for_all_where_no_more_are_allowed(tmp_path: Path) -> None:
    files = {**FILES, "large": noise(3 << 20)}
    wanted = [artifact(path, content) for path, content in files.items()]
    with pulling(tmp_path, serve(files)) as pull:
        pull.run(*wanted, limits=FetchLimits().with_most(1))
    assert pull.committed(*wanted) == files
    assert {seen.connection for seen in pull.server.seen} == {0}


def test_many_small_files_at_a_distance_get_many_connections(tmp_path: Path) -> None:
    limits = FetchLimits(small_connections=12)
    waiting: set[int] = set()

    def together(seen: Seen, peer: Peer) -> None:
        """Answers once twelve connections have asked: none of them would be answered alone."""
        waiting.add(seen.connection)
        while len(waiting) < limits.small_connections:
            assert not peer.stopped.wait(0.001)
        serve(FILES)(seen, peer)

    with pulling(tmp_path, together) as pull:
        pull.clock = StepClock(step=0.001)
        pull.run(*WANTED, limits=limits)
    assert pull.committed(*WANTED) == FILES
    assert len(waiting) == limits.small_connections
