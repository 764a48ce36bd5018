"""Page-aligned memory for bytes in flight, bounded for the whole run."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Final

_HUGE: Final = 2 << 20  # bytes
_PAGE: Final = 4096


def new_buffer(size: int) -> memoryview:
    """Aligned to a page as O_DIRECT needs it; takes memory as far as it is used, in huge pages where it can.

    An O_DIRECT write pins each page of its memory; of huge ones there are few.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE:  # smaller ones would share such a page, and clear it for a few KiB
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


class Buffer:
    """Bytes [start, end) of a file; ``stop``: where the next buffer begins."""

    __slots__ = ("end", "memory", "start", "stop")

    def __init__(self, size: int) -> None:
        self.memory = new_buffer(size)
        self.start = self.end = self.stop = 0

    def put(self, octets: bytes | memoryview) -> None:
        position = self.end - self.start
        self.memory[position : position + len(octets)] = octets
        self.end += len(octets)

    @property
    def filled(self) -> memoryview:
        return self.memory[: self.end - self.start]


class BufferPool:
    """``size`` bytes of memory; ``block``: what the next buffer holds.

    The last one given back comes first: the CPU's cache has its pages.
    """

    def __init__(self, size: int, block: int) -> None:
        self.block = block
        self._left = max(size, 2 * block)
        self._made: list[Buffer] = []

    @property
    def free(self) -> int:
        """How many buffers can be taken."""
        return self._left // self.block

    def resize(self, block: int) -> None:
        """What is taken from now on holds ``block`` bytes."""
        if block != self.block:
            self.block = block
            self._made.clear()

    def take(self, start: int) -> Buffer:
        """For bytes from ``start`` on. One must be free."""
        self._left -= self.block
        buffer = self._made.pop() if self._made else Buffer(self.block)
        buffer.start = buffer.end = start
        buffer.stop = (start + self.block) // _PAGE * _PAGE  # the next one is aligned, as O_DIRECT needs it
        return buffer

    def give(self, buffer: Buffer) -> None:
        self._left += len(buffer.memory)
        if len(buffer.memory) == self.block:
            self._made.append(buffer)
