"""Read every committed file again and compare: what rotted, what is gone."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count

from nimpull.core.digest import Digest
from nimpull.core.ports import Cancel
from nimpull.errors import Cancelled, StoreError
from nimpull.store.reading import hash_file
from nimpull.store.ready import all_ready, missing_of
from nimpull.store.record import Entry, Record
from nimpull.store.tree import Tree


@dataclass(frozen=True, slots=True)
class Mismatch:
    """``path`` below the root; ``found`` None: it cannot be read, ``reason`` says why."""

    path: str
    expected: Digest
    found: Digest | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """``files`` and ``bytes`` that were read, each once however many names it has; ``missing``: paths that
    were committed and are gone; ``lost``: the record's entries of all these.
    """

    files: int
    bytes: int
    mismatches: tuple[Mismatch, ...]
    missing: tuple[str, ...]
    lost: tuple[Entry, ...] = ()

    @property
    def sound(self) -> bool:
        return not self.mismatches and not self.missing


def verify_store(
    tree: Tree,
    record: Record,
    *,
    workers: int = 0,
    on_bytes: Callable[[int], None] | None = None,
    cancel: Cancel | None = None,
) -> Verification:
    """Hash all that is recorded, on all cores (``workers`` 0). Raises Cancelled.

    Where the volume may be written, a file that is not what it was gets a new modification time: then no
    record and no ready marker speaks for it any more, and the next run fetches that file again.
    ``on_bytes`` is called from the workers.
    """
    groups = _by_file(tree, record)
    results: list[Mismatch | _Gone | None] = [None] * len(groups)
    turns = count()

    def work(_: int) -> None:
        with tree.holding():
            while (turn := next(turns)) < len(groups):
                results[turn] = _check(tree, groups[turn][0], on_bytes, cancel)

    workers = workers or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        tuple(pool.map(work, range(workers)))
    read = [names[0] for names, result in zip(groups, results, strict=True) if result is not _GONE]
    lost = [
        (entry, result) for names, result in zip(groups, results, strict=True) if result for entry in names
    ]
    gone = {entry.path for entry, result in lost if result is _GONE}
    changed = {file.path for ready in all_ready(tree) for file in missing_of(tree, ready)}
    absent = {path for path in changed if not os.path.exists(tree.absolute(path))}
    return Verification(
        files=len(read),
        bytes=sum(entry.size for entry in read),
        mismatches=tuple(
            replace(result, path=entry.path) for entry, result in lost if isinstance(result, Mismatch)
        ),
        missing=tuple(sorted(gone | absent)),
        lost=tuple(entry for entry, _ in lost),
    )


class _Gone:
    """The file behind an entry does not exist."""


_GONE = _Gone()


def _by_file(tree: Tree, record: Record) -> list[list[Entry]]:
    """One entry a path: the one that the file there still has the time of, else the latest. Names of one file
    with one digest stand together, the largest files first: no core waits at the end."""
    groups: dict[object, list[Entry]] = {}
    with tree.holding():
        for latest in record.entries:
            try:
                status = tree.lstat(latest.path)
            except StoreError:
                status = None
            entry = (record.at(latest.path, status) if status else None) or latest
            key = (status.st_dev, status.st_ino, entry.digest) if status else entry.path
            groups.setdefault(key, []).append(entry)
    return sorted(groups.values(), key=lambda names: -names[0].size)


def _check(
    tree: Tree, entry: Entry, on_bytes: Callable[[int], None] | None, cancel: Cancel | None
) -> Mismatch | _Gone | None:
    if cancel and cancel.is_set():
        raise Cancelled("cancelled while verifying the store")
    try:
        found, _ = hash_file(tree, entry.path, entry.digest.algorithm)
    except FileNotFoundError:
        return _GONE
    except StoreError as error:
        return Mismatch(entry.path, entry.digest, None, error.message)
    if on_bytes:
        on_bytes(entry.size)
    if found == entry.digest:
        return None
    _distrust(tree, entry.path)
    return Mismatch(entry.path, entry.digest, found)


def _distrust(tree: Tree, path: str) -> None:
    """Let no record match the file any more; on a read-only volume its report must do."""
    with suppress(OSError, StoreError):
        descriptor = tree.open(path)
        try:
            os.utime(descriptor)
        finally:
            os.close(descriptor)
