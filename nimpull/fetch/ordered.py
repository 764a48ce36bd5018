"""One large file on its way to the disk: written in any order, hashed in order, noted in the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final, Protocol, Self, cast

from nimpull.core.digest import Hasher, new_hasher
from nimpull.core.ports import Ingest
from nimpull.core.ranges import Checkpoint, Span
from nimpull.errors import StoreIOError
from nimpull.fetch.buffers import Buffer, new_buffer

_MOST_LINES: Final = 1 << 15  # of a journal
_SCRATCH: Final = 4 << 20  # bytes that are read back at a time


class _Forking(Hasher, Protocol):
    def copy(self) -> Self: ...


@dataclass(frozen=True, slots=True)
class Hashed:
    """The hash came to ``front``: ``buffers`` are free. ``lost``: bytes there that an earlier run noted, and
    that are not what they were."""

    front: int
    buffers: tuple[Buffer, ...] = ()
    lost: Span | None = None


class OrderedFile:
    """Of one ingest. Any worker may call ``write``; the one whose bytes are next hashes them, and what
    follows them, while the others go on.

    The journal follows the hash: what proves bytes to the next run is the digest that is computed anyway, and
    nothing that is ahead of it is noted. ``tell`` is called by workers.
    """

    def __init__(
        self,
        ingest: Ingest,
        algorithm: str,
        size: int | None,
        *,
        checkpoints: Sequence[Checkpoint],
        step: int,
        tell: Callable[[Hashed], None],
    ) -> None:
        """``size``: None = not known yet; ``step``: bytes between two lines of the journal, at least."""
        self.ingest = ingest
        self.front = self.resumed = 0
        self.seconds = 0.0  # that hashing took
        self.abandoned = False
        self.failure: StoreIOError | None = None  # why it could not begin
        self._tell = tell
        self._algorithm = algorithm
        self._hasher = new_hasher(algorithm, size or 0)
        self._step = max(step, (size or 0) // _MOST_LINES)
        self.expected = {each.start: each for each in checkpoints}
        self._recorded = 0
        self._failures = 0
        self._lock = Lock()
        self.begun = self._hashing = False
        self._waiting: dict[int, Buffer] = {}  # by offset, written

    def begin(self, size: int, validator: str) -> None:
        """Once, before the first byte. Raises StoreError."""
        with self._lock:
            if not (self.begun or self.abandoned):
                self.ingest.begin(size, validator)
                self.begun = True
                if not self.front:  # a git blob's digest begins with its size, which may not be listed
                    self._hasher = new_hasher(self._algorithm, size)

    def fold(self) -> None:
        """Hash what an earlier run left at the start. Raises StoreError."""
        self._hash_on()

    def write(self, buffer: Buffer) -> None:
        """The bytes of ``buffer``, which is this file's until it is told as free. Raises StoreError."""
        if not self.abandoned:
            self._write(buffer)
        with self._lock:
            self._waiting[buffer.start] = buffer
        self._hash_on()

    def _write(self, buffer: Buffer) -> None:
        try:
            self.ingest.write(buffer.filled, buffer.start)
        except StoreIOError:  # an I/O error costs one more try
            if self._failures:
                raise
            self._failures += 1
            self.ingest.write(buffer.filled, buffer.start)

    def _hash_on(self) -> None:
        """As far as the bytes are here, unless another worker does."""
        with self._lock:
            if self._hashing:
                return
            self._hashing = True
        while True:
            with self._lock:
                buffer = self._waiting.pop(self.front, None)
                checkpoint = self.expected.pop(self.front, None) if buffer is None else None
                if buffer is None and checkpoint is None:
                    self._hashing = False
                    return
            if buffer is not None:
                self._take(buffer)
            elif checkpoint is not None and not self.abandoned:
                self._fold(checkpoint)

    def _take(self, buffer: Buffer) -> None:
        began = time.monotonic()
        if not self.abandoned:
            self._hasher.update(buffer.filled)
        self.seconds += time.monotonic() - began
        self.front = buffer.end
        if self.front - self._recorded >= self._step and not self.abandoned:
            self.record()
        self._tell(Hashed(self.front, (buffer,)))

    def _fold(self, checkpoint: Checkpoint) -> None:
        """Hash its bytes from disk; the hash stays as it was if they do not lead to its digest."""
        self.record()
        began = time.monotonic()
        forked = cast(_Forking, self._hasher).copy()
        scratch = new_buffer(min(_SCRATCH, -(-(checkpoint.end - checkpoint.start) // 4096) * 4096))
        position = checkpoint.start
        while position < checkpoint.end and not self.abandoned:
            count = self.ingest.read(scratch[: checkpoint.end - position], position)
            if not count:
                break
            forked.update(scratch[:count])
            position += count
        self.seconds += time.monotonic() - began
        if position < checkpoint.end or forked.hexdigest() != checkpoint.digest.hex():
            self._tell(Hashed(self.front, lost=(checkpoint.start, checkpoint.end)))
            return
        self._hasher = forked
        self.resumed += checkpoint.end - checkpoint.start
        self.front = self._recorded = checkpoint.end
        self._tell(Hashed(self.front))

    def leave(self) -> tuple[Buffer, ...]:
        """The buffers that wait for bytes before theirs; none works here any more."""
        waiting, self._waiting = self._waiting, {}
        return tuple(waiting.values())

    def record(self) -> None:
        """The journal catches up with the hash. For the worker that hashes, or once none works here."""
        if self.front > self._recorded:
            self.ingest.record(Checkpoint(self._recorded, self.front, bytes.fromhex(self.hexdigest())))
            self._recorded = self.front

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()
