"""One writer of a model at a time, also on file systems where ``flock`` does nothing.

``.nimpull/leases/<name>.<generation>``: the highest generation is the lease. It is made with ``link(2)``,
which is atomic on NFS and cluster file systems and fails where the name exists; its holder alone rewrites it,
to renew. Where a file system has no hard links, ``O_EXCL`` stands in: as exclusive, but the file is empty for
an instant, in which another may take the next generation; the first then finds that it has lost. A lease that
was not renewed for its time to live may be taken over: by linking the next generation,
which again only one can. The generation is the fencing token: who finds a higher one than its own has lost
the lease, however long it slept, and must not commit.

Time to live is judged by the wall clock of the reader against the renewal time of the writer: clocks of nodes
that differ by more than the time to live may let two write. Both then verify before they commit, and the
later rename replaces equal content: the cost is a second transfer, not a wrong file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

from nimpull.core.names import STATE_DIRECTORY, display
from nimpull.core.ports import Cancel, Clock
from nimpull.errors import Cancelled, LeaseHeldError, StoreError
from nimpull.store.durable import store_error
from nimpull.store.tree import NO_LINKS, TEMPORARY, Tree

LEASES: Final = f"{STATE_DIRECTORY}/leases"
TIME_TO_LIVE: Final = 90.0  # seconds; three renewals may be missed
POLL: Final = 2.0  # seconds between looks at a lease that another holds
_GENERATION_DIGITS: Final = 10


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


def is_gone(process: str) -> bool:
    """Whether ``process`` ran here and no longer does. False for one that cannot be seen from here."""
    here, mine = process.rpartition(":")[0].rpartition(":")[0], this_process()
    if not here or here != mine.rpartition(":")[0].rpartition(":")[0]:
        return False
    pid, _, start = process.removeprefix(f"{here}:").partition(":")
    return not pid.isdigit() or _start_time(int(pid)) != start


@dataclass(frozen=True, slots=True)
class Holder:
    """What a lease file says. ``owner``: for people (host, pod, pid); ``token``: for the program.

    ``renewed``: seconds since the epoch; ``time_to_live``: seconds. ``process``: see :func:`this_process`.
    """

    owner: str
    token: str
    generation: int
    renewed: float
    time_to_live: float
    released: bool = False
    process: str = ""

    def live(self, now: float) -> bool:
        return not self.released and now < self.renewed + self.time_to_live

    def blocks(self, now: float) -> bool:
        """Live, and not of a process that was killed here: a run after a kill need not wait."""
        return self.live(now) and not is_gone(self.process)


class Lease:
    """A lease that this process made. Thread-safe. Raises StoreError."""

    def __init__(self, tree: Tree, key: str, holder: Holder, clock: Clock) -> None:
        self._tree = tree
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self.holder = holder

    @property
    def generation(self) -> int:
        return self.holder.generation

    def still_mine(self) -> bool:
        """The fencing check before a commit: no later generation exists and the file has this token."""
        current = _current(self._tree, self._key)
        return current is not None and current.token == self.holder.token and not current.released

    def check(self) -> None:
        """LeaseHeldError if another took over meanwhile."""
        if not self.still_mine():
            current = _current(self._tree, self._key)
            taker = f" by {display(current.owner, 200)}" if current else ""
            raise LeaseHeldError(
                f"the lease on {display(self._tree.absolute(LEASES), 300)} was taken over{taker} while this "
                "process stood still",
                hint="Nothing more was committed. Run again: what the other finished is not fetched twice.",
            )

    def fence(self) -> None:
        """``check``, without a look at the volume while the last renewal is too young to be taken over."""
        if self._clock.time() >= self.holder.renewed + self.holder.time_to_live / 2:
            self.check()

    def renew(self) -> None:
        """Put the time forward. LeaseHeldError once another took over."""
        with self._lock:
            self.check()
            self.holder = replace(self.holder, renewed=self._clock.time())
            self._tree.write(_path(self._key, self.generation), _encode(self.holder))

    def release(self) -> None:
        """Let the next one in at once. The file stays: its generation must not be used again."""
        with self._lock:
            if self.still_mine():
                self.holder = replace(self.holder, released=True)
                self._tree.write(_path(self._key, self.generation), _encode(self.holder))

    @contextmanager
    def kept(self, lost: Cancel) -> Iterator[Lease]:
        """Renewed by a thread until the block ends, then released; ``lost`` is set when that fails."""
        done = threading.Event()
        thread = threading.Thread(target=self._renew_until, args=(done, lost), name="lease", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()
            self.release()

    def _renew_until(self, done: threading.Event, lost: Cancel) -> None:
        while not self._clock.wait(self.holder.time_to_live / 3, done):
            try:
                self.renew()
            except LeaseHeldError:
                lost.set()
                return
            except StoreError:
                # the volume may be back before the lease runs out
                if not self.holder.live(self._clock.time()):
                    lost.set()
                    return


def acquire(
    tree: Tree,
    name: str,
    *,
    owner: str,
    clock: Clock,
    cancel: Cancel | None = None,
    patience: float = 0.0,
    time_to_live: float = TIME_TO_LIVE,
) -> Lease:
    """Take the lease on ``name`` (any text), waiting up to ``patience`` seconds for its holder.

    Raises LeaseHeldError naming the holder, Cancelled, StoreError.
    """
    key = hashlib.sha256(name.encode()).hexdigest()[:32]
    until = clock.monotonic() + patience
    while True:
        current = _current(tree, key)
        now = clock.time()
        if current is None or not current.blocks(now):
            generation = current.generation + 1 if current else 1
            holder = Holder(
                owner, secrets.token_hex(16), generation, now, time_to_live, process=this_process()
            )
            if _link(tree, key, holder):
                _remove_below(tree, key, generation)
                tree.sweep(_path(key, generation))
                return Lease(tree, key, holder, clock)
            continue  # another was faster: look again
        if clock.monotonic() >= until:
            raise _held(current, now)
        if clock.wait(POLL, cancel or threading.Event()):
            raise Cancelled("cancelled while waiting for the lease on the store")


def _held(current: Holder, now: float) -> LeaseHeldError:
    return LeaseHeldError(
        f"{display(current.owner, 200)} is writing the same model into this store "
        f"(renewed {max(now - current.renewed, 0):.0f} s ago)",
        hint="Wait until it is done. If it is dead, the lease runs out "
        f"{max(current.renewed + current.time_to_live - now, 0):.0f} s from now.",
    )


def _path(key: str, generation: int) -> str:
    return f"{LEASES}/{key}.{generation:0{_GENERATION_DIGITS}d}"


def _generations(tree: Tree, key: str) -> tuple[int, ...]:
    """Ascending."""
    found = [name.rpartition(".") for name in tree.names(LEASES)]
    return tuple(sorted(int(number) for start, _, number in found if start == key and number.isdecimal()))


def _current(tree: Tree, key: str) -> Holder | None:
    """Who has, or last had, the lease. An unreadable file of the highest generation counts as run out."""
    generations = _generations(tree, key)
    if not generations:
        return None
    generation = generations[-1]
    content = tree.read(_path(key, generation), 1 << 16)
    unknown = Holder("an unreadable lease", "", generation, 0.0, 0.0)
    try:
        value = json.loads(content or b"")
        return Holder(
            owner=str(value["owner"]),
            token=str(value["token"]),
            generation=generation,
            renewed=float(value["renewed"]),
            time_to_live=float(value["timeToLive"]),
            released=value["released"] is True,
            process=str(value.get("process", "")),
        )
    except (ValueError, KeyError, TypeError):
        return unknown


def _encode(holder: Holder) -> bytes:
    return json.dumps(
        {
            "owner": holder.owner,
            "token": holder.token,
            "renewed": holder.renewed,
            "timeToLive": holder.time_to_live,
            "released": holder.released,
            "process": holder.process,
        }
    ).encode()


def _link(tree: Tree, key: str, holder: Holder) -> bool:
    """Make the lease file, whole, in one step. False where that generation exists."""
    temporary = tree.temporary()
    tree.write(temporary, _encode(holder))
    try:
        with tree.directory(TEMPORARY) as source, tree.directory(LEASES, create=True) as target:
            name = os.path.basename(_path(key, holder.generation))
            os.link(
                os.path.basename(temporary), name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False
            )
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in NO_LINKS | {errno.EXDEV}:
            return tree.create(_path(key, holder.generation), _encode(holder))
        raise store_error(error, "link a lease in", tree.absolute(LEASES)) from error
    finally:
        tree.unlink(temporary)


def _remove_below(tree: Tree, key: str, generation: int) -> None:
    for older in _generations(tree, key):
        if older < generation:
            with suppress(FileNotFoundError):
                tree.unlink(_path(key, older))
