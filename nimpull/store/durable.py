"""The primitives of a crash-safe store: whole writes, fsync, and errors that say what the volume lacks."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from nimpull.core.names import display
from nimpull.core.units import show_bytes
from nimpull.errors import NoSpaceError, NotWritableError, StoreError, StoreIOError, StoreLimitError

_READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
#: What a file system answers to chmod(2) that keeps no modes (FAT, CIFS, some FUSE drivers).
_NO_MODES: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


@contextmanager
def storing(action: str, path: str) -> Iterator[None]:
    """Turns an OSError of the block into the StoreError that says what the volume refused."""
    try:
        yield
    except OSError as error:
        raise store_error(error, action, path) from error


def store_error(error: OSError, action: str, path: str) -> StoreError:  # noqa: PLR0911 - one return a cause
    """The StoreError for ``error``, met while doing ``action`` to ``path`` (absolute).

    No space (bytes, inodes or quota), not writable, or an I/O error.
    """
    shown = display(path, 300)
    if error.errno == errno.EXDEV:
        return StoreIOError(
            f"cannot {action} {shown}: it is on another file system",
            hint="The store must be one file system: no mount or subPath below its root.",
        )
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
        return NotWritableError(
            f"cannot {action} {shown}: {os.strerror(error.errno)}",
            hint="Something stands there that nimpull did not make and does not replace: remove it, or use "
            "another directory.",
        )
    if error.errno == errno.EDQUOT:
        return NoSpaceError(
            f"cannot {action} {shown}: the quota is used up",
            hint="Raise the quota of the volume, or free room. What was fetched stays for the next run.",
        )
    if error.errno == errno.ENOSPC:
        return _no_space(action, path, shown)
    if error.errno in _READ_ONLY:
        return NotWritableError(
            f"cannot {action} {shown} as uid {os.geteuid()}, gid {os.getegid()}: {os.strerror(error.errno)}",
            hint="Check fsGroup, the mode of the directory, and that the volume is not mounted read-only.",
        )
    if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
        return NotWritableError(
            f"cannot {action} {shown}: {os.strerror(error.errno)}",
            hint="The mount does not take what a store needs. Use another volume (block storage, NFS).",
        )
    reason = os.strerror(error.errno) if error.errno else display(error, 120)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StoreLimitError(
            f"cannot {action} {shown}: {reason}",
            hint="Raise the limit of open files (ulimit -n), or set NIMPULL_CONNECTIONS lower.",
        )
    return StoreIOError(
        f"cannot {action} {shown}: {reason}",
        hint="The file system reports a fault. Check the volume and its storage backend, then run again.",
    )


def _no_space(action: str, path: str, shown: str) -> NoSpaceError:
    hint = "Enlarge the volume (NIMCache: spec.storage.pvc.size). What was fetched stays for the next run."
    room = _free(path)
    if room is None:
        return NoSpaceError(f"cannot {action} {shown}: no space left (bytes or inodes)", hint=hint)
    free, inodes, has_inodes = room
    if has_inodes and inodes == 0:
        return NoSpaceError(
            f"cannot {action} {shown}: no inodes left",
            hint="The volume holds as many files as it can. Remove files, or make it with more inodes.",
        )
    return NoSpaceError(f"cannot {action} {shown}: no space left, {show_bytes(free)} free", hint=hint)


def _free(path: str) -> tuple[int, int, bool] | None:
    """Free bytes, free inodes, and whether inodes are counted, at ``path`` or the nearest parent there is."""
    while path:
        try:
            found = os.statvfs(path)
        except OSError:
            parent = os.path.dirname(path)
            if parent == path:
                return None
            path = parent
            continue
        return found.f_bavail * found.f_frsize, found.f_favail, found.f_files > 0
    return None


def write_all(descriptor: int, block: memoryview | bytes, offset: int) -> None:
    """Write the whole of ``block``: a short write goes on where it stopped. Raises OSError."""
    view = memoryview(block)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view = view[count:]
        offset += count


def replace_file(path: str, content: bytes, mode: int = 0o664) -> None:
    """Write ``path``, outside of a store, so that a reader or a crash finds the old content or the new.

    Content and name are durable when this returns. Raises OSError.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is not a file")  # /dev/null must stay what it is
    temporary = f"{path}.new"
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode
    )
    try:
        write_all(descriptor, content, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def let_go(descriptor: int) -> None:
    """close(2) of what nothing was written through: an error there (EIO of a server that is away) loses
    nothing."""
    with suppress(OSError):
        os.close(descriptor)


def share_with_group(name: str, above: int | None = None, *, like: str = "..") -> None:
    """Let the group write a new directory where it may write ``like`` (fsGroup), whatever the umask.

    ``above``: descriptor of the directory that ``name`` is in, if it is no whole path. ``like``: the one
    above, or where several make directories at once the root, whose mode nobody is about to change. chmod
    keeps the setgid bit that mkdir took over; a private store stays private. Raises OSError.
    """
    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        decides = os.stat(like, dir_fd=below).st_mode
        mode = stat.S_IMODE(os.fstat(below).st_mode)
        if decides & stat.S_IWGRP:
            set_mode(below, mode | 0o070)
    finally:
        let_go(below)


def set_mode(descriptor: int, mode: int) -> int:
    """fchmod(2) where the file system has modes and the file another one (the umask took from it).

    Returns the file's size in bytes, which the same look tells.
    """
    found = os.fstat(descriptor)
    if stat.S_IMODE(found.st_mode) == mode:
        return found.st_size
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        if error.errno not in _NO_MODES:
            raise
    return found.st_size
