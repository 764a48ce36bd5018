"""What earlier runs left of a large file, found and made this run's own.

Each run writes into directories with its own token in their names: two never write into one file, also
where one of them slept and does not know yet that the file is another's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from hashlib import sha256
from typing import Final

from nimpull.core.artifacts import Artifact
from nimpull.core.ranges import disjoint
from nimpull.errors import StoreError
from nimpull.store.durable import let_go
from nimpull.store.ingest import remove_ingest
from nimpull.store.journal import ARTIFACT, DATA, JOURNAL, Written, load
from nimpull.store.tree import INGESTS, Tree

WHOLE: Final = ".whole"  # ends the name of a small file that came in one piece: it is not gone on with
_BLOCK: Final = 8 << 20  # bytes of one copy_file_range(2): a stop need not wait for gigabytes
#: What a kernel or a file system answers that cannot copy by itself.
_NO_COPY: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM})


def name_of(artifact: Artifact) -> str:
    """What begins the names of its ingests."""
    return sha256(artifact.identity.encode()).hexdigest()


def directories_of(artifact: Artifact, left: Iterable[str]) -> tuple[str, ...]:
    """Of the names in the ingest area the directories of one file, with or without a run's token."""
    name = name_of(artifact)
    return tuple(
        f"{INGESTS}/{each}" for each in left if each.partition(".")[0] == name and not each.endswith(WHOLE)
    )


def present_of(tree: Tree, artifacts: Iterable[Artifact]) -> int:
    """Bytes that journals of earlier runs speak of; nothing is read back. Raises StoreError."""
    left = tree.names(INGESTS)
    names = {each.partition(".")[0] for each in left}
    return sum(
        max((_present_in(tree, each, artifact) for each in directories_of(artifact, left)), default=0)
        for artifact in artifacts
        if names and name_of(artifact) in names
    )


def _present_in(tree: Tree, directory: str, artifact: Artifact) -> int:
    return sum(end - start for start, end in _spans(load(tree, directory, artifact)))


def make_own(
    tree: Tree, artifact: Artifact, found: Iterable[str], own: str, has_ended: Callable[[str], bool]
) -> None:
    """Let ``own`` go on from the fullest directory of those ``found``; the others are dropped.

    ``has_ended``: whether the run of a token writes no more. Of one that may only be asleep the bytes are
    copied: when it wakes it writes on into its own file, which nobody reads then. Raises StoreError.
    """
    others = [each for each in found if each != own]
    if not others:
        return
    amounts = {each: _present_in(tree, each, artifact) for each in (own, *others)}
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
        return tree.lstat(directory) is None
    except FileNotFoundError:
        pass  # another run was first
    return True


def _copy(tree: Tree, artifact: Artifact, source: str, own: str) -> None:
    """What the journal speaks of, the header last: without it nothing counts."""
    written = load(tree, source, artifact)
    journal, header = tree.read(f"{source}/{JOURNAL}"), tree.read(f"{source}/{ARTIFACT}")
    with tree.storing("copy", source), tree.directory(own, create=True), ExitStack() as files:
        origin = tree.open(f"{source}/{DATA}")
        files.callback(let_go, origin)
        target = tree.open_at(f"{own}/{DATA}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o664)
        files.callback(os.close, target)
        if tree.abilities.holes:
            os.ftruncate(target, written.size)
        for start, end in _spans(written):
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


def _spans(written: Written) -> Iterable[tuple[int, int]]:
    return disjoint(((each.start, each.end) for each in written.checkpoints), written.size)
