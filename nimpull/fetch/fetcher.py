"""One run: workers, their supervision, and the outcomes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress

from nimpull.core.artifacts import Action, Artifact, Outcome
from nimpull.core.events import Advanced, Event, Finished, Note
from nimpull.core.names import display
from nimpull.core.ports import Cancel, Clock, Emit, Get, Ingests, Verified
from nimpull.errors import Cancelled, NotFoundError, StoreIOError
from nimpull.fetch.board import Board
from nimpull.fetch.buffers import BufferPool, new_buffer
from nimpull.fetch.exchange import Exchange, Locate, Service
from nimpull.fetch.failures import Patience, Stopped, mismatch, verified_by
from nimpull.fetch.laggards import Laggards
from nimpull.fetch.lane import Lane
from nimpull.fetch.limits import FetchLimits, Hosts
from nimpull.fetch.pace import Pace, Reading
from nimpull.fetch.small import SmallFiles
from nimpull.fetch.transfer import Transfer

_TICK = 0.1  # seconds between two looks at cancellation and pace


class Fetcher:
    """Fetches artifacts into ``ingests`` and commits them.

    ``locate``: where an artifact is now (True = discard a cached answer); ``get``: one attempt at a range.
    """

    def __init__(
        self,
        locate: Locate,
        get: Get,
        ingests: Ingests,
        *,
        clock: Clock,
        cancel: Cancel,
        emit: Emit,
        limits: FetchLimits | None = None,
    ) -> None:
        self._locate = locate
        self._get = get
        self._ingests = ingests
        self._clock = clock
        self._cancel = cancel
        self._emit = emit
        self._limits = limits or FetchLimits()

    def run(self, artifacts: Sequence[Artifact]) -> tuple[Outcome, ...]:
        """All of them committed, in order.

        A missing file (NotFoundError) is raised after all others are here; any other failure ends the run and
        sets ``cancel``, so that no other worker waits for a server any more. Raises NimpullError, and what a
        worker met that is a bug. What is journaled stays.
        """
        run = _Run(
            artifacts,
            self._ingests,
            locate=self._locate,
            get=self._get,
            clock=self._clock,
            emit=self._emit,
            limits=self._limits,
        )
        return run.supervise(self._cancel)


class _Run:
    def __init__(
        self,
        artifacts: Sequence[Artifact],
        ingests: Ingests,
        *,
        locate: Locate,
        get: Get,
        clock: Clock,
        emit: Emit,
        limits: FetchLimits,
    ) -> None:
        self._ingests = ingests
        self._clock = clock
        self._tell = emit
        self._limits = limits
        self._artifacts = artifacts
        self._stop = threading.Event()
        self._emitting = threading.Lock()
        self._lock = threading.RLock()
        self._turn = threading.Condition(self._lock)
        self._received = 0
        self._outcomes: dict[int, Outcome] = {}
        self._missing: list[NotFoundError] = []
        self._service = Service(locate, get, Hosts(clock), clock, self._stop)
        self._pool = BufferPool(limits.pool, limits.block)
        large = tuple(n for n, each in enumerate(artifacts) if not self._is_small(each))
        # two connections keep the hash of one file busy
        start = min(limits.start, limits.connections, max(1, 2 * len(large)))
        self._board = Board(self._lock, allowed=start, most=limits.connections)
        self._transfers = tuple(self._transfer(number) for number in large)
        self._board.queue(self._transfers)
        self._pace = Pace(start, limits.connections, self._reading())
        self._refusals = 0
        self._laggards = Laggards()
        self._lanes: set[Lane] = set()
        self._small = SmallFiles(
            {n: each for n, each in enumerate(artifacts) if self._is_small(each)},
            self._service,
            ingests,
            limits=limits,
            patience=self._patience,
            emit=self._emit,
            committed=self._note,
            missing=self._missing.append,
        )

    def _is_small(self, artifact: Artifact) -> bool:
        return artifact.size is not None and artifact.size <= self._limits.small

    def _transfer(self, number: int) -> Transfer:
        artifact = self._artifacts[number]
        return Transfer(
            number,
            artifact,
            Exchange(artifact, self._service),
            patience=self._patience(),
            turn=self._turn,
            moved=self._board.wake,
            pool=self._pool,
            limits=self._limits,
            emit=self._emit,
            stopped=self._stop.is_set,
        )

    def _patience(self) -> Patience:
        return Patience(self._clock, self._stop, self._emit, self._limits.retry_budget)

    def _emit(self, event: Event) -> None:
        with self._emitting:
            if isinstance(event, Advanced):
                self._received += max(0, event.count)
            self._tell(event)

    # -- supervision -----------------------------------------------------------------------------------

    def supervise(self, cancel: Cancel) -> tuple[Outcome, ...]:
        failures: list[BaseException] = []

        def ended(future: Future[None]) -> None:
            error = future.exception()
            if error is not None:
                failures.append(error)
                self._halt()
                cancel.set()  # a sibling may be in a receive or a pause that only this ends

        large, small = self._workers()
        try:
            with ThreadPoolExecutor(large + small, "fetch") as pool:
                try:
                    futures = [pool.submit(self._work_small_first, number) for number in range(small)]
                    futures += [
                        pool.submit(self._work_large_first, number) for number in range(small, small + large)
                    ]
                    for future in futures:
                        future.add_done_callback(ended)
                    self._watch(futures, cancel)
                except BaseException:  # a thread that cannot be started: the pool waits for those that were
                    self._halt()
                    cancel.set()
                    raise
            if not failures or isinstance(failures[0], Cancelled):
                self._small.flush()
        finally:
            self._halt()
            for transfer in self._transfers:
                transfer.release()
        return self._conclude(failures, cancel)

    def _workers(self) -> tuple[int, int]:
        """How many begin with large files, and how many with small ones. Each then helps with the others."""
        least = self._limits.chunk  # bytes that keep one worker busy
        useful = sum(-(-(each.artifact.size or 1 << 40) // least) or 1 for each in self._transfers)
        most = max(self._limits.connections, self._limits.small_connections)
        large = min(self._limits.connections, useful)
        if not self._small.count:
            return max(1, large), 0
        if large == most:
            large = most * 3 // 4  # small files must not all come last
        return large, min(self._limits.small_connections, most - large, self._small.count)

    def _watch(self, futures: Sequence[Future[None]], cancel: Cancel) -> None:
        pending: set[Future[None]] = set(futures)
        while pending:
            _, pending = wait(pending, _TICK, FIRST_EXCEPTION)
            if cancel.is_set():
                self._halt()
            self._adapt()

    def _reading(self) -> Reading:
        return Reading(self._clock.monotonic(), self._received, time.process_time())

    def _adapt(self) -> None:
        reading = self._reading()
        if self._service.hosts.refusals > self._refusals:
            self._refusals = self._service.hosts.refusals
            self._pace.refused(reading)
            self._board.allow(self._pace.connections)
        elif self._pace.look(reading, self._board.work_for_more):
            self._board.allow(self._pace.connections, far=self._pace.idle)
        with self._lock:
            lanes = tuple(self._lanes)
        self._laggards.look(lanes, reading.now)

    def _halt(self) -> None:
        self._stop.set()
        self._board.stop()
        self._small.stop()
        with self._turn:
            self._turn.notify_all()

    def _conclude(self, failures: Sequence[BaseException], cancel: Cancel) -> tuple[Outcome, ...]:
        if failures:
            raise failures[0]
        if self._missing:
            first, *others = self._missing
            if others:
                raise NotFoundError(f"{first.message} (and {len(others)} more files)", hint=first.hint)
            raise first
        if len(self._outcomes) < len(self._artifacts):
            if not cancel.is_set():
                raise RuntimeError("the workers ended before all files were here")
            raise Cancelled("stopped while fetching", hint="Run again to continue: finished chunks are kept.")
        return tuple(self._outcomes[number] for number in range(len(self._artifacts)))

    # -- workers ---------------------------------------------------------------------------------------

    def _work_small_first(self, worker: int) -> None:
        with suppress(Stopped, Cancelled):
            self._small.work(worker)
            self._work_large()

    def _work_large_first(self, worker: int) -> None:
        with suppress(Stopped, Cancelled):
            self._work_large()
            self._small.work(worker)

    def _work_large(self) -> None:
        buffer: memoryview | None = None
        while (found := self._board.next()) is not None:
            buffer = self._work_on(found, buffer or new_buffer(self._limits.block))

    def _work_on(self, transfer: Transfer, buffer: memoryview) -> memoryview:
        if not transfer.began:
            transfer.began = self._clock.monotonic()
            transfer.patience.progressed()  # the time it was queued is not the network's
        lane = Lane(transfer, buffer, self._ingests, clock=self._clock, stop=self._stop, emit=self._emit)
        with self._lock:
            self._lanes.add(lane)
        try:
            lane.run()
        except NotFoundError as error:
            transfer.gone = error
            transfer.ask_restart(error.message)
        except StoreIOError as error:
            if transfer.ready:
                raise
            # nothing was written to it: an I/O error, or a cleaner took it away
            self._replace_ingest(transfer, error)
        finally:
            with self._lock:
                self._lanes.discard(lane)
        last = self._board.leave(transfer)
        if last and not self._stop.is_set():
            self._settle(transfer)
        return lane.buffer

    def _settle(self, transfer: Transfer) -> None:
        """Nobody else works on it: it is gone, starts over, or is complete."""
        if transfer.gone is not None:
            self._missing.append(transfer.gone)
            transfer.release()
            self._board.done(transfer)
        elif transfer.complete and not transfer.restart:
            self._finish(transfer)
        else:
            self._start_over(transfer)

    def _replace_ingest(self, transfer: Transfer, error: StoreIOError) -> None:
        """The file comes once more, then ``error`` stands."""
        transfer.store_failures += 1
        if transfer.store_failures > 1:
            raise error
        transfer.restart = error.message
        # by another descriptor: the old one may be of a file that has its final name already
        transfer.release()
        transfer.attach(self._ingests.open(transfer.artifact))

    def _start_over(self, transfer: Transfer) -> None:
        name = display(transfer.artifact.path, 200)
        self._emit(Note(f"{name} starts over: {transfer.restart or 'its bytes were lost'}", "warning"))
        transfer.reset()
        self._board.again(transfer)

    def _finish(self, transfer: Transfer) -> None:
        expected, found = transfer.artifact.digest, transfer.digest()
        if expected is not None and found != expected:
            transfer.mismatches += 1
            error = mismatch(transfer.artifact, expected, found, transfer.exchange.host)
            if transfer.mismatches > 1:
                raise error
            transfer.restart = error.message
            self._start_over(transfer)
            return
        size = transfer.size or 0
        # a file that an earlier run had whole needed no request: its ETag is that run's
        etag = transfer.exchange.etag or transfer.ingest.validator.strip('"')
        try:
            self._ingests.commit([Verified(transfer.ingest, size, found, etag)])
        except StoreIOError as error:
            self._replace_ingest(transfer, error)
            self._start_over(transfer)
            return
        self._note(
            transfer.number,
            Outcome(
                artifact=transfer.artifact,
                action=Action.RESUMED if transfer.resumed else Action.FETCHED,
                fetched=transfer.fetched,
                attempts=transfer.exchange.attempts,
                seconds=self._clock.monotonic() - transfer.began,
                verified=verified_by(transfer.artifact),
                size=size,
                digest=found,
            ),
        )
        transfer.release()
        self._board.done(transfer)

    def _note(self, number: int, outcome: Outcome) -> None:
        with self._lock:
            self._outcomes[number] = outcome
        self._emit(Finished(outcome))
