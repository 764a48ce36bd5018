"""Which runs write into a store now, told by the volume's own clock.

``.nimpull/runs/<token>``: one small file of each run, rewritten every few seconds. Its modification time
is what the volume's server says. It is compared with the time of a file that was written in this very
moment, never with the clock of a node, which may be days wrong. Runs of one host see each other's
processes, too.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from nimpull.core.abilities import WriteMode
from nimpull.core.names import STATE_DIRECTORY, display
from nimpull.core.ports import Clock
from nimpull.errors import StoreError
from nimpull.store.durable import let_go, write_all
from nimpull.store.tree import Tree

RUNS: Final = f"{STATE_DIRECTORY}/runs"
RENEWAL: Final = 4.0  # seconds between two renewals
EXPIRY: Final = 20.0  # seconds without one: four were missed. With the looks of those who wait, below 30
_FRESH: Final = 1.0  # seconds for which a reading of the volume's clock is carried on by the own one
_KEPT: Final = 86400.0  # seconds that the file of a run stays which never came to its end
_TOKEN: Final = re.compile(r"[0-9a-f]{32}")
_LIMIT: Final = 4096  # bytes of a file here


@dataclass(frozen=True, slots=True)
class Run:
    """A run, as others see it. ``owner``: for people (pod, pid).

    ``age``: seconds since it was seen to write, by the volume's clock; ``ended``: in order, or killed on this
    host: it writes no more. A run that is neither may be asleep, and wake.
    """

    token: str
    owner: str
    age: float
    ended: bool = False

    @property
    def expired(self) -> bool:
        """Also one whose file is of the future: its node has set the time, which tells nothing."""
        return self.ended or not -EXPIRY < self.age < EXPIRY


class Presence:
    """This run's file, renewed by a thread while the block lasts. Thread-safe. Raises OSError, StoreError.

    ``owner``: see :class:`Run`; ``content``: what stands in the file, and in whatever is linked to it.
    """

    def __init__(self, tree: Tree, *, owner: str, clock: Clock) -> None:
        self.token = secrets.token_hex(16)
        self.path = f"{RUNS}/{self.token}"
        self.content = json.dumps({"token": self.token, "owner": owner, "process": this_process()}).encode()
        self._tree = tree
        self._clock = clock
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._volume_time = 0.0
        self._read_at = (
            self._trusting_from
        ) = -math.inf  # by the own clock; before the second no age is believed

    def __enter__(self) -> Self:
        with self._tree.storing("begin a run in", ""):
            self.renew()
        try:
            thread = threading.Thread(target=self._keep_renewing, name="nimpull-presence", daemon=True)
            thread.start()
        except RuntimeError:  # no thread is left (pids.max)
            self._drop()
            raise
        self._thread = thread
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._done.set()
        if self._thread:
            self._thread.join()
        self._drop()

    def _drop(self) -> None:
        """What failed before says more than a file that stays: others find out that it is of no live run."""
        with suppress(OSError, StoreError):
            self._tree.unlink(self.path)

    def _keep_renewing(self) -> None:
        while not self._done.wait(RENEWAL):
            with suppress(OSError, StoreError):  # the volume may be back before others take over
                self.renew()

    def renew(self) -> None:
        """OSError, StoreError."""
        with self._lock:
            if self._done.is_set():
                return  # its file is gone, and stays so
            last, now = self._read_at, self._clock.monotonic()
            self._volume_time, self._read_at = self._touch(), self._clock.monotonic()
            if EXPIRY / 2 < now - last < math.inf:
                # This process or the volume stood still, and so perhaps did the others: let them write first.
                self._trusting_from = self._read_at + 2 * RENEWAL

    def _touch(self) -> float:
        """Write, and return the time that the volume gives it: utime(2) would be given the node's on some."""
        tree = self._tree
        try:
            if tree.abilities.mode is WriteMode.SEQUENTIAL:
                tree.unlink(self.path)  # no file is written twice there
            file = tree.open_at(self.path, os.O_WRONLY)
        except FileNotFoundError:  # the first time, or a cleaner took it away
            with tree.directory(RUNS, create=True):
                file = tree.open_at(self.path, os.O_WRONLY | os.O_CREAT)
        try:
            write_all(file, self.content, 0)
        finally:
            os.close(file)  # on NFS this sends what was written, and opening asks the server again
        file = tree.open(self.path)
        try:
            return os.fstat(file).st_mtime
        finally:
            let_go(file)

    def now(self) -> float:
        """The volume's clock."""
        with self._lock:
            since = self._clock.monotonic() - self._read_at
            if since < _FRESH:
                return self._volume_time + since
        with self._tree.storing("go on with a run in", ""):
            self.renew()
        return self._volume_time

    def trusts_ages(self) -> bool:
        return self._clock.monotonic() >= self._trusting_from

    def run_of(self, content: bytes, modified: float) -> Run:
        """Who wrote ``content`` into a file here or linked his own; ``modified``: that file's own time.

        Whatever else stands in it is a run without a name. A live one would have written its own again by its
        next renewal.
        """
        try:
            value = json.loads(content)
            token, owner, process = str(value["token"]), str(value["owner"]), str(value["process"])
        except (ValueError, KeyError, TypeError, RecursionError):
            token = ""
        if not _TOKEN.fullmatch(token):
            age = self.now() - modified
            return Run("", "an unreadable claim", age, ended=abs(age) > 2 * RENEWAL)
        shown = display(owner, 200)
        now = self.now()
        seen = self._modified(f"{RUNS}/{token}")
        if seen is None or is_gone(process):
            return Run(token, shown, now - (seen or modified), ended=True)
        return Run(token, shown, now - seen)

    def others(self) -> tuple[Run, ...]:
        """Runs that may be writing now. Raises StoreError."""
        found = []
        for name in self._tree.names(RUNS):
            content = self._tree.read(f"{RUNS}/{name}", _LIMIT)
            if name != self.token and content is not None and not (run := self.run_of(content, 0.0)).expired:
                found.append(run)
        return tuple(found)

    def has_ended(self, token: str) -> bool:
        """Whether the run with this token surely writes no more."""
        if not _TOKEN.fullmatch(token):
            return True
        content = self._tree.read(f"{RUNS}/{token}", _LIMIT)
        return content is None or self.run_of(content, 0.0).ended

    def _modified(self, path: str) -> float | None:
        """Opened, not only looked at: NFS answers stat(2) from a cache, open(2) from the server."""
        try:
            file = self._tree.open(path)
        except FileNotFoundError:
            return None
        try:
            return os.fstat(file).st_mtime
        finally:
            let_go(file)

    def sweep(self) -> None:
        """Drop the files of runs that were killed long ago, and temporaries that any left."""
        self._tree.sweep(self.path)
        for name in self._tree.names(RUNS):
            modified = self._modified(f"{RUNS}/{name}")
            if modified is not None and self.now() - modified > _KEPT:
                with suppress(FileNotFoundError):
                    self._tree.unlink(f"{RUNS}/{name}")


def this_process() -> str:
    """``<boot id>:<pid namespace>:<pid>:<start time>``: names this process among all there ever were.

    Processes that share boot and namespace can see whether the other still runs (proc(5): ``ns/pid``, field
    22 of ``stat``). "" where /proc does not say.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
            name = f"{boot.read().strip()}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""
    pid = os.getpid()
    return f"{name}:{pid}:{_start_time(pid)}"


def _start_time(pid: int) -> str:
    """In clock ticks since boot; "" for a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # a zombie writes no more


def process_of(content: bytes) -> str:
    """What the file of a run says that :func:`is_gone` can tell from; "" for what is no such file."""
    try:
        return str(json.loads(content)["process"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def is_gone(process: str) -> bool:
    """Whether ``process`` ran here and no longer does. False for one that cannot be seen from here."""
    here, mine = process.rpartition(":")[0].rpartition(":")[0], this_process()
    if not here or here != mine.rpartition(":")[0].rpartition(":")[0]:
        return False
    pid, _, start = process.removeprefix(f"{here}:").partition(":")
    return not (pid.isdecimal() and len(pid) < 20) or _start_time(int(pid)) != start
