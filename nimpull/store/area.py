"""The ingest area: where artifacts are written, and from where they are committed, many at once.

``<sha256 of the identity>.<token of the run>/`` is a large file in progress, see :mod:`nimpull.store.ingest`;
``<sha256>.<token>.whole`` is a small file that came in one piece. It has no journal, because it is fetched
again. Where only one run writes, the token is left out.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Final, Protocol, TypeVar

from nimpull.core.artifacts import Artifact
from nimpull.core.digest import Digest
from nimpull.core.names import STATE_DIRECTORY, display
from nimpull.core.ports import Verified
from nimpull.errors import StoreIOError
from nimpull.store.barrier import Barrier
from nimpull.store.durable import let_go, set_mode
from nimpull.store.ingest import FileIngest, remove_ingest
from nimpull.store.resuming import WHOLE, directories_of, make_own, name_of, present_of
from nimpull.store.tree import FILE_MODE, INGESTS, Tree
from nimpull.store.whole import WholeIngest, write_whole

_FEW: Final = 8  # small files that are synced one by one, and leave the rest of the file system alone
_TRIES: Final = 3  # to write into an area that somebody keeps removing

Made = TypeVar("Made")


class Fence(Protocol):
    """What a run knows of other runs that write into the store. Raises StoreError."""

    @property
    def token(self) -> str: ...
    def has_ended(self, token: str) -> bool:
        """Whether the run with this token surely writes no more."""
        ...

    def holds(self, artifact: Artifact) -> bool:
        """Whether it still is this run's to fetch."""
        ...

    def lost(self, artifacts: Sequence[Artifact]) -> frozenset[str]:
        """Identities of those that are another run's by now, and must not be committed."""
        ...

    def committed(self, artifacts: Sequence[Artifact]) -> None: ...


class Destination(Protocol):
    """The part of a layout that a commit needs."""

    def place(self, artifact: Artifact, staged: str, *, digest: Digest, etag: str) -> tuple[str, ...]:
        """See :meth:`nimpull.store.layouts.StoreLayout.place`."""
        ...

    def placing(self) -> AbstractContextManager[None]:
        """For many files: what is noted of them is written at the end, in one go."""
        ...


class IngestArea:
    """Implements :class:`nimpull.core.ports.Ingests` in ``tree``. ``fence`` None: no other run writes."""

    def __init__(
        self,
        tree: Tree,
        layout: Destination,
        *,
        fence: Fence | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fence = fence
        self._monotonic = monotonic
        self._tree = tree
        self._layout = layout
        self._barrier: Barrier | None = None
        self._lock = threading.Lock()

    def open(self, artifact: Artifact) -> FileIngest:
        own = self._path(artifact)

        def begin(_: Barrier) -> FileIngest:
            # who slept may be about to begin what another has taken over: that one's bytes are not left ones
            if self._fence and self._fence.holds(artifact):
                found = directories_of(artifact, self._tree.names(INGESTS))
                make_own(self._tree, artifact, found, own, self._fence.has_ended)
            return FileIngest(artifact, self._tree, own, self._monotonic)

        return self._within(begin)

    def stage(self, artifact: Artifact, content: memoryview) -> WholeIngest:
        path = f"{self._path(artifact)}{WHOLE}"

        def write(barrier: Barrier) -> WholeIngest:
            errors = barrier.errors
            size = write_whole(self._tree, path, content, sync=not barrier.whole)
            return WholeIngest(artifact, self._tree, path, size, errors)

        return self._within(write)

    def staging(self) -> AbstractContextManager[None]:
        return self._tree.holding()

    def _path(self, artifact: Artifact) -> str:
        return f"{INGESTS}/{name_of(artifact)}{f'.{self._fence.token}' if self._fence else ''}"

    def _within(self, make: Callable[[Barrier], Made]) -> Made:
        """``make`` in the area, again where a cleaner took that away meanwhile."""
        for _ in range(_TRIES):
            try:
                return make(self._barrier or self._make_area())
            except StoreIOError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
            self._make_area()
        return make(self._make_area())

    def present(self, artifacts: Iterable[Artifact]) -> int:
        """See :func:`nimpull.store.resuming.present_of`."""
        return present_of(self._tree, artifacts)

    def settle(self, batch: Sequence[Verified]) -> None:
        """See ``core.ports.Ingests``. What another run took over may be gone: it is left alone."""
        batch, _ = self._fenced(batch)
        self._make_contents_durable([each for each in batch if not _is_durable(each)])

    def commit(self, batch: Sequence[Verified]) -> tuple[Verified, ...]:
        """See ``core.ports.Ingests``. The fence is asked last of all: making the rest durable takes its
        time."""
        self.settle(batch)
        batch, lost = self._fenced(batch)
        changed: set[str] = set()
        with self._tree.holding(), self._layout.placing():
            for verified in batch:
                artifact, path = verified.ingest.artifact, _own(verified).path
                changed.update(self._layout.place(artifact, path, digest=verified.digest, etag=verified.etag))
            for directory in sorted(changed):
                self._tree.sync(directory)
        for verified in (*batch, *lost):
            verified.ingest.close()
            if isinstance(verified.ingest, FileIngest):
                verified.ingest.remove()
            elif verified in lost:
                verified.ingest.reset()
        if self._fence:
            self._fence.committed([verified.ingest.artifact for verified in batch])
        return lost

    def _fenced(self, batch: Sequence[Verified]) -> tuple[Sequence[Verified], tuple[Verified, ...]]:
        """What may be committed, and what is another run's."""
        lost = self._fence.lost([each.ingest.artifact for each in batch]) if self._fence else frozenset()
        if not lost:
            return batch, ()
        return (
            [each for each in batch if each.ingest.artifact.identity not in lost],
            tuple(each for each in batch if each.ingest.artifact.identity in lost),
        )

    def sweep(self, artifacts: Iterable[Artifact]) -> None:
        """Drop what is left of the ingests of committed artifacts, whoever's they were. Raises StoreError."""
        left = self._tree.names(INGESTS)
        names = {name_of(artifact) for artifact in artifacts} if left else set()
        for path in (f"{INGESTS}/{each}" for each in left if each.partition(".")[0] in names):
            if path.endswith(WHOLE):
                with self._tree.storing("remove", path), suppress(FileNotFoundError):
                    self._tree.unlink(path)
            else:
                remove_ingest(self._tree, path)

    def _make_contents_durable(self, batch: Sequence[Verified]) -> None:
        """All of them, before any gets its name."""
        if not batch:
            return
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
            if isinstance(ingest, WholeIngest):
                ingest.durable = True

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
                found = set_mode(descriptor, FILE_MODE)
                if found != size:
                    raise self._shortened(path, found, size)
                os.fsync(descriptor)
            finally:
                let_go(descriptor)

    def _shortened(self, path: str, found: int, size: int) -> StoreIOError:
        return StoreIOError(
            f"{display(self._tree.absolute(path), 300)} holds {found} bytes where {size} were written",
            hint="The file system lost a write. Check the volume, then run again.",
        )


def _is_durable(verified: Verified) -> bool:
    return isinstance(verified.ingest, WholeIngest) and verified.ingest.durable


def _own(verified: Verified) -> FileIngest | WholeIngest:
    ingest = verified.ingest
    if not isinstance(ingest, FileIngest | WholeIngest):
        raise TypeError(f"an ingest of another store: {type(ingest).__name__}")
    return ingest
