"""Who does what next: the queue of large files, those in progress, and how many workers may be busy."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from nimpull.fetch.failures import Stopped
from nimpull.fetch.transfer import Transfer


class Board:
    """``lock`` is the run's one lock; files come largest first."""

    def __init__(self, lock: threading.Condition, large: Iterable[Transfer], allowed: int) -> None:
        self.allowed = allowed  # workers that may fetch now
        self.stopped = False
        self._lock = lock
        self._large = deque(sorted(large, key=lambda each: -(each.size or 1 << 62)))
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
        """Whether workers beyond those allowed would find a file to work on."""
        with self._lock:
            return bool(self._large) or any(each.open_to_others() for each in self._running)

    def next(self) -> Transfer | None:
        """A file, entered; None once all are done. Raises Stopped."""
        with self._lock:
            while True:
                if self.stopped:
                    raise Stopped
                found = self._choose()
                if found is not None:
                    return found
                if not (self._large or self._running):
                    self._lock.notify_all()
                    return None
                self._lock.wait(1.0)

    def _choose(self) -> Transfer | None:
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
