"""Read every committed file again and compare: what rotted, what is gone."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from nimpull.core.digest import Digest
from nimpull.core.ports import Cancel
from nimpull.errors import Cancelled, StoreError
from nimpull.store.layouts import hash_file
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
    """``files`` and ``bytes`` that were read; ``missing``: paths that were committed and are gone."""

    files: int
    bytes: int
    mismatches: tuple[Mismatch, ...]
    missing: tuple[str, ...]

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
    entries = _standing(tree, record)
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), thread_name_prefix="verify") as pool:
        results = tuple(pool.map(lambda entry: _check(tree, entry, on_bytes, cancel), entries))
    read = [entry for entry, result in zip(entries, results, strict=True) if result is not _GONE]
    mismatches = tuple(result for result in results if isinstance(result, Mismatch))
    gone = {entry.path for entry, result in zip(entries, results, strict=True) if result is _GONE}
    changed = {file.path for ready in all_ready(tree) for file in missing_of(tree, ready)}
    absent = {path for path in changed if not os.path.exists(tree.absolute(path))}
    return Verification(
        files=len(read),
        bytes=sum(entry.size for entry in read),
        mismatches=mismatches,
        missing=tuple(sorted(gone | absent)),
    )


class _Gone:
    """The file behind an entry does not exist."""


_GONE = _Gone()


def _standing(tree: Tree, record: Record) -> tuple[Entry, ...]:
    """One entry a path: the one that the file there still has the time of, else the latest."""
    chosen = []
    for entry in record.entries:
        try:
            status = tree.lstat(entry.path)
        except StoreError:
            status = None
        chosen.append((record.at(entry.path, status) if status else None) or entry)
    return tuple(sorted(chosen, key=lambda entry: -entry.size))  # the largest first: no core waits at the end


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
