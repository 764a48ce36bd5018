"""Read every committed file again and compare: what rotted, what is gone, what another has replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final

from nimpull.core.digest import Digest, strongest
from nimpull.core.names import ModelUri
from nimpull.errors import Cancelled, StoreError, UsageError
from nimpull.store.ready import all_ready, behind
from nimpull.store.record import Entry, Record
from nimpull.store.tree import Tree

#: A hub's blob is named by what its bytes hash to: SHA-256 of a large file, a git blob id of a small one.
_NAMED: Final = re.compile(r".*/(?:models|datasets)--[^/]+/blobs/([0-9a-f]{40}|[0-9a-f]{64})")
_ALGORITHMS: Final = {40: "git", 64: "sha256"}

#: What a registry promises now, by the identity of the file.
Promised = Mapping[str, tuple[Digest, ...]]


@dataclass(frozen=True, slots=True)
class FileMismatch:
    """``path`` below the root; ``found`` None: it cannot be read, ``reason`` says why.

    ``replaced``: the file is right, but another selection's.
    """

    path: str
    expected: Digest
    found: Digest | None
    reason: str = ""
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Verification:
    """``files`` and ``bytes`` that were read, each once however many names it has; ``missing``: paths that
    were committed and are gone; ``lost``: the record's entries of all these, with the digests they must have.
    """

    files: int
    bytes: int
    mismatches: tuple[FileMismatch, ...]
    missing: tuple[str, ...]
    lost: tuple[Entry, ...] = ()

    @property
    def sound(self) -> bool:
        return not self.mismatches and not self.missing


def verify_store(
    tree: Tree, record: Record, *, workers: int = 0, promised: Promised | None = None
) -> Verification:
    """Hash all that is recorded or that a marker names, on all cores (``workers`` 0). Raises Cancelled.

    Where the volume may be written, a file that is not what it was gets a new modification time: then no
    record and no ready marker speaks for it any more, and the next run fetches that file again. One that is
    what it was gets the time of its commit back.
    """
    groups, absent = _to_hash(tree, record, promised or {})
    turns = count()

    def work() -> None:
        with tree.holding():
            while (turn := next(turns)) < len(groups):
                if tree.cancel and tree.cancel.is_set():
                    raise Cancelled("cancelled while verifying the store", hint="Run again to verify it all.")
                groups[turn].wrong = _check(tree, groups[turn])

    workers = workers or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        # this thread works too: where no other can be started (pids.max) it does it all
        helping: list[Future[None]] = []
        with suppress(RuntimeError):
            helping.extend(pool.submit(work) for _ in range(workers - 1))
        work()
    for each in helping:
        each.result()
    return _judge(tree, groups, absent)


@dataclass(slots=True)
class _Group:
    """Names of one file (``inode`` None: it is gone) with one digest that it should have.

    ``by_marker``: a marker says so, and the record otherwise. ``wrong``: what was found, None = it is right.
    """

    inode: tuple[int, int] | None
    by_marker: bool
    names: list[Entry] = field(default_factory=list)
    wrong: FileMismatch | None = None


def _to_hash(tree: Tree, record: Record, promised: Promised) -> tuple[list[_Group], set[str]]:
    """The largest files first: no core waits at the end. And the names of markers that lead nowhere."""
    groups: dict[object, _Group] = {}
    recorded: dict[str, Digest] = {}
    absent: set[str] = set()

    def add(entry: Entry, status: os.stat_result | None, *, by_marker: bool = False) -> None:
        inode = (status.st_dev, status.st_ino) if status else None
        key = (inode or entry.path, entry.digest, by_marker)
        groups.setdefault(key, _Group(inode, by_marker)).names.append(entry)

    with tree.holding():
        for latest in record.entries:
            try:
                status = tree.lstat(latest.path)
            except StoreError:
                status = None
            entry = (record.at(latest.path, status) if status else None) or latest
            recorded[entry.path] = entry.digest
            add(_as_promised(entry, promised), status)
        for ready in all_ready(tree):
            for row in (*ready.files, *ready.names):
                path, status = behind(tree, row.path)
                if status is None:
                    absent.add(row.path)
                elif recorded.get(path) != row.digest:  # the record is lost, or another has replaced the file
                    entry = Entry(path, row.size, row.mtime_ns, row.digest, "")
                    add(entry, status, by_marker=path in recorded)
    return sorted(groups.values(), key=lambda group: -group.names[0].size), absent


def _as_promised(entry: Entry, promised: Promised) -> Entry:
    digests = promised.get(entry.identity, ())
    same = [digest for digest in digests if digest.algorithm == entry.digest.algorithm]
    digest = same[0] if same else strongest(digests)
    return replace(entry, digest=digest) if digest else entry


def _judge(tree: Tree, groups: Sequence[_Group], absent: set[str]) -> Verification:
    wrong: dict[str, FileMismatch] = {}
    gone, lost = set(absent), []
    for group in sorted(groups, key=lambda group: group.by_marker):
        if group.wrong is None:
            continue
        if group.inode is None:
            gone.update(name.path for name in group.names)
        elif group.wrong.found and not group.by_marker:
            _stamp(tree, group.names[0].path)
        reason = "another selection has replaced it" if group.by_marker else group.wrong.reason
        for name in group.names:
            if group.inode:
                told = replace(group.wrong, path=name.path, reason=reason, replaced=group.by_marker)
                wrong.setdefault(name.path, told)
            if not group.by_marker:
                lost.append(replace(name, digest=group.wrong.expected))
    read = {group.inode: group.names[0].size for group in groups if group.inode}
    return Verification(
        files=len(read),
        bytes=sum(read.values()),
        mismatches=tuple(wrong.values()),
        missing=tuple(sorted(gone)),
        lost=tuple(lost),
    )


def _check(tree: Tree, group: _Group) -> FileMismatch | None:
    entry = group.names[0]
    try:
        found, status = tree.hash(entry.path, entry.digest.algorithm)
    except FileNotFoundError:
        return FileMismatch(entry.path, entry.digest, None, "it is gone")
    except StoreError as error:
        return FileMismatch(entry.path, entry.digest, None, error.message)
    expected = _own_name(entry, found) or entry.digest
    if found != expected:
        return FileMismatch(entry.path, expected, found)
    if status.st_mtime_ns != entry.mtime_ns and not group.by_marker:
        _stamp(tree, entry.path, entry.mtime_ns)
    return None


def _own_name(entry: Entry, found: Digest) -> Digest | None:
    """What a blob's name says of it, where that is a digest of the same kind: a record can be forged."""
    name = _NAMED.fullmatch(entry.path)
    if name and _ALGORITHMS[len(name[1])] == found.algorithm:
        return Digest(found.algorithm, name[1])
    return None


def _stamp(tree: Tree, path: str, mtime_ns: int | None = None) -> None:
    """None = now: no record matches the file any more. On a read-only volume the report must do."""
    with suppress(OSError, StoreError), tree.reading(path) as file:
        if mtime_ns is None:
            os.utime(file)
        else:
            os.utime(file, ns=(mtime_ns, mtime_ns))


def sources_of(record: Record) -> dict[tuple[ModelUri, str], frozenset[str]]:
    """Paths of the recorded files, by the repository and the endpoint that they came from."""
    found: dict[tuple[ModelUri, str], set[str]] = {}
    for entry in record.entries:
        with suppress(UsageError):  # a line that names no model
            uri = ModelUri.parse(entry.identity)
            found.setdefault((uri.repo, entry.endpoint), set()).add(uri.path)
    return {source: frozenset(paths) for source, paths in found.items()}
