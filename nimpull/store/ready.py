"""Ready markers: ``.nimpull/ready/<selection>.json``, written last. No marker, not ready.

A later start reads its marker without any network and believes it while every file still has the size and the
modification time of its commit. A marker of another version, or a torn one, counts as none; one without
endpoints is of a version that did not ask from where: no selection of today has its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from nimpull.core.digest import Digest
from nimpull.core.names import MAX_STORED_BYTES, STATE_DIRECTORY, SafePath
from nimpull.errors import StoreError
from nimpull.store.record import UNREADABLE, StoredFile
from nimpull.store.tree import Tree

READY: Final = f"{STATE_DIRECTORY}/ready"
VERSION: Final = 1
_MOST_LINKS: Final = 2  # a snapshot's to its blob, and that one's to a blob that repositories share
_KEY: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Ready:
    """A selection that stands whole in the store. The path of a file: what a reader opens; its time: of the
    file behind that.

    ``selection``: any text that is equal for the same request; ``layout``: its name; ``time``: seconds
    since the epoch; ``revisions``: the repositories as resolved; ``profiles``: ids of the profiles;
    ``names``: second names of the files, which must stand as well; ``endpoints``: of the registries that it
    is complete for.
    """

    selection: str
    layout: str
    time: float
    files: tuple[StoredFile, ...]
    revisions: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    names: tuple[StoredFile, ...] = ()
    endpoints: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files, each once."""
        return sum(file.size for file in self.files)


def marker_of(selection: str) -> str:
    """The marker's path below the root: readable where the selection is a plain name, else its hash."""
    key = selection if _KEY.fullmatch(selection) else hashlib.sha256(selection.encode()).hexdigest()
    return f"{READY}/{key}.json"


def write_ready(tree: Tree, ready: Ready) -> str:
    """Durable on return; call it after everything it speaks of is durable. Raises StoreError."""
    path = marker_of(ready.selection)
    document = {
        "version": VERSION,
        "selection": ready.selection,
        "layout": ready.layout,
        "time": ready.time,
        "profiles": ready.profiles,
        "revisions": ready.revisions,
        "endpoints": ready.endpoints,
        "files": [_row(file) for file in ready.files],
        "names": [_row(file) for file in ready.names],
    }
    tree.write(path, json.dumps(document).encode())
    return path


def _row(file: StoredFile) -> tuple[str, int, int, str]:
    return file.path, file.size, file.mtime_ns, str(file.digest)


def _files(rows: Iterable[tuple[str, int, int, str]]) -> tuple[StoredFile, ...]:
    return tuple(
        StoredFile(str(SafePath(path, MAX_STORED_BYTES)), int(size), int(mtime_ns), Digest.parse(digest))
        for path, size, mtime_ns, digest in rows
    )


def read_ready(tree: Tree, selection: str) -> Ready | None:
    """The marker of a selection if all its files still stand as committed, by one stat each.

    Where the time of one alone has changed, it is hashed: some servers set the time once more after the
    commit (CIFS, s3fs). The marker is written anew then, if that can be, so that it happens once.
    """
    ready = parse_ready(tree, marker_of(selection))
    if ready is None or ready.selection != selection:
        return None
    changed = missing_of(tree, ready)
    if not changed:
        return ready
    read = {file: _read_again(tree, file) for file in changed}
    if None in read.values():
        return None
    files, names = (tuple(read.get(file) or file for file in each) for each in (ready.files, ready.names))
    ready = replace(ready, files=files, names=names)
    with suppress(StoreError):  # a volume that is mounted read-only
        write_ready(tree, ready)
    return ready


def _read_again(tree: Tree, file: StoredFile) -> StoredFile | None:
    """With the time that it has now; None where its content is another."""
    path, status = behind(tree, file.path)
    if status is None or status.st_size != file.size:
        return None
    digest, status = tree.hash(path, file.digest.algorithm)
    return replace(file, mtime_ns=status.st_mtime_ns) if digest == file.digest else None


def parse_ready(tree: Tree, path: str) -> Ready | None:
    """A marker as written, its files not looked at; None where there is none that can be understood."""
    try:
        document = json.loads(tree.read(path, 1 << 30) or b"")
        if document["version"] != VERSION or not document["files"]:
            return None
        return Ready(
            selection=str(document["selection"]),
            layout=str(document["layout"]),
            time=float(document["time"]),
            files=_files(document["files"]),
            revisions=tuple(str(one) for one in document["revisions"]),
            profiles=tuple(str(one) for one in document["profiles"]),
            names=_files(document.get("names", ())),
            endpoints=tuple(str(one) for one in document.get("endpoints", ())),
        )
    except UNREADABLE:
        return None


def missing_of(tree: Tree, ready: Ready) -> tuple[StoredFile, ...]:
    """Those that are gone or no longer as committed. Reads no content."""
    missing = []
    with tree.holding():
        for file in (*ready.files, *ready.names):
            _, status = behind(tree, file.path)
            if status is None or not file.matches(status):
                missing.append(file)
    return tuple(missing)


def behind(tree: Tree, path: str) -> tuple[str, os.stat_result | None]:
    """The regular file that a name leads to by the layouts' own links, below the root; None = none."""
    try:
        for _ in range(_MOST_LINKS + 1):
            status = tree.lstat(path)
            if status is None or not stat.S_ISLNK(status.st_mode):
                return path, status if status and stat.S_ISREG(status.st_mode) else None
            path = os.path.normpath(os.path.join(os.path.dirname(path), tree.readlink(path) or ""))
            if path.startswith(("..", "/")):
                break
    except StoreError:
        pass  # a planted link on the way, or a file in the place of a directory
    return path, None


def superseded(tree: Tree, marker: Ready) -> Iterator[Ready]:
    """Markers whose files this one has replaced, or that an earlier version wrote of the same files."""
    standing = {file.path: file for file in (*marker.files, *marker.names)}
    for old in all_ready(tree, but=marker.selection):
        files = (*old.files, *old.names)
        replaced = any(file.path in standing and standing[file.path] != file for file in files)
        if replaced or (not old.endpoints and all(standing.get(file.path) == file for file in files)):
            yield old


def all_ready(tree: Tree, *, but: str = "") -> tuple[Ready, ...]:
    """Every marker that can be understood, whether or not its files still stand. ``but``: of a selection."""
    found = []
    for path in (f"{READY}/{name}" for name in tree.names(READY)):
        with suppress(StoreError):  # not a file of ours
            if (not but or path != marker_of(but)) and (ready := parse_ready(tree, path)):
                found.append(ready)
    return tuple(found)
