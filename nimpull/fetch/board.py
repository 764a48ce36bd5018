"""Who does what next: the queue of files, the files in progress, and how many workers may be busy."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from nimpull.fetch.failures import Stopped
from nimpull.fetch.transfer import Transfer

_SMALL_FIRST = 4  # every fourth worker starts with small files, so that they do not all come last


class Board:
    """``lock`` is the run's one lock; large files come largest first, small ones in the run's order."""

    def __init__(
        self, lock: threading.Condition, large: Iterable[Transfer], small: Iterable[int], allowed: int
    ) -> None:
        self.allowed = allowed  # workers that may fetch large files now
        self.stopped = False
        self._lock = lock
        self._large = deque(sorted(large, key=lambda each: -(each.size or 1 << 62)))
        self._small = deque(small)
        self._small_active = 0
        self._running: list[Transfer] = []
        self._busy = 0

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            self._lock.notify_all()

    def allow(self, workers: int) -> None:
        with self._lock:
            self.allowed = workers
            self._lock.notify_all()

    @property
    def work_for_more(self) -> bool:
        """Whether workers beyond those allowed would find a large file to work on."""
        with self._lock:
            return bool(self._large) or any(each.open_to_others() for each in self._running)

    def next(self, worker: int) -> Transfer | int | None:
        """A large file (enter it), the number of a small one, or None once all is done. Raises Stopped."""
        with self._lock:
            while True:
                if self.stopped:
                    raise Stopped
                found = self._choose(worker)
                if found is not None:
                    return found
                if not (self._large or self._small or self._running or self._small_active):
                    self._lock.notify_all()
                    return None
                self._lock.wait(1.0)

    def _choose(self, worker: int) -> Transfer | int | None:
        small_first = worker % _SMALL_FIRST == _SMALL_FIRST - 1
        if self._small and (small_first or worker >= self.allowed or not self._large):
            self._small_active += 1
            return self._small.popleft()
        if self._busy >= self.allowed:
            return None
        if self._large:
            transfer = self._large.popleft()
            self._running.append(transfer)
            # spare workers will join: ask for segments from the start
            transfer.split = not self._large and len(self._running) < self.allowed
            return self._enter(transfer)
        joinable = [each for each in self._running if each.open_to_others()]
        if not joinable:
            return None
        transfer = max(joinable, key=lambda each: (not each.active, each.remaining / (each.active + 1)))
        transfer.split = transfer.split or transfer.active > 0
        return self._enter(transfer)

    def _enter(self, transfer: Transfer) -> Transfer:
        transfer.active += 1
        self._busy += 1
        return transfer

    def leave(self, transfer: Transfer) -> bool:
        """The worker ends its part; True if it was the last one and must settle the file."""
        with self._lock:
            transfer.active -= 1
            self._busy -= 1
            last = not transfer.active and (bool(transfer.restart) or transfer.complete or not transfer.ready)
            transfer.closing = transfer.closing or last
            self._lock.notify_all()
            return last

    def again(self, transfer: Transfer) -> None:
        with self._lock:
            self._running.remove(transfer)
            self._large.appendleft(transfer)
            self._lock.notify_all()

    def done(self, transfer: Transfer) -> None:
        with self._lock:
            self._running.remove(transfer)
            self._lock.notify_all()

    def small_again(self, numbers: Iterable[int]) -> None:
        with self._lock:
            self._small.extend(numbers)
            self._lock.notify_all()

    def small_ended(self) -> bool:
        """One small file is dealt with; True if it was the last for now."""
        with self._lock:
            last = self._small_active == 1 and not self._small
            if not last:
                self._small_active -= 1
            self._lock.notify_all()
            return last

    def small_settled(self) -> None:
        """The last small file's group is committed."""
        with self._lock:
            self._small_active -= 1
            self._lock.notify_all()
