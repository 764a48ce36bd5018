"""Small files: each comes whole, in one response, into one buffer; they are committed in groups."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from nimpull.core.artifacts import Action, Artifact, Outcome
from nimpull.core.digest import Digest, new_hasher
from nimpull.core.events import Advanced
from nimpull.core.ports import Cancel, Emit, Ingests, Verified
from nimpull.errors import NotFoundError, StoreIOError
from nimpull.fetch.buffers import new_buffer
from nimpull.fetch.commits import GroupCommit, Staged
from nimpull.fetch.crew import Crew
from nimpull.fetch.exchange import Exchange, Service
from nimpull.fetch.failures import Patience, RestartNeeded, Stopped, mismatch, verified_by
from nimpull.fetch.limits import FetchLimits
from nimpull.fetch.reader import Reader
from nimpull.fetch.transfer import UNLISTED_ALGORITHM

_LOOK = 0.01  # seconds between two looks while nothing has been answered yet


class SmallFiles:
    """The small files of a run, by their place in its order. Any number of workers call ``work``.

    ``committed`` is told each file that is visible and durable, ``missing`` each that the host does not have.
    """

    def __init__(
        self,
        artifacts: Mapping[int, Artifact],
        service: Service,
        ingests: Ingests,
        *,
        limits: FetchLimits,
        patience: Callable[[], Patience],
        emit: Emit,
        committed: Callable[[int, Outcome], None],
        missing: Callable[[NotFoundError], None],
    ) -> None:
        self._artifacts = artifacts
        self._largest = limits.small
        self._service = service
        self._ingests = ingests
        self._patience = patience
        self._emit = emit
        self._committed = committed
        self._missing = missing
        self._lock = threading.Condition()
        self._queue = deque(artifacts)
        self._active = 0
        self._stopped = False
        self._lost_before: Counter[int] = Counter()
        self._crew = Crew(limits.small_connections)
        self._refusals = 0
        self._commits = GroupCommit(ingests, limits, self._told, self._lost)

    @property
    def count(self) -> int:
        return len(self._artifacts)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            self._lock.notify_all()

    def flush(self) -> None:
        """Commit what is staged. Raises StoreError."""
        self._commits.flush()

    def work(self, worker: int) -> None:
        """Fetch until all are committed. ``worker``: from 0; the first ones begin, others join where it pays.

        Raises Stopped, and the NimpullError that ends the run.
        """
        buffer: memoryview | None = None
        while (number := self._next(worker)) is not None:
            buffer = buffer or new_buffer(self._largest)
            try:
                self._fetch(number, buffer)
            except NotFoundError as error:
                self._missing(error)
            self._ended()

    def _next(self, worker: int) -> int | None:
        """None once all are dealt with: until then a lost group may come back."""
        with self._lock:
            while True:
                if self._stopped:
                    raise Stopped
                now = self._service.clock.monotonic()
                if self._queue and worker < self._crew.size(now):
                    self._active += 1
                    self._crew.asked(now)
                    return self._queue.popleft()
                if not (self._queue or self._active):
                    self._lock.notify_all()
                    return None
                self._lock.wait(1.0 if self._crew.settled else _LOOK)

    def _took(self, seconds: float) -> None:
        """A file was fetched; whoever may join now does."""
        refusals = self._service.hosts.refusals
        with self._lock:
            before = self._crew.settled
            self._crew.answered(seconds)
            if refusals > self._refusals:
                self._refusals = refusals
                self._crew.refused(self._service.clock.monotonic())
            if not before:
                self._lock.notify_all()

    def _ended(self) -> None:
        """One file is dealt with; the last one's worker commits what is staged before it leaves."""
        with self._lock:
            if self._active > 1 or self._queue:
                self._active -= 1
                return
        self._commits.flush()
        with self._lock:
            self._active -= 1
            self._lock.notify_all()

    def _fetch(self, number: int, buffer: memoryview) -> None:
        artifact = self._artifacts[number]
        size = artifact.size or 0
        clock = self._service.clock
        began = clock.monotonic()
        exchange = Exchange(artifact, self._service)
        found = fetch_whole(artifact, exchange, self._patience(), self._service.stop, buffer)
        self._took(clock.monotonic() - began)
        self._emit(Advanced(size))
        try:
            ingest = self._ingests.stage(artifact, buffer[:size])
        except StoreIOError:  # an I/O error costs one more try
            ingest = self._ingests.stage(artifact, buffer[:size])
        outcome = Outcome(
            artifact=artifact,
            action=Action.FETCHED,
            fetched=size,
            attempts=exchange.attempts,
            seconds=clock.monotonic() - began,
            verified=verified_by(artifact),
            size=size,
            digest=found,
        )
        self._commits.add(Staged(number, Verified(ingest, size, found, exchange.etag), outcome))

    def _told(self, staged: Staged) -> None:
        self._committed(staged.number, staged.outcome)

    def _lost(self, numbers: Sequence[int], error: StoreIOError) -> None:
        """What was written of these did not reach the disk: they come once more, then the error stands."""
        with self._lock:
            self._lost_before.update(numbers)
            again = not self._stopped and all(self._lost_before[number] == 1 for number in numbers)
        if not again:
            raise error
        for number in numbers:
            self._emit(Advanced(-(self._artifacts[number].size or 0)))
        with self._lock:
            self._queue.extend(numbers)
            self._lock.notify_all()


def fetch_whole(
    artifact: Artifact, exchange: Exchange, patience: Patience, stop: Cancel, buffer: memoryview
) -> Digest:
    """A small file into ``buffer``; returns its verified digest. Raises Stopped and NimpullError."""
    size = artifact.size or 0
    view = buffer[:size]
    tries = reached = 0

    def progressed(position: int) -> None:
        nonlocal reached
        if position > reached or not exchange.rangeless():
            patience.progressed()
        reached = max(reached, position)

    while True:
        reader = Reader(exchange, patience, stop, progressed)
        try:
            if size:
                reader.fill(view, 0, size, size)
        except RestartNeeded:
            exchange.forget()
            continue
        finally:
            reader.close()
        expected = artifact.digest
        hasher = new_hasher(expected.algorithm if expected else UNLISTED_ALGORITHM, size)
        hasher.update(view)
        found = Digest(expected.algorithm if expected else UNLISTED_ALGORITHM, hasher.hexdigest())
        if expected is None or found == expected:
            return found
        tries += 1
        if tries > 1:
            raise mismatch(artifact, expected, found, exchange.host)
        exchange.forget()
