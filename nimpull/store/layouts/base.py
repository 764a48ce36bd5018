"""What every layout does alike: look, link and replace files; each says where they stand."""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

from nimpull.core.abilities import WriteMode
from nimpull.core.artifacts import Artifact, Listing
from nimpull.core.digest import Digest
from nimpull.errors import StoreError
from nimpull.store.durable import set_mode, store_error
from nimpull.store.reading import hash_file
from nimpull.store.record import Entry, Record
from nimpull.store.tree import FILE_MODE, NO_LINKS, Tree, refused


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file whose content is known. ``path``: the regular file, below the root; ``size`` in bytes."""

    path: str
    size: int
    mtime_ns: int
    digest: Digest


class StoreLayout(ABC):
    """Where files stand, as their consumer expects them.

    ``committed``, ``read`` and ``elsewhere`` only look, each at more cost than the one before; ``take`` and
    ``place`` change what a reader sees.
    """

    name: str

    @abstractmethod
    def path_of(self, artifact: Artifact) -> str:
        """What a reader opens, below the root."""

    @abstractmethod
    def committed(self, artifact: Artifact) -> StoredFile | None:
        """By this store's own record and one stat. Raises NotWritableError where a link was planted."""

    @abstractmethod
    def read(self, artifact: Artifact) -> StoredFile | None:
        """Hash what stands there, whoever wrote it; None unless it is the content."""

    @abstractmethod
    def elsewhere(self, artifact: Artifact) -> StoredFile | None:
        """Content that another profile or tool brought into this store, by its record or its hash."""

    @abstractmethod
    def take(self, artifact: Artifact, file: StoredFile, *, of: Tree | None = None) -> StoredFile | None:
        """Let ``file``, of this store or of the store ``of``, be the artifact's: a line in the record where
        it stands in its place, else a link to it. None where no hard link can be made: another file system,
        one without hard links, or a file that is not ours (proc(5), protected_hardlinks)."""

    @abstractmethod
    def place(self, artifact: Artifact, staged: str, *, digest: Digest, etag: str) -> tuple[str, ...]:
        """Rename ``staged`` (a path in the ingest area: complete, synced) to its final name, make links.

        Returns the directories whose entries changed, for the caller's group fsync. Raises StoreError.
        """

    @abstractmethod
    def finish(self, listing: Listing, *, complete: bool = False) -> None:
        """Write what stands beside the files. ``complete``: the listing is the whole repository."""


class FileLayout(StoreLayout):
    """What the layouts of files have in common; each says where things stand."""

    def __init__(self, tree: Tree, record: Record) -> None:
        self._tree = tree
        self._record = record
        self._above: dict[str, tuple[str, ...]] = {}

    # -- each layout's own -----------------------------------------------------------------------------

    def _file_of(self, artifact: Artifact) -> str | None:
        """The file behind ``path_of``, below the root, if there is one; None for a link that is not ours."""
        return self.path_of(artifact)

    @abstractmethod
    def _link(self, artifact: Artifact, file: StoredFile, of: Tree) -> tuple[str, ...]:
        """Let ``path_of`` lead to a file of the tree ``of``; the directories that changed. OSError where it
        cannot be linked."""

    def _blobs_of(self, artifact: Artifact) -> Iterator[str]:  # noqa: ARG002 - the layouts without blobs
        """Files that would hold the content by their name; to be hashed."""
        return iter(())

    def _is_own_link(self, path: str, target: str) -> bool:  # noqa: ARG002 - plain layouts make no links
        return False

    # -- looking ---------------------------------------------------------------------------------------

    def committed(self, artifact: Artifact) -> StoredFile | None:
        path = self._file_of(artifact)
        return self._recorded(path, artifact) if path else None

    def read(self, artifact: Artifact) -> StoredFile | None:
        path = self._file_of(artifact)
        return self._hashed(path, artifact) if path else None

    def elsewhere(self, artifact: Artifact) -> StoredFile | None:
        standing = self._file_of(artifact)  # ``read`` has hashed that one
        recorded = (entry.path for entry in self._record.of(artifact))
        for path in dict.fromkeys((*self._blobs_of(artifact), *recorded)):
            if path == standing:
                continue
            try:
                file = self._recorded(path, artifact) or self._hashed(path, artifact)
            except StoreError:
                continue  # moved or replaced by something else: not a source, and no reason to stop
            if file:
                return file
        return None

    def _recorded(self, path: str, artifact: Artifact) -> StoredFile | None:
        status = self._tree.lstat(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        entry = self._record.content_at(path, status, artifact)
        return StoredFile(path, entry.size, entry.mtime_ns, entry.digest) if entry else None

    def _hashed(self, path: str, artifact: Artifact) -> StoredFile | None:
        """By its digest alone: no file is believed for its name and size.

        Where the listing has no digest, by the one that this store computed when it committed the file.
        """
        status = self._tree.lstat(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        if artifact.size is not None and status.st_size != artifact.size:
            return None
        expected = artifact.digest or self._committed_digest(path, status, artifact)
        if expected is None:
            return None
        try:
            found, status = hash_file(self._tree, path, expected.algorithm)
        except FileNotFoundError:
            return None
        return StoredFile(path, status.st_size, status.st_mtime_ns, found) if found == expected else None

    def _committed_digest(self, path: str, status: os.stat_result, artifact: Artifact) -> Digest | None:
        """The time of a file says nothing where a server sets it once more after the commit (CIFS, s3fs)."""
        entries = self._record.of_path(path)
        same = (each for each in entries if each.size == status.st_size and each.is_content_of(artifact))
        return next((each.digest for each in same), None)

    # -- changing --------------------------------------------------------------------------------------

    def take(self, artifact: Artifact, file: StoredFile, *, of: Tree | None = None) -> StoredFile | None:
        if of is None and file.path == self._file_of(artifact):
            self._note(artifact, file, artifact.etag)
            return file
        try:
            changed = self._link(artifact, file, of or self._tree)
        except OSError as error:
            if error.errno in NO_LINKS | {errno.EXDEV}:
                return None
            raise store_error(error, "link", (of or self._tree).absolute(file.path)) from error
        for directory in changed:
            self._tree.sync(directory)
        taken = replace(file, path=self._file_of(artifact) or file.path)
        self._note(artifact, taken, artifact.etag)
        return taken

    def _note(self, artifact: Artifact, file: StoredFile, etag: str) -> None:
        known = artifact.etag or etag
        self._record.add(
            Entry(
                file.path, file.size, file.mtime_ns, file.digest, artifact.identity, known, artifact.endpoint
            )
        )

    def _move(self, artifact: Artifact, staged: str, path: str, digest: Digest, etag: str) -> tuple[str, ...]:
        """Rename a finished file to ``path``, which can be replaced; make it read-only, and record it."""
        with self._tree.storing("commit", staged):
            descriptor = self._tree.open(staged)
            try:
                set_mode(descriptor, FILE_MODE)
                status = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        changed = self._with_parents(self._tree.rename(staged, path))
        if self._tree.abilities.mode is not WriteMode.DIRECT:  # a rename that copies makes another file
            status = self._tree.lstat(path) or status
        self._note(artifact, StoredFile(path, status.st_size, status.st_mtime_ns, digest), etag)
        return changed

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
