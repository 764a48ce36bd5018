"""Put back what a verification found lost: the same content under the same names, as it was committed.

The restored file gets the modification time of its commit, so that the record, the ready markers and
huggingface_hub's metadata speak for it again: nothing else has to be written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Final

from nimpull.core.artifacts import Artifact
from nimpull.core.digest import Digest
from nimpull.core.names import MAX_STORED_BYTES, ModelUri, SafePath, display
from nimpull.core.request import LostFile, Repair
from nimpull.errors import SourceChangedError, UsageError
from nimpull.store.durable import store_error
from nimpull.store.layouts import WorkspaceLayout
from nimpull.store.ready import all_ready
from nimpull.store.record import Entry, Record, StoredFile
from nimpull.store.tree import NO_LINKS, Tree
from nimpull.store.verify import Verification

_SNAPSHOT: Final = re.compile(r"(.*/(?:models|datasets)--[^/]+)/snapshots/[^/]+/.+")


def plan_repair(tree: Tree, record: Record, found: Verification) -> Repair:
    """What has to be fetched, what removed, and which links are to be made again."""
    files: dict[tuple[str, Digest], list[Entry]] = {}
    for entry in found.lost:
        files.setdefault((entry.identity, entry.digest), []).append(entry)
    lost: list[LostFile] = []
    unknown: set[str] = set()
    for names in files.values():
        try:
            uri = ModelUri.parse(names[0].identity)
        except UsageError:
            unknown.update(entry.path for entry in names)
            continue
        paths = tuple(SafePath(entry.path, MAX_STORED_BYTES) for entry in names)
        lost.append(LostFile(uri, names[0].digest, max(entry.mtime_ns for entry in names), paths))
    recorded = {entry.path for entry in found.lost}
    links = dict(_links(tree, record, set(found.missing) - recorded))
    unknown |= set(found.missing) - recorded - links.keys()
    corrupt = tuple(mismatch.path for mismatch in found.mismatches if not mismatch.replaced)
    unknown |= {mismatch.path for mismatch in found.mismatches if mismatch.replaced}
    return Repair(tuple(lost), corrupt, tuple(links.items()), tuple(sorted(unknown)))


def _links(tree: Tree, record: Record, gone: set[str]) -> Iterable[tuple[str, str]]:
    """(link, blob) for links of a hub cache that are gone."""
    digests = {file.path: file.digest for ready in all_ready(tree) for file in ready.files + ready.names}
    for path in gone & digests.keys():
        snapshot = _SNAPSHOT.fullmatch(path)
        blobs = [
            entry.path
            for entry in record.entries
            if snapshot and entry.digest == digests[path] and entry.path.startswith(f"{snapshot[1]}/blobs/")
        ]
        if blobs:
            yield path, blobs[0]


def make_links(tree: Tree, links: Iterable[tuple[str, str]]) -> None:
    """Raises StoreError."""
    for path, blob in links:
        tree.sync(tree.symlink(os.path.relpath(blob, os.path.dirname(path)), path))


class RestoredLayout(WorkspaceLayout):
    """Files go to where they were. ``lost``: by the identity of the file."""

    name = "restored"

    def __init__(self, tree: Tree, record: Record, lost: Mapping[str, LostFile]) -> None:
        super().__init__(tree, record, {identity: file.paths[0] for identity, file in lost.items()})
        self._lost = lost

    def place(self, artifact: Artifact, staged: str, *, digest: Digest, etag: str) -> tuple[str, ...]:
        """Raises SourceChangedError for another content than was lost."""
        lost = self._lost[artifact.identity]
        if digest != lost.digest:
            digest, _ = self._tree.hash(staged, lost.digest.algorithm)
        if digest != lost.digest:
            raise SourceChangedError(
                f"{display(artifact.identity, 300)} is another file now: {digest}, it was {lost.digest}",
                hint="The source has replaced it. Pull the model anew: nimpull download … --refresh.",
            )
        with self._tree.storing("set the time of", staged), self._tree.reading(staged) as file:
            os.utime(file, ns=(lost.mtime_ns, lost.mtime_ns))
        changed = super().place(artifact, staged, digest=digest, etag=etag)
        return changed + self._name(lost)

    def _link(self, artifact: Artifact, file: StoredFile, of: Tree) -> tuple[str, ...]:
        return super()._link(artifact, file, of) + self._name(self._lost[artifact.identity])

    def _name(self, lost: LostFile) -> tuple[str, ...]:
        """Its other names, where the file system has hard links; the next pull tells of those without."""
        first, *others = lost.paths
        changed: tuple[str, ...] = ()
        for path in others:
            self._check_replaceable(path, self._tree.lstat(path))
            try:
                changed += self._with_parents(self._tree.link(first, path))
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise store_error(error, "link", self._tree.absolute(path)) from error
        return changed
