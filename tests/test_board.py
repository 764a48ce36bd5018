"""Who works on which large file, and who need not stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, RLock, Thread

from nimpull.core.artifacts import Artifact
from nimpull.core.digest import Digest
from nimpull.core.names import SafePath
from nimpull.fetch import FetchLimits
from nimpull.fetch.board import Board
from nimpull.fetch.buffers import BufferPool
from nimpull.fetch.exchange import Exchange, Service
from nimpull.fetch.failures import Patience
from nimpull.fetch.limits import Hosts
from nimpull.fetch.transfer import Transfer
from nimpull.transport import Transport, TransportPolicy
from tests.committing import NGC
from tests.pulling import MIB, Pull, pulling, serve

LARGE = 1 << 30  # bytes; none of them is fetched
LIMITS = FetchLimits()


@contextmanager
def one_file(root: Path, *, allowed: int, most: int) -> Iterator[tuple[Board, Transfer]]:
    """A board with a file that one worker has begun with."""
    with pulling(root, serve({})) as pull:
        lock = RLock()
        board = Board(lock, allowed=allowed, most=most)
        transfer = begun(pull, Condition(lock), board)
        board.queue([transfer])
        assert board.next() is transfer
        transfer.attach(pull.area().open(transfer.artifact))
        transfer.begin(LARGE, "")
        yield board, transfer
        transfer.release()


def begun(pull: Pull, turn: Condition, board: Board) -> Transfer:
    path = SafePath("model")
    large = Artifact(path, LARGE, (Digest("sha256", "0" * 64),), NGC.with_path(path))
    with Transport(TransportPolicy(), clock=pull.clock, cancel=pull.cancel, emit=pull.emit) as wire:
        service = Service(pull.locate, wire.get, Hosts(pull.clock), pull.clock, pull.cancel)
    return Transfer(
        0,
        large,
        Exchange(large, service),
        patience=Patience(pull.clock, pull.cancel, pull.emit, 60.0),
        turn=turn,
        pool=BufferPool(LIMITS.pool, LIMITS.block),
        limits=LIMITS,
        emit=pull.emit,
        stopped=pull.cancel.is_set,
        moved=board.wake,
    )


def test_no_more_workers_wait_than_may_ever_be_busy(tmp_path: Path) -> None:
    with one_file(tmp_path, allowed=1, most=2) as (board, transfer):
        left: SimpleQueue[Transfer | None] = SimpleQueue()
        waiting = [Thread(target=lambda: left.put(board.next()), daemon=True) for _ in range(5)]
        for each in waiting:
            each.start()
        assert [left.get(timeout=60) for _ in range(4)] == [None] * 4
        assert left.empty()
        board.leave(transfer)  # the one that stayed takes its place
        assert left.get(timeout=60) is transfer
        board.leave(transfer)
        board.done(transfer)
        assert board.next() is None


def test_an_idle_network_lets_workers_far_ahead_of_the_hash(tmp_path: Path) -> None:
    with one_file(tmp_path, allowed=2, most=2) as (board, transfer):
        assert board.next() is transfer
        near = taken(transfer)
        assert near < 64 * MIB
        assert not board.work_for_more
        board.allow(2, far=True)
        assert board.work_for_more
        assert near + taken(transfer) >= 256 * MIB


def taken(transfer: Transfer) -> int:
    """Bytes of the segments that are to be had now."""
    size = 0
    while segment := transfer.take(None):
        size += segment[1] - segment[0]
    return size
