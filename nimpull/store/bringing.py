"""Bringing a finished file onto a volume that takes it only whole: written in order, read back, then named.

An object store behind FUSE makes the object when its file is closed, so there the close is what gives the
name. Where a rename works, it is the last step. Either way nothing else than the bytes that were verified
stands under the final name: what was brought over is read back and compared with what it was made from.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import Final

from nimpull.core.names import STATE_DIRECTORY, display
from nimpull.errors import StoreIOError
from nimpull.store.durable import let_go, set_mode
from nimpull.store.tree import Tree

_BLOCK: Final = 8 << 20  # bytes: what mountpoint-s3 sends as one part
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL
BROUGHT: Final = f"{STATE_DIRECTORY}/brought"


def bring(tree: Tree, source: str, path: str) -> str:
    """``source``, of the scratch directory, as ``path``; returns the directory that changed.

    Raises OSError, and StoreIOError where the volume holds other bytes than it was given.
    """
    above = os.path.dirname(path)
    staged = f"{BROUGHT}/{secrets.token_hex(16)}" if tree.abilities.replacing else path
    with tree.directory(above, create=True), tree.directory(os.path.dirname(staged), create=True):
        pass
    if staged == path:
        with suppress(FileNotFoundError):
            tree.unlink(path)  # no file is written twice there; readers find none until the new one is whole
    file = tree.open(source)
    try:
        try:
            _write(tree, file, staged)
            _compare(tree, file, staged)
        except BaseException:
            with suppress(OSError):
                tree.unlink(staged)
            raise
    finally:
        let_go(file)
    if staged != path:
        tree.rename(staged, path)
    tree.unlink(source)
    return above


def _write(tree: Tree, source: int, path: str) -> None:
    target = tree.open_at(path, _NEW, os.fstat(source).st_mode & 0o777)
    try:
        offset = 0
        while block := os.pread(source, _BLOCK, offset):
            view = memoryview(block)
            while view:  # by write(2): an offset, even the right one, is more than some drivers take
                view = view[os.write(target, view) :]
            offset += len(block)
        set_mode(target, os.fstat(source).st_mode & 0o777)
        os.fsync(target)
    finally:
        os.close(target)  # an object store answers here whether it has the file


def _compare(tree: Tree, source: int, path: str) -> None:
    target = tree.open(path)
    try:
        offset = 0
        while True:
            block = os.pread(source, _BLOCK, offset)
            if _read(target, max(1, len(block)), offset) != block:
                raise StoreIOError(
                    f"{display(tree.absolute(path), 300)} holds other bytes than were written to it",
                    hint="The file system lost a write. Check the volume and its driver, then run again.",
                )
            if not block:
                return
            offset += len(block)
    finally:
        let_go(target)


def _read(file: int, size: int, offset: int) -> bytes:
    """Up to ``size`` bytes: a FUSE driver may answer in pieces."""
    pieces = bytearray()
    while len(pieces) < size and (piece := os.pread(file, size - len(pieces), offset + len(pieces))):
        pieces += piece
    return bytes(pieces)
