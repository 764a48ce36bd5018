"""Who does what next: the queue of large files, those in progress, and how many workers may be busy."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from nimpull.fetch.failures import Stopped
from nimpull.fetch.transfer import Transfer


class Board:
    """Queued files come largest first. A worker without work sleeps until there is some that it may do.

    ``lock`` is the run's one lock; ``allowed`` workers may fetch now, ``most`` may ever.
    """

    def __init__(self, lock: threading.RLock, *, allowed: int, most: int) -> None:
        self.allowed = allowed
        self.stopped = False
        self._lock = lock
        self._idle = threading.Condition(lock)
        self._waiting = 0
        self._most = most
        self._large: deque[Transfer] = deque()
        self._running: list[Transfer] = []
        self._busy = 0

    def queue(self, large: Iterable[Transfer]) -> None:
        with self._lock:
            self._large.extend(sorted(large, key=lambda each: -(each.size or 1 << 62)))
            self.wake()

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            self._idle.notify_all()

    def allow(self, workers: int, *, far: bool = False) -> None:
        """``far``: the network is what is waited for, and the hash of no file holds a worker back."""
        with self._lock:
            self.allowed = workers
            for each in self._running if far else ():
                each.reach_far()
            self.wake()

    def wake(self) -> None:
        """Under the lock: there may be work for others. No more of them wake than may do it."""
        free = min(self._waiting, self.allowed - self._busy)
        if free > 0 and (self._large or any(each.open_to_others() for each in self._running)):
            self._idle.notify(free)

    @property
    def work_for_more(self) -> bool:
        """Whether workers beyond those allowed would find a file to work on."""
        with self._lock:
            return bool(self._large) or any(each.open_to_others() for each in self._running)

    def next(self) -> Transfer | None:
        """A file, entered; None once all are done, or enough others wait for more. Raises Stopped."""
        with self._lock:
            while True:
                if self.stopped:
                    raise Stopped
                found = self._choose()
                if found is not None:
                    return found
                if not (self._large or self._running) or self._waiting + self._busy >= self._most:
                    return None
                self._waiting += 1
                try:
                    self._idle.wait(1.0)
                finally:
                    self._waiting -= 1

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
            self.wake()
            return last

    def again(self, transfer: Transfer) -> None:
        with self._lock:
            self._running.remove(transfer)
            self._large.appendleft(transfer)
            self.wake()

    def done(self, transfer: Transfer) -> None:
        with self._lock:
            self._running.remove(transfer)
            if self._large or self._running:
                self.wake()
            else:
                self._idle.notify_all()
