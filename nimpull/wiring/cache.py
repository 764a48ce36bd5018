"""What the NIM cache already has of a model that goes elsewhere: linked or copied, never trusted unread."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from nimpull.core.artifacts import Artifact, Listing, Location
from nimpull.core.digest import Digest
from nimpull.core.names import ModelUri, SafePath, Url, display
from nimpull.core.ports import Cancel, Wanted
from nimpull.core.units import show_bytes
from nimpull.errors import StoreError
from nimpull.store.layouts import StoreLayout, TrustedFile
from nimpull.store.store import Store

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class CacheStore:
    """Another store, only read. A file counts by that store's record, or by its digest once it was read.

    Raises StoreError for the store that is written; one that cannot be read has nothing.
    """

    def __init__(self, root: str, hub: str, ngc_hub: str, cancel: Cancel) -> None:
        """``hub``, ``ngc_hub``: the caches of the Hub and of NGC below ``root``, "" = NIM's own."""
        self._store = Store.open(root, read_only=True, cancel=cancel)
        self._layout = self._store.nim_cache(hub, ngc_hub)
        self._linked: list[TrustedFile] = []
        self._unlinkable: dict[str, TrustedFile] = {}

    def link(self, artifact: Artifact, layout: StoreLayout) -> TrustedFile | None:
        """Into the layout of another store. None: it is not here, or no hard link leads there."""
        file = self._found(artifact)
        if file is None:
            return None
        linked = layout.adopt_from(self._store.tree, file, artifact)
        if linked:
            self._linked.append(linked)
        else:
            self._unlinkable[artifact.identity] = file
        return linked

    def location(self, artifact: Artifact) -> Location | None:
        """Of a file that is here and cannot be linked: it is copied, and checked on the way."""
        file = self._unlinkable.get(artifact.identity)
        return Location(Url(Path(self._store.tree.absolute(file.path)).as_uri())) if file else None

    def listing(self, uri: ModelUri, wanted: Wanted, promised: Mapping[str, Digest]) -> Listing | None:
        """Of named files at a revision that never changes, if all are here: nobody has to be asked."""
        if not wanted.paths or wanted.include or wanted.exclude or not _is_immutable(uri):
            return None
        artifacts = []
        for path in sorted(wanted.paths):
            place = uri.with_path(path)
            digest = promised.get(str(place))
            file = self._found(Artifact(SafePath(path), None, (digest,) if digest else (), place))
            if file is None:
                return None
            artifacts.append(Artifact(SafePath(path), file.size, (file.digest,), place))
        return Listing(uri.repo, uri.revision, tuple(artifacts), Url(Path(self._store.root).as_uri()))

    def notes(self) -> Iterator[str]:
        """What became of the files that are here."""
        root = display(self._store.root, 200)
        if self._linked:
            size = show_bytes(sum(file.size for file in self._linked))
            yield f"{len(self._linked)} files, {size}, are hard links to the NIM cache {root}"
        if self._unlinkable:
            size = show_bytes(sum(file.size for file in self._unlinkable.values()))
            yield (
                f"{len(self._unlinkable)} files, {size}, are in the NIM cache {root} and are copied: no hard "
                "link can be made from there (another file system, or another owner)"
            )

    def _found(self, artifact: Artifact) -> TrustedFile | None:
        with suppress(StoreError):
            return self._layout.found(artifact)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()


def _is_immutable(uri: ModelUri) -> bool:
    """An NGC version, or a commit."""
    if uri.scheme == "ngc":
        return uri.revision not in ("", "latest")
    return uri.scheme == "hf" and bool(_COMMIT.fullmatch(uri.revision))
