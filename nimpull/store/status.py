"""What is in a store: the selections that are ready, what is committed, what is half done."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Final

from nimpull.core.names import STATE_DIRECTORY
from nimpull.store.ready import Ready, all_ready, missing_of
from nimpull.store.record import Record
from nimpull.store.tree import Tree

INGESTS: Final = f"{STATE_DIRECTORY}/ingest"
_BLOCK: Final = 512  # bytes of st_blocks (POSIX, sys/stat.h)


@dataclass(frozen=True, slots=True)
class Selected:
    """A ready marker; ``changed``: paths that are gone or no longer as committed (none: it is ready)."""

    ready: Ready
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Partial:
    """An ingest. ``name``: its directory; ``bytes`` occupied; ``modified``: seconds since the epoch."""

    name: str
    bytes: int
    modified: float


@dataclass(frozen=True, slots=True)
class Status:
    """``files`` and ``bytes``: committed and standing, each file once however many links lead to it."""

    files: int
    bytes: int
    selections: tuple[Selected, ...]
    partial: tuple[Partial, ...]


def status_of(tree: Tree, record: Record) -> Status:
    """By stat calls only; nothing is read or written."""
    files: dict[tuple[int, int], int] = {}
    for entry in record.entries:
        found = tree.lstat(entry.path)
        if found and stat.S_ISREG(found.st_mode) and record.at(entry.path, found):
            files[found.st_dev, found.st_ino] = found.st_size
    selections = tuple(
        Selected(ready, tuple(file.path for file in missing_of(tree, ready.files)))
        for ready in all_ready(tree)
    )
    return Status(len(files), sum(files.values()), selections, partials(tree))


def partials(tree: Tree) -> tuple[Partial, ...]:
    """The ingests of runs that did not finish, or have not yet."""
    found = []
    for name in tree.names(INGESTS):
        size, modified = 0, 0.0
        for part in tree.names(f"{INGESTS}/{name}"):
            status = tree.lstat(f"{INGESTS}/{name}/{part}")
            if status:
                size += status.st_blocks * _BLOCK
                modified = max(modified, status.st_mtime)
        found.append(Partial(os.path.basename(name), size, modified))
    return tuple(found)
