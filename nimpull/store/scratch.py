"""Room for files that are assembled outside of the volume: as many at a time as fit.

A large file reserves nothing there before its bytes come, so what those under way still need counts, not only
what is free.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from nimpull.core.artifacts import Artifact
from nimpull.core.names import display
from nimpull.core.units import show_bytes
from nimpull.errors import NoSpaceError
from nimpull.store.ingest import WHOLE, left_in, name_of
from nimpull.store.journal import DATA
from nimpull.store.tree import INGESTS, Tree

_BLOCK: Final = 512  # bytes that ``st_blocks`` counts in


class ScratchRoom:
    """Of the scratch directory of ``tree``. Raises StoreError."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def fits(self, wanted: Sequence[Artifact], under_way: Iterable[Artifact]) -> bool:
        """Whether ``wanted`` can be assembled beside what is ``under_way``."""
        left = left_in(self._tree)
        needed = sum((each.size or 0) - self._taken(each, left) for each in (*wanted, *under_way))
        return needed <= self._free()

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

    def _taken(self, artifact: Artifact, left: Mapping[str, Sequence[str]]) -> int:
        """Bytes of it that are there, in the fullest ingest: others of the same file are dropped when it
        begins."""
        paths = left.get(name_of(artifact), ())
        files = (path if path.endswith(WHOLE) else f"{path}/{DATA}" for path in paths)
        taken = (status.st_blocks * _BLOCK for path in files if (status := self._tree.lstat(path)))
        return min(artifact.size or 0, max(taken, default=0))

    def _free(self) -> int:
        with self._tree.storing("measure the room of", INGESTS):
            found = os.statvfs(self._tree.absolute(INGESTS))
        return found.f_bavail * found.f_frsize
