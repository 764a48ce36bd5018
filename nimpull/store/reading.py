"""Reading a file again, at the speed of the disk or of the hash."""

from __future__ import annotations

import mmap
import os
import threading
from typing import Final

from nimpull.core.digest import Digest, new_hasher
from nimpull.core.names import display
from nimpull.errors import Cancelled
from nimpull.store.durable import let_go, store_error
from nimpull.store.tree import Tree

_BLOCK: Final = 1 << 20  # bytes: what is copied is still in the core's cache when it is hashed
_CACHED: Final = 32 << 20  # bytes of page cache that a file may hold meanwhile: a pod's limit counts them


class _Buffer(threading.local):
    """Begins on a page: the kernel copies to other addresses three times as slowly."""

    def __init__(self) -> None:
        self.block = memoryview(mmap.mmap(-1, _BLOCK))


_buffer: Final = _Buffer()


def hash_file(tree: Tree, path: str, algorithm: str) -> tuple[Digest, os.stat_result]:
    """Digest of a regular file, and its status while it was read. FileNotFoundError, StoreError,
    Cancelled."""
    descriptor = tree.open(path)
    try:
        status = os.fstat(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        hasher = new_hasher(algorithm, status.st_size)
        block, position = _buffer.block, 0
        while count := os.readv(descriptor, [block]):
            if tree.cancel and tree.cancel.is_set():
                raise Cancelled(
                    f"stopped while reading {display(tree.absolute(path), 300)}",
                    hint="Run again to continue.",
                )
            hasher.update(block[:count])
            position += count
            if position % _CACHED == 0:
                os.posix_fadvise(descriptor, 0, position, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise store_error(error, "read", tree.absolute(path)) from error
    finally:
        let_go(descriptor)
    return Digest(algorithm, hasher.hexdigest()), status
