"""The digest of one file, in order, from bytes that come out of order; and the journal that follows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol, Self, cast

from nimpull.core.digest import Hasher, new_hasher
from nimpull.core.names import display
from nimpull.core.ports import Claim, Ingest
from nimpull.errors import StoreIOError
from nimpull.fetch.buffers import BufferPool, new_buffer
from nimpull.fetch.failures import Abandoned
from nimpull.fetch.limits import MIB, FetchLimits

_MOST_LINES = 1 << 15  # of a journal that follows the hash
_LEAST_WINDOW = 8 * MIB
_WINDOWS = 64  # in a file: what a kill loses, as a share of it
_PIECES = 4  # of a window
_IDLE = 5.0  # seconds that a hash that starved, or was told so, counts as idle
_STARVED = 0.05  # seconds; the kernel's socket buffers hold what comes meanwhile
_STUCK = 1.0  # seconds without a byte at the frontier: others go on without it
_MOST_AHEAD = 512 * MIB  # bytes; what is left to hash once the last byte is here takes half a second


class _Forking(Hasher, Protocol):
    def copy(self) -> Self: ...


class OrderedHash:
    """Hashes one file while it comes. Fields change only under the run's one lock, that of ``turn``.

    ``frontier``: bytes hashed so far, in order. Bytes that arrive ahead of it wait in pool buffers. Where no
    more may wait and the hash waits for the network, they are left on disk, with a claim of their own, and
    read back; where the hash is what is waited for, the worker waits too. A claim of an earlier run is read
    back and checked when the frontier comes to it.

    The journal follows the frontier, with the digest of all bytes before it: what proves a chunk to the next
    run is the hash that is computed anyway.
    """

    def __init__(
        self,
        name: str,
        *,
        turn: threading.Condition,
        pool: BufferPool,
        limits: FetchLimits,
        halted: Callable[[], bool],
        missed: Callable[[Claim], None],
        moved: Callable[[], None],
    ) -> None:
        """``turn``: workers whose bytes came before their turn wait for it, of all files of the run.

        ``halted``: the work lost its purpose; ``missed`` is told each claim whose bytes are not here;
        ``moved`` is called under the lock when the frontier moved.
        """
        self.frontier = self.resumed = 0
        self.claims: dict[int, Claim] = {}
        self._name = name
        self._lock = turn
        self._tell = moved
        self._pool = pool
        self._limits = limits
        self._halted = halted
        self._missed = missed
        self._ingest: Ingest | None = None
        self._hasher: Hasher | None = None
        self._size: int | None = None
        self._step = limits.journal
        self._window = limits.pool  # bytes ahead of the frontier that are kept in memory
        self._recorded = 0
        self._deposits: dict[int, tuple[memoryview, int]] = {}
        self._spilled: dict[int, int] = {}  # offset -> bytes
        self._writing: set[int] = set()  # offsets
        self._moved = 0.0  # when the frontier did, last
        self._idle_until = 0.0
        self._draining = False
        self._scratch: memoryview | None = None

    def expect(self, claims: Iterable[Claim]) -> None:
        """Under the lock: what an earlier run left."""
        self.claims = {each.start: each for each in claims}

    def start(self, ingest: Ingest, hasher: Hasher, size: int) -> None:
        """Under the lock: from the first byte of ``size``. ``fold_claims`` must follow."""
        self._ingest, self._hasher, self._size = ingest, hasher, size
        self._window = max(_LEAST_WINDOW, min(self._limits.pool, size // _WINDOWS))
        self._step = max(self._limits.journal, size // _MOST_LINES)
        self._draining = True

    def fold_claims(self) -> None:
        """Hash what an earlier run left at the start of the file."""
        self._drain(0)

    def end(self, hasher: Hasher, size: int) -> None:
        """Under the lock: all ``size`` bytes were hashed elsewhere."""
        self.frontier, self._hasher = size, hasher

    def forget(self) -> None:
        """Under the lock: start over."""
        for buffer, _ in self._deposits.values():
            self._pool.give(buffer)
        self._deposits.clear()
        self._spilled.clear()
        self.claims.clear()
        self.frontier = self.resumed = self._recorded = 0
        self._hasher, self._draining = None, False

    def let_go(self) -> None:
        """Nobody works on it any more."""
        self._ingest = self._scratch = None

    def hexdigest(self) -> str:
        if self._hasher is None:
            raise Abandoned
        return self._hasher.hexdigest()

    def piece(self, workers: int) -> int:
        """Bytes that each of ``workers`` may hold back at most before it writes and submits them.

        A kill loses them: all together they are a window at most, or a MiB each.
        """
        return max(MIB, self._window // max(_PIECES, workers))

    # -- how far ahead -----------------------------------------------------------------------------------

    def in_reach(self, offset: int) -> bool:
        """How far ahead of the hash may be fetched: what memory holds, or more while the hash is idle.

        Also where the connection at the frontier has died: nobody else may be here to find the hash idle.
        """
        far = self.idles or self._starving(_STUCK)
        return offset < self.frontier + (_MOST_AHEAD if far else self._window)

    def idle(self) -> None:
        """Under the lock: the network is what is waited for, for a while."""
        self._idle_until = time.monotonic() + _IDLE

    @property
    def idles(self) -> bool:
        """Whether the network is what is waited for."""
        return time.monotonic() < self._idle_until

    # -- bytes -------------------------------------------------------------------------------------------

    def write(self, block: memoryview, offset: int) -> None:
        """Raises StoreError."""
        with self._lock:
            self._writing.add(offset)
        try:
            self._store().write(block, offset)
        finally:
            with self._lock:
                self._writing.discard(offset)

    def submit(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Bytes at ``offset`` are written: hash them now, or see that they are hashed later.

        Returns the buffer that the caller may use next. Blocks while the pool is empty and the hash busy,
        unless the frontier is here: whoever holds the bytes that all others wait for never waits for memory.
        """
        claim: Claim | None = None
        if self.idles and offset > self.frontier:
            # the CPU is idle too: what waits in memory, which a kill would lose, gets a claim of its own
            claim = _alone(offset, buffer[:length])
        with self._lock:
            spare, first = self._deposit(offset, length, buffer)
        if first:
            self._update(buffer[:length])
            self._drain(offset + length)
        elif claim is not None or spare is None:
            self._store().record(claim or _alone(offset, buffer[:length]))
        return spare or buffer

    def _deposit(self, offset: int, length: int, buffer: memoryview) -> tuple[memoryview | None, bool]:
        """Under the lock: (a buffer in exchange, or None; whether the caller is to hash, here and now)."""
        while self._draining or self.frontier != offset:
            if self._halted():
                raise Abandoned
            near = offset + length <= self.frontier + self._window
            spare = self._pool.take() if near else None
            if spare is not None:
                self._deposits[offset] = (buffer, length)
                return spare, False
            if self._starving(_STARVED):
                self.idle()
                self._spilled[offset] = length
                self._lock.notify_all()
                return None, False
            self._lock.wait(_STARVED)
        self._draining = True
        return None, True

    def _starving(self, seconds: float) -> bool:
        """Whether the hash waits for the network: for longer than ``seconds``, and not for the disk."""
        idle = not self._draining and self.frontier not in self._writing
        return idle and time.monotonic() - self._moved > seconds

    def _update(self, block: memoryview) -> None:
        if self._hasher is None:
            raise Abandoned
        self._hasher.update(block)

    def record(self, frontier: int) -> None:
        """The journal catches up with what is hashed. For the one that hashes, or once nobody works here."""
        if self._hasher is not None and frontier > self._recorded:
            digest = bytes.fromhex(self._hasher.hexdigest())
            self._store().record(Claim(self._recorded, frontier, digest))
            self._recorded = frontier

    def _drain(self, frontier: int) -> None:
        """The caller is the one that hashes: go on as long as the bytes at the frontier are here."""
        while True:
            if frontier - self._recorded >= self._step or frontier == self._size:
                self.record(frontier)
            with self._lock:
                self.frontier = frontier
                self._moved = time.monotonic()
                self._lock.notify_all()
                self._tell()
                deposit = self._deposits.pop(frontier, None)
                spilled = self._spilled.pop(frontier, None)
                claim = self.claims.pop(frontier, None)
                if deposit is None and spilled is None and claim is None:
                    self._draining = False
                    return
            if deposit is not None:
                buffer, length = deposit
                self._update(buffer[:length])
                frontier += length
                with self._lock:
                    self._pool.give(buffer)
            elif spilled is not None:
                self._read_back(frontier, spilled)
                frontier += spilled
            elif claim is not None:
                self.record(frontier)
                frontier = self._fold_or_miss(claim)

    def _read_back(self, start: int, length: int) -> None:
        buffer = self._scratch = self._scratch or new_buffer(self._limits.block)
        if self._store().read(buffer[:length], start) < length:
            raise StoreIOError(
                f"{display(self._name, 200)}: what was written at byte {start} is gone",
                hint="Something else changes the store, or its disk fails. Check the volume, then run again.",
            )
        self._update(buffer[:length])

    def _fold_or_miss(self, claim: Claim) -> int:
        """The frontier after ``claim``: its end if the bytes on disk are what was written, else its start."""
        length = claim.end - claim.start
        if self._fold(claim):
            self.resumed += length
            self._recorded = claim.end
            return claim.end
        self._missed(claim)
        return claim.start

    def _fold(self, claim: Claim) -> bool:
        """Hash the claim's bytes from disk; the hash stays as it was if they are not those of the claim."""
        forked = cast(_Forking, self._hasher).copy()
        check = new_hasher("blake3", claim.end - claim.start) if claim.alone else forked
        buffer = self._scratch = self._scratch or new_buffer(self._limits.block)
        position = claim.start
        while position < claim.end:
            if self._halted():
                raise Abandoned
            count = self._store().read(buffer[: claim.end - position], position)
            if not count:
                return False
            forked.update(buffer[:count])
            if claim.alone:
                check.update(buffer[:count])
            position += count
        if check.hexdigest() != claim.digest.hex():
            return False
        self._hasher = forked
        return True

    def _store(self) -> Ingest:
        if self._ingest is None:
            raise Abandoned
        return self._ingest


def _alone(offset: int, block: memoryview) -> Claim:
    """For bytes that the digest of the file has not come to."""
    digest = new_hasher("blake3", len(block))
    digest.update(block)
    return Claim(offset, offset + len(block), bytes.fromhex(digest.hexdigest()), alone=True)
