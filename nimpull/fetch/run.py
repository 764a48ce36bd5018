"""One run of the engine: a thread that has all connections, a few that write and hash, and what became of it.

The path of a byte: libcurl -> ``SegmentReceiver.data`` -> a buffer -> a worker, which writes it, hashes it in
file order and notes it in the journal -> the buffer is free. Whatever is decided, is on the thread that
turns the connections; workers only do, and tell.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from nimpull.core.artifact_request import ArtifactRequest
from nimpull.core.artifacts import Artifact, Location, Outcome
from nimpull.core.connections import SHARING
from nimpull.core.events import Finished, Waiting
from nimpull.core.limits import FetchLimits
from nimpull.core.ports import Cancel, Clock, Connections, Emit, Ingests, Pauses, Supply
from nimpull.core.ranges import Cause, Fail, Relocate, Restart, Verdict, Wait
from nimpull.core.schedule import Begin, FetchSegment, FetchSmall, LargeFile, Schedule, Segment
from nimpull.errors import Cancelled, NetworkError, NimpullError, NotFoundError, TransferError
from nimpull.fetch.buffers import BufferPool
from nimpull.fetch.large import LargeTransfer
from nimpull.fetch.receiver import SegmentReceiver
from nimpull.fetch.small import Groups, SmallTransfer, stage_all
from nimpull.fetch.workers import Answers, FileJobs, Workers

Locate = Callable[[Artifact, bool], Location]
#: What is looked up, who hears that it was found, and who that it is nowhere.
Lookup = tuple[ArtifactRequest, Callable[[], None], Callable[[NotFoundError], None]]
_TICK: Final = 0.1  # seconds between two looks at cancellation, speeds and the clock
_TELL: Final = 1.0  # seconds between two tellings of what did not fill a buffer yet
_STAGED: Final = 32  # small files that a worker takes at a time
_FAST: Final = 0.001  # seconds that it takes to say where a file is, where nobody is asked for it
_LOCATORS: Final = 16
_SMALL_WORKERS: Final = 6  # a file of a mount across the network takes its round trips
_IDLE_TURNS: Final = 4  # after which a run that waits for nothing has a bug


@dataclass(frozen=True, slots=True)
class Again:
    """An artifact is asked for once more, ``pause`` seconds from now; ``anew``: from its first byte."""

    reason: str
    anew: bool = False
    pause: float = 0.0


class FetchRun:
    """What the transfers of a run share. All of it is for the thread that turns the connections."""

    def __init__(
        self,
        supply: Supply,
        locate: Locate,
        connections: Connections,
        ingests: Ingests,
        *,
        clock: Clock,
        emit: Emit,
        limits: FetchLimits,
        pauses: Pauses,
        workers: int,
    ) -> None:
        self.connections = connections
        self.ingests = ingests
        self.clock = clock
        self.emit = emit
        self.limits = limits
        self.now = clock.monotonic()
        self.stopping = False
        self._missing: list[NotFoundError] = []
        self.rangeless: set[str] = set()
        self.schedule = Schedule(limits)
        self.pool = BufferPool(limits.pool, limits.buffer(limits.start))
        self.answers = Answers(connections.wake)
        self.workers = Workers("fetch", workers, self.answers)  # as many as can hash at a time
        self.small_workers = Workers("small", _SMALL_WORKERS, self.answers)  # they wait for the volume
        self._locators = Workers("locate", _LOCATORS, self.answers)
        self._feeder = Workers("supply", 1, self.answers)
        self._supply = supply
        self._locate = locate
        self._pauses = pauses
        self._exhausted = False
        self._artifacts: list[Artifact] = []
        self._outcomes: dict[int, Outcome] = {}
        self._failure: BaseException | None = None
        self._large: dict[int, LargeTransfer] = {}
        self._small: dict[int, SmallTransfer] = {}
        self._unlocated: deque[Lookup] = deque()
        self._locating = 0  # that locators have
        self._at_once = 1  # that one locator is asked for
        self._received: list[SmallTransfer] = []  # whole, for a worker to write
        self._staging = FileJobs(self.small_workers)
        self._groups = Groups(self)
        self._held: list[SegmentReceiver] = []  # without a buffer for their bytes
        self._most = limits.connections + SHARING * limits.small_connections
        self._numbers = list(range(self._most, 0, -1))
        self._looked = self._told = 0.0  # real monotonic seconds
        self._refused_until = 0.0
        self._idle = 0  # turns without anything to wait for

    # -- the loop ------------------------------------------------------------------------------------------

    def turn_until_done(self, cancel: Cancel) -> tuple[Outcome, ...]:
        """All outcomes in the order of the supply. Raises what ended the run, Cancelled, or NotFoundError."""
        try:
            self._turn(cancel)
        finally:
            self.stopping = True
            self._stop(cancelled=self._failure is None)
        if self._failure is not None:
            raise self._failure
        if self._missing:
            first, *others = self._missing
            if others:
                raise NotFoundError(f"{first.message} (and {len(others)} more files)", hint=first.hint)
            raise first
        if self._large or self._small or not self._exhausted:
            raise Cancelled("stopped while fetching", hint="Run again to continue: finished chunks are kept.")
        return tuple(self._outcomes[number] for number in sorted(self._outcomes))

    def _turn(self, cancel: Cancel) -> None:
        while True:
            self.answers.deliver()
            if self._failure is not None or cancel.is_set():
                return
            self._feed()
            self._assign()
            self._release_held()
            if self._done:
                return
            self._wait(cancel)
            self._look()

    @property
    def _done(self) -> bool:
        return self._exhausted and not self._large and not self._small

    def _wait(self, cancel: Cancel) -> None:
        """For the network, a worker, or a time that the schedule names."""
        at = self.schedule.wakes(self.now, self._pauses.left)
        working = self.workers.pending + self.small_workers.pending
        pending = working + self._locators.pending + self._feeder.pending
        if pending or self._connected > len(self._held):
            self._idle = 0
            seconds = _TICK if at is None else min(_TICK, max(0.0, at - self.now))
            self.connections.turn(seconds)
        elif at is not None:
            self.clock.wait(at - self.now, cancel)
            self._looked, self._idle = 0.0, 0
        elif (turns := self._idle + 1) < _IDLE_TURNS:
            self._idle = turns  # what was just told may have made work
        else:
            raise RuntimeError("files are left, but there is nothing to wait for")

    @property
    def _connected(self) -> int:
        return self._most - len(self._numbers)

    def _look(self) -> None:
        """Every so often: what takes no event to happen."""
        real = time.monotonic()
        if real - self._looked < _TICK:
            return
        self._looked = real
        self.now = self.clock.monotonic()
        self.connections.check(self.now)
        self.schedule.measure(self.now, time.process_time())
        self.pool.resize(self.limits.buffer(self.schedule.connections))
        laggard = self.schedule.find_laggard(self.now)
        if laggard is not None:
            self._large[laggard.file.key].drop(laggard)
        self._stage_received()
        self._commit_last()
        if real - self._told >= _TELL:
            self._told = real
            for transfer in self._large.values():
                transfer.tell()

    # -- what there is to do -------------------------------------------------------------------------------

    def _feed(self) -> None:
        few = len(self._small) - self._groups.size < self.schedule.small_wanted
        little = not self.schedule.large_waiting and few
        if not (self._exhausted or self._feeder.pending) and little:
            self._feeder.ask(self._supply.take, self._fed, self.fail)
        while self._unlocated and self._locating + self.schedule.small_waiting < self.schedule.small_wanted:
            self._locate_some()

    def _fed(self, artifacts: tuple[Artifact, ...]) -> None:
        self._exhausted = not artifacts
        for artifact in artifacts:
            number = len(self._artifacts)
            self._artifacts.append(artifact)
            if artifact.size is None or artifact.size > self.limits.small:
                self._large[number] = LargeTransfer(self, number, artifact)
                self.schedule.add_large(number, artifact.size)
                continue
            transfer = self._small[number] = SmallTransfer(self, number, artifact)
            if artifact.size:
                self.locate_small(transfer)
            else:
                self._received.append(transfer)

    def _assign(self) -> None:
        while (decision := self.schedule.next(self.now, self._pauses.left)) is not None:
            match decision:
                case FetchSmall(key):
                    self._small[key].start()
                case FetchSegment(segment):
                    self._large[segment.file.key].start(segment)
                case Begin(key):
                    self._large[key].begin()
        if len(self._received) >= _STAGED or not (self._connected or self.small_workers.pending):
            self._stage_received()
        if self._exhausted:
            self._commit_last()

    def _stage_received(self) -> None:
        if self._received:
            received, self._received = self._received, []
            stage = partial(stage_all, self.ingests, received)
            self._staging.ask(stage, len(received), self._groups.add, self.fail)

    def _commit_last(self) -> None:
        """A group that no other file is on its way to need not be full."""
        if self._groups.size == len(self._small):
            self._groups.commit()

    # -- locations -----------------------------------------------------------------------------------------

    def locate_small(self, transfer: SmallTransfer) -> None:
        """In its turn: there are far more of them than connections."""
        self._unlocated.append((transfer.request, transfer.located, transfer.gone))

    def _locate_some(self) -> None:
        """Where no registry is asked for it many are looked up at once; else each by a thread of its own."""
        count = min(self._at_once, len(self._unlocated))
        self.locate(*[self._unlocated.popleft() for _ in range(count)])

    def locate(self, *asked: Lookup) -> None:
        """Where these artifacts are, now; of the two that come with each, one is called."""
        count = len(asked)
        self._locating += count

        def look_up() -> tuple[list[Location | NotFoundError], float]:
            began = time.monotonic()
            found: list[Location | NotFoundError] = []
            for request, *_ in asked:
                try:
                    found.append(self._locate(request.artifact, request.stale))
                except NotFoundError as error:
                    found.append(error)
            return found, (time.monotonic() - began) / count

        def located(answer: tuple[list[Location | NotFoundError], float]) -> None:
            found, seconds = answer
            self._locating -= count
            self._at_once = min(64, 2 * self._at_once) if seconds < _FAST else 1
            for (request, done, gone), location in zip(asked, found, strict=True):
                if isinstance(location, NotFoundError):
                    gone(location)
                else:
                    request.located(location, self.clock.time())
                    done()

        self._locators.ask(look_up, located, self.fail)

    def gone(self, artifact: Artifact, error: NotFoundError) -> None:
        """The others go on, here and in other pods; ``error`` is told at the end."""
        self._missing.append(error)
        self.workers.ask(partial(self._supply.give_up, artifact), lambda _: None, self.fail)

    # -- pauses and failures -------------------------------------------------------------------------------

    def refused(self, verdict: Wait) -> None:
        """A host is busy. Where it asks for a pause, fewer connections go on after it."""
        if verdict.seconds and self.now >= self._refused_until:
            self._refused_until = self.now + verdict.seconds
            self.schedule.refused(self.now)

    def again(
        self,
        request: ArtifactRequest,
        verdict: Verdict | None,
        error: TransferError | None,
        location: Location | None,
        *,
        position: int,
        brought: int,
    ) -> Again:
        """What follows a response from ``location`` that ended at ``position``, short of what was asked for.

        Raises NimpullError: it is over.
        """
        server = request.server
        if isinstance(verdict, Relocate | Fail):
            request.forgive(verdict, location)
        if isinstance(verdict, Restart | Relocate | Fail):
            anew = isinstance(verdict, Restart) or verdict.cause is Cause.CHANGED
            return Again(f"{server}: {verdict.reason}", anew=anew)
        wait = 0.0
        if isinstance(verdict, Wait):
            wait = verdict.seconds or 0.0
            error = NetworkError(
                f"{server} answers {verdict.reason}",
                hint="The registry is busy or limits this client. Run again later; finished chunks are kept.",
            )
        elif error is None:
            error = NetworkError(
                f"{server}: the response ended early, at byte {position}",
                hint="Something between here and the registry cuts connections. Run again later.",
            )
        elif not error.retryable:
            raise error
        seconds = request.pause(error, self.now, self.clock.jitter(), asked=wait, brought=brought)
        if seconds < wait:
            self._pauses.cut(request.host, seconds)
        self.emit(Waiting(error.message, seconds))
        return Again(error.message, pause=seconds)

    def fail(self, error: BaseException) -> None:
        """The run ends with the first of them."""
        if self._failure is None:
            self._failure = error

    # -- connections and buffers ---------------------------------------------------------------------------

    def number_connection(self) -> int:
        """A small number that no other connection has now."""
        return self._numbers.pop()

    def connection_ended(self, receiver: SegmentReceiver) -> None:
        self._numbers.append(receiver.number)
        if receiver in self._held:
            self._held.remove(receiver)

    def small_connection_ended(self, number: int) -> None:
        self._numbers.append(number)

    def may_take(self, file: LargeFile, segment: Segment, position: int) -> bool:
        """Whether a buffer is to be had for the bytes at ``position``.

        One for each file stays with whoever brings its next bytes: the hash frees what waits for them.
        """
        if not self.pool.free or not file.in_window(position):
            return False
        return self.pool.free > len(self._large) or file.is_first(segment)

    def hold(self, receiver: SegmentReceiver) -> None:
        """It waits for a buffer."""
        receiver.segment.hold(self.now)
        self._held.append(receiver)

    def _release_held(self) -> None:
        held, self._held = self._held, []
        held.sort(key=lambda each: not each.segment.file.is_first(each.segment))
        for receiver in held:
            receiver.segment.release(self.now)
            if receiver.response is not None:
                receiver.response.resume()

    # -- outcomes ------------------------------------------------------------------------------------------

    def stage(self, transfer: SmallTransfer) -> None:
        """Its content is here: a worker checks and writes it."""
        self._received.append(transfer)

    def large_ended(self, number: int, outcome: Outcome | None) -> None:
        del self._large[number]
        self._note(number, outcome)

    def small_ended(self, transfer: SmallTransfer, outcome: Outcome | None = None) -> None:
        del self._small[transfer.number]
        self._note(transfer.number, outcome)

    def _note(self, number: int, outcome: Outcome | None) -> None:
        if outcome is not None:
            self._outcomes[number] = outcome
            self.emit(Finished(outcome))

    # -- the end -------------------------------------------------------------------------------------------

    def _stop(self, *, cancelled: bool) -> None:
        """Nobody asks for anything any more; what is here is written, hashed and noted."""
        for transfer in self._large.values():
            transfer.flush()
        self.connections.close()
        self._locators.end()
        self._feeder.end()
        self.workers.join()
        self.small_workers.join()
        self.answers.deliver()
        if cancelled:
            self._groups.commit()
            self.answers.deliver()
        for transfer in tuple(self._large.values()):
            try:
                transfer.release()
            except NimpullError as error:
                self.fail(error)  # the first failure stands, the other files are closed too
