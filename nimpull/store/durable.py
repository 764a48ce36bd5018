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

_PART: Final = 8 << 20  # bytes: what mountpoint-s3 sends as one part
_READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
#: What a file system answers to chmod(2) that keeps no modes (FAT, CIFS, some FUSE drivers).
_NO_MODES: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_STANDS = "Something stands there that nimpull does not replace: remove it, or use another directory."
_REFUSES = "Check fsGroup, the mode of the directory, and that the volume is not mounted read-only."
_LACKS = "The mount does not take what a store needs. Use another volume (block storage, NFS)."
_OPEN_FILES = "Raise the limit of open files (ulimit -n), or set NIMPULL_CONNECTIONS lower."
_QUOTA = "Raise the quota of the volume, or free room. What was fetched stays for the next run."
_SPLIT = "The store must be one file system: no mount or subPath below its root."
_FAULT = "The file system reports a fault. Check the volume and its storage backend, then run again."
#: What an errno says of the volume, and what helps.
_CAUSES: Final[dict[int, tuple[type[StoreError], str]]] = {
    **dict.fromkeys((errno.ELOOP, errno.ENOTDIR, errno.EISDIR), (NotWritableError, _STANDS)),
    **dict.fromkeys(_READ_ONLY, (NotWritableError, _REFUSES)),
    **dict.fromkeys((errno.EOPNOTSUPP, errno.ENOSYS), (NotWritableError, _LACKS)),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), (StoreLimitError, _OPEN_FILES)),
    errno.EDQUOT: (NoSpaceError, _QUOTA),
    errno.EXDEV: (StoreIOError, _SPLIT),
}


class storing:  # noqa: N801 - reads as the function that it is: a generator costs small files more
    """Turns an OSError of the block into the StoreError that says what the volume refused."""

    __slots__ = ("_action", "_path")

    def __init__(self, action: str, path: str) -> None:
        self._action, self._path = action, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            raise store_error(error, self._action, self._path) from error


def store_error(error: OSError, action: str, path: str) -> StoreError:
    """The StoreError for ``error``, met while doing ``action`` to ``path`` (absolute).

    No space (bytes, inodes or quota), not writable, or an I/O error.
    """
    cannot = f"cannot {action} {display(path, 300)}"
    if error.errno == errno.ENOSPC:
        return _no_space(cannot, path)
    if error.errno in _READ_ONLY:
        cannot += f" as uid {os.geteuid()}, gid {os.getegid()}"
    reason = os.strerror(error.errno) if error.errno else display(error, 120)
    if error.errno == errno.EXDEV:
        reason = "it is on another file system"
    kind, hint = _CAUSES.get(error.errno or 0, (StoreIOError, _FAULT))
    return kind(f"{cannot}: {reason}", hint=hint)


def _no_space(cannot: str, path: str) -> NoSpaceError:
    """Of bytes or of inodes, as the nearest directory above ``path`` tells."""
    hint = "Enlarge the volume (NIMCache: spec.storage.pvc.size). What was fetched stays for the next run."
    while path and not os.path.lexists(path):
        path = os.path.dirname(path)
    try:
        found = os.statvfs(path)
    except OSError:
        return NoSpaceError(f"{cannot}: no space left (bytes or inodes)", hint=hint)
    if found.f_files and not found.f_favail:
        return NoSpaceError(
            f"{cannot}: no inodes left",
            hint="The volume holds as many files as it can. Remove files, or make it with more inodes.",
        )
    return NoSpaceError(
        f"{cannot}: no space left, {show_bytes(found.f_bavail * found.f_frsize)} free", hint=hint
    )


@contextmanager
def closing(descriptor: int, *, quietly: bool = False) -> Iterator[int]:
    """close(2) at the end. ``quietly``: nothing was written through it, so that an error there (EIO of a
    server that is away) loses nothing."""
    try:
        yield descriptor
    finally:
        if quietly:
            let_go(descriptor)
        else:
            os.close(descriptor)


def write_all(descriptor: int, block: memoryview | bytes, offset: int) -> None:
    """Write the whole of ``block``: a short write goes on where it stopped. Raises OSError."""
    view = memoryview(block)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view = view[count:]
        offset += count


def copy_in_order(source: int, target: int) -> None:
    """By write(2) alone, durable on return: an offset, even the right one, is more than some drivers take."""
    offset = 0
    while block := os.pread(source, _PART, offset):
        view = memoryview(block)
        while view:
            view = view[os.write(target, view) :]
        offset += len(block)
    set_mode(target, stat.S_IMODE(os.fstat(source).st_mode))
    os.fsync(target)


def is_same(one: int, other: int) -> bool:
    """Whether two files hold the same bytes. A FUSE driver may answer a read in pieces. Raises OSError."""
    with open(one, "rb", closefd=False) as left, open(other, "rb", closefd=False) as right:
        left.seek(0)
        right.seek(0)
        while True:
            block = left.read(_PART)
            if right.read(len(block) or 1) != block:
                return False
            if not block:
                return True


def replace_file(path: str, content: bytes, mode: int = 0o664) -> None:
    """Write ``path``, outside of a store, so that a reader or a crash finds the old content or the new.

    Content and name are durable when this returns. Raises OSError.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is not a file")  # /dev/null must stay what it is
    temporary = f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with closing(os.open(temporary, flags, mode)) as file:
        write_all(file, content, 0)
        os.fsync(file)
    os.replace(temporary, path)
    above = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with closing(above):
        os.fsync(above)


def let_go(descriptor: int) -> None:
    """See :func:`closing`, quietly."""
    with suppress(OSError):
        os.close(descriptor)


def share_with_group(name: str, above: int | None = None, *, like: str = "..") -> None:
    """Let the group write a new directory where it may write ``like`` (fsGroup), whatever the umask.

    ``above``: descriptor of the directory that ``name`` is in, if it is no whole path. ``like``: the one
    above, or where several make directories at once the root, whose mode nobody is about to change. chmod
    keeps the setgid bit that mkdir took over; a private store stays private. Raises OSError.
    """
    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    with closing(below, quietly=True):
        if os.stat(like, dir_fd=below).st_mode & stat.S_IWGRP:
            set_mode(below, stat.S_IMODE(os.fstat(below).st_mode) | 0o070)


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
