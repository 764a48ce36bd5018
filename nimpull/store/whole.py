"""A small file on its way: written in one call, then waiting for the commit of its group."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from nimpull.core.artifacts import Artifact
from nimpull.core.ranges import Checkpoint
from nimpull.errors import StoreIOError
from nimpull.store.durable import set_mode, write_all
from nimpull.store.tree import FILE_MODE, Tree

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL


@dataclass(slots=True)
class WholeIngest:
    """``path``: below the root of ``tree``; ``size``: bytes that the file system says it has; ``errors``: see
    ``nimpull.store.barrier.Barrier``.

    Implements :class:`nimpull.core.ports.Ingest` as far as a file that is whole has use for it.
    """

    artifact: Artifact
    tree: Tree
    path: str
    size: int
    errors: int
    durable: bool = False

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        return ()

    @property
    def validator(self) -> str:
        return ""

    def begin(self, size: int, validator: str) -> None:
        raise StoreIOError(f"{self.path} is whole already; it cannot begin with {size} bytes {validator}")

    def write(self, block: memoryview, offset: int) -> None:
        raise StoreIOError(f"{self.path} is whole already; {len(block)} bytes at {offset} have no place")

    def read(self, buffer: memoryview, offset: int) -> int:
        with self.tree.storing("read", self.path):
            descriptor = self.tree.open(self.path)
            try:
                return os.preadv(descriptor, [buffer], offset)
            finally:
                os.close(descriptor)

    def record(self, checkpoint: Checkpoint) -> None:
        raise StoreIOError(f"{self.path} is whole already; it keeps no journal for {checkpoint.start}")

    def reset(self) -> None:
        with self.tree.storing("remove", self.path), suppress(FileNotFoundError):
            self.tree.unlink(self.path)

    def close(self) -> None:
        """Nothing is held open."""


def write_whole(tree: Tree, path: str, content: memoryview, *, sync: bool) -> int:
    """Make the read-only file ``path``, durable if ``sync``; returns its size in bytes. Raises StoreError."""
    with tree.storing("write", path):
        try:
            descriptor = tree.open_at(path, _NEW, FILE_MODE)
        except FileExistsError:
            tree.unlink(path)  # left by a run that was killed
            descriptor = tree.open_at(path, _NEW, FILE_MODE)
        try:
            write_all(descriptor, content, 0)
            size = set_mode(descriptor, FILE_MODE)
            if sync:
                os.fsync(descriptor)
            return size
        finally:
            os.close(descriptor)
