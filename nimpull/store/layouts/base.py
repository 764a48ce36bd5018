"""What every layout does alike: believe, read, link and replace files; each says where they stand."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from nimpull.core.artifacts import Artifact, Listing
from nimpull.core.digest import Digest
from nimpull.errors import StoreError
from nimpull.store.durable import set_mode, store_error
from nimpull.store.reading import hash_file
from nimpull.store.record import Entry, Record
from nimpull.store.tree import FILE_MODE, NO_LINKS, Tree, refused


@dataclass(frozen=True, slots=True)
class TrustedFile:
    """A committed file. ``path``: the regular file, below the root; ``size`` in bytes."""

    path: str
    size: int
    mtime_ns: int
    digest: Digest


class StoreLayout(Protocol):
    """What the store asks of a layout; ``core.ports.Layout`` is the part that an ingest needs."""

    name: str

    def place(self, artifact: Artifact, staged: str, *, digest: Digest, etag: str) -> tuple[str, ...]: ...
    def path_of(self, artifact: Artifact) -> str: ...
    def trusted(self, artifact: Artifact) -> TrustedFile | None: ...
    def verify(self, artifact: Artifact) -> TrustedFile | None: ...
    def adopt(self, artifact: Artifact) -> TrustedFile | None: ...
    def found(self, artifact: Artifact) -> TrustedFile | None: ...
    def adopt_from(self, other: Tree, file: TrustedFile, artifact: Artifact) -> TrustedFile | None: ...
    def finish(self, listing: Listing, *, complete: bool = False) -> None: ...


#: Raises LeaseHeldError when another process took over; asked before each change that a reader sees.
Fence = Callable[[], None]


def unfenced() -> None:
    """For a single writer."""


class Layout:
    """What the layouts have in common; each says where things stand."""

    def __init__(self, tree: Tree, record: Record, fence: Fence = unfenced) -> None:
        self._tree = tree
        self._record = record
        self._fence = fence
        self._above: dict[str, tuple[str, ...]] = {}

    # -- each layout's own -----------------------------------------------------------------------------

    def path_of(self, artifact: Artifact) -> str:
        """What a reader opens, below the root."""
        raise NotImplementedError

    def _file_of(self, artifact: Artifact) -> str | None:
        """The file behind ``path_of``, below the root, if there is one; None for a link that is not ours."""
        return self.path_of(artifact)

    def _publish(self, artifact: Artifact, source: str, etag: str) -> tuple[str, ...]:
        """Let ``path_of`` lead to the content of the file ``source``; the directories that changed."""
        raise NotImplementedError

    def _known_blobs(self, artifact: Artifact) -> Iterator[str]:  # noqa: ARG002 - the layouts without blobs
        """Files that would hold the content by their name; to be verified."""
        return iter(())

    # -- shared ----------------------------------------------------------------------------------------

    def trusted(self, artifact: Artifact) -> TrustedFile | None:
        """By this store's own record and one stat. Raises NotWritableError where a link was planted."""
        path = self._file_of(artifact)
        return self._believed(path, artifact) if path else None

    def _believed(self, path: str, artifact: Artifact) -> TrustedFile | None:
        status = self._tree.lstat(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        entry = self._record.content_at(path, status, artifact)
        if entry is None:
            return None
        return TrustedFile(path, entry.size, entry.mtime_ns, entry.digest)

    def verify(self, artifact: Artifact) -> TrustedFile | None:
        """Read what stands there; when it is the content, take it into the record. None: fetch it."""
        path = self._file_of(artifact)
        return self._checked(path, artifact) if path else None

    def _checked(self, path: str, artifact: Artifact) -> TrustedFile | None:
        file = self._read(path, artifact)
        if file:
            self._note(file, artifact)
        return file

    def _read(self, path: str, artifact: Artifact) -> TrustedFile | None:
        """By its digest alone; nothing is written."""
        expected = artifact.digest
        status = self._tree.lstat(path)
        if expected is None or status is None or not stat.S_ISREG(status.st_mode):
            return None
        if artifact.size is not None and status.st_size != artifact.size:
            return None
        try:
            found, status = hash_file(self._tree, path, expected.algorithm)
        except FileNotFoundError:
            return None
        return TrustedFile(path, status.st_size, status.st_mtime_ns, found) if found == expected else None

    def _note(self, file: TrustedFile, artifact: Artifact) -> None:
        self._record.add(
            Entry(file.path, file.size, file.mtime_ns, file.digest, artifact.identity, artifact.etag)
        )

    def adopt(self, artifact: Artifact) -> TrustedFile | None:
        """Link content that another profile, revision or tool brought into this store. None: fetch it."""
        standing = self._file_of(artifact)  # ``verify`` has read that one
        for path in self._elsewhere(artifact):
            if path == standing:
                continue
            try:
                source = self._believed(path, artifact) or self._checked(path, artifact)
            except StoreError:
                continue  # moved or replaced by something else: not a source, and no reason to stop
            if source is None:
                continue
            self._fence()
            try:
                return self._linked(artifact, source, artifact.etag)
            except OSError as error:
                if error.errno in NO_LINKS:
                    return None
                raise store_error(error, "link", self._tree.absolute(path)) from error
        return None

    def _elsewhere(self, artifact: Artifact) -> Iterator[str]:
        """Where the content may be: by a blob's name, or by this store's own record."""
        recorded = (entry.path for entry in self._record.of(artifact))
        return iter(dict.fromkeys((*self._known_blobs(artifact), *recorded)))

    def _linked(self, artifact: Artifact, source: TrustedFile, etag: str) -> TrustedFile:
        """Publish a file of this store as ``artifact``. OSError where it cannot be linked."""
        for directory in self._publish(artifact, source.path, etag):
            self._tree.sync(directory)
        file = replace(source, path=self._file_of(artifact) or source.path)
        self._note(file, artifact)
        return file

    def found(self, artifact: Artifact) -> TrustedFile | None:
        """Here or elsewhere in this store, by the record or by reading it; nothing is written."""
        try:
            standing = self._file_of(artifact)
        except StoreError:
            standing = None
        for path in (*filter(None, [standing]), *self._elsewhere(artifact)):
            try:
                file = self._believed(path, artifact) or self._read(path, artifact)
            except StoreError:
                continue
            if file:
                return file
        return None

    def adopt_from(self, other: Tree, file: TrustedFile, artifact: Artifact) -> TrustedFile | None:
        """Link a file of another store, or of this one. None where no hard link can be made: another file
        system, one without hard links, or a file that is not ours (proc(5), protected_hardlinks)."""
        self._fence()
        staged = self._tree.temporary()
        try:
            self._tree.link(file.path, staged, of=other)
            return self._linked(artifact, replace(file, path=staged), artifact.etag or file.digest.hex)
        except OSError as error:
            if error.errno in NO_LINKS | {errno.EXDEV}:
                return None
            raise store_error(error, "link", other.absolute(file.path)) from error
        finally:
            with suppress(FileNotFoundError):
                self._tree.unlink(staged)

    def finish(self, listing: Listing, *, complete: bool = False) -> None:
        """Write what stands beside the files. ``complete``: the listing is the whole repository."""

    def _move(self, artifact: Artifact, staged: str, path: str, digest: Digest, etag: str) -> tuple[str, ...]:
        """Rename a finished file to ``path``, which can be replaced; make it read-only, and record it."""
        self._fence()
        with self._tree.storing("commit", staged):
            descriptor = self._tree.open(staged)
            try:
                set_mode(descriptor, FILE_MODE)
                status = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        changed = self._with_parents(self._tree.rename(staged, path))
        known = artifact.etag or etag
        self._record.add(Entry(path, status.st_size, status.st_mtime_ns, digest, artifact.identity, known))
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

    def _is_own_link(self, path: str, target: str) -> bool:  # noqa: ARG002 - plain layouts make no links
        return False

    def _with_parents(self, directory: str) -> tuple[str, ...]:
        """The directory and those above it: a new directory's own entry must last too."""
        found = self._above.get(directory)
        if found is None:
            higher = self._with_parents(os.path.dirname(directory)) if directory else ()
            found = self._above[directory] = (directory, *higher)
        return found
