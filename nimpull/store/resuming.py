"""What earlier runs left of a large file, found and made this run's own.

Each run writes into directories with its own token in their names: two never write into one file, also
where one of them slept and does not know yet that the file is another's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from nimpull.core.artifacts import Artifact
from nimpull.errors import StoreError
from nimpull.store.ingest import SHARED, WHOLE, left_of, name_of, remove_ingest
from nimpull.store.journal import ARTIFACT, DATA, JOURNAL, load
from nimpull.store.tree import NEW, Tree

_BLOCK: Final = 8 << 20  # bytes of one copy_file_range(2): a stop need not wait for gigabytes
#: What a kernel or a file system answers that cannot copy by itself.
_NO_COPY: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM})


def present_of(tree: Tree, artifacts: Iterable[Artifact]) -> int:
    """Bytes that journals of earlier runs speak of; nothing is read back. Raises StoreError."""
    left = left_of(tree)
    return sum(
        max((load(tree, each, artifact).present for each in _directories_of(artifact, left)), default=0)
        for artifact in (artifacts if left else ())
    )


def _directories_of(artifact: Artifact, left: Mapping[str, Sequence[str]]) -> Sequence[str]:
    return [each for each in left.get(name_of(artifact), ()) if not each.endswith(WHOLE)]


def make_own(tree: Tree, artifact: Artifact, own: str, has_ended: Callable[[str], bool]) -> None:
    """Let ``own`` go on from the fullest directory of the artifact; the others are dropped.

    ``has_ended``: whether the run of a token writes no more. Of one that may only be asleep the bytes are
    copied: when it wakes it writes on into its own file, which nobody reads then. Raises StoreError.
    """
    others = [each for each in _directories_of(artifact, left_of(tree)) if each != own]
    if not others:
        return
    amounts = {each: load(tree, each, artifact).present for each in (own, *others)}
    fullest = max(amounts, key=lambda each: amounts[each])
    if fullest != own and amounts[fullest]:
        remove_ingest(tree, own)
        ended = has_ended(fullest.rpartition("/")[2].partition(".")[2])
        if not (ended and _renamed(tree, fullest, own)):
            _copy(tree, artifact, fullest, own)
    for each in others:
        remove_ingest(tree, each)


def _renamed(tree: Tree, directory: str, own: str) -> bool:
    """False where directories cannot be renamed (object stores: they are prefixes there)."""
    try:
        tree.rename(directory, own)
    except StoreError:
        return tree.lstat(directory) is None  # then another run was first
    return True


def _copy(tree: Tree, artifact: Artifact, source: str, own: str) -> None:
    """What the journal speaks of, the header last: without it nothing counts."""
    written = load(tree, source, artifact)
    journal, header = tree.read(f"{source}/{JOURNAL}"), tree.read(f"{source}/{ARTIFACT}")
    with (
        tree.storing("copy", source),
        tree.reading(f"{source}/{DATA}") as origin,
        tree.writing(f"{own}/{DATA}", NEW, SHARED) as target,
    ):
        if tree.abilities.holes:
            os.ftruncate(target, written.size)
        for start, end in written.spans:
            _copy_range(origin, target, start, end)
    tree.write(f"{own}/{JOURNAL}", journal or b"")
    tree.write(f"{own}/{ARTIFACT}", header or b"")


def _copy_range(origin: int, target: int, start: int, end: int) -> None:
    """On a file system that shares blocks, or across NFS 4.2, no byte moves here."""
    while start < end:
        count = min(_BLOCK, end - start)
        try:
            copied = os.copy_file_range(origin, target, count, start, start)
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
            copied = os.pwrite(target, os.pread(origin, min(1 << 20, count), start), start)
        if not copied:
            return  # shorter than its journal says: what is missing does not read back right, and comes again
        start += copied
