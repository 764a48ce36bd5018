"""What a fetch may use, and what it learns about hosts on the way."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from nimpull.core.ports import Cancel, Clock

BLOCK = 1 << 20  # bytes of one buffer: smaller ones cost twice the CPU, larger ones gain nothing


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of one run. Sizes in bytes, times in seconds.

    ``connections``: at most, over all hosts; ``start``: how many it begins with. ``pool``: memory for bytes
    that arrived ahead of a file's hash. ``chunk``: what one request of several for a file covers, at most.
    ``journal``: how often the journal notes what is hashed. ``small``: files up to this come whole, in memory
    (at most one block). ``retry_budget``: without any progress.
    """

    connections: int = 16
    start: int = 4
    pool: int = 32 << 20
    chunk: int = 8 << 20
    journal: int = 4 << 20
    small: int = BLOCK
    retry_budget: float = 600.0
    batch_files: int = 128
    batch_bytes: int = 64 << 20

    def within(self, memory: int | None) -> FetchLimits:
        """The same, for a process that may use ``memory`` bytes (None = no limit), page cache included.

        An eighth of it for the pool: interpreter, connections' blocks, sockets and the page cache of what is
        written share the rest. Never under two blocks a connection, or the pool would stop its own streams.
        """
        if memory is None:
            return self
        share = max(8 * BLOCK, memory // 8)
        connections = max(2, min(self.connections, share // (2 * BLOCK)))
        return replace(
            self,
            pool=min(self.pool, share),
            connections=connections,
            start=min(self.start, connections),
            batch_bytes=min(self.batch_bytes, share),
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
