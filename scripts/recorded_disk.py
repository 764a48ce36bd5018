"""A disk that keeps every write and flush, so that its state after a power cut at any moment can be made.

The disk is one file of a FUSE file system; a loop device makes a block device of it, and passes on what the
file system on top asks for: writes, and flushes as fsync. A write that no flush followed may be lost in a
power cut, alone or with others, in any order: a disk with a volatile cache promises no more.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

NAME = "disk"
_RECORD = struct.Struct("<?dQI")


@dataclass(frozen=True, slots=True)
class Event:
    """A write, or (``block`` None) a flush. ``time``: monotonic, seconds."""

    time: float
    offset: int
    block: bytes | None


def read_events(log: Path) -> list[Event]:
    """All that was recorded, in the order in which it was done."""
    events, content, position = [], log.read_bytes(), 0
    while position < len(content):
        is_flush, moment, offset, length = _RECORD.unpack_from(content, position)
        position += _RECORD.size
        block = None if is_flush else content[position : position + length]
        events.append(Event(moment, offset, block))
        position += length
    return events


@contextmanager
def recording(base: Path, log: Path, directory: Path) -> Iterator[Path]:
    """``base`` as a disk below ``directory``, until the block ends; what is done to it goes to ``log``."""
    directory.mkdir()
    server = subprocess.Popen([sys.executable, "-m", "scripts.recorded_disk", base, log, directory])
    disk = directory / NAME
    try:
        while not disk.exists():
            if server.poll() is not None:
                raise RuntimeError(f"the disk ended with {server.returncode}")
            time.sleep(0.02)
        yield disk
    finally:
        # the loop device lets go of its file a moment after it was unmounted
        while subprocess.run(["umount", directory], stderr=subprocess.DEVNULL, check=False).returncode:
            if server.poll() is not None:
                break
            time.sleep(0.05)
        server.wait()


# -- after a power cut -------------------------------------------------------------------------------------


def write_image(target: Path, base: Path, events: Sequence[Event], dice: random.Random | None) -> None:
    """The disk after a power cut that follows ``events``.

    What came before the last flush is there. Of the rest: nothing (``dice`` None), or each write by a throw.
    Writes are not torn: that is a matter between the disk and its file system.
    """
    flushes = [number for number, event in enumerate(events) if event.block is None]
    durable = flushes[-1] if flushes else 0
    with base.open("rb") as source, target.open("wb+") as image:
        _copy_sparse(source, image)
        for number, event in enumerate(events):
            if event.block is None:
                continue
            if number < durable or (dice and dice.random() < 0.5):
                os.pwrite(image.fileno(), event.block, event.offset)


def _copy_sparse(source: BinaryIO, target: BinaryIO) -> None:
    size = os.fstat(source.fileno()).st_size
    os.ftruncate(target.fileno(), size)
    position = 0
    while position < size:
        try:
            start = os.lseek(source.fileno(), position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        position = os.lseek(source.fileno(), start, os.SEEK_HOLE)
        os.pwrite(target.fileno(), os.pread(source.fileno(), position - start, start), start)


# -- the file system ---------------------------------------------------------------------------------------


def serve(base: Path, log: Path, directory: Path) -> None:
    import mfusepy

    class Disk(mfusepy.Operations):  # type: ignore[misc]
        """One file. Its calls come one at a time."""

        use_ns = True

        def __init__(self) -> None:
            self._disk = os.open(base.with_suffix(".live"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            with base.open("rb") as source, os.fdopen(os.dup(self._disk), "wb+") as live:
                _copy_sparse(source, live)
            self._log = log.open("ab", buffering=0)
            self._lock = threading.Lock()

        def _keep(self, offset: int, block: bytes | None) -> None:
            with self._lock:
                head = _RECORD.pack(block is None, time.monotonic(), offset, len(block or b""))
                self._log.write(head + (block or b""))

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:  # noqa: ARG002
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path != f"/{NAME}":
                raise mfusepy.FuseOSError(errno.ENOENT)
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": os.fstat(self._disk).st_size}

        def readdir(self, path: str, fh: int) -> list[str]:  # noqa: ARG002
            return [".", "..", NAME]

        def open(self, path: str, flags: int) -> int:  # noqa: ARG002
            return 0

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:  # noqa: ARG002
            return os.pread(self._disk, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:  # noqa: ARG002
            self._keep(offset, data)
            return os.pwrite(self._disk, data, offset)

        def fsync(self, path: str, datasync: int, fh: int) -> int:  # noqa: ARG002
            self._keep(0, None)
            return 0

        def flush(self, path: str, fh: int) -> int:  # noqa: ARG002
            return 0  # of a descriptor that is closed: says nothing about the medium

    mfusepy.FUSE(Disk(), str(directory), foreground=True, nothreads=True, allow_other=False)


if __name__ == "__main__":
    serve(*map(Path, sys.argv[1:4]))
