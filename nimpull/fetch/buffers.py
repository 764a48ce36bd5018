"""Page-aligned memory for bytes in flight, bounded for the whole run."""

from __future__ import annotations

import mmap

from nimpull.fetch.limits import BLOCK


def new_buffer() -> memoryview:
    """One block, aligned to a page as O_DIRECT needs it."""
    return memoryview(mmap.mmap(-1, BLOCK))


class BufferPool:
    """Blocks that hold what arrived ahead of a hash. The caller holds the run's lock for every call."""

    def __init__(self, size: int) -> None:
        self._unmade = max(1, size // BLOCK)
        self._free: list[memoryview] = []

    def take(self) -> memoryview | None:
        """None = all are in use. The last one given comes first: its pages are still in the CPU's cache."""
        if self._free:
            return self._free.pop()
        if self._unmade:
            self._unmade -= 1
            return new_buffer()
        return None

    def give(self, buffer: memoryview) -> None:
        self._free.append(buffer)
