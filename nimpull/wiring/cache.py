"""What the NIM cache already has of a model that goes elsewhere: another store, only read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from nimpull.core.artifacts import Artifact, Listing, Wanted
from nimpull.core.digest import Digest
from nimpull.core.names import ModelUri, SafePath, Url
from nimpull.errors import StoreError
from nimpull.store.layouts import Found, FoundBy
from nimpull.store.store import Store

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class NimCacheStore:
    """A file counts by that store's record, or by its digest once it was read; what cannot be read is not
    there."""

    def __init__(self, store: Store, hub: str, ngc_hub: str) -> None:
        """``hub``, ``ngc_hub``: the caches of the Hub and of NGC below its root, "" = NIM's own."""
        self._layout = store.nim_cache(hub, ngc_hub)
        self.tree = store.tree

    def find(self, artifact: Artifact) -> Found | None:
        with suppress(StoreError):
            found = self._layout.find(artifact)
            return replace(found, by=FoundBy.ELSEWHERE, tree=self.tree) if found else None
        return None

    def listing(
        self, uri: ModelUri, wanted: Wanted, promised: Mapping[str, Digest], endpoint: str
    ) -> Listing | None:
        """Of named files at a revision that never changes, if all are here: nobody has to be asked."""
        if not wanted.paths or wanted.include or wanted.exclude or not _is_immutable(uri):
            return None
        artifacts = []
        for path in sorted(wanted.paths):
            digest = promised.get(str(uri.with_path(path)))
            digests = (digest,) if digest else ()
            found = self.find(Artifact(SafePath(path), None, digests, uri.repo, endpoint=endpoint))
            if found is None:
                return None
            artifacts.append(Artifact(SafePath(path), found.file.size, (found.file.digest,), uri.repo))
        return Listing(uri.repo, uri.revision, tuple(artifacts), Url(Path(self.tree.root).as_uri()))


def _is_immutable(uri: ModelUri) -> bool:
    """An NGC version, or a commit."""
    if uri.scheme == "ngc":
        return uri.revision not in ("", "latest")
    return uri.scheme == "hf" and bool(_COMMIT.fullmatch(uri.revision))
