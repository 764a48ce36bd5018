"""What a fetch may use, and what it learns about hosts on the way."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from nimpull.core.ports import Cancel, Clock

MIB = 1 << 20
#: What is open at a time: for a connection to a large file two sockets, the file and its journal, one more in
#: each commit; for a small file two sockets and the file; besides, what the interpreter has, and directories
#: that two commits keep.
_FILES_LARGE, _FILES_SMALL, _OTHER_FILES = 6, 3, 160
_LARGEST_BLOCK = 4 * MIB  # of a buffer: a disk takes few large writes faster, beyond this nothing is gained


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of one run. Sizes in bytes, times in seconds.

    ``connections``: for large files, at most, over all hosts; ``start``: how many it begins with.
    ``small_connections``: for small ones; the larger of both is the most that is ever open. ``buffers``:
    memory that all connections of large files receive into; ``pool``: for bytes that arrived ahead of a
    file's hash. ``chunk``: what one request of several for a file covers, at most. ``journal``: how often the
    journal notes what is hashed. ``small``: files up to this come whole, in memory (at most a MiB, the least
    block); ``batch_files`` and ``batch_bytes`` of them are committed together. ``retry_budget``: without any
    progress.
    """

    connections: int = 16
    start: int = 4
    small_connections: int = 96
    buffers: int = 64 * MIB
    pool: int = 32 * MIB
    chunk: int = 8 * MIB
    journal: int = MIB
    small: int = MIB
    retry_budget: float = 600.0
    batch_files: int = 256
    batch_bytes: int = 64 * MIB

    @property
    def block(self) -> int:
        """Bytes of one buffer: a power of two, 1 to 4 MiB; smaller ones cost twice the CPU."""
        share = min(_LARGEST_BLOCK, self.buffers // self.connections)
        return max(MIB, 1 << share.bit_length() - 1)

    def with_most(self, connections: int) -> FetchLimits:
        """The same with at most ``connections`` at any time, whatever they are for."""
        start = min(self.start, connections)
        return replace(self, connections=connections, start=start, small_connections=connections)

    def within(self, memory: int | None) -> FetchLimits:
        """The same, for a process that may use ``memory`` bytes (None = no limit), page cache included.

        An eighth of it for the connections' blocks, and as much for the pool: interpreter, sockets and the
        page cache of what is written share the rest.
        """
        if memory is None:
            return self
        share = max(8 * MIB, memory // 8)
        connections = max(2, min(self.connections, share // (2 * MIB)))
        return replace(
            self,
            buffers=min(self.buffers, share),
            pool=min(self.pool, share),
            connections=connections,
            start=min(self.start, connections),
            small_connections=max(2, min(self.small_connections, share // MIB)),
            batch_bytes=min(self.batch_bytes, share),
        )

    def with_files(self, open_files: int | None) -> FetchLimits:
        """The same, for a process that may have ``open_files`` files and sockets open, None = any number."""
        if open_files is None:
            return self
        spare = open_files - _OTHER_FILES
        connections = max(1, min(self.connections, spare // _FILES_LARGE))
        return replace(
            self,
            connections=connections,
            start=min(self.start, connections),
            small_connections=max(1, min(self.small_connections, spare // _FILES_SMALL)),
        )


class Hosts:
    """Pauses that hosts asked for, and which hosts ignore ranges. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}
        self._rangeless: set[str] = set()
        self.refusals = 0  # pauses that were asked for

    def pause(self, host: str, seconds: float) -> None:
        with self._lock:
            until = self._clock.monotonic() + seconds
            if self._until.get(host, 0.0) <= self._clock.monotonic():
                self.refusals += 1
            self._until[host] = max(until, self._until.get(host, 0.0))

    def keep(self, host: str, stop: Cancel) -> None:
        """Wait until the host may be asked again, or ``stop``."""
        if host not in self._until:
            return
        while not stop.is_set():
            with self._lock:
                left = self._until.get(host, 0.0) - self._clock.monotonic()
            if left <= 0:
                return
            self._clock.wait(left, stop)

    def ignores_ranges(self, host: str) -> bool:
        with self._lock:
            return host in self._rangeless

    def note_ignored_range(self, host: str) -> None:
        with self._lock:
            self._rangeless.add(host)
