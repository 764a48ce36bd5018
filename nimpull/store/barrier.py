"""Making the content of many small files durable at once.

``fsync`` commits the journal of a file system for each file; ``syncfs`` writes all back and commits it once.
It is used where it does that and tells what failed: on file systems that keep their blocks themselves (a FUSE
daemon or a server across the network may never hear of it), and on Linux 5.8 or later, which reports an error
of any file's write-back to the next ``syncfs`` on a descriptor that was open before (syncfs(2), "ERRORS").
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable
from typing import Final

from nimpull.store.durable import let_go

#: ``f_type`` of statfs(2): ext2, 3 and 4, XFS, Btrfs, F2FS, tmpfs.
_LOCAL: Final = frozenset({0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x01021994})
_SINCE: Final = (5, 8)

Call = Callable[[int], None]


class Barrier:
    """``whole``: whether ``wait`` can be used on the file system of a directory. Thread-safe.

    An error belongs to every file that was written before it was told, not only to those of the caller that
    hears of it. So a file remembers ``errors`` from before its first byte, and is lost once that has changed.
    """

    def __init__(self, directory: int) -> None:
        """``directory``: a descriptor of it, which stays the caller's. Raises OSError."""
        self.errors = 0
        self._lock = threading.Lock()
        self._descriptor = os.dup(directory)
        self._syncfs = find_syncfs(self._descriptor)

    @property
    def whole(self) -> bool:
        return self._syncfs is not None

    def wait(self) -> None:
        """All that was written before is durable. Raises OSError."""
        if self._syncfs is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        with self._lock:
            try:
                self._syncfs(self._descriptor)
            except OSError:
                self.errors += 1
                raise

    def close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                let_go(self._descriptor)
            self._descriptor = -1


def find_syncfs(descriptor: int) -> Call | None:
    """syncfs(2), None where it is missing or says too little on this file system or kernel."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release is None or (int(release[1]), int(release[2])) < _SINCE:
        return None
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    about = ctypes.create_string_buffer(512)  # struct statfs begins with f_type, a word
    try:
        if libc.fstatfs(descriptor, about) or ctypes.c_ulong.from_buffer(about).value not in _LOCAL:
            return None
        function = libc.syncfs
    except AttributeError:
        return None

    def syncfs(descriptor: int) -> None:
        if function(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    return syncfs
