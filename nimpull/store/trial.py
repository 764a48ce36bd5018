"""Trying out what a volume's file system can do: a handful of small files, well under a second.

Tried rather than told by the kind of file system: a mount's options decide as much as its driver.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from typing import Final

from nimpull.core.abilities import Abilities
from nimpull.store.tree import TEMPORARY, Tree

_PAGE: Final = 4096
_SPARSE: Final = 1 << 20  # bytes of the file that is made to see whether a hole takes room
#: The volume is full, read-only or broken: says nothing about what it can do.
_FAULTS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


def try_out(tree: Tree) -> Abilities:
    """Raises NotWritableError, NoSpaceError, StoreIOError where not even a new file can be written."""
    first, second, third = names = tuple(tree.temporary() for _ in range(3))
    with tree.storing("write in", TEMPORARY):
        for name in (first, second):
            with tree.writing(name) as file:
                os.write(file, os.path.basename(name).encode())
                os.fsync(file)
    try:
        return Abilities(
            offsets=_can(lambda: _write_behind(tree, third)),
            links=_can(lambda: _name_twice(tree, first, f"{first}.l")),
            symlinks=_can(lambda: _link(tree, f"{first}.s")),
            holes=_can(lambda: _make_hole(tree, third)),
            direct=_can(lambda: _write_direct(tree, third)),
            replacing=_can(lambda: _replace(tree, first, second)),
        )
    finally:
        for name in (*names, f"{first}.l", f"{first}.s"):
            tree.drop(name)


def _can(attempt: Callable[[], object]) -> bool:
    """Whatever it answers instead is a no: drivers differ in their words (rclone says EIO to link(2))."""
    try:
        attempt()
    except OSError as error:
        if error.errno in _FAULTS:
            raise
        return False
    return True


def _write_behind(tree: Tree, path: str) -> None:
    """A page behind the end, then the one before it: as the segments of a large file come."""
    with tree.writing(path) as file:
        for offset in (_PAGE, 0):
            os.pwrite(file, bytes([offset and 1]) * _PAGE, offset)
        os.fsync(file)
        os.pwrite(file, b"2", 1)  # and again once it was flushed
    found = tree.read(path) or b""
    if len(found) != 2 * _PAGE or found[:2] != b"\0002" or found[_PAGE] != 1:
        raise OSError(errno.EIO, "other bytes were read than were written")


def _replace(tree: Tree, source: str, target: str) -> None:
    with tree.directory(TEMPORARY) as directory:
        names = os.path.basename(source), os.path.basename(target)
        os.rename(*names, src_dir_fd=directory, dst_dir_fd=directory)
    if tree.read(target) != names[0].encode() or tree.lstat(source):
        raise OSError(errno.EIO, "the renamed file is not where it should be")


def _name_twice(tree: Tree, path: str, other: str) -> None:
    """A hard link whose names can be used at one time: the lease of an SMB server is for one name of a file,
    and Linux 6.1 answers EINVAL to the other one (MS-SMB2 3.3.5.9.8)."""
    tree.hard_link(path, other)
    for one, two in ((other, path), (path, other)):
        with tree.writing(one, os.O_RDONLY), tree.writing(two, os.O_WRONLY):
            pass


def _link(tree: Tree, path: str) -> None:
    with tree.directory(TEMPORARY) as directory:
        os.symlink("target", os.path.basename(path), dir_fd=directory)


def _make_hole(tree: Tree, path: str) -> None:
    with tree.writing(path, os.O_RDWR) as file:
        os.ftruncate(file, _SPARSE)
        if os.fstat(file).st_blocks * 512 >= _SPARSE:
            raise OSError(errno.EOPNOTSUPP, "a hole takes room")


def _write_direct(tree: Tree, path: str) -> None:
    with tree.writing(path, os.O_RDWR | os.O_DIRECT) as file, mmap.mmap(-1, _PAGE) as page:
        os.pwrite(file, page, 0)  # aligned, as O_DIRECT asks for
