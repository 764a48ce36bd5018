"""A large file over several connections: what arrives ahead of the hash, and what a slow one costs."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Condition, Thread
from threading import Event as Flag

import pytest

from nimpull.core.artifacts import Artifact
from nimpull.core.digest import new_hasher
from nimpull.core.events import Advanced, Event
from nimpull.core.ports import Ingest
from nimpull.errors import Cancelled
from nimpull.fetch import FetchLimits
from nimpull.fetch.buffers import BufferPool
from nimpull.fetch.exchange import Exchange, Service
from nimpull.fetch.failures import Patience
from nimpull.fetch.limits import Hosts
from nimpull.fetch.ordered import OrderedHash
from nimpull.fetch.reader import Reader
from nimpull.store.area import IngestArea
from nimpull.store.tree import Tree
from nimpull.transport import Transport, TransportPolicy
from tests.committing import artifact
from tests.pulling import MIB, PlainLayout, Pull, noise, pulling, serve
from tests.servers import Answer, Peer, Seen

#: Two connections, and memory for one block ahead of the hash.
TIGHT = FetchLimits(connections=2, start=2, buffers=2 * MIB, pool=MIB, chunk=4 * MIB, journal=MIB)


#: The same, and memory for more than may wait there: nobody who has bytes is kept from leaving them.
ROOMY = replace(TIGHT, pool=16 * MIB)


def front_last(content: bytes, freed: Flag, ahead: Flag) -> Answer:
    """Holds the first byte back, once, until ``freed``; ``ahead`` is set once the last byte was asked for."""
    good, held = serve({"model": content}), Flag()

    def answer(seen: Seen, peer: Peer) -> None:
        start, end = seen.span or (0, len(content))
        end = end or len(content)
        if end == len(content):
            ahead.set()
        if start or held.is_set():
            good(seen, peer)
            return
        held.set()
        span = {"Content-Range": f"bytes 0-{end - 1}/{len(content)}"} if seen.span else {}
        peer.head(206 if span else 200, {"Content-Length": str(end), "ETag": '"v1"', **span})
        if not freed.wait(20):
            peer.reset()
        peer.send(content[:end])

    return answer


@pytest.mark.parametrize("limits", [TIGHT, ROOMY], ids=["memory is full", "out of reach"])
def test_bytes_far_ahead_of_the_hash_wait_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: FetchLimits
) -> None:
    monkeypatch.setattr("nimpull.fetch.ordered._STUCK", 0.1)
    content = noise(24 * MIB)
    one = artifact("model", content)
    freed = Flag()
    with pulling(tmp_path, front_last(content, freed, freed)) as pull:
        (outcome,) = pull.run(one, limits=limits)
    assert pull.committed(one) == {"model": content}
    assert sum((seen.span or (0, 0))[0] == 0 for seen in pull.server.seen) == 1, "others went on meanwhile"
    assert outcome.fetched == len(content)


@pytest.mark.parametrize("damaged", [0, 1], ids=["sound", "one byte is not"])
def test_f39_bytes_far_ahead_of_the_hash_are_kept(tmp_path: Path, damaged: int) -> None:
    content = noise(24 * MIB)
    one = artifact("model", content)
    freed, ahead = Flag(), Flag()
    with pulling(tmp_path, front_last(content, freed, ahead)) as pull:
        stop_at(pull, 20 * MIB, freed)
        with pytest.raises(Cancelled):
            pull.run(one, limits=TIGHT)
    (data,) = tmp_path.glob(".nimpull/ingest/*/data")
    with data.open("r+b") as file:
        file.seek(12 * MIB + 17)
        file.write(content[12 * MIB + 17 :][:damaged].translate(bytes(range(255, -1, -1))))
    with pulling(tmp_path, serve({"model": content})) as again:
        (outcome,) = again.run(one, limits=TIGHT)
    assert again.committed(one) == {"model": content}
    # the segment at the front, what waited in memory or was in hand, and the block that is not what it was
    assert outcome.fetched <= 4 * MIB + TIGHT.pool + TIGHT.block + damaged * TIGHT.block


@pytest.mark.parametrize("waits_for_network", [True, False])
def test_f39_what_waits_in_memory_has_a_claim_where_the_network_is_what_is_waited_for(
    tmp_path: Path, waits_for_network: bool
) -> None:
    """Where the hash is busy it comes soon, and a digest of its own would cost what is scarce."""
    content = noise(8 * MIB)
    one = artifact("model", content)
    area = IngestArea(Tree(str(tmp_path)), PlainLayout(tmp_path))
    ingest = area.open(one)
    ingest.begin(len(content), "")
    ordered = hashing(ingest, len(content))
    ordered.fold_claims()
    if waits_for_network:
        ordered.idle()
    ordered.write(memoryview(content)[2 * MIB : 3 * MIB], 2 * MIB)
    ordered.submit(2 * MIB, MIB, memoryview(bytearray(content[2 * MIB : 3 * MIB])))
    ingest.close()
    (claim,) = area.open(one).claims if waits_for_network else (None,)
    assert area.present([one]) == (MIB if waits_for_network else 0)
    assert claim is None or (claim.start, claim.end, claim.alone) == (2 * MIB, 3 * MIB, True)


@pytest.mark.parametrize(
    ("size", "workers", "piece"), [(1 << 30, 2, 4 * MIB), (1 << 30, 16, MIB), (8 << 30, 16, 2 * MIB)]
)
def test_what_workers_hold_back_is_a_window_at_most(
    tmp_path: Path, size: int, workers: int, piece: int
) -> None:
    ingest = IngestArea(Tree(str(tmp_path)), PlainLayout(tmp_path)).open(artifact("model", b""))
    assert hashing(ingest, size).piece(workers) == piece
    ingest.close()


def hashing(ingest: Ingest, size: int) -> OrderedHash:
    ordered = OrderedHash(
        "model",
        turn=Condition(),
        pool=BufferPool(4 * MIB, MIB),
        limits=FetchLimits(),
        halted=lambda: False,
        missed=lambda claim: None,
        moved=lambda: None,
    )
    ordered.start(ingest, new_hasher("sha256", size), size)
    return ordered


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


def test_a_damaged_claim_costs_its_own_bytes_only(tmp_path: Path) -> None:
    content = noise(8 * MIB)
    one = artifact("model", content)
    limits = FetchLimits(connections=1, start=1, buffers=MIB, journal=MIB)
    with pulling(tmp_path, serve({"model": content})) as pull:
        stop_at(pull, 6 * MIB, Flag())
        with pytest.raises(Cancelled):
            pull.run(one, limits=limits)
        (data,) = tmp_path.glob(".nimpull/ingest/*/data")
        with data.open("r+b") as file:
            file.seek(2 * MIB + 17)
            file.write(b"\0")
    with pulling(tmp_path, serve({"model": content})) as again:
        (outcome,) = again.run(one, limits=limits)
    assert again.committed(one) == {"model": content}
    assert outcome.fetched == 3 * MIB


def test_a_dropped_connection_is_continued_on_another_at_once(tmp_path: Path) -> None:
    content = noise(4 * MIB)
    one = artifact("model", content)
    good = serve({"model": content})

    def answer(seen: Seen, peer: Peer) -> None:
        if seen.connection:
            good(seen, peer)
            return
        peer.head(200, {"Content-Length": str(len(content)), "ETag": '"v1"'})
        peer.send(content[: 2 * MIB + 5])
        peer.stopped.wait()

    got = memoryview(bytearray(len(content)))
    with pulling(tmp_path, answer) as pull:
        first = Flag()
        with Transport(TransportPolicy(), clock=pull.clock, cancel=pull.cancel, emit=pull.emit) as wire:
            service = Service(pull.locate, wire.get, Hosts(pull.clock), pull.clock, pull.cancel)
            reader = reader_of(one, service, pull, first)
            filling = Thread(target=fill, args=(reader, got))
            filling.start()
            assert first.wait(60)
            reader.drop()
            filling.join()
    assert bytes(got) == content
    assert [seen.connection for seen in pull.server.seen] == [0, 1]
    assert pull.clock.waits == []


def fill(reader: Reader, got: memoryview) -> None:
    for start in range(0, len(got), MIB):
        reader.fill(got[start : start + MIB], start, len(got), len(got))


def reader_of(one: Artifact, service: Service, pull: Pull, progressed: Flag) -> Reader:
    patience = Patience(pull.clock, pull.cancel, pull.emit, 60.0)
    return Reader(Exchange(one, service), patience, pull.cancel, lambda _: progressed.set())


def test_f49_an_ingest_that_is_taken_away_before_its_first_byte_is_made_anew(tmp_path: Path) -> None:
    content = noise(3 * MIB)
    one = artifact("model", content)
    good = serve({"model": content})

    def answer(seen: Seen, peer: Peer) -> None:
        if not seen.connection:
            shutil.rmtree(tmp_path / ".nimpull")
        good(seen, peer)

    with pulling(tmp_path, answer) as pull:
        (outcome,) = pull.run(one, limits=FetchLimits(connections=1))
    assert pull.committed(one) == {"model": content}
    assert outcome.attempts == 2


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
