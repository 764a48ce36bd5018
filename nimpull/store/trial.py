"""Trying out what a volume's file system can do: a handful of small files, well under a second.

Tried rather than told by the kind of file system: a mount's options decide as much as its driver.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from nimpull.core.abilities import Abilities
from nimpull.errors import StoreError
from nimpull.store.tree import TEMPORARY, Tree

_PAGE: Final = 4096
_SPARSE: Final = 1 << 20  # bytes of the file that is made to see whether a hole takes room
#: The volume is full, read-only or broken: says nothing about what it can do.
_FAULTS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


def try_out(tree: Tree) -> Abilities:
    """Raises NotWritableError, NoSpaceError, StoreIOError where not even a new file can be written."""
    names = tuple(tree.temporary() for _ in range(3))
    first, second, third = names
    with tree.storing("write in", TEMPORARY), tree.directory(TEMPORARY, create=True):
        _write_once(tree, first)
        _write_once(tree, second)
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
            with suppress(OSError, StoreError):  # an hour later ``Tree.sweep`` comes again
                tree.unlink(name)


def _can(attempt: Callable[[], object]) -> bool:
    """Whatever it answers instead is a no: drivers differ in their words (rclone says EIO to link(2))."""
    try:
        attempt()
    except OSError as error:
        if error.errno in _FAULTS:
            raise
        return False
    return True


def _write_once(tree: Tree, path: str) -> None:
    file = tree.open_at(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(file, os.path.basename(path).encode())
        os.fsync(file)
    finally:
        os.close(file)


def _write_behind(tree: Tree, path: str) -> None:
    """A page behind the end, then the one before it: as the segments of a large file come."""
    file = tree.open_at(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        for offset in (_PAGE, 0):
            os.pwrite(file, bytes([offset and 1]) * _PAGE, offset)
        os.fsync(file)
        os.pwrite(file, b"2", 1)  # and again once it was flushed
    finally:
        os.close(file)
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
        reading = tree.open_at(one, os.O_RDONLY)
        try:
            os.close(tree.open_at(two, os.O_WRONLY))
        finally:
            os.close(reading)


def _link(tree: Tree, path: str) -> None:
    with tree.directory(TEMPORARY) as directory:
        os.symlink("target", os.path.basename(path), dir_fd=directory)


def _make_hole(tree: Tree, path: str) -> None:
    file = tree.open_at(path, os.O_RDWR)
    try:
        os.ftruncate(file, _SPARSE)
        if os.fstat(file).st_blocks * 512 >= _SPARSE:
            raise OSError(errno.EOPNOTSUPP, "a hole takes room")
    finally:
        os.close(file)


def _write_direct(tree: Tree, path: str) -> None:
    file = tree.open_at(path, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, _PAGE) as page:  # aligned, as O_DIRECT asks for
            os.pwrite(file, page, 0)
    finally:
        os.close(file)
