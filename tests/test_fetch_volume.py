"""The fetch engine in a process that is stopped or has a bug, and on a volume that refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from nimpull.core.artifacts import Action
from nimpull.core.events import Advanced
from nimpull.core.ranges import Checkpoint
from nimpull.errors import Cancelled, NoSpaceError, StoreIOError
from nimpull.fetch import FetchLimits
from tests.committing import artifact, digest_of
from tests.pulling import MIB, noise, pulling, serve

ONE = FetchLimits(connections=1)


def test_f34_a_sparse_file_of_full_length_is_not_content(tmp_path: Path) -> None:
    content = noise(3 * MIB)
    one = artifact("model", content)
    with pulling(tmp_path, serve({"model": content})) as pull:
        ingest = pull.area().open(one)
        ingest.begin(len(content), '"v1"')
        ingest.record(Checkpoint(0, MIB, bytes.fromhex(digest_of(content[:MIB]).hex)))
        ingest.close()
        (outcome,) = pull.run(one, limits=ONE)
    assert pull.committed(one) == {"model": content}
    assert outcome.fetched == len(content)
    assert sum(each.count for each in pull.events if isinstance(each, Advanced)) == len(content) - MIB


def test_f41_a_cancelled_run_stops_and_says_so(tmp_path: Path) -> None:
    one = artifact("model", noise(4 * MIB))
    with pulling(tmp_path, lambda seen, peer: peer.reply(503)) as pull:
        pull.cancel.set()
        with pytest.raises(Cancelled):
            pull.run(one, limits=ONE)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "where", ["large.LargeTransfer.put", "ordered.OrderedFile.write", "run.FetchRun._look"]
)
def test_f44_an_unknown_exception_of_a_callback_a_worker_or_the_loop_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    wanted = [artifact(f"model-{number}", noise(2 * MIB, number)) for number in range(6)]

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(f"nimpull.fetch.{where}", broken)
    with pulling(tmp_path, serve({each.path: noise(2 * MIB, n) for n, each in enumerate(wanted)})) as pull:
        with pytest.raises(ZeroDivisionError, match="a bug"):
            pull.run(*wanted)
        assert not pull.cancel.is_set()


# -- faults of the volume ------------------------------------------------------------------------------


def failing(code: int, turns: range, real: Callable[..., int | None]) -> Callable[..., int | None]:
    """``real``, but its calls number ``turns`` on the content of an ingest fail with ``code``."""
    calls = count()

    def call(descriptor: int, *arguments: Any) -> int | None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if name.endswith(("/data", ".whole")) and next(calls) in turns:
            raise OSError(code, os.strerror(code))
        return real(descriptor, *arguments)

    return call


def test_f30_a_full_volume_ends_the_run_and_the_next_one_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(6 * MIB)
    one = artifact("model", content)
    limits = FetchLimits(chunk=MIB, block=MIB, pool=4 * MIB, connections=1)
    with pulling(tmp_path, serve({"model": content})) as pull:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", failing(errno.ENOSPC, range(3, 99), os.pwrite))
            with pytest.raises(NoSpaceError, match=r"no space left, .* free"):
                pull.run(one, limits=limits)
        assert pull.present(one) == 3 * MIB
        (outcome,) = pull.run(one, limits=limits)
    assert pull.committed(one) == {"model": content}
    assert outcome.action is Action.RESUMED
    assert outcome.fetched == 3 * MIB


@pytest.mark.parametrize(("size", "call"), [(100, "fsync"), (3 * MIB, "fsync"), (3 * MIB, "pwrite")])
def test_f32_an_io_error_costs_one_retry_then_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, call: str
) -> None:
    content = noise(size)
    one = artifact("model", content)
    with pulling(tmp_path, serve({"model": content})) as pull:
        real = getattr(os, call)
        for turns, error in ((range(1), None), (range(99), StoreIOError)):
            with monkeypatch.context() as patch:
                patch.setattr(os, call, failing(errno.EIO, turns, real))
                if error is None:
                    pull.run(one, limits=ONE)
                else:
                    with pytest.raises(error, match="Input/output"):
                        pull.run(one, limits=ONE)
            assert len(pull.server.seen) <= 2
            pull.server.seen.clear()
            found = tmp_path / "model"
            assert found.exists() is (error is None)
            found.unlink(missing_ok=True)
