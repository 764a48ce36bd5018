"""A directory tree that is walked by descriptors: nothing planted below the root leads outside of it.

Every path is relative to the root. Each directory on the way is opened with ``openat`` and ``O_NOFOLLOW``:
a symbolic link in the place of a directory is refused (NotWritableError), also when it appears between two
steps; so is ``..``, and every other segment that is not one name. Whoever can write to the volume can write
into ``.nimpull`` too, and a path that was read from there may be anything. The root itself is the caller's:
it may be a link.

Within ``holding`` a thread walks each directory once and keeps its descriptor. What is planted meanwhile is
not followed either: the descriptor is of the directory that was there.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from nimpull.core.abilities import Abilities, WriteMode
from nimpull.core.digest import Digest, new_hasher
from nimpull.core.names import STATE_DIRECTORY, display
from nimpull.core.ports import Cancel
from nimpull.errors import Cancelled, NotWritableError, StoreError, StoreIOError
from nimpull.store import durable
from nimpull.store.durable import closing, let_go, set_mode, store_error, write_all

FILE_MODE = 0o444  # readable by the group and whoever mounts it later, writable by nobody
STATE_MODE = 0o644  # of small files beside them, which the next run may replace
TEMPORARY = f"{STATE_DIRECTORY}/new"
INGESTS = f"{STATE_DIRECTORY}/ingest"
BROUGHT = f"{STATE_DIRECTORY}/brought"
PROBE = ".nimpull-probe-"  # begins the name of a file in the root that shows that a rename gets there
_BLOCK = 1 << 20  # bytes: what is copied is still in the core's cache when it is hashed
_CACHED = 32 << 20  # bytes of page cache that a file may hold while it is hashed: a pod's limit counts them
_PAUSES = (0.05, 0.2, 1.0)  # seconds, at most, before a name is written anew that two runs write
_TRIES = 3  # to make a directory that somebody keeps removing
_MOST_HELD = 64  # descriptors that one thread keeps; further directories are walked each time
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: What a file system answers that has no symbolic or no hard links (FAT, some FUSE and CSI drivers).
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EACCES, errno.EMLINK})
#: What mounts of object stores answer to rename(2).
_NO_RENAME = frozenset({errno.ENOSYS, errno.EOPNOTSUPP})


class _Held(threading.local):
    """Descriptors by directory; None outside of ``holding``."""

    descriptors: dict[str, int] | None = None


class _Buffer(threading.local):
    """To hash from. Begins on a page: the kernel copies to other addresses three times as slowly."""

    def __init__(self) -> None:
        self.block = memoryview(mmap.mmap(-1, _BLOCK))


_buffer = _Buffer()


class Tree:
    """The files below ``root``, an existing directory. Raises StoreError.

    ``cancel``: once it is set, reading a file through ends with Cancelled.
    """

    def __init__(self, root: str, cancel: Cancel | None = None) -> None:
        self.root = os.path.abspath(root)
        self.cancel = cancel
        self.abilities = Abilities()
        self._held = _Held()
        self._scratch = ""

    def adapt(self, abilities: Abilities, scratch: str = "") -> None:
        """Write as this volume can. ``scratch``: where files are assembled that it takes only whole and in
        order, a private directory; used where the mode is sequential."""
        self.abilities = abilities
        if abilities.mode is WriteMode.SEQUENTIAL:
            self._scratch = scratch

    @property
    def has_scratch(self) -> bool:
        """Whether unfinished files lie outside of the volume."""
        return bool(self._scratch)

    def _apart(self, path: str) -> str:
        """The directory of unfinished files that ``path`` is or is in, if those are not on the volume."""
        if self._scratch:
            for each in (INGESTS, TEMPORARY):
                if path == each or path.startswith(f"{each}/"):
                    return each
        return ""

    def absolute(self, path: str) -> str:
        return os.path.join(self._scratch if self._apart(path) else self.root, path)

    def storing(self, action: str, path: str) -> durable.storing:
        """Turns an OSError of the block, which does ``action`` to ``path``, into a StoreError."""
        return durable.storing(action, self.absolute(path))

    # -- walking ---------------------------------------------------------------------------------------

    def directory(self, path: str, *, create: bool = False) -> AbstractContextManager[int]:
        """A descriptor of the directory ``path`` ("" = the root). FileNotFoundError unless ``create``."""
        if path.startswith("/"):
            self._check("", path)
        held = self._held.descriptors
        if held is not None and (path in held or len(held) + path.count("/") + 2 <= _MOST_HELD):
            return nullcontext(self._hold(held, path, create))
        return self._walked(path, create)

    @contextmanager
    def _walked(self, path: str, create: bool) -> Iterator[int]:
        base = self._apart(path)
        descriptor = self._open_base(base)
        try:
            for segment in path.removeprefix(base).lstrip("/").split("/") if path != base else ():
                below = self._enter(descriptor, segment, path, create)
                let_go(descriptor)
                descriptor = below
            yield descriptor
        finally:
            let_go(descriptor)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """For many steps in few directories. Nothing that others delete meanwhile is made again."""
        if self._held.descriptors is not None:
            yield
            return
        held = self._held.descriptors = {}
        try:
            yield
        finally:
            self._held.descriptors = None
            for descriptor in held.values():
                let_go(descriptor)

    def _hold(self, held: dict[str, int], path: str, create: bool) -> int:
        if path not in held:
            above, _, segment = path.rpartition("/")
            if path == self._apart(path):
                held[path] = self._open_base(path)
            else:
                held[path] = self._enter(self._hold(held, above, create), segment, path, create)
        return held[path]

    def _open_base(self, base: str) -> int:
        """``base``: "" = the root, else a directory of unfinished files, which is apart from it."""
        place = os.path.join(self._scratch, base) if base else self.root
        try:
            return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise store_error(error, "open the store", place) from error

    def _enter(self, above: int, segment: str, path: str, create: bool) -> int:
        self._check(segment, path)
        try:
            for _ in range(_TRIES if create else 0):
                with suppress(FileNotFoundError):
                    return os.open(segment, _DIRECTORY, dir_fd=above)
                with suppress(FileExistsError, FileNotFoundError):  # others make it, or take it away
                    os.mkdir(segment, 0o777, dir_fd=above)
                    durable.share_with_group(segment, above, like=self.root)
            return os.open(segment, _DIRECTORY, dir_fd=above)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not create:
                raise
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                reason = f"“{display(segment, 120)}” is a link or a file, not a directory"
                raise refused(self.absolute(path), reason) from error
            raise store_error(error, "open", self.absolute(path)) from error

    def _split(self, path: str) -> tuple[str, str]:
        """The directory and the name in it."""
        above, _, name = path.rpartition("/")
        self._check(name, path)
        return above, name

    def _check(self, segment: str, path: str) -> None:
        """NotWritableError for what is no name of an entry: it would lead elsewhere, or nowhere."""
        try:
            os.fsencode(segment)
        except UnicodeEncodeError:
            segment = ""
        if segment in ("", ".", "..") or "\0" in segment:
            raise NotWritableError(
                f"“{display(path, 300)}” is no path below {display(self.root, 300)}",
                hint=f"Something else wrote it into {STATE_DIRECTORY}. See who can write to the volume; "
                f"remove {STATE_DIRECTORY} and run again: what is there is read again, not fetched again.",
            )

    # -- looking ---------------------------------------------------------------------------------------

    def lstat(self, path: str) -> os.stat_result | None:
        """None where there is nothing."""
        above, name = self._split(path)
        try:
            with self.directory(above) as descriptor:
                return os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise store_error(error, "look at", self.absolute(path)) from error

    def readlink(self, path: str) -> str | None:
        """Where a symbolic link points; None where there is no link."""
        above, name = self._split(path)
        try:
            with self.directory(above) as descriptor:
                return os.readlink(name, dir_fd=descriptor)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return None
            raise store_error(error, "read the link", self.absolute(path)) from error

    def open(self, path: str) -> int:
        """A descriptor of a regular file for reading; FileNotFoundError, or refuses what is not a file."""
        try:
            file = self.open_at(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise refused(self.absolute(path), "it is a link") from error
            raise store_error(error, "open", self.absolute(path)) from error
        if stat.S_ISREG(os.fstat(file).st_mode):
            return file
        let_go(file)
        raise refused(self.absolute(path), "it is not a regular file")

    def reading(self, path: str) -> AbstractContextManager[int]:
        """The same for a block."""
        return closing(self.open(path), quietly=True)

    def open_at(self, path: str, flags: int, mode: int = STATE_MODE) -> int:
        """open(2), never through a link. OSError, and StoreError for the way there, which O_CREAT makes."""
        above, name = self._split(path)
        create = bool(flags & os.O_CREAT)
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        with self.directory(above, create=create) as descriptor:
            try:
                return os.open(name, flags, mode, dir_fd=descriptor)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
            # another client of an NFS server replaced the file: by its name it is found anew
            return os.open(name, flags, mode, dir_fd=descriptor)

    def writing(self, path: str, flags: int = NEW, mode: int = STATE_MODE) -> AbstractContextManager[int]:
        """A descriptor for a block, whose end tells also an error of close(2): see :meth:`open_at`."""
        return closing(self.open_at(path, flags, mode))

    def read(self, path: str, limit: int = 64 << 20, *, start: int = 0) -> bytes | None:
        """A small file from ``start`` on; None where there is none. ``limit`` in bytes."""
        with (
            self.storing("read", path),
            suppress(FileNotFoundError),
            os.fdopen(self.open(path), "rb") as file,
        ):
            file.seek(start)
            return file.read(limit)
        return None

    def names(self, path: str) -> tuple[str, ...]:
        """What a directory holds now, sorted; nothing where it does not exist."""
        with self.storing("list", path), suppress(FileNotFoundError), self.directory(path) as descriptor:
            if self._held.descriptors is None:
                return tuple(sorted(os.listdir(descriptor)))
            # one that is kept would tell what it held when it was opened (CIFS), or was last asked (NFS)
            with closing(os.open(".", _DIRECTORY, dir_fd=descriptor), quietly=True) as anew:
                return tuple(sorted(os.listdir(anew)))
        return ()

    def hash(self, path: str, algorithm: str) -> tuple[Digest, os.stat_result]:
        """Digest of a regular file, and its status while it was read. FileNotFoundError, Cancelled."""
        with self.reading(path) as file, self.storing("read", path):
            status = os.fstat(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            hasher = new_hasher(algorithm, status.st_size)
            block, position = _buffer.block, 0
            while count := os.readv(file, [block]):
                if self.cancel and self.cancel.is_set():
                    shown = display(self.absolute(path), 300)
                    raise Cancelled(f"stopped while reading {shown}", hint="Run again to continue.")
                hasher.update(block[:count])
                position += count
                if position % _CACHED == 0:
                    os.posix_fadvise(file, 0, position, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return Digest(algorithm, hasher.hexdigest()), status

    # -- changing --------------------------------------------------------------------------------------

    @contextmanager
    def replacing(self, path: str, *, durable: bool = True) -> Iterator[int]:
        """A descriptor of a new file, which takes the place of ``path`` at the end of the block; content and
        name are durable then, unless told otherwise."""
        temporary = self.temporary()
        try:
            with self.storing("write", path), self.writing(temporary) as file:
                yield file
                set_mode(file, STATE_MODE)
                if durable:
                    os.fsync(file)
            above = self.rename(temporary, path)
        except BaseException:
            self.drop(temporary)
            raise
        if durable:
            self.sync(above)

    def write(self, path: str, content: bytes, *, durable: bool = True) -> None:
        """The same for a small file."""
        try:
            with self.replacing(path, durable=durable) as file:
                write_all(file, content, 0)
        except StoreError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _NO_RENAME:
                raise
            # for state that a reader checks: it may find none for a moment
            self.remove(path)
            self.create(path, content)
            if durable:
                self.sync(self._split(path)[0])

    def drop(self, path: str) -> None:
        """Remove it if that can be done: where not, what went wrong before says more, and others sweep it."""
        with suppress(OSError, StoreError):
            self.unlink(path)

    def create(self, path: str, content: bytes) -> bool:
        """Make a small file where nothing is, not durable yet; False where something stands.

        A reader, or a crash, may find it unfinished: for what its readers check, and ``write`` can repair.
        """
        with self.storing("write", path), suppress(FileExistsError), self.writing(path) as file:
            write_all(file, content, 0)
            set_mode(file, STATE_MODE)
            return True
        return False

    def temporary(self) -> str:
        """A fresh name for something that a rename will make visible; never longer than any name may be."""
        return f"{TEMPORARY}/{secrets.token_hex(16)}"

    def rename(self, source: str, path: str) -> str:
        """Move the file ``source`` over ``path``; returns the directory that changed.

        A link at ``path`` is replaced, not followed; a directory there is refused. What was assembled outside
        of the volume is brought over.
        """
        if self._apart(source) and not self._apart(path):
            return self._bring(source, path)
        (below, existing), (above, name) = self._split(source), self._split(path)
        try:
            with self.directory(below) as origin, self.directory(above, create=True) as target:
                os.rename(existing, name, src_dir_fd=origin, dst_dir_fd=target)
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise refused(self.absolute(path), "a directory stands where a file must go") from error
            raise store_error(error, "rename a finished file to", self.absolute(path)) from error
        return above

    def _bring(self, source: str, path: str) -> str:
        """A finished file onto a volume that takes it only whole: written in order, read back, then named.

        An object store behind FUSE makes the object when its file is closed, so there the close is what gives
        the name. Where a rename works, it is the last step. Either way nothing else than the bytes that were
        verified stands under the final name.
        """
        with self.storing("write", path), self.reading(source) as file:
            if self.abilities.replacing:
                staged = f"{BROUGHT}/{secrets.token_hex(16)}"
                self._write_in_order(file, staged)
                self.rename(staged, path)
            else:
                self._write_in_place(file, path)
            self.unlink(source)
        return self._split(path)[0]

    def _write_in_place(self, file: int, path: str) -> None:
        """No file is written twice there: what stands is removed, and readers find none until it is whole.

        Another run that writes the same name in this moment removes ours: then once more, a little later.
        """
        for pause in (*_PAUSES, None):
            with suppress(FileNotFoundError):
                self.unlink(path)
            try:
                self._write_in_order(file, path)
                return
            except (FileExistsError, FileNotFoundError, StoreIOError):
                if pause is None:
                    raise
            time.sleep(random.uniform(0, pause))  # noqa: S311 - so that they do not meet again

    def _write_in_order(self, file: int, path: str) -> None:
        """As a new file ``path``, and read back."""
        try:
            with self.writing(path, mode=stat.S_IMODE(os.fstat(file).st_mode)) as target:
                durable.copy_in_order(file, target)
            with self.reading(path) as target:
                if durable.is_same(file, target):
                    return
        except (FileExistsError, FileNotFoundError):
            raise  # what stands there is another run's
        except BaseException:
            self.drop(path)
            raise
        self.drop(path)
        raise StoreIOError(
            f"{display(self.absolute(path), 300)} holds other bytes than were written to it",
            hint="The file system lost a write. Check the volume and its driver, then run again.",
        )

    def symlink(self, target: str, path: str) -> str:
        """Make or replace the symbolic link ``path``; returns the directory that changed."""
        above, name = self._split(path)
        try:
            with self.directory(above, create=True) as descriptor:
                os.symlink(target, name, dir_fd=descriptor)
            return above
        except FileExistsError:
            if self.readlink(path) == target:
                return above
        except OSError as error:
            raise store_error(error, "make the link", self.absolute(path)) from error
        temporary = self.temporary()
        self.symlink(target, temporary)
        return self.rename(temporary, path)

    def link(self, existing: str, path: str, *, of: Tree | None = None) -> str:
        """Make ``path`` a second name of the file ``existing`` of this tree, or of another on the same file
        system, replacing what is there. OSError if not."""
        temporary = self.temporary()
        self.hard_link(existing, temporary, of=of)
        changed = self.rename(temporary, path)
        with suppress(FileNotFoundError):  # rename(2) leaves both names where they are one file already
            self.unlink(temporary)
        return changed

    def hard_link(self, existing: str, path: str, *, of: Tree | None = None) -> None:
        """link(2): FileExistsError where something stands at ``path``, OSError."""
        if not self.abilities.links:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        (below, source), (above, name) = self._split(existing), self._split(path)
        with (of or self).directory(below) as origin, self.directory(above, create=True) as target:
            os.link(source, name, src_dir_fd=origin, dst_dir_fd=target, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        """FileNotFoundError where there is nothing."""
        above, name = self._split(path)
        with self.directory(above) as descriptor:
            os.unlink(name, dir_fd=descriptor)

    def remove(self, path: str) -> None:
        """The same, and nothing is to do where there is nothing. Raises StoreError alone."""
        with self.storing("remove", path), suppress(FileNotFoundError):
            self.unlink(path)

    def remove_directory(self, path: str) -> None:
        """OSError where it is not empty, FileNotFoundError where there is none."""
        above, name = self._split(path)
        with self.directory(above) as descriptor:
            os.rmdir(name, dir_fd=descriptor)

    def sync(self, path: str) -> None:
        """Make the entries of a directory durable."""
        try:
            with self.directory(path) as descriptor:
                os.fsync(descriptor)
        except OSError as error:
            # some FUSE drivers have no fsync for directories: nothing more can be done there
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise store_error(error, "sync", self.absolute(path)) from error


def refused(path: str, reason: str) -> NotWritableError:
    """For what stands where nimpull would have to write, and is not nimpull's."""
    return NotWritableError(
        f"{display(path, 300)}: {reason}",
        hint="It was not made by this store and is not replaced. Remove it, or use another directory.",
    )
