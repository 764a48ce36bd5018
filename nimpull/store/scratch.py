"""Room for files that are assembled outside of the volume: as many at a time as fit.

A large file reserves nothing there before its bytes come, so what those under way still need counts, not only
what is free.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Final

from nimpull.core.artifacts import Artifact
from nimpull.core.names import display
from nimpull.core.units import show_bytes
from nimpull.errors import NoSpaceError
from nimpull.store.durable import storing
from nimpull.store.journal import DATA
from nimpull.store.resuming import WHOLE, name_of
from nimpull.store.tree import INGESTS, Tree

_BLOCK: Final = 512  # bytes that ``st_blocks`` counts in


class ScratchRoom:
    """Of the scratch directory of ``tree``. Raises StoreError."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def fits(self, wanted: Sequence[Artifact], under_way: Iterable[Artifact]) -> bool:
        """Whether ``wanted`` can be assembled beside what is ``under_way``."""
        names = self._tree.names(INGESTS)
        return self._needed(wanted, names) + self._needed(under_way, names) <= self._free()

    def check(self, missing: Iterable[Artifact]) -> None:
        """Before the first byte: NoSpaceError unless the largest file fits alone."""
        largest = max(missing, key=lambda each: each.size or 0, default=None)
        if largest is None or self.fits((largest,), ()):
            return
        need, free = largest.size or 0, self._free()
        raise NoSpaceError(
            f"{display(self._tree.absolute(INGESTS), 300)}: {display(largest.path, 200)} is assembled there, "
            f"needs {show_bytes(need)}, has {show_bytes(free)}",
            hint="Name a directory with room for the largest file in NIMPULL_SCRATCH (in a pod: the mount of "
            "an emptyDir); the more fit, the more come at a time.",
        )

    def _needed(self, artifacts: Iterable[Artifact], names: Sequence[str]) -> int:
        """Bytes that are not there yet. ``names``: of the ingest area."""
        return sum(max(0, (each.size or 0) - self._taken(each, names)) for each in artifacts)

    def _taken(self, artifact: Artifact, names: Sequence[str]) -> int:
        """Of the fullest ingest: others of the same file are dropped when it begins."""
        own = name_of(artifact)
        paths = (
            f"{INGESTS}/{each}" if each.endswith(WHOLE) else f"{INGESTS}/{each}/{DATA}"
            for each in names
            if each.partition(".")[0] == own
        )
        return max(
            (status.st_blocks * _BLOCK for path in paths if (status := self._tree.lstat(path))), default=0
        )

    def _free(self) -> int:
        place = self._tree.absolute(INGESTS)
        with storing("measure the room of", place):
            found = os.statvfs(place)
        return found.f_bavail * found.f_frsize
