"""Page-aligned memory for bytes in flight, bounded for the whole run."""

from __future__ import annotations

import mmap
from contextlib import suppress

_HUGE = 2 << 20  # bytes


def new_buffer(size: int) -> memoryview:
    """Aligned to a page as O_DIRECT needs it; takes memory as far as it is used, in huge pages where it can.

    An O_DIRECT write pins each page of its memory; of huge ones there are few.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE:  # smaller ones would share such a page, and clear it for a few KiB
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


class BufferPool:
    """Blocks that hold what arrived ahead of a hash. The caller holds the run's lock for every call."""

    def __init__(self, size: int, block: int) -> None:
        self._block = block
        self._unmade = max(1, size // block)
        self._free: list[memoryview] = []

    def take(self) -> memoryview | None:
        """None = all are in use. The last one given comes first: its pages are still in the CPU's cache."""
        if self._free:
            return self._free.pop()
        if self._unmade:
            self._unmade -= 1
            return new_buffer(self._block)
        return None

    def give(self, buffer: memoryview) -> None:
        self._free.append(buffer)
