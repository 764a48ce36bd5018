"""What this store committed, so that a second run believes a file by one ``stat`` instead of reading it.

``.nimpull/record/<run>.jsonl``: one line a file, appended after its commit; each run writes its own file,
so that no two processes share one (append is not atomic on NFS). An entry is believed only while size and
modification time in nanoseconds are those of the commit: what anyone wrote, truncated, zero-filled or flipped
since then has another time and is hashed again. A lost or torn line costs a hash, never correctness.

Whoever may write to the volume may write here: a line whose path leaves the store is no line.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from nimpull.core.artifacts import Artifact
from nimpull.core.digest import Digest
from nimpull.core.names import MAX_STORED_BYTES, STATE_DIRECTORY, SafePath
from nimpull.errors import ListingError, StoreIOError, UnrecordedError
from nimpull.store.durable import closing, let_go, store_error
from nimpull.store.tree import Tree

RECORD = f"{STATE_DIRECTORY}/record"
#: What reading a state file can end in that anyone may have written: nested 100,000 deep, infinities.
UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    ListingError,
)
_MOST = 1 << 63  # what size and time of a file are below, see struct stat


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file whose content is known. ``path``: below the root; ``size``: bytes; ``mtime_ns``: its time."""

    path: str
    size: int
    mtime_ns: int
    digest: Digest

    def matches(self, status: os.stat_result) -> bool:
        return (self.size, self.mtime_ns) == (status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Entry(StoredFile):
    """A committed file. ``identity``: of the artifact it was fetched as; ``etag``: the validator it came with
    ("" = none); ``endpoint``: of the registry that had it ("" = its URI says it all, or an earlier version
    wrote this).
    """

    identity: str
    etag: str = ""
    endpoint: str = ""

    def is_content_of(self, artifact: Artifact) -> bool:
        """By digest where both have one algorithm, else by identity, endpoint, size and ETag.

        Most revisions are immutable; the content of a bucket or a directory is not, but its ETag tells. Two
        registries may have other content under one name.
        """
        if artifact.size is not None and artifact.size != self.size:
            return False
        for digest in artifact.digests:
            if digest.algorithm == self.digest.algorithm:
                return digest.hex == self.digest.hex
        same_etag = not artifact.etag or not self.etag or self.etag == artifact.etag
        mine, its = (self.identity, self.endpoint), (artifact.identity, artifact.endpoint)
        return mine == its and same_etag


class _Together(threading.local):
    """Lines that wait; None outside of ``Record.together``."""

    lines: list[str] | None = None


class Record:
    """The entries of every run so far, read when they are first asked for; thread-safe. Raises StoreError."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._by_path: dict[str, list[Entry]] = {}
        self._by_digest: dict[Digest, list[Entry]] = {}
        self._together = _Together()
        self._file: int | None = None
        self._own = ""  # the name of that file
        self._known = False
        self._lengths: dict[str, int] = {}  # bytes that are known of each run's file

    def news(self) -> frozenset[str]:
        """Take in what other runs committed since; returns the identities of that."""
        with self._lock:
            self._read()
            return frozenset(entry.identity for entry in self._take_in())

    def _read(self) -> None:
        """Under the lock."""
        if self._known:
            return
        for known in (self._by_path, self._by_digest, self._lengths):
            known.clear()
        self._take_in()
        self._known = True

    def _take_in(self) -> list[Entry]:
        """The lines that are new, and whole: another run may be writing the next one."""
        new = []
        for name in self._tree.names(RECORD):
            start = self._lengths.get(name, 0)
            content = self._tree.read(f"{RECORD}/{name}", 1 << 30, start=start) or b""
            whole = content[: content.rfind(b"\n") + 1]
            self._lengths[name] = start + len(whole)
            new += [entry for line in whole.splitlines() if (entry := _parse(line))]
        for entry in new:
            self._index(entry)
        return new

    def _index(self, entry: Entry) -> None:
        self._by_path.setdefault(entry.path, []).append(entry)
        self._by_digest.setdefault(entry.digest, []).append(entry)

    def at(self, path: str, status: os.stat_result, artifact: Artifact | None = None) -> Entry | None:
        """The latest entry that ``status`` of the file at ``path`` still agrees with.

        ``artifact``: with its content: one blob may have been committed for several.
        """
        for entry in self.of_path(path):
            if entry.matches(status) and (artifact is None or entry.is_content_of(artifact)):
                return entry
        return None

    def of_path(self, path: str) -> Sequence[Entry]:
        """Every entry, latest first, whether or not the file there agrees with it."""
        with self._lock:
            self._read()
            return self._by_path.get(path, ())[::-1]

    def of(self, artifact: Artifact) -> tuple[Entry, ...]:
        """Entries with the content of ``artifact``, wherever they stand."""
        with self._lock:
            self._read()
            return tuple(entry for digest in artifact.digests for entry in self._by_digest.get(digest, ()))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The latest entry of each path, by the time of its file: runs do not order their records."""
        with self._lock:
            self._read()
            return tuple(max(entries, key=lambda entry: entry.mtime_ns) for entries in self._by_path.values())

    def add(self, entry: Entry) -> None:
        """Raises StoreError; UnrecordedError where the file system reports a fault. Survives the process at
        once, a power cut once ``sync`` returned."""
        with self._lock:
            self._read()
            if entry in self._by_path.get(entry.path, ()):
                return
            self._index(entry)
            if self._together.lines is None:
                self._append([_line(entry)])
            else:
                self._together.lines.append(_line(entry))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What this thread adds meanwhile is written at the end, in one go. A process that is killed before
        leaves files without their lines: the next run hashes them."""
        lines = self._together.lines = []
        try:
            yield
        finally:
            self._together.lines = None
            with self._lock:
                self._append(lines)

    def _append(self, lines: Sequence[str]) -> None:
        """An error costs one more try, in another file: what stands in this one may end in half a line."""
        content = "".join(f"{line}\n" for line in lines).encode()
        failure = None
        for _ in range(2 if content else 0):
            try:
                if (count := os.write(self._descriptor(), content)) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._lengths[self._own] = self._lengths.get(self._own, 0) + count
                return
            except OSError as error:
                failure = error
                self._close()
        if failure:
            self._known = False  # what was taken in beforehand is not there: all is read again
            told = store_error(failure, "write", self._tree.absolute(RECORD))
            if isinstance(told, StoreIOError):
                told = UnrecordedError(told.message, hint=told.hint)
            raise told from failure

    def forget(self, paths: Collection[str]) -> None:
        """Drop what is said of them. Only where no other run writes: its lines could be lost."""
        with self._lock:
            for name in self._tree.names(RECORD):
                lines = (self._tree.read(f"{RECORD}/{name}", 1 << 30) or b"").splitlines(keepends=True)
                kept = [line for line in lines if not ((entry := _parse(line)) and entry.path in paths)]
                if len(kept) < len(lines):
                    self._tree.write(f"{RECORD}/{name}", b"".join(kept))
            self._known = False

    def _descriptor(self) -> int:
        if self._file is None:
            self._own = f"{secrets.token_hex(8)}.jsonl"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._file = self._tree.open_at(f"{RECORD}/{self._own}", flags)
        return self._file

    def sync(self) -> None:
        """What was added is durable. The next entry begins another file: an object store that has one takes
        no more lines for it."""
        with self._lock:
            file, self._file = self._file, None
            if file is None:
                return
            with self._tree.storing("sync", RECORD), closing(file):
                os.fsync(file)
        self._tree.sync(RECORD)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            let_go(file)  # a line that is lost costs a hash


def _line(entry: Entry) -> str:
    return json.dumps(
        {
            "path": entry.path,
            "size": entry.size,
            "mtimeNs": entry.mtime_ns,
            "digest": str(entry.digest),
            "identity": entry.identity,
            "etag": entry.etag,
            "endpoint": entry.endpoint,
        }
    )


def _parse(line: bytes) -> Entry | None:
    """None for a torn line, or one that this program does not know or did not write."""
    try:
        value = json.loads(line)
        size, mtime_ns = int(value["size"]), int(value["mtimeNs"])
        if not (0 <= size < _MOST and -_MOST < mtime_ns < _MOST):
            return None
        return Entry(
            path=str(SafePath(value["path"], MAX_STORED_BYTES)),
            size=size,
            mtime_ns=mtime_ns,
            digest=Digest.parse(value["digest"]),
            identity=_text(value["identity"]),
            etag=_text(value["etag"]),
            endpoint=str(value.get("endpoint", "")),
        )
    except UNREADABLE:
        return None


def _text(value: object) -> str:
    """ValueError for half of a surrogate pair: JSON can have it, no URL and no file name."""
    return str(value).encode().decode()
