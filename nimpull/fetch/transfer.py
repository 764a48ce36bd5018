"""The state of one large file: what is missing, what is hashed, who works on it."""

from __future__ import annotations

import threading
from bisect import insort
from collections.abc import Callable

from nimpull.core.artifacts import Artifact
from nimpull.core.digest import Digest, Hasher, new_hasher
from nimpull.core.events import Advanced
from nimpull.core.ports import Claim, Emit, Ingest
from nimpull.core.ranges import Span, disjoint, first_segment, gaps
from nimpull.errors import NotFoundError
from nimpull.fetch.buffers import BufferPool
from nimpull.fetch.exchange import Exchange
from nimpull.fetch.failures import Abandoned, Patience
from nimpull.fetch.limits import MIB, FetchLimits
from nimpull.fetch.ordered import OrderedHash

_LEAST_SEGMENT = 4 * MIB  # bytes; below, the cost of a request shows
UNLISTED_ALGORITHM = "blake3"  # for a file that the listing has no digest of


class Transfer:
    """One file that is fetched in segments. Fields change only under the run's one lock, that of ``turn``.

    ``ready``: the first response was accepted, others may join. ``moved`` is called under the lock whenever
    others may find work here.
    """

    def __init__(
        self,
        number: int,
        artifact: Artifact,
        exchange: Exchange,
        *,
        patience: Patience,
        turn: threading.Condition,
        pool: BufferPool,
        limits: FetchLimits,
        emit: Emit,
        stopped: Callable[[], bool],
        moved: Callable[[], None],
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
        self.fetched = self.counted = 0
        self._reached = 0
        self._ingest: Ingest | None = None
        self._lock = turn
        self._moved = moved
        self._limits = limits
        self._emit = emit
        self._missing: list[Span] = []
        self._hash = OrderedHash(
            artifact.path,
            turn=turn,
            pool=pool,
            limits=limits,
            halted=lambda: bool(self.restart) or stopped(),
            missed=self._missed,
            moved=moved,
        )

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
            self._hash.expect(claims[span] for span in spans)
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
        return unlisted and bool(self._hash.claims) and validator != self.ingest.validator

    def begin(self, size: int, validator: str) -> None:
        """The size is known and the first response is good: others may join."""
        self.ingest.begin(size, validator)
        with self._lock:
            if self.size is None:
                self.size = size
                self._missing = [(0, size)] if size else []
            self._hash.start(self.ingest, new_hasher(self.algorithm, size), size)
            self.ready = True
            self._moved()
        self._hash.fold_claims()

    def end_stream(self, size: int, hasher: Hasher) -> None:
        """A response without a length came to its end: ``size`` bytes, all hashed."""
        with self._lock:
            self.size = size
            self._hash.end(hasher, size)
            self.ready = True

    def reset(self) -> None:
        """Nobody works on it: forget all bytes."""
        self.ingest.reset()
        self._emit(Advanced(-self.counted))
        self.exchange.forget()
        with self._lock:
            self._hash.forget()
            self.size = self.artifact.size
            self._missing = [(0, self.size)] if self.size else []
            self.counted = 0
            self.ready = self.closing = self.split = False
            self.restart = ""

    def release(self) -> None:
        """Nobody works on it: let go of descriptors and buffers; what is here and hashed is recorded."""
        if self._ingest is not None and not (self.restart or self.complete):
            self._hash.record(self._hash.frontier)
        ingest, self._ingest = self._ingest, None
        self._hash.let_go()
        if ingest is not None:
            ingest.close()

    # -- sharing out -----------------------------------------------------------------------------------

    @property
    def remaining(self) -> int:
        return sum(end - start for start, end in self._missing)

    @property
    def complete(self) -> bool:
        return self.ready and self._hash.frontier == self.size

    def open_to_others(self) -> bool:
        """Under the lock: whether one more connection would find work here."""
        if not self.ready or self.closing or self.restart or not self._missing:
            return False
        if self.active and self.exchange.rangeless():
            return False
        return self.active == 0 or self._hash.in_reach(self._missing[0][0])

    def reach_far(self) -> None:
        """Under the lock: see :meth:`OrderedHash.idle`."""
        self._hash.idle()

    def take(self, after: int | None) -> Span | None:
        """The next segment, ``after`` (where an open response goes on) before others; None = none now."""
        with self._lock:
            if self.restart or not self._missing:
                return None
            starts = [start for start, _ in self._missing]
            index = starts.index(after) if after in starts else 0
            start, end = self._missing[index]
            if self.active > 1 and not self._hash.in_reach(start):
                return None
            grain = self._limits.chunk * (2 if self._hash.idles else 1)  # then requests are what costs
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

    # -- bytes -----------------------------------------------------------------------------------------

    def write(self, block: memoryview, offset: int) -> None:
        """Raises StoreError."""
        self._hash.write(block, offset)

    @property
    def piece(self) -> int:
        """See :attr:`OrderedHash.piece`."""
        return self._hash.piece(self.active)

    def submit(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """See :meth:`OrderedHash.submit`."""
        with self._lock:
            self.fetched += length
            self.counted += length
        return self._hash.submit(offset, length, buffer)

    def _missed(self, claim: Claim) -> None:
        """An earlier run's claim turned out to be of other bytes: fetch them."""
        length = claim.end - claim.start
        with self._lock:
            insort(self._missing, (claim.start, claim.end))
            self.counted -= length
        self._emit(Advanced(-length))

    @property
    def resumed(self) -> int:
        """Bytes of an earlier run that were found to be what they were."""
        return self._hash.resumed

    def digest(self) -> Digest:
        return Digest(self.algorithm, self._hash.hexdigest())
