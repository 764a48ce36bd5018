"""The ingest area: where artifacts are written, and from where they are committed, many at once.

``<sha256 of the identity>.<token of the run>/`` is a large file in progress, see :mod:`nimpull.store.ingest`;
``<sha256>.<token>.whole`` is a small file that came in one piece. It has no journal, because it is fetched
again. Where only one run writes, the token is left out.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from nimpull.core.artifacts import Artifact
from nimpull.core.digest import Digest
from nimpull.core.names import STATE_DIRECTORY, display
from nimpull.core.ports import Content, Verified
from nimpull.errors import StoreIOError
from nimpull.store.durable import let_go, set_mode, write_all
from nimpull.store.ingest import WHOLE, FileIngest, left_in, make_own, name_of, remove_ingest
from nimpull.store.sharing import SharedWork
from nimpull.store.tree import FILE_MODE, INGESTS, NEW, Tree

#: ``f_type`` of statfs(2): ext2, 3 and 4, XFS, Btrfs, F2FS, tmpfs.
_LOCAL: Final = frozenset({0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x01021994})
_SINCE: Final = (5, 8)
_FEW: Final = 8  # small files that are synced one by one, and leave the rest of the file system alone


@dataclass(slots=True)
class WholeIngest:
    """A small file on its way: written in one call, then waiting for the commit of its group.

    ``path``: below the root; ``size``: bytes that the file system says it has; ``errors``: see
    :class:`Barrier`.
    """

    artifact: Artifact
    path: str
    size: int
    errors: int
    durable: bool = False


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
        fence: SharedWork | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fence = fence
        self._monotonic = monotonic
        self._tree = tree
        self._layout = layout
        self._made: Barrier | None = None
        self._lock = threading.Lock()

    def open(self, artifact: Artifact) -> FileIngest:
        self._barrier()
        own = self._path(artifact)
        # who slept may be about to begin what another has taken over: that one's bytes are not left ones
        if self._fence and self._fence.holds(artifact):
            make_own(self._tree, artifact, own, self._fence.presence.has_ended)
        return FileIngest(artifact, self._tree, own, self._monotonic)

    def stage(self, artifact: Artifact, content: memoryview) -> WholeIngest:
        barrier, path = self._made or self._barrier(), f"{self._path(artifact)}{WHOLE}"
        errors = barrier.errors  # from before the first byte
        with self._tree.storing("write", path):
            try:
                size = self._write_whole(path, content, sync=not barrier.whole)
            except FileExistsError:  # left by a run that was killed
                self._tree.unlink(path)
                size = self._write_whole(path, content, sync=not barrier.whole)
        return WholeIngest(artifact, path, size, errors)

    def _write_whole(self, path: str, content: memoryview, *, sync: bool) -> int:
        """Make the read-only file ``path``, durable if ``sync``; returns its size in bytes."""
        with self._tree.writing(path, NEW, FILE_MODE) as file:
            write_all(file, content, 0)
            size = set_mode(file, FILE_MODE)
            if sync:
                os.fsync(file)
            return size

    def staging(self) -> AbstractContextManager[None]:
        return self._tree.holding()

    def _path(self, artifact: Artifact) -> str:
        token = f".{self._fence.token}" if self._fence else ""
        return f"{INGESTS}/{name_of(artifact)}{token}"

    def _barrier(self) -> Barrier:
        """Of the area, which is made where it is not there."""
        with self._lock:
            if self._made is None:
                tree = self._tree
                with tree.storing("create", INGESTS), tree.directory(INGESTS, create=True) as descriptor:
                    self._made = Barrier(descriptor)
                for above in ("", STATE_DIRECTORY):
                    tree.sync(above)
            return self._made

    def settle(self, batch: Sequence[Verified]) -> None:
        """See ``core.ports.Ingests``. What another run took over may be gone: it is left alone."""
        batch, _ = self._fenced(batch)
        whole: list[tuple[int, WholeIngest]] = []
        for each in batch:
            content = _own(each.ingest)
            if isinstance(content, FileIngest):
                self._sync(content.path, each.size)
            elif not content.durable:
                whole.append((each.size, content))
        if whole:
            self._settle_whole(whole)

    def _settle_whole(self, batch: Sequence[tuple[int, WholeIngest]]) -> None:
        """With the sizes that they must have."""
        barrier = self._barrier()
        at_once = barrier.whole and len(batch) > _FEW
        if at_once:
            with self._tree.storing("flush", ""):
                barrier.wait()
        for size, file in batch:
            if barrier.whole and not at_once:
                self._sync(file.path, size)
            self._check_size(file.path, file.size, size)
            if file.errors != barrier.errors:
                with self._tree.storing("flush", file.path):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            file.durable = True

    def _sync(self, path: str, size: int) -> None:
        """The content is durable, whole and read-only before it gets its name."""
        with self._tree.storing("flush", path), self._tree.reading(path) as file:
            self._check_size(path, set_mode(file, FILE_MODE), size)
            os.fsync(file)

    def _check_size(self, path: str, found: int, size: int) -> None:
        if found != size:
            raise StoreIOError(
                f"{display(self._tree.absolute(path), 300)} holds {found} bytes where {size} were written",
                hint="The file system lost a write. Check the volume, then run again.",
            )

    def commit(self, batch: Sequence[Verified]) -> tuple[Verified, ...]:
        """See ``core.ports.Ingests``. The fence is asked last of all: making the rest durable takes its
        time."""
        self.settle(batch)
        batch, lost = self._fenced(batch)
        changed: set[str] = set()
        with self._tree.holding(), self._layout.placing():
            for each in batch:
                artifact, path = each.ingest.artifact, _own(each.ingest).path
                changed.update(self._layout.place(artifact, path, digest=each.digest, etag=each.etag))
            for directory in sorted(changed):
                self._tree.sync(directory)
        for each in (*batch, *lost):
            content = _own(each.ingest)
            if isinstance(content, FileIngest):
                content.close()
                remove_ingest(self._tree, os.path.dirname(content.path))
            elif each in lost:
                remove_ingest(self._tree, content.path)
        if self._fence:
            self._fence.committed([each.ingest.artifact for each in batch])
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
        if left := left_in(self._tree):
            for artifact in artifacts:
                for path in left.get(name_of(artifact), ()):
                    remove_ingest(self._tree, path)

    def close(self) -> None:
        """Let go of descriptors; ingests that are open stay usable."""
        with self._lock:
            barrier, self._made = self._made, None
        if barrier is not None:
            barrier.close()


def _own(content: Content) -> FileIngest | WholeIngest:
    if not isinstance(content, FileIngest | WholeIngest):
        raise TypeError(f"an ingest of another store: {type(content).__name__}")
    return content


class Barrier:
    """Making the content of many small files durable at once. Thread-safe.

    ``fsync`` commits the journal of a file system for each file; ``syncfs`` writes all back and commits it
    once. It is used (``whole``) where it does that and tells what failed: on file systems that keep their
    blocks themselves (a FUSE daemon or a server across the network may never hear of it), and on Linux 5.8 or
    later, which reports an error of any file's write-back to the next ``syncfs`` on a descriptor that was
    open before (syncfs(2), "ERRORS").

    An error belongs to every file that was written before it was told, not only to those of the caller that
    hears of it. So a file remembers ``errors`` from before its first byte, and is lost once that has changed.
    """

    def __init__(self, directory: int) -> None:
        """``directory``: a descriptor of it, which stays the caller's. Raises OSError."""
        self.errors = 0
        self._lock = threading.Lock()
        self._descriptor = os.dup(directory)
        self._syncfs = find_syncfs(self._descriptor)

    @property
    def whole(self) -> bool:
        return self._syncfs is not None

    def wait(self) -> None:
        """All that was written before is durable. Raises OSError."""
        if self._syncfs is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        with self._lock:
            try:
                self._syncfs(self._descriptor)
            except OSError:
                self.errors += 1
                raise

    def close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                let_go(self._descriptor)
            self._descriptor = -1


def find_syncfs(descriptor: int) -> Callable[[int], None] | None:
    """syncfs(2), None where it is missing or says too little on this file system or kernel."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release is None or (int(release[1]), int(release[2])) < _SINCE:
        return None
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    about = ctypes.create_string_buffer(512)  # struct statfs begins with f_type, a word
    try:
        if libc.fstatfs(descriptor, about) or ctypes.c_ulong.from_buffer(about).value not in _LOCAL:
            return None
        function = libc.syncfs
    except AttributeError:
        return None

    def syncfs(descriptor: int) -> None:
        if function(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    return syncfs
