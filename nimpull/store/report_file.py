"""The report in the store, and room set aside for it: a full volume must not keep a failure to itself.

Where there is no other room, the last report of a run is written over blocks that the spare file has already,
in the inode that it has already: whoever fills the volume meanwhile takes neither away. File systems that
never write a block in place (btrfs, ZFS) may refuse all the same.
"""

from __future__ import annotations

import os
from typing import Final

from nimpull.core.names import STATE_DIRECTORY
from nimpull.errors import NoSpaceError, StoreError
from nimpull.store.durable import write_all
from nimpull.store.tree import Tree

REPORT: Final = f"{STATE_DIRECTORY}/report.json"
SPARE: Final = f"{STATE_DIRECTORY}/report.spare"
OWNER: Final = f"{STATE_DIRECTORY}/report.owner"  # which of several runs REPORT is of
REPORTS: Final = f"{STATE_DIRECTORY}/reports"  # one of each run


def set_aside(tree: Tree, size: int) -> None:
    """Keep ``size`` bytes for the last report; nothing to do where they are. Raises StoreError."""
    status = tree.lstat(SPARE)
    if status is None or status.st_size < size or status.st_uid != os.geteuid():
        tree.write(SPARE, bytes(size), durable=False)


def write_report(tree: Tree, content: bytes, *, last: bool, shorter: bytes = b"") -> None:
    """Replace the report atomically. ``last``: none follows, so what was set aside is for this one, or for
    ``shorter`` where it does not hold ``content``.

    Raises StoreError: no room, also not in what was set aside.
    """
    try:
        tree.write(REPORT, content, durable=False)
    except NoSpaceError:
        spare = tree.lstat(SPARE)
        if not last or spare is None:
            raise
        _write_into_spare(tree, shorter if shorter and len(content) > spare.st_size else content)


def _write_into_spare(tree: Tree, content: bytes) -> None:
    temporary = tree.temporary()
    tree.rename(SPARE, temporary)  # from here on it is this process's alone
    try:
        with tree.storing("write", REPORT), tree.writing(temporary, os.O_WRONLY) as file:
            write_all(file, content, 0)
            os.ftruncate(file, len(content))
        tree.rename(temporary, REPORT)
    except StoreError:
        tree.drop(temporary)
        raise
