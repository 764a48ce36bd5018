"""Small files become visible in groups: one round of fsyncs for many."""

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

    def add(self, staged: Staged) -> None:
        with self._lock:
            self._waiting.append(staged)
            size = sum(each.verified.size for each in self._waiting)
            full = len(self._waiting) >= self._limits.batch_files or size >= self._limits.batch_bytes
        if full:
            self.flush()

    def flush(self) -> None:
        """Commit what waits. Raises StoreError."""
        with self._lock:
            batch, self._waiting = self._waiting, []
        if not batch:
            return
        try:
            self._ingests.commit([each.verified for each in batch])
        except StoreIOError as error:
            self._lost([each.number for each in batch], error)
            return
        for each in batch:
            self._committed(each)
