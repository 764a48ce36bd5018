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
from contextlib import suppress
from hashlib import sha256
from typing import Final, TypeVar

from nimpull.core.artifacts import Artifact
from nimpull.core.names import STATE_DIRECTORY, display
from nimpull.core.ports import Layout, Verified
from nimpull.core.ranges import disjoint
from nimpull.errors import StoreIOError
from nimpull.store.barrier import Barrier
from nimpull.store.durable import set_mode
from nimpull.store.ingest import FileIngest, remove_ingest
from nimpull.store.journal import INGESTS, load
from nimpull.store.tree import FILE_MODE, Tree
from nimpull.store.whole import WholeIngest, write_whole

_WHOLE: Final = ".whole"
_FEW: Final = 8  # small files that are synced one by one, and leave the rest of the file system alone
_TRIES: Final = 3  # to write into an area that somebody keeps removing

Made = TypeVar("Made")


class IngestArea:
    """Implements :class:`nimpull.core.ports.Ingests` in ``tree``."""

    def __init__(
        self, tree: Tree, layout: Layout, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._monotonic = monotonic
        self._tree = tree
        self._layout = layout
        self._barrier: Barrier | None = None
        self._lock = threading.Lock()

    def open(self, artifact: Artifact) -> FileIngest:
        path = _directory(artifact)
        return self._within(lambda _: FileIngest(artifact, self._tree, path, self._monotonic))

    def stage(self, artifact: Artifact, content: memoryview) -> WholeIngest:
        path = f"{_directory(artifact)}{_WHOLE}"

        def write(barrier: Barrier) -> WholeIngest:
            errors = barrier.errors
            size = write_whole(self._tree, path, content, sync=not barrier.whole)
            return WholeIngest(artifact, self._tree, path, size, errors)

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
        left = set(self._tree.names(INGESTS))
        return sum(self._present(each) for each in artifacts if left and _name(each) in left)

    def _present(self, artifact: Artifact) -> int:
        written = load(self._tree, _directory(artifact), artifact)
        spans = disjoint(((claim.start, claim.end) for claim in written.claims), written.size)
        return sum(end - start for start, end in spans)

    def commit(self, batch: Sequence[Verified]) -> tuple[Verified, ...]:
        self._make_contents_durable(batch)
        changed: set[str] = set()
        with self._tree.holding():
            for verified in batch:
                artifact, path = verified.ingest.artifact, _own(verified).path
                changed.update(self._layout.place(artifact, path, digest=verified.digest, etag=verified.etag))
            for directory in sorted(changed):
                self._tree.sync(directory)
        for verified in batch:
            verified.ingest.close()
            if isinstance(verified.ingest, FileIngest):
                verified.ingest.remove()
        return ()

    def sweep(self, artifacts: Iterable[Artifact]) -> None:
        """Drop what is left of the ingests of committed artifacts: of a run that was killed right after.

        Raises StoreError.
        """
        left = set(self._tree.names(INGESTS))
        for artifact in artifacts if left else ():
            if _name(artifact) in left:
                remove_ingest(self._tree, _directory(artifact))
            whole = f"{_directory(artifact)}{_WHOLE}"
            if os.path.basename(whole) in left:
                with self._tree.storing("remove", whole), suppress(FileNotFoundError):
                    self._tree.unlink(whole)

    def _make_contents_durable(self, batch: Sequence[Verified]) -> None:
        """All of them, before any gets its name."""
        barrier = self._make_area()
        small = sum(isinstance(each.ingest, WholeIngest) for each in batch)
        at_once = barrier.whole and small > _FEW
        if at_once:
            with self._tree.storing("flush", ""):
                barrier.wait()
        for verified in batch:
            ingest = _own(verified)
            if isinstance(ingest, FileIngest) or (barrier.whole and not at_once):
                self._settle(ingest.path, verified.size)
            elif ingest.size != verified.size:
                raise self._shortened(ingest.path, ingest.size, verified.size)
            if isinstance(ingest, WholeIngest) and ingest.errors != barrier.errors:
                with self._tree.storing("flush", ingest.path):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

    def close(self) -> None:
        """Let go of descriptors; ingests that are open stay usable."""
        with self._lock:
            barrier, self._barrier = self._barrier, None
        if barrier is not None:
            barrier.close()

    def _make_area(self) -> Barrier:
        tree = self._tree
        with self._lock:
            # a cleaner may have taken it away meanwhile
            if self._barrier is None or tree.lstat(INGESTS) is None:
                with tree.storing("create", INGESTS), tree.directory(INGESTS, create=True) as descriptor:
                    self._barrier = self._barrier or Barrier(descriptor)
                for above in ("", STATE_DIRECTORY):
                    tree.sync(above)
            return self._barrier

    def _settle(self, path: str, size: int) -> None:
        """The content is durable, whole and read-only before it gets its name."""
        with self._tree.storing("flush", path):
            descriptor = self._tree.open(path)
            try:
                found = os.fstat(descriptor).st_size
                if found != size:
                    raise self._shortened(path, found, size)
                set_mode(descriptor, FILE_MODE)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _shortened(self, path: str, found: int, size: int) -> StoreIOError:
        return StoreIOError(
            f"{display(self._tree.absolute(path), 300)} holds {found} bytes where {size} were written",
            hint="The file system lost a write. Check the volume, then run again.",
        )


def _name(artifact: Artifact) -> str:
    return sha256(artifact.identity.encode()).hexdigest()


def _directory(artifact: Artifact) -> str:
    return f"{INGESTS}/{_name(artifact)}"


def _own(verified: Verified) -> FileIngest | WholeIngest:
    ingest = verified.ingest
    if not isinstance(ingest, FileIngest | WholeIngest):
        raise TypeError(f"an ingest of another store: {type(ingest).__name__}")
    return ingest
