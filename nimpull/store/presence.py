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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from nimpull.core.abilities import WriteMode
from nimpull.core.names import STATE_DIRECTORY, display
from nimpull.core.ports import Clock
from nimpull.errors import StoreError
from nimpull.store.durable import write_all
from nimpull.store.tree import PROBE, TEMPORARY, Tree

RUNS: Final = f"{STATE_DIRECTORY}/runs"
RENEWAL: Final = 4.0  # seconds between two renewals
EXPIRY: Final = 20.0  # seconds without one: four were missed. With the looks of those who wait, below 30
_FRESH: Final = 1.0  # seconds for which a reading of the volume's clock is carried on by the own one
_KEPT: Final = 86400.0  # seconds that the file of a run stays which never came to its end
_STALE: Final = 3600.0  # seconds that a temporary stays: a live process keeps one for milliseconds
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
        # by the own clock; before the second no age is believed
        self._read_at = self._trusting_from = -math.inf

    def __enter__(self) -> Self:
        with self._tree.storing("begin a run in", ""):
            self.renew()
        try:
            thread = threading.Thread(target=self._keep_renewing, name="nimpull-presence", daemon=True)
            thread.start()
        except RuntimeError:  # no thread is left (pids.max)
            self._tree.drop(self.path)
            raise
        self._thread = thread
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._done.set()
        if self._thread:
            self._thread.join()
        self._tree.drop(self.path)

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
        if tree.abilities.mode is WriteMode.SEQUENTIAL:
            tree.remove(self.path)  # no file is written twice there
        with tree.writing(self.path, os.O_WRONLY | os.O_CREAT) as file:
            write_all(file, self.content, 0)
        # on NFS its end sent what was written, and opening asks the server again
        with tree.reading(self.path) as file:
            return os.fstat(file).st_mtime

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

    def run_at(self, path: str) -> Run | None:
        """Who wrote the file ``path`` or linked his own there; None = there is none.

        Whatever else stands in it is a run without a name. A live one would have written its own again by its
        next renewal. Opened, not only looked at: NFS answers stat(2) from a cache, open(2) from the server.
        """
        try:
            with self._tree.reading(path) as file:
                content, modified = os.pread(file, _LIMIT, 0), os.fstat(file).st_mtime
        except FileNotFoundError:
            return None
        token, owner, process = _facts(content)
        if not _TOKEN.fullmatch(token):
            age = self.now() - modified
            return Run("", "an unreadable claim", age, ended=abs(age) > 2 * RENEWAL)
        now = self.now()
        seen = self._modified(f"{RUNS}/{token}")
        ended = seen is None or is_gone(process)
        return Run(token, display(owner, 200), now - (seen or modified), ended)

    def _modified(self, path: str) -> float | None:
        with suppress(FileNotFoundError), self._tree.reading(path) as file:
            return os.fstat(file).st_mtime
        return None

    def others(self) -> tuple[Run, ...]:
        """Runs that may be writing now. Raises StoreError."""
        names = (name for name in self._tree.names(RUNS) if name != self.token)
        runs = (self.run_at(f"{RUNS}/{name}") for name in names)
        return tuple(run for run in runs if run and run.token and not run.expired)

    def has_ended(self, token: str) -> bool:
        """Whether the run with this token surely writes no more."""
        run = self.run_at(f"{RUNS}/{token}") if _TOKEN.fullmatch(token) else None
        return run is None or run.ended

    def sweep(self) -> None:
        """Drop what runs left that were killed long ago: their files, and temporaries of any.

        By the volume's own clock, since that of another node may be wrong.
        """
        for above, begins, kept in (("", PROBE, _STALE), (TEMPORARY, "", _STALE), (RUNS, "", _KEPT)):
            for name in self._tree.names(above):
                path = f"{above}/{name}" if above else name
                status = self._tree.lstat(path) if name.startswith(begins) else None
                if status and self.now() - status.st_mtime > kept:
                    self._tree.remove(path)


@dataclass(frozen=True, slots=True)
class Running:
    """A run as one sees it who does not write, and so cannot ask the volume for its time.

    ``modified``: of its file, by the volume's clock.
    """

    token: str
    owner: str
    modified: float


def announced(tree: Tree) -> tuple[Running, ...]:
    """The runs that have not said that they ended, but for those of this host that are gone. StoreError."""
    found = []
    for name in tree.names(RUNS):
        status = tree.lstat(f"{RUNS}/{name}")
        _, owner, process = _facts(tree.read(f"{RUNS}/{name}", _LIMIT) or b"")
        if status and owner and not is_gone(process):
            found.append(Running(name, display(owner, 200), status.st_mtime))
    return tuple(found)


class Watcher:
    """Tells from look to look which runs live: their files are renewed while its own clock moves on."""

    def __init__(self, tree: Tree, monotonic: Callable[[], float]) -> None:
        self._tree = tree
        self._monotonic = monotonic
        self._seen: dict[str, tuple[float, float]] = {}  # its time, and when that was first seen

    def living(self) -> tuple[Running, ...]:
        """At the first look all that are announced: whether they move shows later. Raises StoreError."""
        return tuple(run for run in announced(self._tree) if self._moves(run.token, run.modified))

    def moves(self, path: str) -> bool:
        """Whether a file that a run rewrites is there, and was rewritten lately. Raises StoreError."""
        status = self._tree.lstat(path)
        return status is not None and self._moves(path, status.st_mtime)

    def _moves(self, name: str, modified: float) -> bool:
        now = self._monotonic()
        if self._seen.get(name, (None,))[0] != modified:
            self._seen[name] = modified, now
        return now - self._seen[name][1] < EXPIRY


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


def _facts(content: bytes) -> tuple[str, str, str]:
    """Token, owner and process that the file of a run speaks of; none where it is no such file."""
    try:
        value = json.loads(content)
        return str(value["token"]), str(value["owner"]), str(value["process"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", "", ""


def process_of(content: bytes) -> str:
    """What the file of a run says that :func:`is_gone` can tell from; "" for what is no such file."""
    return _facts(content)[2]


def is_gone(process: str) -> bool:
    """Whether ``process`` ran here and no longer does. False for one that cannot be seen from here."""
    here, mine = process.rpartition(":")[0].rpartition(":")[0], this_process()
    if not here or here != mine.rpartition(":")[0].rpartition(":")[0]:
        return False
    pid, _, start = process.removeprefix(f"{here}:").partition(":")
    return not (pid.isdecimal() and len(pid) < 20) or _start_time(int(pid)) != start
