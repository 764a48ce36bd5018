"""Large artifacts being written: sparse, journaled, resumable, and invisible until their commit.

``.nimpull/ingest/<sha256 of the identity>/`` holds ``data`` (the bytes, at their offsets) and what
:mod:`nimpull.store.journal` keeps beside it. Nothing of this is believed because it is there: a
checkpoint counts once the bytes up to it, read back, lead to its digest, and a file once its content was
verified.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from hashlib import sha256
from typing import Final

from nimpull.core.artifacts import Artifact
from nimpull.core.ranges import Checkpoint
from nimpull.errors import StoreError
from nimpull.store.durable import set_mode, write_all
from nimpull.store.journal import ARTIFACT, DATA, JOURNAL, header, journal_line, load
from nimpull.store.tree import INGESTS, NEW, Tree

WHOLE: Final = ".whole"  # ends the name of a small file that came in one piece: it is not gone on with
PAGE: Final = 4096  # alignment that O_DIRECT asks for on every block device in use
WRITE_BACK: Final = 32 << 20  # bytes of page cache a buffered ingest may hold before they are flushed
FLUSH_INTERVAL: Final = 5.0  # seconds of progress that a power cut may cost, or one line of the journal
_NO_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
_BLOCK: Final = 8 << 20  # bytes of one copy_file_range(2): a stop need not wait for gigabytes
#: What a kernel or a file system answers that cannot copy by itself.
_NO_COPY: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM})
_SHARED: Final = 0o664  # of what another run of the group may go on with


class FileIngest:
    """Implements :class:`nimpull.core.ports.Ingest` over a directory of the ingest area.

    ``directory`` and ``path`` (of the bytes) are below the root of ``tree``.
    """

    def __init__(
        self, artifact: Artifact, tree: Tree, directory: str, monotonic: Callable[[], float]
    ) -> None:
        self.artifact = artifact
        self._tree = tree
        self._monotonic = monotonic
        self._flushed = monotonic()
        self.path = f"{directory}/{DATA}"
        self._directory = directory
        self._lock = threading.Lock()
        self._descriptor = self._direct = self._journal = -1
        self._unflushed = 0
        _drop_foreign(tree, directory)
        written = load(tree, directory, artifact)
        self.checkpoints: Sequence[Checkpoint] = written.checkpoints
        self.validator = written.validator
        self._size = written.size
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        tree, journal = self._tree, f"{self._directory}/{JOURNAL}"
        with tree.storing("open", self.path):
            _make_writable(tree, self.path)
            self._descriptor = tree.open_at(self.path, os.O_RDWR | os.O_CREAT, _SHARED)
            try:
                if tree.abilities.direct:
                    self._direct = tree.open_at(self.path, os.O_RDWR | os.O_DIRECT)
            except OSError as error:
                if error.errno not in _NO_DIRECT:
                    raise
        with tree.storing("open", journal):
            self._journal = tree.open_at(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND, _SHARED)
            if os.fstat(self._journal).st_size:
                os.write(self._journal, b"\n")  # ends a line that a crash tore

    def begin(self, size: int, validator: str) -> None:
        if self._size != size:  # also -1: lines of a journal whose header was lost say nothing
            self.reset()
        with self._tree.storing("reserve", self.path):
            # where there are no holes (FAT) each byte would be written twice: it grows as it comes
            if self._tree.abilities.holes:
                os.ftruncate(self._descriptor, size)
        self._tree.sync(INGESTS)
        self._tree.write(f"{self._directory}/{ARTIFACT}", header(self.artifact, size, validator))
        self._size, self.validator = size, validator

    def write(self, block: memoryview, offset: int) -> None:
        with self._tree.storing("write", self.path):
            count = self._write_direct(block, offset)
            if count < len(block):
                write_all(self._descriptor, block[count:], offset + count)
                self._bound_write_back(len(block) - count)

    def _write_direct(self, block: memoryview, offset: int) -> int:
        """Bytes that went past the page cache: whole pages, where offset and memory are aligned."""
        length = len(block) - len(block) % PAGE
        if self._direct < 0 or offset % PAGE or not length:
            return 0
        try:
            write_all(self._direct, block[:length], offset)
        except OSError as error:
            if error.errno not in _NO_DIRECT:
                raise
            return 0  # this buffer, or what a short write left, is not aligned: the page cache takes it
        return length

    def _bound_write_back(self, count: int) -> None:
        """Dirty pages count against a pod's memory limit: flush and drop them every so often."""
        with self._lock:
            self._unflushed += count
            if self._unflushed < WRITE_BACK:
                return
            self._unflushed = 0
        os.fdatasync(self._descriptor)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, buffer: memoryview, offset: int) -> int:
        with self._tree.storing("read", self.path):
            if self._direct >= 0 and offset % PAGE == 0 and len(buffer) % PAGE == 0:
                try:
                    return os.preadv(self._direct, [buffer], offset)
                except OSError as error:
                    if error.errno not in _NO_DIRECT:
                        raise
            count = os.preadv(self._descriptor, [buffer], offset)
            os.posix_fadvise(self._descriptor, offset, count, os.POSIX_FADV_DONTNEED)
            return count

    def record(self, checkpoint: Checkpoint) -> None:
        line = journal_line(checkpoint)
        with self._tree.storing("append to", f"{self._directory}/{JOURNAL}"):
            # O_APPEND makes one write one line, also among threads
            if os.write(self._journal, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._flush_when_due()

    def _flush_when_due(self) -> None:
        """Now and then what is journaled becomes durable: the bytes first, or the lines would be in vain."""
        now = self._monotonic()
        with self._lock:
            if now - self._flushed < FLUSH_INTERVAL:
                return
            self._flushed = now
        with self._tree.storing("flush", self.path):
            os.fdatasync(self._descriptor)
            os.fdatasync(self._journal)

    def reset(self) -> None:
        with self._tree.storing("empty", self.path):
            if os.fstat(self._journal).st_size:
                os.ftruncate(self._journal, 0)
                os.fsync(self._journal)  # before a header of other content can stand beside these lines
            os.ftruncate(self._descriptor, 0)
            if self._size > 0 and self._tree.abilities.holes:
                os.ftruncate(self._descriptor, self._size)
        self.checkpoints = ()

    def close(self) -> None:
        with self._lock:
            held = tuple(each for each in (self._direct, self._descriptor, self._journal) if each >= 0)
            self._descriptor = self._direct = self._journal = -1
        with self._tree.storing("close", self.path), ExitStack() as closing:
            for descriptor in held:  # each of them, also where one reports a late error
                closing.callback(os.close, descriptor)


def _drop_foreign(tree: Tree, directory: str) -> None:
    """What a run with another uid left is begun anew: only its owner could make it read-only at the end."""
    owners = [tree.lstat(f"{directory}/{name}") for name in (JOURNAL, ARTIFACT, DATA)]
    if os.geteuid() and any(status and status.st_uid != os.geteuid() for status in owners):
        remove_ingest(tree, directory)


def _make_writable(tree: Tree, path: str) -> None:
    """An ingest that was verified, but not placed before its process ended, is read-only already."""
    with suppress(FileNotFoundError), tree.reading(path) as file:
        if not os.fstat(file).st_mode & stat.S_IWUSR:
            set_mode(file, _SHARED)


def name_of(artifact: Artifact) -> str:
    """What begins the names of its ingests."""
    return sha256(artifact.identity.encode()).hexdigest()


def left_in(tree: Tree) -> Mapping[str, Sequence[str]]:
    """What is in the ingest area, with or without a run's token: paths by :func:`name_of` their file."""
    found: dict[str, list[str]] = {}
    for name in tree.names(INGESTS):
        found.setdefault(name.partition(".")[0], []).append(f"{INGESTS}/{name}")
    return found


def remove_ingest(tree: Tree, path: str) -> None:
    """What is at ``path`` in the ingest area. Raises StoreError."""
    if path.endswith(WHOLE):
        tree.remove(path)
        return
    for name in (JOURNAL, ARTIFACT, DATA):
        tree.remove(f"{path}/{name}")
    with tree.storing("remove", path), suppress(FileNotFoundError):
        tree.remove_directory(path)


# -- what earlier runs left ------------------------------------------------------------------------------
#
# Each run writes into directories with its own token in their names: two never write into one file, also
# where one of them slept and does not know yet that the file is another's.


def present_of(tree: Tree, artifacts: Iterable[Artifact]) -> int:
    """Bytes that journals of earlier runs speak of; nothing is read back. Raises StoreError."""
    left = left_in(tree)
    return sum(
        max((load(tree, each, artifact).present for each in _directories_of(artifact, left)), default=0)
        for artifact in (artifacts if left else ())
    )


def _directories_of(artifact: Artifact, left: Mapping[str, Sequence[str]]) -> Sequence[str]:
    return [each for each in left.get(name_of(artifact), ()) if not each.endswith(WHOLE)]


def make_own(tree: Tree, artifact: Artifact, own: str, has_ended: Callable[[str], bool]) -> None:
    """Let ``own`` go on from the fullest directory of the artifact; the others are dropped.

    ``has_ended``: whether the run of a token writes no more. Of one that may only be asleep the bytes are
    copied: when it wakes it writes on into its own file, which nobody reads then. Raises StoreError.
    """
    others = [each for each in _directories_of(artifact, left_in(tree)) if each != own]
    if not others:
        return
    amounts = {each: load(tree, each, artifact).present for each in (own, *others)}
    fullest = max(amounts, key=lambda each: amounts[each])
    if fullest != own and amounts[fullest]:
        remove_ingest(tree, own)
        ended = has_ended(fullest.rpartition("/")[2].partition(".")[2])
        if not (ended and _renamed(tree, fullest, own)):
            _copy(tree, artifact, fullest, own)
    for each in others:
        remove_ingest(tree, each)


def _renamed(tree: Tree, directory: str, own: str) -> bool:
    """False where directories cannot be renamed (object stores: they are prefixes there)."""
    try:
        tree.rename(directory, own)
    except StoreError:
        return tree.lstat(directory) is None  # then another run was first
    return True


def _copy(tree: Tree, artifact: Artifact, source: str, own: str) -> None:
    """What the journal speaks of, the header last: without it nothing counts."""
    written = load(tree, source, artifact)
    journal, header = tree.read(f"{source}/{JOURNAL}"), tree.read(f"{source}/{ARTIFACT}")
    with (
        tree.storing("copy", source),
        tree.reading(f"{source}/{DATA}") as origin,
        tree.writing(f"{own}/{DATA}", NEW, _SHARED) as target,
    ):
        if tree.abilities.holes:
            os.ftruncate(target, written.size)
        for start, end in written.spans:
            _copy_range(origin, target, start, end)
    tree.write(f"{own}/{JOURNAL}", journal or b"")
    tree.write(f"{own}/{ARTIFACT}", header or b"")


def _copy_range(origin: int, target: int, start: int, end: int) -> None:
    """On a file system that shares blocks, or across NFS 4.2, no byte moves here."""
    while start < end:
        count = min(_BLOCK, end - start)
        try:
            copied = os.copy_file_range(origin, target, count, start, start)
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
            copied = os.pwrite(target, os.pread(origin, min(1 << 20, count), start), start)
        if not copied:
            return  # shorter than its journal says: what is missing does not read back right, and comes again
        start += copied
