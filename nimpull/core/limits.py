"""What a fetch may use, and what it learns about hosts on the way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from nimpull.errors import LimitError

MIB: Final = 1 << 20
#: What is open at a time: for a connection to a large file two sockets, the file twice and its journal, one
#: more in each commit; for a small file two sockets and the file; besides, what the interpreter has, and
#: directories that two commits keep.
_FILES_LARGE: Final = 6
_FILES_SMALL: Final = 3
_OTHER_FILES: Final = 160
#: Open files without which no pull comes to its end: one over a single connection has thirty.
_LEAST_FILES: Final = 48
_LEAST_WINDOW: Final = 16 * MIB
_BUFFERS: Final = 4  # of the pool, for each connection
_WINDOWS: Final = 16  # in a file: what a kill loses, as a share of it


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of one run. Sizes in bytes, times in seconds.

    ``connections``: for large files, at most, over all hosts; ``start``: how many it begins with.
    ``small_connections``: for small ones; the larger of both is the most that is ever open. ``pool``: memory
    that holds what was received and is not hashed yet, in buffers of up to ``block`` each: the most that any
    file runs ahead of its hash. ``chunk``: what one request of several for a file covers, at most.
    ``journal``: how often the journal notes what is hashed. ``small``: files up to this come whole, in
    memory; ``batch_files`` and ``batch_bytes`` of them are committed together. ``retry_budget``: seconds
    without any progress.
    """

    connections: int = 24
    start: int = 4
    small_connections: int = 96
    pool: int = 64 * MIB
    block: int = 4 * MIB
    chunk: int = 8 * MIB
    journal: int = MIB
    small: int = MIB
    retry_budget: float = 600.0
    batch_files: int = 256
    batch_bytes: int = 64 * MIB

    def window(self, size: int) -> int:
        """Bytes that a file of ``size`` may be ahead of its hash: what a kill may lose of it."""
        return min(self.pool, max(_LEAST_WINDOW, size // _WINDOWS))

    def buffer(self, connections: int) -> int:
        """Bytes of one of its pool's buffers, while each of ``connections`` fills one and others are hashed.

        A larger one costs fewer turns at the interpreter's lock.
        """
        share = self.pool // (_BUFFERS * connections) // MIB * MIB
        return min(self.block, max(MIB, share))

    def with_most(self, connections: int) -> FetchLimits:
        """The same with at most ``connections`` at any time, whatever they are for."""
        start = min(self.start, connections)
        return replace(self, connections=connections, start=start, small_connections=connections)

    def within(self, memory: int | None) -> FetchLimits:
        """The same, for a process that may use ``memory`` bytes (None = no limit), page cache included.

        An eighth of it for the pool: interpreter, sockets and the page cache of what is written share the
        rest.
        """
        if memory is None:
            return self
        share = max(8 * MIB, memory // 8)
        connections = max(2, min(self.connections, share // (2 * MIB)))
        return replace(
            self,
            pool=min(self.pool, share),
            connections=connections,
            start=min(self.start, connections),
            small_connections=max(2, min(self.small_connections, share // MIB)),
            batch_bytes=min(self.batch_bytes, share),
        )

    def with_files(self, open_files: int | None) -> FetchLimits:
        """The same, for a process that may have ``open_files`` files and sockets open, None = any number.

        Raises LimitError where these are too few for any pull.
        """
        if open_files is None:
            return self
        if open_files < _LEAST_FILES:
            raise LimitError(
                f"this process may have {open_files} files and sockets open, and needs {_LEAST_FILES}",
                hint="Raise the limit of open files (ulimit -n).",
            )
        spare = open_files - _OTHER_FILES
        connections = max(1, min(self.connections, spare // _FILES_LARGE))
        return replace(
            self,
            connections=connections,
            start=min(self.start, connections),
            small_connections=max(1, min(self.small_connections, spare // _FILES_SMALL)),
        )
