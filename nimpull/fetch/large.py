"""One large file: its segments over the network, its bytes through buffers to disk and hash, its commit."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from nimpull.core.artifact_request import ArtifactRequest
from nimpull.core.artifacts import Action, Artifact, Outcome
from nimpull.core.digest import Digest
from nimpull.core.events import Advanced, Note, Spent
from nimpull.core.names import display
from nimpull.core.ports import Ingest, Verified
from nimpull.core.ranges import Accept, Cause, Restart, Span, Verdict, Wait, disjoint, gaps
from nimpull.core.reply import Head
from nimpull.core.schedule import LargeFile, Segment
from nimpull.core.transfer_failures import algorithm_of, failure, mismatch, verified_by
from nimpull.errors import NimpullError, NotFoundError, StoreIOError, TransferError
from nimpull.fetch.buffers import Buffer
from nimpull.fetch.ordered import Hashed, OrderedFile
from nimpull.fetch.receiver import SegmentReceiver

if TYPE_CHECKING:
    from nimpull.fetch.run import FetchRun

T = TypeVar("T")


class LargeTransfer:
    """All of it happens on the thread that turns the connections, but for ``_write`` and ``_commit``."""

    def __init__(self, run: FetchRun, number: int, artifact: Artifact) -> None:
        self.run = run
        self.number = number
        self.artifact = artifact
        self.size = artifact.size
        self.request = ArtifactRequest(artifact, run.limits.retry_budget, run.now)
        self._plan: LargeFile | None = None
        self._file: OrderedFile | None = None
        self._missing: list[Span] = []
        self._receivers: set[SegmentReceiver] = set()
        self.filling: dict[Segment, Buffer] = {}
        self._unlocated: list[Segment] = []  # they have a connection to come, but no address yet
        self._jobs = 0  # that workers have for the file as it is now
        self._when_quiet: Callable[[], None] | None = None
        self._since = self._not_before = 0.0
        self._mismatches = self._store_failures = 0
        self._fetched = self._counted = 0
        self._committing = False

    # -- setting up ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """See what an earlier run left, and where the file is."""
        self._since = self.run.now
        self.request.began(self.run.now)
        self._ask(partial(self.run.ingests.open, self.artifact), self._opened)

    def _opened(self, ingest: Ingest) -> None:
        artifact, bound = self.artifact, self.artifact.size or 0
        found = {(each.start, each.end): each for each in ingest.checkpoints}
        if artifact.digest is None and not ingest.validator:
            found = {}  # nothing could show that they are of what is served now
        spans = disjoint(found, bound)
        if artifact.digest is None and not gaps(bound, spans):
            spans = spans[:-1]  # the validator is compared with that of a response: one is needed
        self._file = file = OrderedFile(
            ingest,
            algorithm_of(artifact),
            self.size,
            checkpoints=[found[span] for span in spans],
            step=self.run.limits.journal,
            tell=lambda hashed: self.run.answers.tell(partial(self._hashed, file, hashed)),
        )
        self._missing = list(gaps(bound, spans))
        self._counted = sum(end - start for start, end in spans)
        if spans:
            self._ask(file.fold, lambda _: None)
        if self._missing or self.size is None:
            self.run.locate((self.request, self._located, self._give_up))
        else:
            self._planned()

    def _located(self) -> None:
        if self._plan is None:
            self._planned()
        waiting, self._unlocated = self._unlocated, []
        for segment in waiting:
            self.start(segment)

    def _planned(self) -> None:
        host = self.request.host
        self._plan = self.run.schedule.begun(
            self.number, self.size, self._missing, host, ranged=host not in self.run.rangeless
        )
        self._plan.not_before = self._not_before
        if self._file is not None:
            self._plan.front = self._file.front
            self._check_complete()

    # -- the network -----------------------------------------------------------------------------------------

    def start(self, segment: Segment) -> None:
        """Ask for what is missing of it."""
        location = self.request.where(self.run.clock.time())
        if location is None:
            self._unlocated.append(segment)
            if len(self._unlocated) == 1:
                self.run.locate((self.request, self._located, self._give_up))
            return
        if location.url.scheme == "file":  # libcurl reads it at one go, and cannot pause there
            segment.asked = min(segment.end or 1 << 62, segment.position + self.run.pool.block // 2)
            if not self.run.pool.free:
                self.run.schedule.broke_off(segment, self.run.now)
                return
        self.request.attempts += 1
        receiver = SegmentReceiver(self, segment, self.run.number_connection(), location)
        end = None if receiver.whole else segment.asked
        fresh = self.request.fresh_connection or self.request.failing
        receiver.response = self.run.connections.ask(location, segment.position, end, receiver, fresh=fresh)
        self._receivers.add(receiver)

    def judge(self, receiver: SegmentReceiver, head: Head) -> Verdict:
        asked = None if receiver.whole else receiver.asked
        epoch = self.run.clock.time()
        verdict = self.request.judge(head, receiver.began, asked, self.size, epoch)
        if isinstance(verdict, Wait):
            self.run.refused(verdict)
        if isinstance(verdict, Restart):
            self.run.rangeless |= {head.url.host, self.request.host}
        if isinstance(verdict, Accept):
            if self._distrusts(verdict.validator):
                return Restart("the validator of an earlier run is not the one that is served now")
            self.size = verdict.size if self.size is None else self.size
            self.run.schedule.accepted(receiver.segment, verdict.size, head.url.host)
            if receiver.asked is None:
                receiver.asked = receiver.segment.end
        return verdict

    def _distrusts(self, validator: str) -> bool:
        """Whether what an earlier run left may be of other content than what is served now."""
        file = self._file
        if file is None or self.artifact.digest is not None:
            return False
        return bool(file.expected or file.resumed) and validator != file.ingest.validator

    def put(self, segment: Segment, octets: bytes) -> bool:
        """Whether there is room for all of ``octets``, the next bytes of ``segment``."""
        buffer = self.filling.get(segment)
        room = buffer.stop - segment.position if buffer else 0
        following = None
        if len(octets) > room:
            if self._plan is None or not self.run.may_take(self._plan, segment, segment.position + room):
                return False
            following = self.run.pool.take(segment.position + room)
        if buffer is not None:
            buffer.put(octets if following is None else memoryview(octets)[:room])
        if following is not None:
            if buffer is not None:
                self._submit(buffer)
            following.put(memoryview(octets)[room:])
            buffer = self.filling[segment] = following
        segment.position += len(octets)
        if buffer is not None and segment.position in (buffer.stop, segment.end):
            self._submit(self.filling.pop(segment))
        return True

    def ended(self, receiver: SegmentReceiver, error: BaseException | None) -> None:
        """A response came to its end, for whatever reason."""
        self._let_go(receiver)
        if error is not None and not isinstance(error, TransferError):
            self.run.fail(error)
            return
        try:
            self._go_on(receiver, error)
            self._check_complete()
        except NotFoundError as missing:
            self._give_up(missing)
        except NimpullError as failed:
            self.run.fail(failed)

    def _go_on(self, receiver: SegmentReceiver, error: TransferError | None) -> None:
        segment, verdict = receiver.segment, receiver.verdict
        ranged = self._plan is not None and self._plan.ranged
        came = segment.position - receiver.began
        came = self.request.came(came, segment.position, self.run.now, ranged=ranged)
        refused = verdict is not None and not isinstance(verdict, Accept)
        if not refused and segment.position == segment.end:
            if receiver.excess and receiver.asked == segment.end:
                reason = "it sends more bytes than the file has"
                raise failure(Cause.MISLED, reason, self.artifact, self.request.server)
            self.run.schedule.whole(segment)
        elif not refused and error is None and segment.end is None:
            self._end_of_stream(segment)
        elif not refused and error is None and segment.position == receiver.asked:
            self.run.schedule.broke_off(segment, self.run.now)
        else:
            again = self.run.again(
                self.request, verdict, error, receiver.location, position=segment.position, brought=came
            )
            # where there is no asking for the rest, the file comes from its first byte
            rest = not segment.position or (ranged and segment.end is not None)
            if again.anew or (again.pause and self._plan is not None and not rest):
                self.restart(again.reason, again.pause)
            else:
                self.run.schedule.broke_off(segment, self.run.now, again.pause)

    def drop(self, segment: Segment) -> None:
        """Let its connection go: the rest comes over another one."""
        for receiver in [each for each in self._receivers if each.segment is segment]:
            self._disconnect(receiver)
            self.run.schedule.broke_off(segment, self.run.now)

    def _disconnect(self, receiver: SegmentReceiver) -> None:
        if receiver.response is not None:
            receiver.response.drop()
        self._let_go(receiver)

    def _let_go(self, receiver: SegmentReceiver) -> None:
        self._tell(receiver)
        self._fetched += receiver.segment.position - receiver.began
        self._receivers.discard(receiver)
        self.run.connection_ended(receiver)

    def _end_of_stream(self, segment: Segment) -> None:
        """A response without a length came to its end."""
        self.size = segment.position
        if buffer := self.filling.pop(segment, None):
            self._submit(buffer)
        self.run.schedule.whole(segment)
        self._check_complete()

    # -- bytes -----------------------------------------------------------------------------------------------

    def tell(self) -> None:
        """What a slow connection brought, though it did not fill a buffer."""
        for receiver in self._receivers:
            self._tell(receiver)

    def _tell(self, receiver: SegmentReceiver) -> None:
        count = receiver.segment.position - receiver.told
        if count:
            receiver.told += count
            self._counted += count
            self.run.emit(Advanced(count, receiver.number, receiver.host))

    def _submit(self, buffer: Buffer) -> None:
        self.tell()
        if self._file is not None:
            self._ask(partial(self._write, self._file, buffer), lambda _: None)

    def _write(self, file: OrderedFile, buffer: Buffer) -> None:
        if not file.abandoned:
            try:
                file.begin(self.size or 0, self.request.validator)
            except StoreIOError as error:
                file.abandoned, file.failure = True, error
        file.write(buffer)

    def flush(self) -> None:
        """The run ends: what is here and next in order is written and hashed, or it would come again."""
        for segment in tuple(self.filling):
            if self._plan is not None and self._plan.is_first(segment):
                self._submit(self.filling.pop(segment))

    def _hashed(self, file: OrderedFile, hashed: Hashed) -> None:
        for buffer in hashed.buffers:
            self.run.pool.give(buffer)
        if file is not self._file or self._when_quiet is not None:
            return
        if hashed.lost is not None:
            start, end = hashed.lost
            self._counted -= end - start
            self.run.emit(Advanced(start - end))
            if self._plan is None:
                insort(self._missing, hashed.lost)
            else:
                self.run.schedule.lost(self._plan, hashed.lost)
        if self._plan is not None:
            self.run.schedule.hashed(self._plan, hashed.front)
        self._check_complete()

    # -- workers ---------------------------------------------------------------------------------------------

    def _ask(self, job: Callable[[], T], done: Callable[[T], None]) -> None:
        def answered(answer: T) -> None:
            self._jobs -= 1
            done(answer)
            self._look_whether_quiet()

        def failed(error: BaseException) -> None:
            self._jobs -= 1
            self._store_failed(error)
            self._look_whether_quiet()

        self._jobs += 1
        self.run.workers.ask(job, answered, failed)

    def _look_whether_quiet(self) -> None:
        file = self._file
        if file is not None and file.failure is not None and self._when_quiet is None:
            failed, file.failure = file.failure, None
            self._store_failed(failed)
        if not self._jobs and self._when_quiet is not None:
            call, self._when_quiet = self._when_quiet, None
            call()

    def _store_failed(self, error: BaseException) -> None:
        """An I/O error before the first byte, or of a commit, costs one more try by another ingest: what was
        written may be lost, or a cleaner took it away."""
        if self._when_quiet is not None and isinstance(error, StoreIOError):
            return  # it begins anew already
        written = self._file is not None and self._file.begun and not self._committing
        if not isinstance(error, StoreIOError) or written or self._store_failures:
            self.run.fail(error)
            return
        self._store_failures += 1
        self.restart(error.message, replace=True)

    # -- endings ---------------------------------------------------------------------------------------------

    def restart(self, reason: str, pause: float = 0.0, *, replace: bool = False) -> None:
        """Forget all bytes, and begin anew once no worker has any of them."""
        if self._when_quiet is not None or self.run.stopping:
            return
        self.run.emit(Note(f"{display(self.artifact.path, 200)} starts over: {reason}", "warning"))
        self._disband()
        self.request.forget()
        self._not_before = self.run.now + pause
        self._when_quiet = partial(self._reset, replace=replace)
        self._look_whether_quiet()

    def _disband(self) -> None:
        for receiver in tuple(self._receivers):
            self._disconnect(receiver)
        self._unlocated.clear()
        if self._plan is not None:
            self.run.schedule.dropped(self._plan)
        self._plan = None
        for buffer in self.filling.values():
            self.run.pool.give(buffer)
        self.filling.clear()
        if self._file is not None:
            self._file.abandoned = True

    def _reset(self, *, replace: bool) -> None:
        file = self._file
        for buffer in file.leave() if file is not None else ():
            self.run.pool.give(buffer)
        self._committing = False

        def reset() -> Ingest:
            # by another descriptor: the old one may be of a file that has its final name already
            if replace or file is None:
                if file is not None:
                    file.ingest.close()
                ingest = self.run.ingests.open(self.artifact)
            else:
                ingest = file.ingest
            ingest.reset()
            return ingest

        def begun(ingest: Ingest) -> None:
            self.run.emit(Advanced(-self._counted))
            self.size = self.artifact.size
            self._opened(ingest)

        self.run.schedule.beginning(self.number)
        self._ask(reset, begun)

    def _check_complete(self) -> None:
        file = self._file
        if file is None or self._committing or self._when_quiet is not None or self.run.stopping:
            return
        if file.abandoned:  # what is counted as hashed is not
            return
        # until then what ends the file's last response is still to be heard
        if file.front != self.size or self._receivers or self.filling:
            return
        found = Digest(algorithm_of(self.artifact), file.hexdigest())
        if self.artifact.digest is not None and found != self.artifact.digest:
            self._mismatches += 1
            error = mismatch(self.artifact, found, self.request.server, self.request.coding)
            if self._mismatches > 1:  # and the next run is not to begin with it
                file.abandoned = True
                self._ask(file.ingest.reset, lambda _: self.run.fail(error))
            else:
                self.restart(error.message)
            return
        self._committing = True
        # a file that an earlier run had whole needed no request: its ETag is that run's
        etag = self.request.etag or file.ingest.validator.strip('"')
        verified = Verified(file.ingest, self.size, found, etag)
        self._ask(partial(self._commit, file, verified), partial(self._committed, verified))

    def _commit(self, file: OrderedFile, verified: Verified) -> tuple[bool, float]:
        began = time.monotonic()
        file.begin(verified.size, self.request.validator or file.ingest.validator)
        file.record()
        lost = self.run.ingests.commit([verified])
        return not lost, time.monotonic() - began

    def _committed(self, verified: Verified, answer: tuple[bool, float]) -> None:
        ours, seconds = answer
        if self._plan is not None:
            self.run.schedule.dropped(self._plan)
        file, self._file = self._file, None
        self.run.emit(Spent("sync", seconds))
        if file is not None:
            self.run.emit(Spent("hash", file.seconds))
        outcome = Outcome(
            artifact=self.artifact,
            action=Action.RESUMED if file is not None and file.resumed else Action.FETCHED,
            fetched=self._fetched,
            attempts=self.request.attempts,
            seconds=self.run.now - self._since,
            verified=verified_by(self.artifact),
            size=verified.size,
            digest=verified.digest,
        )
        self.run.large_ended(self.number, outcome if ours else None)

    def _give_up(self, missing: NotFoundError) -> None:
        """The host does not have it: the others go on."""
        self._disband()
        self.run.schedule.unbegun(self.number)
        self.run.gone(self.artifact, missing)
        self._when_quiet = self._gone
        self._look_whether_quiet()

    def _gone(self) -> None:
        file = self._file
        for buffer in file.leave() if file is not None else ():
            self.run.pool.give(buffer)
        self.release()
        self.run.large_ended(self.number, None)

    def release(self) -> None:
        """No worker has any of it: let go of descriptors; what is here and hashed is noted."""
        file, self._file = self._file, None
        if file is not None:
            try:
                if not (file.abandoned or self._committing):
                    file.record()
            finally:
                file.ingest.close()
