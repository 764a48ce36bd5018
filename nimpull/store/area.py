"""The ingest area: where artifacts are written, and from where they are committed, many at once.

``<sha256 of the identity>/`` is a large file in progress, see :mod:`nimpull.store.ingest`;
``<sha256>.whole`` is a small file that came in one piece. It has no journal, because it is fetched again.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from typing import Final, TypeVar

from nimpull.core.artifacts import Artifact
from nimpull.core.ports import Layout, Verified
from nimpull.core.ranges import disjoint
from nimpull.errors import StoreIOError
from nimpull.store.barrier import Barrier
from nimpull.store.durable import storing, sync_directories, tolerate_missing
from nimpull.store.ingest import FileIngest, make_directory, remove_ingest
from nimpull.store.journal import INGESTS, load
from nimpull.store.whole import COMMITTED, WholeIngest, write_whole

_WHOLE: Final = ".whole"
_FEW: Final = 8  # small files that are synced one by one, and leave the rest of the file system alone
_TRIES: Final = 3  # to write into an area that somebody keeps removing

Made = TypeVar("Made")


class IngestArea:
    """Implements :class:`nimpull.core.ports.Ingests` below ``root``, an existing directory."""

    def __init__(
        self,
        root: str,
        layout: Layout,
        together: Callable[[], AbstractContextManager[None]] = nullcontext,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``together``: entered while the files of one commit are placed."""
        self._monotonic = monotonic
        self._root = os.path.abspath(root)
        self._area = os.path.join(self._root, INGESTS)
        self._layout = layout
        self._together = together
        self._barrier: Barrier | None = None
        self._lock = threading.Lock()

    def open(self, artifact: Artifact) -> FileIngest:
        path = os.path.join(self._area, _name(artifact))
        return self._within(lambda _: FileIngest(artifact, path, self._monotonic))

    def stage(self, artifact: Artifact, content: memoryview) -> WholeIngest:
        path = os.path.join(self._area, f"{_name(artifact)}{_WHOLE}")

        def write(barrier: Barrier) -> WholeIngest:
            errors = barrier.errors
            return WholeIngest(artifact, path, write_whole(path, content, sync=not barrier.whole), errors)

        return self._within(write)

    def _within(self, make: Callable[[Barrier], Made]) -> Made:
        """``make`` in the area, again where a cleaner took that away in this very moment."""
        for _ in range(_TRIES):
            try:
                return make(self._make_area())
            except StoreIOError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
        return make(self._make_area())

    def present(self, artifacts: Iterable[Artifact]) -> int:
        """Bytes that journals of an earlier run claim; nothing is read back. Raises StoreError."""
        left = self._left()
        return sum(self._present(each) for each in artifacts if left and _name(each) in left)

    def _left(self) -> set[str]:
        with storing("list", self._area):
            return set(os.listdir(self._area)) if os.path.isdir(self._area) else set()

    def _present(self, artifact: Artifact) -> int:
        written = load(os.path.join(self._area, _name(artifact)), artifact)
        spans = disjoint(((claim.start, claim.end) for claim in written.claims), written.size)
        return sum(end - start for start, end in spans)

    def commit(self, batch: Sequence[Verified]) -> tuple[Verified, ...]:
        self._make_contents_durable(batch)
        changed: set[str] = set()
        with self._together():
            for verified in batch:
                artifact, path = verified.ingest.artifact, _own(verified).path
                changed.update(self._layout.place(artifact, path, digest=verified.digest, etag=verified.etag))
        with storing("make durable", self._root):
            sync_directories(changed)
        for verified in batch:
            verified.ingest.close()
            if isinstance(verified.ingest, FileIngest):
                verified.ingest.remove()
        return ()

    def sweep(self, artifacts: Iterable[Artifact]) -> None:
        """Drop what is left of the ingests of committed artifacts: of a run that was killed right after.

        Raises StoreError.
        """
        left = self._left()
        for artifact in artifacts if left else ():
            name = _name(artifact)
            if name in left:
                remove_ingest(os.path.join(self._area, name))
            if f"{name}{_WHOLE}" in left:
                with storing("remove", self._area):
                    tolerate_missing(os.unlink, os.path.join(self._area, f"{name}{_WHOLE}"))

    def _make_contents_durable(self, batch: Sequence[Verified]) -> None:
        """All of them, before any gets its name."""
        barrier = self._make_area()
        small = sum(isinstance(each.ingest, WholeIngest) for each in batch)
        at_once = barrier.whole and small > _FEW
        if at_once:
            with storing("flush", self._root):
                barrier.wait()
        for verified in batch:
            ingest = _own(verified)
            if isinstance(ingest, FileIngest) or (barrier.whole and not at_once):
                _settle(ingest.path, verified.size)
            elif ingest.size != verified.size:
                raise _shortened(ingest.path, ingest.size, verified.size)
            if isinstance(ingest, WholeIngest) and ingest.errors != barrier.errors:
                with storing("flush", ingest.path):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

    def close(self) -> None:
        """Let go of descriptors; ingests that are open stay usable."""
        with self._lock:
            barrier, self._barrier = self._barrier, None
        if barrier is not None:
            barrier.close()

    def _make_area(self) -> Barrier:
        with self._lock:
            # a cleaner may have taken it away meanwhile
            if self._barrier is None or not os.path.isdir(self._area):
                for path in (os.path.dirname(self._area), self._area):
                    make_directory(path)
                with storing("make durable", self._root):
                    sync_directories((self._root, os.path.dirname(self._area)))
                    self._barrier = self._barrier or Barrier(self._area)
            return self._barrier


def _name(artifact: Artifact) -> str:
    return sha256(artifact.identity.encode()).hexdigest()


def _own(verified: Verified) -> FileIngest | WholeIngest:
    ingest = verified.ingest
    if not isinstance(ingest, FileIngest | WholeIngest):
        raise TypeError(f"an ingest of another store: {type(ingest).__name__}")
    return ingest


def _settle(path: str, size: int) -> None:
    """The content is durable, whole and read-only before it gets its name."""
    with storing("flush", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor).st_size
            if found != size:
                raise _shortened(path, found, size)
            os.fchmod(descriptor, COMMITTED)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _shortened(path: str, found: int, size: int) -> StoreIOError:
    return StoreIOError(
        f"{path} holds {found} bytes where {size} were written",
        hint="The file system lost a write. Check the volume, then run again.",
    )
