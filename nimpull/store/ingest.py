"""Large artifacts being written: sparse, journaled, resumable, and invisible until their commit.

``.nimpull/ingest/<sha256 of the identity>/`` holds ``data`` (the bytes, at their offsets) and what
:mod:`nimpull.store.journal` keeps beside it. Nothing of this is believed because it is there: a chunk
counts once its bytes, read back, lead to the digest of its line, and a file once its content was verified.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from nimpull.core.artifacts import Artifact
from nimpull.core.ports import Claim
from nimpull.errors import NotWritableError
from nimpull.store.durable import (
    replace_file,
    share_with_group,
    storing,
    sync_directories,
    tolerate_missing,
    write_all,
)
from nimpull.store.journal import ARTIFACT, DATA, JOURNAL, Written, header, journal_line, load

PAGE: Final = 4096  # alignment that O_DIRECT asks for on every block device in use
WRITE_BACK: Final = 32 << 20  # bytes of page cache a buffered ingest may hold before they are flushed
FLUSH_INTERVAL: Final = 5.0  # seconds of progress that a power cut may cost, or one line of the journal
_NO_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class FileIngest:
    """Implements :class:`nimpull.core.ports.Ingest` over a directory of the ingest area."""

    def __init__(self, artifact: Artifact, directory: str, monotonic: Callable[[], float]) -> None:
        self.artifact = artifact
        self._monotonic = monotonic
        self._flushed = monotonic()
        self.path = os.path.join(directory, DATA)
        self._directory = directory
        self._lock = threading.Lock()
        self._descriptor = self._direct = self._journal = -1
        self._unflushed = 0
        self._written = Written(-1, "", ())
        make_directory(directory)
        _drop_foreign(directory)
        self._written = load(directory, artifact)
        self._open()

    @property
    def claims(self) -> Sequence[Claim]:
        return self._written.claims

    @property
    def validator(self) -> str:
        return self._written.validator

    @property
    def size(self) -> int:
        """Bytes of the file that the claims are of, -1 = nothing is known."""
        return self._written.size

    def _open(self) -> None:
        with storing("open", self.path):
            _make_writable(self.path)
            self._descriptor = os.open(self.path, _CREATE, 0o664)
            try:
                self._direct = os.open(self.path, os.O_RDWR | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as error:
                if error.errno not in _NO_DIRECT:
                    raise
        journal = os.path.join(self._directory, JOURNAL)
        with storing("open", journal):
            self._journal = os.open(journal, _CREATE | os.O_APPEND, 0o664)
            os.write(self._journal, b"\n")  # ends a line that a crash tore

    def begin(self, size: int, validator: str) -> None:
        claims = self._written.claims
        if self._written.size != size:  # also -1: lines of a journal whose header was lost say nothing
            self.reset()
            claims = ()
        with storing("reserve", self.path):
            os.ftruncate(self._descriptor, size)
            sync_directories((os.path.dirname(self._directory),))
        path = os.path.join(self._directory, ARTIFACT)
        with storing("write", path):
            replace_file(path, header(self.artifact, size, validator))
        self._written = Written(size, validator, claims)

    def write(self, block: memoryview, offset: int) -> None:
        with storing("write", self.path):
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
        with storing("read", self.path):
            if self._direct >= 0 and offset % PAGE == 0 and len(buffer) % PAGE == 0:
                try:
                    return os.preadv(self._direct, [buffer], offset)
                except OSError as error:
                    if error.errno not in _NO_DIRECT:
                        raise
            count = os.preadv(self._descriptor, [buffer], offset)
            os.posix_fadvise(self._descriptor, offset, count, os.POSIX_FADV_DONTNEED)
            return count

    def record(self, claim: Claim) -> None:
        line = journal_line(claim)
        with storing("append to", os.path.join(self._directory, JOURNAL)):
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
        with storing("flush", self.path):
            os.fdatasync(self._descriptor)
            os.fdatasync(self._journal)

    def reset(self) -> None:
        with storing("empty", self.path):
            os.ftruncate(self._journal, 0)
            os.fsync(self._journal)  # before a header of other content can stand beside these lines
            os.ftruncate(self._descriptor, 0)
            if self._written.size > 0:
                os.ftruncate(self._descriptor, self._written.size)
        self._written = Written(self._written.size, self._written.validator, ())

    def close(self) -> None:
        with self._lock:
            held = tuple(each for each in (self._direct, self._descriptor, self._journal) if each >= 0)
            self._descriptor = self._direct = self._journal = -1
        with storing("close", self.path):
            for descriptor in held:
                os.close(descriptor)

    def remove(self) -> None:
        """Drop what is left of the ingest once its file was placed. Raises StoreError."""
        remove_ingest(self._directory)


def make_directory(path: str) -> None:
    """A directory of nimpull's own; a symbolic link planted in its place is refused."""
    with storing("create", path):
        with suppress(FileExistsError):
            os.mkdir(path, 0o775)
            share_with_group(path)
        kind = os.lstat(path).st_mode
    if not stat.S_ISDIR(kind):
        raise NotWritableError(
            f"{path} is not a directory", hint="It is nimpull's own name. Remove what stands there."
        )


def _drop_foreign(directory: str) -> None:
    """What a run with another uid left is begun anew: only its owner could make it read-only at the end."""
    paths = [os.path.join(directory, name) for name in (JOURNAL, ARTIFACT, DATA)]
    with storing("remove", directory):
        found = [path for path in paths if os.path.lexists(path)]
        if os.geteuid() and any(os.lstat(path).st_uid != os.geteuid() for path in found):
            for path in found:
                os.unlink(path)


def _make_writable(path: str) -> None:
    """An ingest that was verified, but not placed before its process ended, is read-only already."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.fstat(descriptor).st_mode & stat.S_IWUSR:
            os.fchmod(descriptor, 0o664)
    finally:
        os.close(descriptor)


def remove_ingest(directory: str) -> None:
    """Raises StoreError."""
    with storing("remove", directory):
        for name in (JOURNAL, ARTIFACT, DATA):
            tolerate_missing(os.unlink, os.path.join(directory, name))
        tolerate_missing(os.rmdir, directory)
