"""The state of one large file: what is missing, what is hashed, who works on it."""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections.abc import Callable
from typing import Protocol, Self, cast

from nimpull.core.artifacts import Artifact
from nimpull.core.digest import Digest, Hasher, new_hasher
from nimpull.core.events import Advanced
from nimpull.core.names import display
from nimpull.core.ports import Claim, Emit, Ingest
from nimpull.core.ranges import Span, disjoint, first_segment, gaps
from nimpull.errors import NotFoundError, StoreIOError
from nimpull.fetch.buffers import BufferPool, new_buffer
from nimpull.fetch.exchange import Exchange
from nimpull.fetch.failures import Abandoned, Patience
from nimpull.fetch.limits import MIB, FetchLimits

_LEAST_SEGMENT = 4 * MIB  # bytes; below, the cost of a request shows
_MOST_LINES = 1 << 15  # of a journal that follows the hash
_LEAST_WINDOW = 8 * MIB
_WINDOWS = 64  # in a file: what a kill loses, as a share of it
_IDLE = 2.0  # seconds that a hash which starved once counts as idle
_STARVED = 0.05  # seconds; the kernel's socket buffers hold what comes meanwhile
_MOST_AHEAD = 512 * MIB  # bytes; what is left to hash once the last byte is here takes half a second
UNLISTED_ALGORITHM = "blake3"  # for a file that the listing has no digest of


class _Forking(Hasher, Protocol):
    def copy(self) -> Self: ...


class Transfer:
    """One file that is fetched in segments. Fields change only under ``lock``, the run's one lock.

    ``frontier``: bytes hashed so far, in order. Bytes that arrive ahead of it wait in pool buffers. Where the
    pool is empty and the hash waits for the network, they are left on disk, with a claim of their own, and
    read back; where the hash is what is waited for, the worker waits too. A claim of an earlier run is read
    back and checked when the frontier comes to it.

    The journal follows the frontier, with the digest of all bytes before it: what proves a chunk to the next
    run is the hash that is computed anyway.

    ``ready``: the first response was accepted, others may join.
    """

    def __init__(
        self,
        number: int,
        artifact: Artifact,
        exchange: Exchange,
        *,
        patience: Patience,
        lock: threading.Condition,
        pool: BufferPool,
        limits: FetchLimits,
        emit: Emit,
        stopped: Callable[[], bool],
    ) -> None:
        self.number = number
        self.artifact = artifact
        self.exchange = exchange
        self.patience = patience
        self.size = artifact.size
        self.began = 0.0
        self.gone: NotFoundError | None = None
        self.active = 0
        self.ready = self.closing = self.split = False
        self.restart = ""
        self.mismatches = self.store_failures = 0
        self.fetched = self.resumed = self.counted = 0
        self.frontier = self._recorded = self._reached = 0
        self._step = limits.journal
        self._ingest: Ingest | None = None
        self._lock = lock
        self._pool = pool
        self._limits = limits
        self._emit = emit
        self._stopped = stopped
        self._hasher: Hasher | None = None
        self._missing: list[Span] = []
        self._claims: dict[int, Claim] = {}
        self._deposits: dict[int, tuple[memoryview, int]] = {}
        self._spilled: dict[int, int] = {}  # offset -> bytes
        self._writing: set[int] = set()  # offsets
        self._moved = 0.0  # when the frontier did, last
        self._idle_until = 0.0
        self._window = limits.pool  # bytes ahead of the frontier that are kept in memory
        self._draining = False
        self._scratch: memoryview | None = None

    # -- setting up ------------------------------------------------------------------------------------

    @property
    def ingest(self) -> Ingest:
        if self._ingest is None:
            raise Abandoned
        return self._ingest

    @property
    def algorithm(self) -> str:
        return self.artifact.digest.algorithm if self.artifact.digest else UNLISTED_ALGORITHM

    @property
    def attached(self) -> bool:
        return self._ingest is not None

    def attach(self, ingest: Ingest) -> None:
        """Look at what an earlier run left. Without a digest its claims need a validator to be of any use."""
        self._ingest = ingest
        if self.artifact.digest is None and not ingest.validator:
            ingest.reset()
        self._plan()

    def _plan(self) -> None:
        claims = {(each.start, each.end): each for each in self.ingest.claims}
        bound = self.size or 0
        spans = disjoint(claims, bound)
        if self.artifact.digest is None and not gaps(bound, spans):
            spans = spans[:-1]  # the validator is compared with that of a response: one is needed
        with self._lock:
            self._claims = {start: claims[start, end] for start, end in spans}
            self._missing = list(gaps(bound, spans))
            self.counted = sum(end - start for start, end in spans)

    def first_missing(self) -> int | None:
        """The first byte to ask for; None = all bytes are claimed."""
        if self.size is None:
            return 0
        return self._missing[0][0] if self._missing else None

    def lead_end(self, start: int) -> int:
        """Where the first response may end: with its segment, if others wait to share the file."""
        with self._lock:
            end = next((end for first, end in self._missing if first == start), self.size or 0)
            ranged = self.split and not self.exchange.rangeless()
            return first_segment((start, end), self._limits.chunk)[1] if ranged else end

    def distrusts(self, validator: str) -> bool:
        """Whether claims of an earlier run may be of other content than what is served now."""
        unlisted = self.artifact.digest is None
        return unlisted and bool(self._claims) and validator != self.ingest.validator

    def begin(self, size: int, validator: str) -> None:
        """The size is known and the first response is good: others may join."""
        self.ingest.begin(size, validator)
        with self._lock:
            self._window = max(_LEAST_WINDOW, min(self._limits.pool, size // _WINDOWS))
            self._step = max(self._limits.journal, size // _MOST_LINES)
            if self.size is None:
                self.size = size
                self._missing = [(0, size)] if size else []
            self._hasher = new_hasher(self.algorithm, size)
            self._draining = True
            self.ready = True
            self._lock.notify_all()
        self._drain(0)

    def end_stream(self, size: int, hasher: Hasher) -> None:
        """A response without a length came to its end: ``size`` bytes, all hashed."""
        with self._lock:
            self.size = self.frontier = size
            self._hasher = hasher
            self.ready = True

    def reset(self) -> None:
        """Nobody works on it: forget all bytes."""
        self.ingest.reset()
        self._emit(Advanced(-self.counted))
        self.exchange.forget()
        with self._lock:
            for buffer, _ in self._deposits.values():
                self._pool.give(buffer)
            self._deposits.clear()
            self._spilled.clear()
            self.size = self.artifact.size
            self._claims.clear()
            self._missing = [(0, self.size)] if self.size else []
            self.frontier = self._recorded = self.counted = self.resumed = 0
            self.ready = self.closing = self.split = self._draining = False
            self.restart = ""

    def release(self) -> None:
        """Nobody works on it: let go of descriptors and buffers; what is here and hashed is recorded."""
        if self._ingest is not None and not (self.restart or self.complete):
            self._record(self.frontier)
        ingest, self._ingest = self._ingest, None
        self._scratch = None
        if ingest is not None:
            ingest.close()

    # -- sharing out -----------------------------------------------------------------------------------

    @property
    def remaining(self) -> int:
        return sum(end - start for start, end in self._missing)

    @property
    def complete(self) -> bool:
        return self.ready and self.frontier == self.size

    def open_to_others(self) -> bool:
        """Under the lock: whether one more connection would find work here."""
        if not self.ready or self.closing or self.restart or not self._missing:
            return False
        if self.active and self.exchange.rangeless():
            return False
        return self.active == 0 or self._in_reach(self._missing[0][0])

    def _in_reach(self, start: int) -> bool:
        """How far ahead of the hash may be fetched: what memory holds, or more while the hash is idle."""
        return start < self.frontier + (_MOST_AHEAD if self._hash_idles() else self._window)

    def _hash_idles(self) -> bool:
        return time.monotonic() < self._idle_until

    def take(self, after: int | None) -> Span | None:
        """The next segment, ``after`` (where an open response goes on) before others; None = none now."""
        with self._lock:
            if self.restart or not self._missing:
                return None
            starts = [start for start, _ in self._missing]
            index = starts.index(after) if after in starts else 0
            start, end = self._missing[index]
            if self.active > 1 and not self._in_reach(start):
                return None
            grain = self._limits.chunk * (2 if self._hash_idles() else 1)  # then requests are what costs
            if self.split:
                share = self.remaining // (2 * self.active) // MIB * MIB
                grain = min(grain, max(_LEAST_SEGMENT, share))
            segment = first_segment((start, end), grain)
            self._missing[index : index + 1] = [(segment[1], end)] if segment[1] < end else []
            return segment

    def run_end(self, segment_end: int) -> int:
        """How far one response may go: the segment, or all that follows it while nobody else is here."""
        with self._lock:
            if self.split and not self.exchange.rangeless():
                return segment_end
            return next((end for start, end in self._missing if start == segment_end), segment_end)

    def ask_restart(self, reason: str) -> None:
        with self._lock:
            self.restart = self.restart or reason
            self._lock.notify_all()

    def progressed(self, position: int) -> None:
        """Where ranges are ignored only bytes never reached before are progress."""
        if not self.exchange.rangeless() or position > self._reached:
            self.patience.progressed()
            self.exchange.progressed()
        self._reached = max(self._reached, position)

    # -- hashing in order ------------------------------------------------------------------------------

    def submit(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Bytes at ``offset`` are written: hash them now, or see that they are hashed later.

        Returns the buffer that the caller may use next. Blocks while the pool is empty and the hash busy,
        unless the frontier is here: whoever holds the bytes that all others wait for never waits for memory.
        """
        with self._lock:
            self.fetched += length
            self.counted += length
            spare, first = self._deposit(offset, length, buffer)
        if first:
            self._update(buffer[:length])
            self._drain(offset + length)
        elif spare is None:
            digest = new_hasher("blake3", length)
            digest.update(buffer[:length])
            self.ingest.record(Claim(offset, offset + length, bytes.fromhex(digest.hexdigest()), alone=True))
        return spare or buffer

    def _deposit(self, offset: int, length: int, buffer: memoryview) -> tuple[memoryview | None, bool]:
        """Under the lock: (a buffer in exchange, or None; whether the caller is to hash, here and now)."""
        while self._draining or self.frontier != offset:
            if self.restart or self._stopped():
                raise Abandoned
            near = offset + length <= self.frontier + self._window
            spare = self._pool.take() if near else None
            if spare is not None:
                self._deposits[offset] = (buffer, length)
                return spare, False
            if self._starving():
                self._idle_until = time.monotonic() + _IDLE
                self._spilled[offset] = length
                self._lock.notify_all()
                return None, False
            self._lock.wait(_STARVED)
        self._draining = True
        return None, True

    def _starving(self) -> bool:
        """Whether the hash waits for the network: not for a moment only, and not for the disk."""
        idle = not self._draining and self.frontier not in self._writing
        return idle and time.monotonic() - self._moved > _STARVED

    def write(self, block: memoryview, offset: int) -> None:
        """Raises StoreError."""
        with self._lock:
            self._writing.add(offset)
        try:
            self.ingest.write(block, offset)
        finally:
            with self._lock:
                self._writing.discard(offset)

    def _update(self, block: memoryview) -> None:
        if self._hasher is None:
            raise Abandoned
        self._hasher.update(block)

    def _record(self, frontier: int) -> None:
        """The journal catches up with what is hashed. For the one that hashes, or once nobody works here."""
        if self._hasher is not None and frontier > self._recorded:
            digest = bytes.fromhex(self._hasher.hexdigest())
            self.ingest.record(Claim(self._recorded, frontier, digest))
            self._recorded = frontier

    def _drain(self, frontier: int) -> None:
        """The caller is the one that hashes: go on as long as the bytes at the frontier are here."""
        while True:
            if frontier - self._recorded >= self._step or frontier == self.size:
                self._record(frontier)
            with self._lock:
                self.frontier = frontier
                self._moved = time.monotonic()
                self._lock.notify_all()
                deposit = self._deposits.pop(frontier, None)
                spilled = self._spilled.pop(frontier, None)
                claim = self._claims.pop(frontier, None)
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
                self._record(frontier)
                frontier = self._fold_or_miss(claim)

    def _read_back(self, start: int, length: int) -> None:
        buffer = self._scratch = self._scratch or new_buffer(self._limits.block)
        if self.ingest.read(buffer[:length], start) < length:
            raise StoreIOError(
                f"{display(self.artifact.path, 200)}: what was written at byte {start} is gone",
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
        with self._lock:
            insort(self._missing, (claim.start, claim.end))
            self.counted -= length
        self._emit(Advanced(-length))
        return claim.start

    def _fold(self, claim: Claim) -> bool:
        """Hash the claim's bytes from disk; the hash stays as it was if they are not those of the claim."""
        forked = cast(_Forking, self._hasher).copy()
        check = new_hasher("blake3", claim.end - claim.start) if claim.alone else forked
        buffer = self._scratch = self._scratch or new_buffer(self._limits.block)
        position = claim.start
        while position < claim.end:
            if self._stopped():
                raise Abandoned
            count = self.ingest.read(buffer[: claim.end - position], position)
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

    def digest(self) -> Digest:
        if self._hasher is None:
            raise Abandoned
        return Digest(self.algorithm, self._hasher.hexdigest())
