"""What every layout does alike: look, link and replace files; each says where they stand."""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from enum import Enum

from nimpull.core.abilities import WriteMode
from nimpull.core.artifacts import Action, Artifact, Listing, Outcome
from nimpull.core.digest import Digest
from nimpull.core.names import ModelUri
from nimpull.errors import StoreError
from nimpull.store.durable import store_error
from nimpull.store.record import Entry, Record, StoredFile
from nimpull.store.tree import NO_LINKS, Tree, refused


class FoundBy(Enum):
    """By what a content is known to be there, and whether it stands in its place."""

    RECORD = "in its place, and the record says so"
    HASH = "in its place, whoever wrote it: it was hashed"
    ELSEWHERE = "under another name, or in another store"


@dataclass(frozen=True, slots=True)
class Found:
    """Content that needs no byte. ``tree``: of the store that it is in, None = this one."""

    artifact: Artifact
    file: StoredFile
    by: FoundBy
    tree: Tree | None = None

    @property
    def outcome(self) -> Outcome:
        action = Action.LINKED if self.by is FoundBy.ELSEWHERE else Action.SKIPPED
        return Outcome.present(self.artifact, action, self.file.size, self.file.digest)


class StoreLayout(ABC):
    """Where files stand, as their consumer expects them: what the layouts have in common.

    ``committed`` and ``find`` only look; ``take`` and ``place`` change what a reader sees.
    """

    name: str

    def __init__(self, tree: Tree, record: Record) -> None:
        self._tree = tree
        self._record = record
        self._above: dict[str, tuple[str, ...]] = {}

    # -- each layout's own -----------------------------------------------------------------------------

    @abstractmethod
    def path_of(self, artifact: Artifact) -> str:
        """What a reader opens, below the root."""

    @abstractmethod
    def place(self, artifact: Artifact, staged: str, *, digest: Digest, etag: str) -> tuple[str, ...]:
        """Rename ``staged`` (a path in the ingest area: complete, synced) to its final name, make links.

        Returns the directories whose entries changed, for the caller's group fsync. Raises StoreError.
        """

    def placing(self) -> AbstractContextManager[None]:
        """For many files: their lines in the record are written at the end, in one go."""
        return self._record.together()

    @abstractmethod
    def finish(self, listing: Listing, *, complete: bool = False) -> None:
        """Write what stands beside the files. ``complete``: the listing is the whole repository."""

    def refer(self, uri: ModelUri, requested: str) -> None:  # noqa: B027 - only a hub cache has references
        """Let a name that can move lead to the revision of ``uri``. Raises StoreError."""

    @abstractmethod
    def _link(self, artifact: Artifact, file: StoredFile, of: Tree) -> tuple[str, ...]:
        """Let ``path_of`` lead to a file of the tree ``of``; the directories that changed. OSError where it
        cannot be linked."""

    def _standing(self, artifact: Artifact) -> tuple[str, os.stat_result | None]:
        """The file behind ``path_of``, below the root; no status where there is none, or a link not ours."""
        return self._look(self.path_of(artifact))

    def _blobs_of(self, artifact: Artifact) -> Iterable[str]:  # noqa: ARG002 - the layouts without blobs
        """Files that would hold the content by their name; to be hashed."""
        return ()

    def _is_own_link(self, path: str, target: str) -> bool:  # noqa: ARG002 - plain layouts make no links
        return False

    # -- looking ---------------------------------------------------------------------------------------

    def committed(self, artifact: Artifact) -> StoredFile | None:
        """By this store's own record and one stat. Raises NotWritableError where a link was planted."""
        return self._recorded(artifact, *self._standing(artifact))

    def find(self, artifact: Artifact) -> Found | None:
        """Anywhere in this store, the cheapest look first. No file is believed for its name and size.

        Raises NotWritableError where a link was planted in its place.
        """
        standing = self._standing(artifact)
        if file := self._recorded(artifact, *standing):
            return Found(artifact, file, FoundBy.RECORD)
        if file := self._hashed(artifact, *standing):
            return Found(artifact, file, FoundBy.HASH)
        recorded = (entry.path for entry in self._record.of(artifact))
        for path in dict.fromkeys((*self._blobs_of(artifact), *recorded)):
            if path == standing[0]:
                continue
            with suppress(
                StoreError
            ):  # moved or replaced by something else: not a source, and no reason to stop
                there = self._look(path)
                if file := self._recorded(artifact, *there) or self._hashed(artifact, *there):
                    return Found(artifact, file, FoundBy.ELSEWHERE)
        return None

    def _look(self, path: str) -> tuple[str, os.stat_result | None]:
        status = self._tree.lstat(path)
        return path, status if status and stat.S_ISREG(status.st_mode) else None

    def _recorded(self, artifact: Artifact, path: str, status: os.stat_result | None) -> StoredFile | None:
        return self._record.at(path, status, artifact) if status else None

    def _hashed(self, artifact: Artifact, path: str, status: os.stat_result | None) -> StoredFile | None:
        """By the listing's digest, else by the one that this store computed when it committed the file: its
        time says nothing where a server sets it once more after the commit (CIFS, s3fs)."""
        if status is None or artifact.size not in (None, status.st_size):
            return None
        entries = self._record.of_path(path)
        own = (
            each.digest for each in entries if each.size == status.st_size and each.is_content_of(artifact)
        )
        expected = artifact.digest or next(own, None)
        if expected is None:
            return None
        try:
            found, status = self._tree.hash(path, expected.algorithm)
        except FileNotFoundError:
            return None
        return StoredFile(path, status.st_size, status.st_mtime_ns, found) if found == expected else None

    # -- changing --------------------------------------------------------------------------------------

    def take(self, found: Found) -> StoredFile | None:
        """Let it be the artifact's: a line in the record where it stands in its place, else a link to it.

        None where no hard link can be made: another file system, one without hard links, or a file that is
        not ours (proc(5), protected_hardlinks).
        """
        artifact, file, of = found.artifact, found.file, found.tree or self._tree
        if found.by is FoundBy.RECORD:
            return file
        if found.by is FoundBy.ELSEWHERE:
            try:
                changed = self._link(artifact, file, of)
            except OSError as error:
                if error.errno in NO_LINKS | {errno.EXDEV}:
                    return None
                raise store_error(error, "link", of.absolute(file.path)) from error
            for directory in changed:
                self._tree.sync(directory)
            file = replace(file, path=self._standing(artifact)[0])
        return self._note(artifact, file, "")

    def _note(self, artifact: Artifact, file: StoredFile, etag: str) -> Entry:
        facts = artifact.identity, artifact.etag or etag, artifact.endpoint
        entry = Entry(file.path, file.size, file.mtime_ns, file.digest, *facts)
        self._record.add(entry)
        return entry

    def _move(
        self, artifact: Artifact, staged: str, path: str, digest: Digest, etag: str
    ) -> tuple[tuple[str, ...], StoredFile]:
        """Rename a finished file, which is read-only, to ``path``, which can be replaced, and record it.

        Also returns the directories that changed.
        """
        status = self._tree.lstat(staged)
        if status is None:  # a cleaner took it away: it comes once more
            raise store_error(FileNotFoundError(errno.ENOENT, ""), "place", self._tree.absolute(staged))
        if not stat.S_ISREG(status.st_mode):
            raise refused(self._tree.absolute(staged), "it is not the file that was written there")
        changed = self._with_parents(self._tree.rename(staged, path))
        if self._tree.abilities.mode is not WriteMode.DIRECT:  # a rename that copies makes another file
            status = self._tree.lstat(path) or status
        file = StoredFile(path, status.st_size, status.st_mtime_ns, digest)
        return changed, self._note(artifact, file, etag)

    def _check_replaceable(self, path: str, status: os.stat_result | None) -> None:
        """``status`` of what stands at ``path``, None = nothing. Raises NotWritableError."""
        if status is None or stat.S_ISREG(status.st_mode):
            return
        if stat.S_ISLNK(status.st_mode):
            target = self._tree.readlink(path) or ""
            if self._is_own_link(path, target):
                return
            raise refused(self._tree.absolute(path), f"it is a link to “{target[:200]}”")
        raise refused(self._tree.absolute(path), "a directory or a device stands where a file must go")

    def _with_parents(self, directory: str) -> tuple[str, ...]:
        """The directory and those above it: a new directory's own entry must last too."""
        found = self._above.get(directory)
        if found is None:
            higher = self._with_parents(os.path.dirname(directory)) if directory else ()
            found = self._above[directory] = (directory, *higher)
        return found
