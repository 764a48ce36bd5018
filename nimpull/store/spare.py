"""Room set aside for the last report of a run: a full volume must not keep its failure to itself.

The report is written over blocks that the spare file has already, in the inode that it has already: whoever
fills the volume meanwhile takes neither away. File systems that never write a block in place (btrfs, ZFS)
may refuse all the same.
"""

from __future__ import annotations

import os
from typing import Final

from nimpull.core.names import STATE_DIRECTORY
from nimpull.errors import StoreError
from nimpull.store import durable
from nimpull.store.tree import TEMPORARY, Tree, store_error

SPARE: Final = f"{STATE_DIRECTORY}/report.spare"


def set_aside(tree: Tree, size: int) -> None:
    """Keep ``size`` bytes for :func:`write_into_spare`; nothing to do where they are. Raises StoreError."""
    status = tree.lstat(SPARE)
    if status is None or status.st_size < size or status.st_uid != os.geteuid():
        tree.write(SPARE, bytes(size), durable=False)


def write_into_spare(tree: Tree, path: str, content: bytes) -> bool:
    """Replace the small file ``path`` atomically, with what was set aside; False where nothing is.

    Raises StoreError: the content is longer than the spare file and does not fit either.
    """
    if tree.lstat(SPARE) is None:
        return False
    temporary = tree.temporary()
    tree.rename(tree.absolute(SPARE), temporary)  # from here on it is this process's alone
    try:
        with tree.directory(TEMPORARY) as above:
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(os.path.basename(temporary), flags, dir_fd=above)
        try:
            durable.write_all(file, content, 0)
            os.ftruncate(file, len(content))
        finally:
            os.close(file)
        tree.rename(tree.absolute(temporary), path)
    except OSError as error:
        tree.drop(temporary)
        raise store_error(error, "write", tree.absolute(path)) from error
    except StoreError:
        tree.drop(temporary)
        raise
    return True
