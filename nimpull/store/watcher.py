"""Who writes into a store now, for a reader that does not write: it cannot ask the volume for its time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from nimpull.core.names import display
from nimpull.store.presence import EXPIRY, RUNS, is_gone
from nimpull.store.tree import Tree

_LIMIT = 4096  # bytes of a run's file


@dataclass(frozen=True, slots=True)
class Running:
    """``owner``: for people (pod, pid). ``modified``: of its file, by the volume's clock."""

    token: str
    owner: str
    modified: float


def announced(tree: Tree) -> tuple[Running, ...]:
    """The runs that have not said that they ended, but for those of this host that are gone. StoreError."""
    found = []
    for name in tree.names(RUNS):
        status, content = tree.lstat(f"{RUNS}/{name}"), tree.read(f"{RUNS}/{name}", _LIMIT)
        if status is None or content is None:
            continue
        try:
            facts = json.loads(content)
            owner, process = str(facts["owner"]), str(facts["process"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if not is_gone(process):
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
