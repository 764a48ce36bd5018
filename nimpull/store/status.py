"""What is in a store: the selections that are ready, what is committed, what is half done."""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from typing import Final

from nimpull.store.journal import ARTIFACT
from nimpull.store.ready import Ready, all_ready, behind, missing_of
from nimpull.store.record import UNREADABLE, Record
from nimpull.store.tree import INGESTS, Tree

_BLOCK: Final = 512  # bytes of st_blocks (POSIX, sys/stat.h)


@dataclass(frozen=True, slots=True)
class Selected:
    """A ready marker; ``changed``: paths that are gone or no longer as committed (none: it is ready)."""

    ready: Ready
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Partial:
    """An ingest. ``identity`` of its artifact ("" = not noted yet) and its ``size`` (None likewise).

    ``bytes``: what it occupies on the volume; ``modified``: seconds since the epoch.
    """

    name: str
    identity: str
    size: int | None
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
        _, found = behind(tree, entry.path)
        if found and record.at(entry.path, found):
            files[found.st_dev, found.st_ino] = found.st_size
    selections = tuple(
        Selected(ready, tuple(file.path for file in missing_of(tree, ready))) for ready in all_ready(tree)
    )
    return Status(len(files), sum(files.values()), selections, partials(tree))


def partials(tree: Tree) -> tuple[Partial, ...]:
    """The ingests of runs that did not finish, or have not yet."""
    found = []
    for name in tree.names(INGESTS):
        directory = tree.lstat(f"{INGESTS}/{name}")
        if directory is None or not stat.S_ISDIR(directory.st_mode):
            continue  # a small file on its way, fetched in one piece
        size, modified = 0, 0.0
        for part in tree.names(f"{INGESTS}/{name}"):
            status = tree.lstat(f"{INGESTS}/{name}/{part}")
            if status:
                size += status.st_blocks * _BLOCK
                modified = max(modified, status.st_mtime)
        identity, whole = _noted(tree.read(f"{INGESTS}/{name}/{ARTIFACT}", 1 << 16))
        found.append(Partial(name, identity, whole, size, modified))
    return tuple(found)


def _noted(content: bytes | None) -> tuple[str, int | None]:
    """Identity and size as the ingest noted them when it began."""
    try:
        facts = json.loads(content or b"")
        return str(facts["identity"]), int(facts["size"])
    except UNREADABLE:
        return "", None
