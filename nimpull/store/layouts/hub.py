"""blobs, refs and snapshots: the caches of NIM and of huggingface_hub."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from nimpull.core.artifacts import Artifact, Listing
from nimpull.core.digest import Digest
from nimpull.core.names import ModelUri, SafePath
from nimpull.store.layouts.base import StoreLayout
from nimpull.store.layouts.hub_files import CACHEDIR_TAG, write_once, write_tree
from nimpull.store.record import Entry, Record, StoredFile
from nimpull.store.tree import Tree

#: A blob's name comes from a server's header: one plain segment, or the digest is used instead.
_BLOB_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,199}")
_BLOB_LINK: Final = re.compile(r"(?:\.\./)+blobs/([0-9A-Za-z][0-9A-Za-z._-]{0,199})")
#: huggingface_hub 2 keeps Xet blobs once for all repositories; the repository's blob is then a link.
_SHARED_BLOB: Final = re.compile(r"\.\./\.\./blobs/[0-9a-f]{2}/[0-9a-f]{64}")
_PLACE: Final = re.compile(r".*?/(?:models|datasets)--[^/]+/(?P<kind>blobs|snapshots)/(?P<below>.+)")


class HubLayout(StoreLayout):
    """blobs, refs and snapshots, the cut that NIM took over from huggingface_hub.

    ``hub``: huggingface_hub's cache (``HF_HUB_CACHE``, ``$HF_HOME/hub``) below the root, for what comes from
    a Hub; ``ngc_hub``: NIM's own, for all else.
    """

    name = "cache"

    def __init__(self, tree: Tree, record: Record, hub: str, ngc_hub: str) -> None:
        super().__init__(tree, record)
        self._hub, self._ngc_hub = SafePath(hub), SafePath(ngc_hub)
        self._repositories: dict[ModelUri, str] = {}
        self._snapshots: dict[ModelUri, str] = {}
        self._unrecorded: dict[str, dict[int, list[str]]] = {}  # blobs by repository and size

    def repository(self, repo: ModelUri) -> str:
        """``<hub>/models--…``, below the root. ``repo``: at any revision."""
        if repo not in self._repositories:
            kind = "datasets" if repo.repo_type == "dataset" else "models"
            if repo.scheme in ("ngc", "hf"):
                names = repo.repo_id.split("/")
            else:  # a bucket, mirror or directory: its address, without user info
                names = [part for part in (repo.name.rpartition("@")[2], *repo.location.split("/")) if part]
            hub = self._hub if repo.scheme == "hf" else self._ngc_hub
            self._repositories[repo] = f"{hub}/{SafePath('--'.join((kind, *names)))}"
        return self._repositories[repo]

    def _revision(self, uri: ModelUri) -> SafePath:
        return SafePath(uri.revision.replace("/", "--") or "latest")  # a bucket has no revisions

    def path_of(self, artifact: Artifact) -> str:
        repo = artifact.repo
        if repo not in self._snapshots:
            self._snapshots[repo] = f"{self.repository(repo)}/snapshots/{self._revision(repo)}"
        return f"{self._snapshots[repo]}/{artifact.path}"

    def _blob(self, artifact: Artifact, name: str) -> str:
        return f"{self.repository(artifact.repo)}/blobs/{name}"

    def _blob_for(
        self, artifact: Artifact, digest: Digest, etag: str
    ) -> tuple[str, os.stat_result | None, Entry | None]:
        """The blob's path, and what stands there with its entry in the record.

        Its name is the ETag, unless that cannot be a name or another content already has it.
        """
        name = artifact.etag or etag
        if _BLOB_NAME.fullmatch(name):
            blob, status, entry = self._blob_at(self._blob(artifact, name))
            if not (entry and entry.digest.algorithm == digest.algorithm and entry.digest != digest):
                return blob, status, entry
        return self._blob_at(self._blob(artifact, digest.hex))

    def _blob_at(self, blob: str) -> tuple[str, os.stat_result | None, Entry | None]:
        status = self._tree.lstat(blob)
        return blob, status, self._record.at(blob, status) if status else None

    def _standing(self, artifact: Artifact) -> tuple[str, os.stat_result | None]:
        path = self.path_of(artifact)
        target = self._tree.readlink(path)
        if target is None:
            return self._look(path)
        if not self._is_own_link(path, target):
            return path, None
        return self._look(self._blob_file(self._blob(artifact, target.rpartition("/")[2])))

    def _blob_file(self, blob: str) -> str:
        target = self._tree.readlink(blob) or ""
        shared = _SHARED_BLOB.fullmatch(target)
        return os.path.normpath(f"{os.path.dirname(blob)}/{target}") if shared else blob

    def _is_own_link(self, path: str, target: str) -> bool:
        place = _PLACE.fullmatch(path)
        if place is None or place["kind"] == "blobs":
            return place is not None and bool(_SHARED_BLOB.fullmatch(target))
        return bool(_BLOB_LINK.fullmatch(target)) and target.count("../") == place["below"].count("/") + 1

    def _blobs_of(self, artifact: Artifact) -> Iterable[str]:
        if _BLOB_NAME.fullmatch(artifact.etag):
            return (self._blob_file(self._blob(artifact, artifact.etag)),)
        return self._strays(self.repository(artifact.repo)).get(artifact.size or 0, ())

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
        """Without symbolic links the snapshot holds the plain file and no blob."""
        path = self.path_of(artifact)
        self._check_replaceable(path, self._tree.lstat(path))
        if not self._tree.abilities.symlinks:
            return self._move(artifact, staged, path, digest, etag)[0]
        blob, status, entry = self._blob_for(artifact, digest, etag)
        if entry is not None and entry.digest == digest:  # another file's, which must not lose its record
            self._record.add(replace(entry, identity=artifact.identity, endpoint=artifact.endpoint))
            self._tree.remove(staged)
            return self._symlink(path, blob)
        self._check_replaceable(blob, status)
        # the blob first: a link that leads nowhere would be a snapshot that lies
        changed, _ = self._move(artifact, staged, blob, digest, etag)
        return changed + self._symlink(path, blob)

    def _symlink(self, path: str, blob: str) -> tuple[str, ...]:
        """The relative link of a snapshot to a blob of its repository; it survives a copy or a mount."""
        repository, _, name = blob.rpartition("/blobs/")
        above = path.removeprefix(f"{repository}/").count("/")
        return self._with_parents(self._tree.symlink(f"{'../' * above}blobs/{name}", path))

    def _link(self, artifact: Artifact, file: StoredFile, of: Tree) -> tuple[str, ...]:
        path = self.path_of(artifact)
        self._check_replaceable(path, self._tree.lstat(path))
        if not self._tree.abilities.symlinks:
            return self._with_parents(self._tree.link(file.path, path, of=of))
        blobs = f"{self.repository(artifact.repo)}/blobs"
        above, name = os.path.split(file.path)
        if of is self._tree and above == blobs:
            return self._symlink(path, file.path)
        name = artifact.etag or (name if "/blobs/" in file.path else "")  # a blob keeps its name: NIM's ETag
        if not _BLOB_NAME.fullmatch(name) or self._tree.lstat(f"{blobs}/{name}"):
            name = file.digest.hex
        changed = self._with_parents(self._tree.link(file.path, f"{blobs}/{name}", of=of))
        return changed + self._symlink(path, f"{blobs}/{name}")

    def finish(self, listing: Listing, *, complete: bool = False) -> None:
        """``refs/<requested>`` (the commit, no newline), and what stands beside it in either cache."""
        repository, revision = self.repository(listing.uri), self._revision(listing.uri)
        if listing.uri.scheme != "hf":
            self._write_reference(f"{repository}/refs/{revision}", revision)
            with self._tree.directory("/".join((self._ngc_hub, "tmp")), create=True):
                return  # a NIM container makes it beside the models
        self.refer(listing.uri, listing.requested)
        write_once(self._tree, f"{self._hub}/CACHEDIR.TAG", CACHEDIR_TAG)
        if complete:
            write_tree(self._tree, f"{repository}/trees/{revision}.json", listing)

    def refer(self, uri: ModelUri, requested: str) -> None:
        """A reader that asks for ``requested`` (``main``) gets the revision of ``uri`` from now on."""
        if uri.scheme == "hf" and requested != uri.revision:
            self._write_reference(f"{self.repository(uri)}/refs/{SafePath(requested)}", self._revision(uri))

    def _write_reference(self, path: str, revision: str) -> None:
        if self._tree.read(path) != revision.encode():
            self._tree.write(path, revision.encode())
