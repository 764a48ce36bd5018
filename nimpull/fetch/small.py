"""Small files: each comes whole, in one response, into memory; they are committed in groups."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from nimpull.core.artifact_request import ArtifactRequest
from nimpull.core.artifacts import Action, Artifact, Location, Outcome
from nimpull.core.digest import Digest, new_hasher
from nimpull.core.events import Advanced, Spent
from nimpull.core.ports import STOP, Ingests, Verified
from nimpull.core.ranges import Accept, Cause, Restart, Verdict, Wait
from nimpull.core.reply import Head
from nimpull.core.transfer_failures import algorithm_of, failure, mismatch, verified_by
from nimpull.errors import NimpullError, NotFoundError, StoreIOError, TransferError
from nimpull.fetch.workers import FileJobs

if TYPE_CHECKING:
    from nimpull.fetch.run import FetchRun


class SmallTransfer:
    """One of them. Implements :class:`nimpull.core.ports.Receiver`."""

    def __init__(self, run: FetchRun, number: int, artifact: Artifact) -> None:
        self.number = number
        self.artifact = artifact
        self.size = artifact.size or 0
        self.request = ArtifactRequest(artifact, run.limits.retry_budget, run.now)
        self.content = bytearray()
        self._run = run
        self._start = 0  # of the response under way
        self._location: Location | None = None
        self._ranged = True
        self._excess = False
        self._verdict: Verdict | None = None
        self._connection = 0
        self._since = self._asked = 0.0  # the latter by the real clock: it is a matter of milliseconds
        self._mismatches = self._lost = 0

    def located(self) -> None:
        location = self.request.location
        host = self.request.host if location is None else location.url.host
        self._run.schedule.add_small(self.number, self.size, host)

    def gone(self, missing: NotFoundError) -> None:
        """The host does not have it: the others go on."""
        self._run.gone(self.artifact, missing)
        self._run.small_ended(self)

    def start(self) -> None:
        run, location = self._run, self.request.where(self._run.clock.time())
        if location is None:
            run.schedule.small_ended(self.number, None)
            run.locate_small(self)
            return
        if not self._since:
            self._since = run.now
            self.request.began(run.now)
        self._start, self._location = len(self.content), location
        self._excess, self._verdict = False, None
        self._connection, self._asked = run.number_connection(), time.monotonic()
        self.request.attempts += 1
        fresh = self.request.fresh_connection or self.request.failing
        end = self.size if self._start else None
        run.connections.ask(location, self._start, end, self, fresh=fresh, small=True)

    # -- see ports.Receiver --------------------------------------------------------------------------------

    def head(self, head: Head) -> bool:
        run = self._run
        end = self.size if self._start else None
        self._verdict = self.request.judge(head, self._start, end, self.size, run.clock.time())
        if head.shared:
            run.schedule.small_shared()
        if isinstance(self._verdict, Wait):
            run.refused(self._verdict)
        return isinstance(self._verdict, Accept)

    def data(self, octets: bytes) -> int | None:
        self.content += octets
        if len(self.content) <= self.size:
            return None
        self._excess = True
        del self.content[self.size :]
        return STOP

    def ended(self, error: BaseException | None) -> None:
        run, whole = self._run, len(self.content) == self.size and isinstance(self._verdict, Accept)
        run.schedule.small_ended(self.number, time.monotonic() - self._asked if whole else None)
        run.small_connection_ended(self._connection)
        try:
            if error is not None and not isinstance(error, TransferError):
                raise error
            if whole and self._excess:
                raise failure(
                    Cause.MISLED, "it sends more bytes than the file has", self.artifact, self.request.server
                )
            if whole:
                run.emit(Advanced(self.size, self._connection, self.request.host))
                run.stage(self)
            else:
                self._go_on(error)
        except NotFoundError as missing:
            self.gone(missing)
        except BaseException as failed:  # noqa: BLE001 - it ends the run
            run.fail(failed)

    def _go_on(self, error: TransferError | None) -> None:
        run, request, position = self._run, self.request, len(self.content)
        brought = request.came(position - self._start, position, run.now, ranged=self._ranged)
        again = run.again(request, self._verdict, error, self._location, position=position, brought=brought)
        self._ranged = self._ranged and not isinstance(self._verdict, Restart)
        if again.anew or (again.pause and not self._ranged):
            self._forget()
        not_before = run.now + again.pause if again.pause else 0.0
        run.schedule.add_small(self.number, self.size, request.host, not_before)

    def _forget(self) -> None:
        self.content.clear()
        self.request.forget()

    # -- after the network ---------------------------------------------------------------------------------

    def damaged(self, found: Digest) -> None:
        """Its content is not what was listed: it comes once more."""
        self._mismatches += 1
        if self._mismatches > 1:
            self._run.fail(mismatch(self.artifact, found, self.request.server, self.request.coding))
            return
        self.again()

    def lost(self, error: NimpullError) -> None:
        """What was written of it did not reach the disk: it comes once more, then the error stands."""
        self._lost += 1
        if self._lost > 1:
            self._run.fail(error)
        else:
            self.again()

    def again(self) -> None:
        self._run.emit(Advanced(-self.size))
        self._forget()
        self.located()

    def outcome(self, found: Digest) -> Outcome:
        return Outcome(
            artifact=self.artifact,
            action=Action.FETCHED,
            fetched=self.size,
            attempts=self.request.attempts,
            seconds=max(0.0, self._run.now - self._since),
            verified=verified_by(self.artifact),
            size=self.size,
            digest=found,
        )


@dataclass(frozen=True, slots=True)
class Staged:
    """What became of one that was handed to :func:`stage_all`: ``verified`` unless its content is damaged."""

    transfer: SmallTransfer
    found: Digest
    verified: Verified | None


def stage_all(ingests: Ingests, transfers: Sequence[SmallTransfer]) -> tuple[list[Staged], float]:
    """Check and write them; with the seconds that hashing took. Raises StoreError."""
    began = time.monotonic()
    found = [_digest_of(each) for each in transfers]
    hashing = time.monotonic() - began
    staged: list[Staged] = []
    failed: list[Staged] = []
    with ingests.staging():
        for transfer, digest in zip(transfers, found, strict=True):
            try:
                staged.append(_stage(ingests, transfer, digest))
            except StoreIOError:
                failed.append(Staged(transfer, digest, None))
    # an I/O error, or an area that a cleaner took away, costs one more try
    staged += [_stage(ingests, each.transfer, each.found) for each in failed]
    return staged, hashing


def _digest_of(transfer: SmallTransfer) -> Digest:
    algorithm = algorithm_of(transfer.artifact)
    hasher = new_hasher(algorithm, transfer.size)
    hasher.update(memoryview(transfer.content))
    return Digest(algorithm, hasher.hexdigest())


def _stage(ingests: Ingests, transfer: SmallTransfer, found: Digest) -> Staged:
    artifact = transfer.artifact
    if artifact.digest is not None and found != artifact.digest:
        return Staged(transfer, found, None)
    ingest = ingests.stage(artifact, memoryview(transfer.content))
    return Staged(transfer, found, Verified(ingest, transfer.size, found, transfer.request.etag))


class Groups:
    """Small files that wait for their commit: one makes many of them durable at once."""

    def __init__(self, run: FetchRun) -> None:
        self._run = run
        self.size = 0  # files that wait, or are being committed
        self._placing = FileJobs(run.small_workers)
        self._waiting: list[Staged] = []
        self._bytes = 0  # of those that wait

    def add(self, answer: tuple[list[Staged], float]) -> None:
        staged, hashing = answer
        self._run.emit(Spent("hash", hashing))
        for each in staged:
            self._run.schedule.small_stored(each.transfer.size)
            if each.verified is None:
                each.transfer.damaged(each.found)
                continue
            each.transfer.content = bytearray()
            self._waiting.append(each)
            self.size += 1
            self._bytes += each.transfer.size
            limits = self._run.limits
            if len(self._waiting) >= limits.batch_files or self._bytes >= limits.batch_bytes:
                self.commit()

    def commit(self) -> None:
        """What waits: first its content, by a worker, for the disk takes its time; then its names."""
        group, self._waiting, self._bytes = self._waiting, [], 0
        if not group:
            return
        run, began = self._run, time.monotonic()
        verified = [each.verified for each in group if each.verified is not None]

        def settled(_: None) -> None:
            self._placing.ask(partial(run.ingests.commit, verified), len(verified), committed, failed)

        def committed(not_ours: tuple[Verified, ...]) -> None:
            self.size -= len(group)
            run.emit(Spent("sync", time.monotonic() - began))
            for each in group:
                ours = each.verified not in not_ours if not_ours else True
                run.small_ended(each.transfer, each.transfer.outcome(each.found) if ours else None)

        def failed(error: BaseException) -> None:
            self.size -= len(group)
            if not isinstance(error, StoreIOError) or run.stopping:
                run.fail(error)
                return
            for each in group:
                each.transfer.lost(error)

        run.small_workers.ask(partial(run.ingests.settle, verified), settled, failed)
