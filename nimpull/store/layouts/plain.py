"""Plain files: as ``--local-dir`` leaves them, and at chosen places."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from nimpull.core.artifacts import Artifact, Listing
from nimpull.core.digest import Digest
from nimpull.core.names import SafePath
from nimpull.store.layouts.base import Found, FoundBy, StoreLayout
from nimpull.store.layouts.hub_files import CACHEDIR_TAG, write_once, write_tree
from nimpull.store.owners import check_late
from nimpull.store.record import Record, StoredFile
from nimpull.store.tree import Tree


class WorkspaceLayout(StoreLayout):
    """Plain files. ``destinations``: artifact identity -> path below the root, else the artifact's own."""

    name = "workspace"

    def __init__(
        self, tree: Tree, record: Record, destinations: Mapping[str, SafePath] | None = None
    ) -> None:
        super().__init__(tree, record)
        self._destinations = destinations or {}

    def path_of(self, artifact: Artifact) -> str:
        return str(self._destinations.get(artifact.identity, artifact.path))

    def place(self, artifact: Artifact, staged: str, *, digest: Digest, etag: str) -> tuple[str, ...]:
        changed, file = self._move(artifact, staged, self._free_path(artifact), digest, etag)
        # after the file: huggingface_hub takes a description that is older than its file for none
        return changed + self._describe(artifact, artifact.etag or etag or digest.hex, file)

    def _describe(self, artifact: Artifact, etag: str, file: StoredFile) -> tuple[str, ...]:  # noqa: ARG002
        """What stands beside the file: nothing. Returns the directories that changed."""
        return ()

    def _free_path(self, artifact: Artifact) -> str:
        path = self.path_of(artifact)
        status = self._tree.lstat(path)
        self._check_replaceable(path, status)
        if status:
            check_late(self._tree, self._record, path, status, artifact)
        return path

    def _link(self, artifact: Artifact, file: StoredFile, of: Tree) -> tuple[str, ...]:
        path = self._free_path(artifact)
        return self._with_parents(self._tree.link(file.path, path, of=of))

    def finish(self, listing: Listing, *, complete: bool = False) -> None:
        """Nothing stands beside the files."""


class LocalDirLayout(WorkspaceLayout):
    """Plain files with the metadata by which huggingface_hub takes them as downloaded."""

    name = "local-dir"
    _BESIDE: Final = ".cache/huggingface"

    def __init__(self, tree: Tree, record: Record) -> None:
        super().__init__(tree, record)
        self._described: set[str] = set()  # by this run: paths of metadata

    def take(self, found: Found) -> StoredFile | None:
        taken = super().take(found)
        if taken and found.by is not FoundBy.RECORD:
            self._describe(found.artifact, found.artifact.etag or taken.digest.hex, taken)
        return taken

    def _metadata_of(self, artifact: Artifact) -> str:
        """ "" for a name so long that huggingface_hub cannot describe it either; the file itself is fine."""
        path = f"{self._BESIDE}/download/{artifact.path}.metadata"
        return path if len(os.path.basename(path).encode()) <= 255 else ""

    def _describe(self, artifact: Artifact, etag: str, file: StoredFile) -> tuple[str, ...]:
        """``PATH.metadata``: commit, etag and time; huggingface_hub believes it if the file is not newer."""
        path = self._metadata_of(artifact)
        if not path:
            return ()
        content = f"{artifact.revision}\n{etag}\n{file.mtime_ns / 1e9}\n".encode()
        if not self._tree.create(path, content):  # what huggingface_hub cannot read it takes for nothing
            self._tree.write(path, content, durable=False)
        self._described.add(path)
        return self._with_parents(os.path.dirname(path))

    def finish(self, listing: Listing, *, complete: bool = False) -> None:
        """``.gitignore``, ``CACHEDIR.TAG`` and a whole repository's tree (see HubLayout)."""
        with self._tree.holding():
            for artifact in listing.artifacts:
                metadata = self._metadata_of(artifact)
                if not metadata or metadata in self._described:
                    continue
                described = self._tree.lstat(metadata)
                file = None if described and described.st_size else self.committed(artifact)
                if file:  # an earlier run was killed between the two
                    self._describe(artifact, artifact.etag or file.digest.hex, file)
        write_once(self._tree, f"{self._BESIDE}/.gitignore", b"*")
        write_once(self._tree, f"{self._BESIDE}/CACHEDIR.TAG", CACHEDIR_TAG)
        if complete:
            write_tree(self._tree, f"{self._BESIDE}/trees/{SafePath(listing.uri.revision)}.json", listing)
