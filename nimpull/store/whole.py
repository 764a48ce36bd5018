"""A small file on its way: written in one call, then waiting for the commit of its group."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nimpull.core.artifacts import Artifact
from nimpull.core.ports import Claim
from nimpull.errors import StoreIOError
from nimpull.store.durable import storing, tolerate_missing, write_all

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
COMMITTED: Final = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH


@dataclass(slots=True)
class WholeIngest:
    """``size``: bytes that the file system says it has; ``errors``: see ``nimpull.store.barrier.Barrier``.

    Implements :class:`nimpull.core.ports.Ingest` as far as a file that is whole has use for it.
    """

    artifact: Artifact
    path: str
    size: int
    errors: int

    @property
    def claims(self) -> Sequence[Claim]:
        return ()

    @property
    def validator(self) -> str:
        return ""

    def begin(self, size: int, validator: str) -> None:
        raise StoreIOError(f"{self.path} is whole already; it cannot begin with {size} bytes {validator}")

    def write(self, block: memoryview, offset: int) -> None:
        raise StoreIOError(f"{self.path} is whole already; {len(block)} bytes at {offset} have no place")

    def read(self, buffer: memoryview, offset: int) -> int:
        with storing("read", self.path), open(self.path, "rb") as file:
            file.seek(offset)
            return file.readinto(buffer)

    def record(self, claim: Claim) -> None:
        raise StoreIOError(f"{self.path} is whole already; it keeps no journal for {claim.start}")

    def reset(self) -> None:
        with storing("remove", self.path):
            tolerate_missing(os.unlink, self.path)

    def close(self) -> None:
        """Nothing is held open."""


def write_whole(path: str, content: memoryview, *, sync: bool) -> int:
    """Make the read-only file ``path``, durable if ``sync``; returns its size in bytes. Raises StoreError."""
    with storing("write", path):
        try:
            descriptor = os.open(path, _CREATE, COMMITTED)
        except FileExistsError:
            os.unlink(path)  # left by a run that was killed
            descriptor = os.open(path, _CREATE, COMMITTED)
        try:
            write_all(descriptor, content, 0)
            status = os.fstat(descriptor)
            if stat.S_IMODE(status.st_mode) != COMMITTED:  # the umask took from it
                os.fchmod(descriptor, COMMITTED)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return status.st_size
