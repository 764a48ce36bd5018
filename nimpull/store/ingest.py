"""Artifacts being written: sparse, journaled, resumable, and invisible until their commit.

``.nimpull/ingest/<sha256 of the identity>/`` holds ``data`` (the bytes, at their offsets), ``artifact`` (what
they are of: identity, size, digest, validator) and ``journal`` (one line per chunk, with the digest of the
file up to the chunk's end, or of the chunk alone). Nothing of this is believed because it is there: a chunk
counts once its bytes, read back, lead to the digest of its line, and a file once its content was verified.

``<sha256>.whole`` is a small file that came in one piece; it has no journal, because it is fetched again.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, TypeVar

from nimpull.core.artifacts import Artifact
from nimpull.core.names import STATE_DIRECTORY
from nimpull.core.ports import Claim, Layout, Verified
from nimpull.errors import NotWritableError, StoreIOError
from nimpull.store.barrier import Barrier
from nimpull.store.durable import (
    replace_file,
    share_with_group,
    storing,
    sync_directories,
    tolerate_missing,
    write_all,
)
from nimpull.store.whole import COMMITTED, WholeIngest, write_whole

VERSION: Final = 2
PAGE: Final = 4096  # alignment that O_DIRECT asks for on every block device in use
WRITE_BACK: Final = 32 << 20  # bytes of page cache a buffered ingest may hold before they are flushed
FLUSH_INTERVAL: Final = 5.0  # seconds of progress that a power cut may cost, or one line of the journal
_DATA, _JOURNAL, _ARTIFACT = "data", "journal", "artifact"
_WHOLE: Final = ".whole"
_MAX_JOURNAL: Final = 64 << 20  # bytes; more lines than any file that fits a volume has chunks
_NO_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
_FEW: Final = 8  # small files that are synced one by one, and leave the rest of the file system alone


@dataclass(frozen=True, slots=True)
class Written:
    """What the journal of an earlier run says."""

    size: int
    validator: str
    claims: tuple[Claim, ...]


def journal_line(claim: Claim) -> bytes:
    kind = "alone" if claim.alone else "upto"
    text = f"{VERSION} {claim.start} {claim.end} {kind} {claim.digest.hex()}"
    return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


def parse_journal(content: bytes, size: int) -> tuple[Claim, ...]:
    """The claims of a journal, without lines that are torn, damaged, out of range or of another version."""
    claims = (_parse_line(line, size) for line in content.split(b"\n"))
    return tuple(claim for claim in claims if claim is not None)


def _parse_line(line: bytes, size: int) -> Claim | None:
    text, _, check = line.rpartition(b" ")
    fields = text.split(b" ")
    if len(fields) != 5 or check != b"%08x" % zlib.crc32(text) or fields[0] != b"%d" % VERSION:
        return None
    try:
        start, end, digest = int(fields[1]), int(fields[2]), bytes.fromhex(fields[4].decode("ascii"))
    except ValueError:
        return None
    if fields[3] not in (b"upto", b"alone"):
        return None
    claim = Claim(start, end, digest, alone=fields[3] == b"alone")
    return claim if 0 <= start < end <= size and 16 <= len(digest) <= 32 else None


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
        self._area = os.path.join(self._root, STATE_DIRECTORY, "ingest")
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
        written = _load(os.path.join(self._area, _name(artifact)), artifact)
        return sum(end - start for start, end in {(claim.start, claim.end) for claim in written.claims})

    def commit(self, batch: Sequence[Verified]) -> None:
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

    def sweep(self, artifacts: Iterable[Artifact]) -> None:
        """Drop what is left of the ingests of committed artifacts: of a run that was killed right after.

        Raises StoreError.
        """
        left = self._left()
        for artifact in artifacts if left else ():
            name = _name(artifact)
            if name in left:
                _remove(os.path.join(self._area, name))
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
                    _make_directory(path)
                with storing("make durable", self._root):
                    sync_directories((self._root, os.path.dirname(self._area)))
                    self._barrier = self._barrier or Barrier(self._area)
            return self._barrier


_TRIES: Final = 3
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def _name(artifact: Artifact) -> str:
    return sha256(artifact.identity.encode()).hexdigest()


def _remove(directory: str) -> None:
    with storing("remove", directory):
        for name in (_JOURNAL, _ARTIFACT, _DATA):
            tolerate_missing(os.unlink, os.path.join(directory, name))
        tolerate_missing(os.rmdir, directory)


def _make_directory(path: str) -> None:
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
    paths = [os.path.join(directory, name) for name in (_JOURNAL, _ARTIFACT, _DATA)]
    with storing("remove", directory):
        found = [path for path in paths if os.path.lexists(path)]
        if os.geteuid() and any(os.lstat(path).st_uid != os.geteuid() for path in found):
            for path in found:
                os.unlink(path)


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


def _load(directory: str, artifact: Artifact) -> Written:
    """Nothing unless the ingest is of this very artifact and of this version."""
    nothing = Written(-1, "", ())
    header = _read(os.path.join(directory, _ARTIFACT), 1 << 16)
    try:
        facts = json.loads(header) if header else None
    except (ValueError, RecursionError):
        return nothing
    if not isinstance(facts, dict) or facts.get("version") != VERSION:
        return nothing
    size, validator = facts.get("size"), facts.get("validator")
    if facts.get("identity") != artifact.identity or facts.get("digest") != _digest_text(artifact):
        return nothing
    if type(size) is not int or size < 0 or not isinstance(validator, str):
        return nothing
    if artifact.size is not None and size != artifact.size:
        return nothing
    journal = _read(os.path.join(directory, _JOURNAL), _MAX_JOURNAL)
    return Written(size, validator, parse_journal(journal, size))


def _digest_text(artifact: Artifact) -> str:
    return str(artifact.digest) if artifact.digest else ""


def _read(path: str, limit: int) -> bytes:
    with storing("read", path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        with os.fdopen(descriptor, "rb") as file:
            return file.read(limit)


class FileIngest:
    """Implements :class:`nimpull.core.ports.Ingest` over a directory of the ingest area."""

    def __init__(self, artifact: Artifact, directory: str, monotonic: Callable[[], float]) -> None:
        self.artifact = artifact
        self._monotonic = monotonic
        self._flushed = monotonic()
        self.path = os.path.join(directory, _DATA)
        self._directory = directory
        self._lock = threading.Lock()
        self._descriptor = self._direct = self._journal = -1
        self._unflushed = 0
        self._written = Written(-1, "", ())
        _make_directory(directory)
        _drop_foreign(directory)
        self._written = _load(directory, artifact)
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
        journal = os.path.join(self._directory, _JOURNAL)
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
        facts = {
            "version": VERSION,
            "identity": self.artifact.identity,
            "size": size,
            "digest": _digest_text(self.artifact),
            "validator": validator,
        }
        path = os.path.join(self._directory, _ARTIFACT)
        with storing("write", path):
            replace_file(path, json.dumps(facts).encode())
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
        with storing("append to", os.path.join(self._directory, _JOURNAL)):
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
        _remove(self._directory)
