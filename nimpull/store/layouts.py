"""Where committed files stand, as their consumers expect them.

``NgcHubLayout``: what a NIM container reads below ``NIM_CACHE_PATH``,
``ngc/hub/models--org--team--model/{blobs/<etag>,refs/<version>,snapshots/<version>/PATH}``.
``HuggingFaceHubLayout``: what huggingface_hub reads as its cache,
``<hub>/{models,datasets}--ns--name/{blobs/<etag>,refs/<revision>,snapshots/<commit>/PATH}``.
``LocalDirLayout``: what ``huggingface-cli download --local-dir`` leaves behind, plain files and
``.cache/huggingface/download/PATH.metadata`` beside them.
``WorkspaceLayout``: plain files at chosen places, for ``create-model-store``.
``NimCacheLayout``: the first two, by the scheme of the artifact.

All answer the same questions. ``trusted``: is it committed and may it be believed without reading it.
``verify``: is what stands there (whoever wrote it) the right content; reads it. ``adopt``: is the content in
this store elsewhere; links it, fetches nothing. ``found`` and ``adopt_from``: the same over two stores, of
which one is only read. ``place``: make a finished ingest visible. No file is believed for its name and size.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Protocol

from nimpull.core.artifacts import Artifact, Listing
from nimpull.core.digest import Digest
from nimpull.core.names import ModelUri, SafePath
from nimpull.errors import StoreError
from nimpull.store.durable import storing
from nimpull.store.hub_files import CACHEDIR_TAG, hub_tree, write_once
from nimpull.store.reading import hash_file
from nimpull.store.record import Entry, Record
from nimpull.store.tree import FILE_MODE, NO_LINKS, Tree, refused, store_error

#: A blob's name comes from a server's header: one plain segment, or the digest is used instead.
_BLOB_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,199}")
_BLOB_LINK: Final = re.compile(r"(?:\.\./)+blobs/([0-9A-Za-z][0-9A-Za-z._-]{0,199})")
#: huggingface_hub 2 keeps Xet blobs once for all repositories; the repository's blob is then a link.
_SHARED_BLOB: Final = re.compile(r"\.\./\.\./blobs/([0-9a-f]{2}/[0-9a-f]{64})")


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


class _Layout:
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
            self._tree.sync(self._tree.relative(directory))
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
        staged = self._tree.absolute(staged)
        try:
            status = os.stat(staged, follow_symlinks=False)
            if stat.S_IMODE(status.st_mode) != FILE_MODE:
                os.chmod(staged, FILE_MODE, follow_symlinks=True)
        except OSError as error:
            raise store_error(error, "commit", staged) from error
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
        """The directory and those above it, absolute: a new directory's own entry must last too."""
        found = self._above.get(directory)
        if found is None:
            here = self._tree.absolute(directory).rstrip("/") or "/"
            higher = self._with_parents(os.path.dirname(directory)) if directory else ()
            found = self._above[directory] = (here, *higher)
        return found


class _HubLayout(_Layout):
    """blobs, refs and snapshots, the cut that NIM took over from huggingface_hub."""

    def __init__(self, tree: Tree, record: Record, hub: str, fence: Fence) -> None:
        super().__init__(tree, record, fence)
        self._hub = SafePath(hub)
        self._repositories: dict[tuple[str, ...], str] = {}
        self._unrecorded: dict[str, dict[int, list[str]]] = {}  # blobs by repository and size

    def repository(self, uri: ModelUri) -> str:
        """``<hub>/models--…``, below the root."""
        key = (uri.repo_type, uri.scheme, uri.org, uri.team, uri.name, uri.location)
        if key not in self._repositories:
            self._repositories[key] = self._name(uri)
        return self._repositories[key]

    def _name(self, uri: ModelUri) -> str:
        kind = "datasets" if uri.repo_type == "dataset" else "models"
        if uri.scheme in ("ngc", "hf"):
            names = uri.repo_id.split("/")
        else:  # a bucket, mirror or directory: its address, without user info
            names = [part for part in (uri.name.rpartition("@")[2], *uri.location.split("/")) if part]
        return f"{self._hub}/{SafePath('--'.join((kind, *names)))}"

    def _revision(self, uri: ModelUri) -> SafePath:
        return SafePath(uri.revision.replace("/", "--") or "latest")  # a bucket has no revisions

    def path_of(self, artifact: Artifact) -> str:
        snapshot = f"{self.repository(artifact.uri)}/snapshots/{self._revision(artifact.uri)}"
        return f"{snapshot}/{artifact.path}"

    def _blob(self, artifact: Artifact, name: str) -> str:
        return f"{self.repository(artifact.uri)}/blobs/{name}"

    def _blob_for(
        self, artifact: Artifact, digest: Digest, etag: str
    ) -> tuple[str, os.stat_result | None, Entry | None]:
        """The blob's path, and what stands there with its entry in the record.

        Its name is the ETag, unless that cannot be a name or another content already has it.
        """
        name = artifact.etag or etag
        if _BLOB_NAME.fullmatch(name):
            blob, status, entry = self._standing(self._blob(artifact, name))
            if not (entry and entry.digest.algorithm == digest.algorithm and entry.digest != digest):
                return blob, status, entry
        return self._standing(self._blob(artifact, digest.hex))

    def _standing(self, blob: str) -> tuple[str, os.stat_result | None, Entry | None]:
        status = self._tree.lstat(blob)
        return blob, status, self._record.at(blob, status) if status else None

    def _file_of(self, artifact: Artifact) -> str | None:
        path = self.path_of(artifact)
        target = self._tree.readlink(path)
        if target is None:
            return path
        if not self._is_own_link(path, target):
            return None
        return self._blob_file(artifact, target.rpartition("/")[2])

    def _blob_file(self, artifact: Artifact, name: str) -> str:
        blob = self._blob(artifact, name)
        shared = _SHARED_BLOB.fullmatch(self._tree.readlink(blob) or "")
        return f"{self._hub}/blobs/{shared[1]}" if shared else blob

    def _is_own_link(self, path: str, target: str) -> bool:
        inside = path.removeprefix(f"{self._hub}/")
        if inside.split("/")[1] == "blobs":
            return bool(_SHARED_BLOB.fullmatch(target))
        return bool(_BLOB_LINK.fullmatch(target)) and target.count("../") == inside.count("/") - 1

    def _known_blobs(self, artifact: Artifact) -> Iterator[str]:
        if _BLOB_NAME.fullmatch(artifact.etag):
            yield self._blob_file(artifact, artifact.etag)
        elif artifact.size:
            yield from self._strays(self.repository(artifact.uri)).get(artifact.size, ())

    def _strays(self, repository: str) -> dict[int, list[str]]:
        """Blobs, by size, that the record does not know: a run ended between a rename and the record's line.

        Where a listing has no ETags nothing else tells what such a blob is of. Looked for once.
        """
        if repository not in self._unrecorded:
            found = self._unrecorded[repository] = {}
            for name in self._tree.names(f"{repository}/blobs"):
                blob = f"{repository}/blobs/{name}"
                status = self._tree.lstat(blob)
                if status and stat.S_ISREG(status.st_mode) and self._record.at(blob, status) is None:
                    found.setdefault(status.st_size, []).append(blob)
        return self._unrecorded[repository]

    def place(self, artifact: Artifact, staged: str, *, digest: Digest, etag: str) -> tuple[str, ...]:
        """See ``core.ports.Layout``. Without symbolic links the snapshot holds the plain file and no blob."""
        path = self.path_of(artifact)
        self._check_replaceable(path, self._tree.lstat(path))
        if not self._tree.symlinks:
            return self._move(artifact, staged, path, digest, etag)
        blob, status, entry = self._blob_for(artifact, digest, etag)
        if entry is not None and entry.digest == digest:  # another file's, which must not lose its record
            self._record.add(replace(entry, identity=artifact.identity))
            self._fence()
            with storing("drop", staged):
                os.unlink(self._tree.absolute(staged))
            return self._link(path, blob)
        self._check_replaceable(blob, status)
        changed = self._move(artifact, staged, blob, digest, etag)
        return changed + self._link(path, blob)

    def _link(self, path: str, blob: str) -> tuple[str, ...]:
        """The relative link of a snapshot to a blob of its repository; it survives a copy or a mount."""
        repository, _, name = blob.rpartition("/blobs/")
        above = path.removeprefix(f"{repository}/").count("/")
        return self._with_parents(self._tree.symlink(f"{'../' * above}blobs/{name}", path))

    def _publish(self, artifact: Artifact, source: str, etag: str) -> tuple[str, ...]:
        path = self.path_of(artifact)
        self._check_replaceable(path, self._tree.lstat(path))
        if not self._tree.symlinks:
            return self._with_parents(self._tree.link(source, path))
        blobs = f"{self.repository(artifact.uri)}/blobs"
        if os.path.dirname(source) == blobs:
            return self._link(path, source)
        name = etag or os.path.basename(source)
        if not _BLOB_NAME.fullmatch(name) or self._tree.lstat(f"{blobs}/{name}"):
            digest = artifact.digest
            name = digest.hex if digest else os.path.basename(source)
        changed = self._with_parents(self._tree.link(source, f"{blobs}/{name}"))
        return changed + self._link(path, f"{blobs}/{name}")


class NgcHubLayout(_HubLayout):
    """``$NIM_CACHE_PATH/ngc/hub``; the root is ``NIM_CACHE_PATH``. A snapshot is named by the NGC version."""

    name = "ngc-hub"

    def __init__(self, tree: Tree, record: Record, hub: str = "ngc/hub", fence: Fence = unfenced) -> None:
        super().__init__(tree, record, hub, fence)

    def finish(self, listing: Listing, *, complete: bool = False) -> None:  # noqa: ARG002 - NGC has no tree file
        """``refs/<version>``, and the ``tmp`` directory that a NIM container makes beside the models."""
        version = self._revision(listing.uri)
        reference = f"{self.repository(listing.uri)}/refs/{version}"
        if self._tree.read(reference) != version.encode():
            self._tree.write(reference, version.encode())
        with self._tree.directory("/".join((self._hub, "tmp")), create=True):
            pass


class HuggingFaceHubLayout(_HubLayout):
    """A huggingface_hub cache. ``hub``: its directory (``HF_HUB_CACHE``, ``$HF_HOME/hub``) below the root."""

    name = "huggingface-hub"

    def __init__(
        self, tree: Tree, record: Record, hub: str = "huggingface/hub", fence: Fence = unfenced
    ) -> None:
        super().__init__(tree, record, hub, fence)

    def finish(self, listing: Listing, *, complete: bool = False) -> None:
        """``refs/<requested>`` (the commit, no newline), ``CACHEDIR.TAG``, and a whole repository's tree.

        By the tree file an offline ``snapshot_download`` tells a partial snapshot. Written for a filtered
        listing it would make huggingface_hub take the part for the whole, so it is not.
        """
        repository, commit = self.repository(listing.uri), listing.uri.revision
        if listing.requested != commit:
            reference = f"{repository}/refs/{SafePath(listing.requested)}"
            if self._tree.read(reference) != commit.encode():
                self._tree.write(reference, commit.encode())
        write_once(self._tree, f"{self._hub}/CACHEDIR.TAG", CACHEDIR_TAG)
        tree_file = hub_tree(listing) if complete else None
        if tree_file:
            self._tree.write(f"{repository}/trees/{SafePath(commit)}.json", tree_file)


class LocalDirLayout(_Layout):
    """Plain files below the root, with the metadata by which huggingface_hub takes them as downloaded."""

    name = "local-dir"
    _BESIDE: Final = ".cache/huggingface"

    def __init__(self, tree: Tree, record: Record, fence: Fence = unfenced) -> None:
        super().__init__(tree, record, fence)
        self._described: set[str] = set()  # by this run: paths of metadata

    def path_of(self, artifact: Artifact) -> str:
        return str(artifact.path)

    def place(self, artifact: Artifact, staged: str, *, digest: Digest, etag: str) -> tuple[str, ...]:
        """See ``core.ports.Layout``."""
        path = self.path_of(artifact)
        self._check_replaceable(path, self._tree.lstat(path))
        changed = self._move(artifact, staged, path, digest, etag)
        return changed + self._describe(artifact, artifact.etag or etag or digest.hex)

    def _publish(self, artifact: Artifact, source: str, etag: str) -> tuple[str, ...]:
        path = self.path_of(artifact)
        self._check_replaceable(path, self._tree.lstat(path))
        changed = self._with_parents(self._tree.link(source, path))
        return changed + self._describe(artifact, etag)

    def verify(self, artifact: Artifact) -> TrustedFile | None:
        file = super().verify(artifact)
        if file:
            self._describe(artifact, artifact.etag or file.digest.hex)
        return file

    def _metadata_of(self, artifact: Artifact) -> str:
        """ "" for a name so long that huggingface_hub cannot describe it either; the file itself is fine."""
        path = f"{self._BESIDE}/download/{artifact.path}.metadata"
        return path if len(os.path.basename(path).encode()) <= 255 else ""

    def _describe(self, artifact: Artifact, etag: str) -> tuple[str, ...]:
        """``PATH.metadata``: commit, etag and time; huggingface_hub believes it if the file is not newer."""
        path = self._metadata_of(artifact)
        if not path:
            return ()
        status = self._tree.lstat(self.path_of(artifact))
        time = status.st_mtime if status else 0.0
        content = f"{artifact.revision}\n{etag}\n{time}\n".encode()
        if not self._tree.create(path, content):  # what huggingface_hub cannot read it takes for nothing
            self._tree.write(path, content, durable=False)
        self._described.add(path)
        return self._with_parents(os.path.dirname(path))

    def finish(self, listing: Listing, *, complete: bool = False) -> None:
        """``.gitignore``, ``CACHEDIR.TAG`` and a whole repository's tree (see HuggingFaceHubLayout)."""
        with self._tree.holding():
            for artifact in listing.artifacts:
                metadata = self._metadata_of(artifact)
                if not metadata or metadata in self._described:
                    continue
                described = self._tree.lstat(metadata)
                file = None if described and described.st_size else self.trusted(artifact)
                if file:  # an earlier run was killed between the two
                    self._describe(artifact, artifact.etag or file.digest.hex)
        write_once(self._tree, f"{self._BESIDE}/.gitignore", b"*")
        write_once(self._tree, f"{self._BESIDE}/CACHEDIR.TAG", CACHEDIR_TAG)
        tree_file = hub_tree(listing) if complete else None
        if tree_file:
            commit = SafePath(listing.uri.revision)
            self._tree.write(f"{self._BESIDE}/trees/{commit}.json", tree_file)


class WorkspaceLayout(_Layout):
    """Plain files. ``destinations``: artifact identity -> path below the root, else the artifact's own."""

    name = "workspace"

    def __init__(
        self,
        tree: Tree,
        record: Record,
        destinations: Mapping[str, SafePath] | None = None,
        fence: Fence = unfenced,
    ) -> None:
        super().__init__(tree, record, fence)
        self._destinations = destinations or {}

    def path_of(self, artifact: Artifact) -> str:
        return str(self._destinations.get(artifact.identity, artifact.path))

    def place(self, artifact: Artifact, staged: str, *, digest: Digest, etag: str) -> tuple[str, ...]:
        """See ``core.ports.Layout``."""
        path = self.path_of(artifact)
        self._check_replaceable(path, self._tree.lstat(path))
        return self._move(artifact, staged, path, digest, etag)

    def _publish(self, artifact: Artifact, source: str, etag: str) -> tuple[str, ...]:  # noqa: ARG002 - no blobs
        path = self.path_of(artifact)
        self._check_replaceable(path, self._tree.lstat(path))
        return self._with_parents(self._tree.link(source, path))


class NimCacheLayout:
    """What ``download-to-cache`` fills: Hugging Face artifacts in the hub's cache, all others in NIM's."""

    name = "nim-cache"

    def __init__(self, ngc: StoreLayout, huggingface: StoreLayout) -> None:
        self._ngc = ngc
        self._huggingface = huggingface

    def _of(self, uri: ModelUri) -> StoreLayout:
        return self._huggingface if uri.scheme == "hf" else self._ngc

    def place(self, artifact: Artifact, staged: str, *, digest: Digest, etag: str) -> tuple[str, ...]:
        return self._of(artifact.uri).place(artifact, staged, digest=digest, etag=etag)

    def path_of(self, artifact: Artifact) -> str:
        return self._of(artifact.uri).path_of(artifact)

    def trusted(self, artifact: Artifact) -> TrustedFile | None:
        return self._of(artifact.uri).trusted(artifact)

    def verify(self, artifact: Artifact) -> TrustedFile | None:
        return self._of(artifact.uri).verify(artifact)

    def adopt(self, artifact: Artifact) -> TrustedFile | None:
        return self._of(artifact.uri).adopt(artifact)

    def found(self, artifact: Artifact) -> TrustedFile | None:
        return self._of(artifact.uri).found(artifact)

    def adopt_from(self, other: Tree, file: TrustedFile, artifact: Artifact) -> TrustedFile | None:
        return self._of(artifact.uri).adopt_from(other, file, artifact)

    def finish(self, listing: Listing, *, complete: bool = False) -> None:
        self._of(listing.uri).finish(listing, complete=complete)
