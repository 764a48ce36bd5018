"""File systems that refuse what object stores behind FUSE refuse, for tests of how a store copes.

``python -m tests.refusing_mounts KIND BACKING DIRECTORY`` serves the files of BACKING in DIRECTORY:

- ``sequential``: like mountpoint-s3 (its SEMANTICS.md). A file is written once, from its first byte on, and
  is there for others once it was closed. No rename, no second write, no append, no links, no modes, times of
  whole seconds that are set by the server at the close.
- ``copying``: like blobfuse2 with its file cache. Writes at any offset, but no fallocate and no links; a
  rename copies; a directory has no fsync; the time of a file moves after it was closed, when it was sent.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

KINDS: Final = ("sequential", "copying")
_ATTRIBUTES: Final = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino")


def missing() -> str:
    """Why such a mount cannot be made here, "" if it can."""
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError):
        return "libfuse and mfusepy make the mount"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or not shutil.which("fusermount"):
        return "/dev/fuse and fusermount make the mount"
    return ""


@contextmanager
def mounted(kind: str, backing: Path, directory: Path) -> Iterator[Path]:
    """``directory`` shows ``backing`` as a file system of ``kind`` until the block ends."""
    for each in (backing, directory):
        each.mkdir(parents=True, exist_ok=True)
    above = os.stat(directory).st_dev
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.refusing_mounts", kind, backing, directory],
        cwd=Path(__file__).parents[1],
    )
    try:
        while os.stat(directory).st_dev == above:
            try:
                code = server.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError(f"the mount ended with {code}")
        yield directory
    finally:
        subprocess.run(["fusermount", "-u", "-z", directory], check=False)
        server.wait()


def serve(kind: str, backing: Path, directory: Path) -> None:
    import mfusepy

    def refuse(code: int) -> mfusepy.FuseOSError:
        return mfusepy.FuseOSError(code)

    class Mount(mfusepy.Operations):  # type: ignore[misc]
        """What both kinds do alike."""

        use_ns = True

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def _real(self, path: str) -> str:
            return str(backing) + path

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            found = os.lstat(self._real(path))
            times = {
                "st_atime": found.st_atime_ns,
                "st_mtime": found.st_mtime_ns,
                "st_ctime": found.st_ctime_ns,
            }
            return {name: getattr(found, name) for name in _ATTRIBUTES} | times

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(self._real(path))]

        def statfs(self, path: str) -> dict[str, int]:
            return {
                "f_bsize": 4096,
                "f_frsize": 4096,
                "f_blocks": 1 << 40,
                "f_bfree": 1 << 40,
                "f_bavail": 1 << 40,
            }

        def mkdir(self, path: str, mode: int) -> int:
            os.mkdir(self._real(path), mode)
            return 0

        def rmdir(self, path: str) -> int:
            os.rmdir(self._real(path))
            return 0

        def unlink(self, path: str) -> int:
            os.unlink(self._real(path))
            return 0

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def flush(self, path: str, fh: int) -> int:
            return 0

        def link(self, target: str, source: str) -> int:
            raise refuse(errno.ENOSYS)

        def symlink(self, target: str, source: str) -> int:
            raise refuse(errno.ENOTSUP)

    class Sequential(Mount):
        """One pass over a new file; nothing else changes anything."""

        def __init__(self) -> None:
            super().__init__()
            self._written: dict[int, int] = {}  # bytes by the descriptor of a file that is being written

        def open(self, path: str, flags: int) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_TRUNC):
                raise refuse(errno.EPERM)
            return os.open(self._real(path), os.O_RDONLY)

        def create(self, path: str, mode: int, fi: object = None) -> int:
            descriptor = os.open(self._real(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            self._written[descriptor] = 0
            return descriptor

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            with self._lock:
                if self._written.get(fh) != offset:
                    raise refuse(errno.EINVAL)
                count = os.pwrite(fh, data, offset)
                self._written[fh] += count
                return count

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            if length or fh is None or self._written.get(fh):
                raise refuse(errno.ENOTSUP)
            return 0

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            self._written.pop(fh, None)  # the object is sent; nothing can be added to it
            return 0

        def release(self, path: str, fh: int) -> int:
            sent = self._written.pop(fh, None)  # before another file gets the number
            os.close(fh)
            if sent is not None:
                seconds = int(time.time())
                os.utime(self._real(path), (seconds, seconds))
            return 0

        def rename(self, old: str, new: str) -> int:
            raise refuse(errno.ENOSYS)

        def chmod(self, path: str, mode: int) -> int:
            raise refuse(errno.ENOTSUP)

        def utimens(self, path: str, times: object = None) -> int:
            raise refuse(errno.ENOTSUP)

    class Copying(Mount):
        """A local copy that is sent when its file is closed."""

        def __init__(self) -> None:
            super().__init__()
            self._changed: set[int] = set()  # descriptors of files that were written

        def open(self, path: str, flags: int) -> int:
            return os.open(self._real(path), flags & ~(os.O_DIRECT | os.O_APPEND))

        def create(self, path: str, mode: int, fi: object = None) -> int:
            descriptor = os.open(self._real(path), os.O_RDWR | os.O_CREAT, 0o644)
            self._changed.add(descriptor)
            return descriptor

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            self._changed.add(fh)
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            os.truncate(self._real(path), length)
            return 0

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            return 0

        def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
            raise refuse(errno.EINVAL)

        def release(self, path: str, fh: int) -> int:
            changed = fh in self._changed
            self._changed.discard(fh)
            os.close(fh)
            if changed and os.path.exists(self._real(path)):
                moment = time.time_ns() + 1_000_000  # when the service had it all
                os.utime(self._real(path), ns=(moment, moment))
            return 0

        def rename(self, old: str, new: str) -> int:
            if os.path.isdir(self._real(old)):
                raise refuse(errno.ENOTSUP)
            shutil.copyfile(self._real(old), self._real(new))
            os.unlink(self._real(old))
            return 0

        def chmod(self, path: str, mode: int) -> int:
            return 0  # kept by nobody

        def utimens(self, path: str, times: tuple[int, int]) -> int:
            os.utime(self._real(path), ns=times)
            return 0

    chosen = {"sequential": Sequential, "copying": Copying}[kind]
    mfusepy.FUSE(chosen(), str(directory), foreground=True, nothreads=False, hard_remove=True)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
