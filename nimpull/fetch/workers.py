"""Threads for what blocks: looking a location up, writing, hashing, committing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Final, TypeVar

T = TypeVar("T")
Failed = Callable[[BaseException], None]
_QUICK: Final = 0.0005  # seconds a file; a mount across the network takes tens of times as many


class Answers:
    """What workers have to say, told one after the other on the thread that calls ``deliver``."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """``wake``: the delivering thread, if it waits; from any thread."""
        self._wake = wake
        self._waiting: deque[Callable[[], None]] = deque()
        self._rung = False

    def tell(self, call: Callable[[], None]) -> None:
        """From any thread."""
        self._waiting.append(call)
        if not self._rung:
            self._rung = True
            self._wake()

    def deliver(self) -> None:
        self._rung = False  # before the look: who appends after it wakes again
        while self._waiting:
            self._waiting.popleft()()


class Workers:
    """Up to ``most`` threads, started as they are needed; none where the system allows no more: then a job
    is done at once, by whoever asks for it. ``pending``: jobs that were not delivered yet."""

    def __init__(self, name: str, most: int, answers: Answers) -> None:
        self.pending = 0
        self._name = name
        self._most = most
        self._answers = answers
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._idle = 0

    def ask(
        self, job: Callable[[], T], done: Callable[[T], None], failed: Failed, *, at_once: bool = False
    ) -> None:
        """Of ``done`` and ``failed`` one is called, when it is delivered. ``at_once``: by the caller."""
        self.pending += 1
        if not at_once and self._jobs.qsize() >= self._idle and len(self._threads) < self._most:
            self._start()
        work = partial(self._do, job, done, failed)
        if self._threads and not at_once:
            self._jobs.put(work)
        else:
            work()

    def _start(self) -> None:
        thread = Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # pids.max, or no memory for its stack: those that run must do
            self._most = len(self._threads)
            return
        self._threads.append(thread)

    def _work(self) -> None:
        while True:
            self._idle += 1
            job = self._jobs.get()
            self._idle -= 1
            if job is None:
                return
            job()

    def _do(self, job: Callable[[], T], done: Callable[[T], None], failed: Failed) -> None:
        try:
            answer = job()
        except BaseException as error:  # noqa: BLE001 - who asked hears of it
            self._answers.tell(partial(self._delivered, partial(failed, error)))
        else:
            self._answers.tell(partial(self._delivered, partial(done, answer)))

    def _delivered(self, call: Callable[[], None]) -> None:
        self.pending -= 1
        call()

    def end(self) -> None:
        """Let the threads go once they have done what was asked for; nothing more is."""
        for _ in self._threads:
            self._jobs.put(None)

    def join(self) -> None:
        """The same, and wait for it; what is asked for later is done at once, by whoever asks."""
        self.end()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._most = 0


class FileJobs:
    """Jobs of one kind that work on small files: by a worker, until they show that the volume is quick.

    Each system call of a second thread costs both of them a turn at the interpreter's lock. Where a file
    takes less than that, whoever asks does the job at once.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._quick = False

    def ask(self, job: Callable[[], T], files: int, done: Callable[[T], None], failed: Failed) -> None:
        def timed() -> T:
            began = time.monotonic()
            answer = job()
            self._quick = time.monotonic() - began < _QUICK * files
            return answer

        self._workers.ask(timed, done, failed, at_once=self._quick)
