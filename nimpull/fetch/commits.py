"""Small files become visible in groups: many are made durable at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nimpull.core.artifacts import Outcome
from nimpull.core.ports import Ingests, Verified
from nimpull.errors import StoreIOError
from nimpull.fetch.limits import FetchLimits


@dataclass(frozen=True, slots=True)
class Staged:
    """A verified file and what to say once it is committed; ``number``: its place in the run's order."""

    number: int
    verified: Verified
    outcome: Outcome


class GroupCommit:
    """Collects staged files and commits them together. Thread-safe.

    ``committed`` is told each file; ``lost`` the numbers of a group whose commit met an I/O error: those
    files must be fetched again.
    """

    def __init__(
        self,
        ingests: Ingests,
        limits: FetchLimits,
        committed: Callable[[Staged], None],
        lost: Callable[[Sequence[int], StoreIOError], None],
    ) -> None:
        self._ingests = ingests
        self._limits = limits
        self._committed = committed
        self._lost = lost
        self._lock = threading.Lock()
        self._waiting: list[Staged] = []
        self._size = 0  # bytes of those that wait

    def add(self, staged: Staged) -> None:
        """Commits the group if ``staged`` fills it; others may add to the next one meanwhile."""
        batch = None
        with self._lock:
            self._waiting.append(staged)
            self._size += staged.verified.size
            if len(self._waiting) >= self._limits.batch_files or self._size >= self._limits.batch_bytes:
                batch = self._take()
        if batch:
            self._commit(batch)

    def flush(self) -> None:
        """Commit what waits. Raises StoreError."""
        with self._lock:
            batch = self._take()
        if batch:
            self._commit(batch)

    def _take(self) -> list[Staged]:
        batch, self._waiting, self._size = self._waiting, [], 0
        return batch

    def _commit(self, batch: list[Staged]) -> None:
        try:
            self._ingests.commit([each.verified for each in batch])
        except StoreIOError as error:
            self._lost([each.number for each in batch], error)
            return
        for each in batch:
            self._committed(each)
