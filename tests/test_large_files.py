"""A large file over several connections: how far they run ahead of the hash, and what a slow one costs."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag

import pytest

from nimpull.core.events import Advanced, Event
from nimpull.core.limits import FetchLimits
from nimpull.errors import Cancelled
from tests.committing import artifact, digest_of
from tests.pulling import MIB, Pull, noise, pulling, serve
from tests.servers import Peer, Seen

WINDOW = 8 * MIB
#: Three connections, and a window of a few segments.
FEW = FetchLimits(connections=3, start=3, block=MIB, pool=WINDOW, chunk=MIB, journal=MIB)


def test_f39_no_connection_runs_further_than_a_window_ahead_of_the_hash(tmp_path: Path) -> None:
    """So that a kill costs the window at most, however slow the connection at the front is."""
    content = noise(24 * MIB)
    one = artifact("model", content)
    good, freed, held = serve({"model": content}), Flag(), Flag()

    def front_last(seen: Seen, peer: Peer) -> None:
        start, end = seen.span or (0, len(content))
        if not start and not held.is_set():
            held.set()
            span = {"Content-Range": f"bytes 0-{(end or 0) - 1}/{len(content)}"}
            peer.head(206, {"Content-Length": str(end), "ETag": '"v1"', **span})
            if not freed.wait(60):
                peer.reset()
            peer.send(content[:end])
            return
        good(seen, peer)
        if end and end > WINDOW - 2 * MIB:
            freed.set()

    with pulling(tmp_path, front_last) as pull:
        stop_at(pull, 14 * MIB, freed)
        with pytest.raises(Cancelled):
            pull.run(one, limits=FEW)
    with pulling(tmp_path, serve({"model": content})) as again:
        assert again.present(one) >= 14 * MIB - WINDOW
        (outcome,) = again.run(one, limits=FEW)
    assert again.committed(one) == {"model": content}
    assert outcome.fetched <= len(content) - 14 * MIB + WINDOW


def stop_at(pull: Pull, count: int, freed: Flag) -> None:
    """Cancels once ``count`` bytes are here, and lets the held answer go."""
    seen = 0

    def emit(event: Event) -> None:
        nonlocal seen
        if isinstance(event, Advanced):
            seen += event.count
            if seen >= count:
                pull.cancel.set()
                freed.set()

    pull.emit = emit


def test_a_damaged_checkpoint_costs_its_own_bytes_only(tmp_path: Path) -> None:
    content = noise(8 * MIB)
    one = artifact("model", content)
    limits = FetchLimits(connections=1, start=1, block=MIB, journal=MIB)
    with pulling(tmp_path, serve({"model": content})) as pull:
        stop_at(pull, 6 * MIB, Flag())
        with pytest.raises(Cancelled):
            pull.run(one, limits=limits)
        present = pull.present(one)
        (data,) = tmp_path.glob(".nimpull/ingest/*/data")
        with data.open("r+b") as file:
            file.seek(2 * MIB + 17)
            file.write(b"\0")
    with pulling(tmp_path, serve({"model": content})) as again:
        (outcome,) = again.run(one, limits=limits)
    assert again.committed(one) == {"model": content}
    assert outcome.fetched == len(content) - present + MIB


def test_a_laggard_is_dropped_and_its_rest_comes_over_another_connection(tmp_path: Path) -> None:
    content = noise(24 * MIB)
    one = artifact("model", content)
    good, slow = serve({"model": content}), Flag()

    def answer(seen: Seen, peer: Peer) -> None:
        start, end = seen.span or (0, len(content))
        if start < 2 * MIB or slow.is_set():
            good(seen, peer)
            return
        slow.set()
        span = {"Content-Range": f"bytes {start}-{(end or 0) - 1}/{len(content)}"}
        peer.head(206, {"Content-Length": str((end or 0) - start), "ETag": '"v1"', **span})
        position = start
        while not peer.stopped.wait(0.01):
            peer.send(content[position : position + 1000])
            position += 1000

    with pulling(tmp_path, answer) as pull:
        pull.clock.step = 1.0  # at each look: the others are measured over seconds too
        pull.run(one, limits=FEW)
    assert pull.committed(one) == {"model": content}


@pytest.mark.parametrize("listed", [True, False], ids=["with a digest", "without"])
def test_f49_an_ingest_that_is_taken_away_before_its_first_byte_is_made_anew(
    tmp_path: Path, listed: bool
) -> None:
    content = noise(3 * MIB)
    one = artifact("model", content)
    one = one if listed else replace(one, digests=())
    good = serve({"model": content})

    def answer(seen: Seen, peer: Peer) -> None:
        if not seen.connection:
            shutil.rmtree(tmp_path / ".nimpull")
        good(seen, peer)

    with pulling(tmp_path, answer) as pull:
        (outcome,) = pull.run(one, limits=FetchLimits(connections=1))
    assert pull.committed(one) == {"model": content}
    assert outcome.attempts == 2
    assert outcome.digest == digest_of(content, "sha256" if listed else "blake3"), "not of what was given up"


def test_f49_an_area_that_is_taken_away_in_the_very_moment_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(3 * MIB)
    one = artifact("model", content)
    real = os.mkdir
    taken: list[str] = []

    def mkdir(path: str, mode: int, *, dir_fd: int | None = None) -> None:
        if len(Path(path).name) == 64 and not taken:
            taken.append(path)
            shutil.rmtree(tmp_path / ".nimpull")
        real(path, mode, dir_fd=dir_fd)

    with pulling(tmp_path, serve({"model": content})) as pull:
        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", mkdir)
            pull.run(one, limits=FetchLimits(connections=1))
        assert taken
        assert pull.committed(one) == {"model": content}
