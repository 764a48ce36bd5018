"""Claims on units of work: pods that share a volume do not fetch the same file twice.

``.nimpull/claims/<unit>.<generation>``: the highest generation of a unit is its claim, a hard link to the
file of the run that has it (:mod:`nimpull.store.presence`): renewing that file renews all claims of a run.
link(2) is atomic on NFS and cluster file systems and fails where the name exists; where there are no hard
links, a file made with ``O_EXCL`` and the same content stands in. A server may repeat a call and answer
EEXIST though it worked: what stands there afterwards decides, not the answer.

A claim whose run ended or expired is taken over by linking the next generation, which only one can. The
generation is the fencing token: a run that slept asks before it commits whether its own is still the highest.
Correctness does not rest on that: a commit is a rename of verified content, and a claim that is lost
unseen costs a file that is fetched twice.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Self

from nimpull.core.names import STATE_DIRECTORY
from nimpull.core.ports import Clock
from nimpull.errors import Cancelled, StoreError
from nimpull.store.durable import write_all
from nimpull.store.presence import Presence, Run
from nimpull.store.tree import Tree

CLAIMS: Final = f"{STATE_DIRECTORY}/claims"
_NAME: Final = re.compile(r"([0-9a-f]{32})\.([0-9]{1,9})")
_TRIES: Final = 8  # against others that claim the same in this very moment; they have it then


class Claims:
    """Those of this run, renewed while the block lasts, dropped at its end. Thread-safe. Raises StoreError.

    ``owner``: for people, see :class:`nimpull.store.presence.Run`.
    """

    def __init__(self, tree: Tree, *, owner: str, clock: Clock) -> None:
        self.owner = owner
        self.presence = Presence(tree, owner=owner, clock=clock)
        self.tree = tree
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}  # generation by unit
        self._closed = False

    def __enter__(self) -> Self:
        self.presence.__enter__()
        with suppress(OSError, StoreError):  # what others left is no reason to stop
            self.presence.sweep()
            self._sweep()
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._closed = True  # a thread may still be about to take one
        with suppress(OSError, StoreError), self.tree.holding():
            # up to the first that fails: each call to a server that is away takes its time, and claims expire
            for unit in tuple(self._held):
                with suppress(FileNotFoundError):
                    self.tree.unlink(_path(unit, self._held.pop(unit)))
            self._sweep()
        self.presence.__exit__(*error)

    def take(self, unit: str) -> Run | None:
        """None: it is this run's now. Else the run that has it. Cancelled once the block has ended."""
        with self._lock, self.tree.storing("claim work in", ""), self.tree.holding():
            if self._closed:
                raise Cancelled("the run has ended")
            other: Run | None = None
            for _ in range(_TRIES):
                standing = _generations(unit, self.tree.names(CLAIMS))
                if standing:
                    other = self._run_of(unit, standing[-1])
                    if other is None:
                        continue  # dropped meanwhile
                    if other.token == self.presence.token:
                        self._held[unit] = standing[-1]
                        return None
                    if not self._is_over(other):
                        return other
                if self._make(unit, standing[-1] + 1 if standing else 1):
                    return None
            return other or Run("", "another run", 0.0)

    def lost(self, units: Iterable[str]) -> frozenset[str]:
        """Those that are not, or no longer, this run's: to be asked before a commit."""
        with self._lock, self.tree.storing("look at claims in", ""), self.tree.holding():
            names = self.tree.names(CLAIMS)
            lost = frozenset(unit for unit in units if not self._is_mine(unit, names))
            for unit in lost:
                self._held.pop(unit, None)
            return lost

    def _is_mine(self, unit: str, names: Iterable[str]) -> bool:
        generation = self._held.get(unit)
        if generation is None or _generations(unit, names)[-1:] != (generation,):
            return False
        run = self._run_of(unit, generation)
        return run is not None and run.token == self.presence.token

    def drop(self, unit: str) -> None:
        """Let others have it at once. What cannot be removed expires."""
        with self._lock:
            generation = self._held.pop(unit, None)
            if generation is not None:
                self.tree.drop(_path(unit, generation))

    def _sweep(self) -> None:
        """Claims of runs that died between the last file of a unit and dropping it: nobody asks for these."""
        for name in self.tree.names(CLAIMS):
            found = _NAME.fullmatch(name)
            if found and self._is_over(self._run_of(found[1], int(found[2]))):
                self.tree.drop(_path(found[1], int(found[2])))

    def standing(self) -> frozenset[str]:
        """The units that anybody has claimed, by one look; some of these claims may be over."""
        found = (_NAME.fullmatch(name) for name in self.tree.names(CLAIMS))
        return frozenset(each[1] for each in found if each)

    def _run_of(self, unit: str, generation: int) -> Run | None:
        return self.presence.run_at(_path(unit, generation))

    def _is_over(self, run: Run | None) -> bool:
        return run is None or run.ended or (run.expired and self.presence.trusts_ages())

    def _make(self, unit: str, generation: int) -> bool:
        """All below ``generation`` were judged to be over."""
        path = _path(unit, generation)
        try:
            self.tree.hard_link(self.presence.path, path)
        except FileExistsError:
            pass
        except FileNotFoundError:  # a cleaner took this run's file away
            self.presence.renew()
        except OSError:  # no hard links here, in whatever words the file system says so
            with suppress(FileExistsError), self.tree.writing(path) as file:
                write_all(file, self.presence.content, 0)
        run = self._run_of(unit, generation)
        if run is None or run.token != self.presence.token:
            return False
        now = _generations(unit, self.tree.names(CLAIMS))
        if now[-1:] != (generation,) or not all(self._is_over(self._run_of(unit, each)) for each in now[:-1]):
            # Others came between the look and the link, took over and gave back: number 1 is a claim again.
            # Both withdraw, rather than both having it.
            self.tree.drop(_path(unit, generation))
            return False
        self._held[unit] = generation
        for older in now[:-1]:
            self.tree.drop(_path(unit, older))
        return True


def _generations(unit: str, names: Iterable[str]) -> tuple[int, ...]:
    """Ascending."""
    found = (_NAME.fullmatch(name) for name in names if name.startswith(unit))
    return tuple(sorted(int(each[2]) for each in found if each and each[1] == unit))


def _path(unit: str, generation: int) -> str:
    return f"{CLAIMS}/{unit}.{generation}"
