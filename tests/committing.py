"""Files committed through a layout, as an ingest does it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from nimpull.core.artifacts import Artifact, Listing
from nimpull.core.digest import Digest, new_hasher
from nimpull.core.names import ModelUri, SafePath, Url
from nimpull.store import preflight
from nimpull.store.layouts import FoundBy, StoreLayout
from nimpull.store.record import StoredFile
from nimpull.store.store import Store

NGC = ModelUri.parse("ngc://nim/meta/llama-3_1-8b-instruct:hf-8c22764-b")
COMMIT = "8c22764a7e3675c50d4c7c9a4edb474456022b16"
HUB = ModelUri.parse(f"hf://meta/llama:{COMMIT}")


def digest_of(content: bytes, algorithm: str = "sha256") -> Digest:
    hasher = new_hasher(algorithm, len(content))
    hasher.update(content)
    return Digest(algorithm, hasher.hexdigest())


def artifact(path: str, content: bytes, uri: ModelUri = NGC, *, algorithm: str = "sha256") -> Artifact:
    """As NGC lists it (no ETag), or as the Hub does (the ETag is the digest)."""
    digest = digest_of(content, algorithm)
    etag = digest.hex if uri.scheme == "hf" else ""
    return Artifact(SafePath(path), len(content), (digest,), uri.with_path(path), etag)


def listing(*artifacts: Artifact, requested: str = "main") -> Listing:
    return Listing(artifacts[0].uri.repo, requested, artifacts, Url("https://registry.test"))


def commit(store: Store, layout: StoreLayout, one: Artifact, content: bytes, etag: str = "") -> Sequence[str]:
    """Stage ``content`` where an ingest would and place it; returns the directories that changed."""
    ingest = Path(store.root, ".nimpull", "ingest", hashlib.sha256(one.identity.encode()).hexdigest())
    ingest.mkdir(parents=True, exist_ok=True)
    staged = ingest / "data"
    staged.write_bytes(content)
    staged.chmod(0o444)  # as an ingest leaves it
    found = digest_of(content, one.digest.algorithm if one.digest else "blake3")
    changed = layout.place(one, str(staged.relative_to(store.root)), digest=found, etag=etag)
    assert not staged.exists()
    ingest.rmdir()
    return changed


def open_store(root: str) -> Store:
    """As a run does that is about to write."""
    preflight.probe(root)
    return Store(root)


def take(layout: StoreLayout, one: Artifact, by: FoundBy) -> StoredFile | None:
    """What a run does with content that is there: in its place, whoever wrote it, or under another name."""
    found = layout.find(one)
    return layout.take(found) if found and found.by is by else None


def tree_of(root: Path) -> dict[str, str]:
    """Path -> link target, or ``"file"``; nimpull's own state left out."""
    found = {}
    for above, directories, names in os.walk(root):
        if Path(above) == root:
            directories[:] = [name for name in directories if name != ".nimpull"]
        for name in (*names, *directories):
            path = Path(above, name)
            if path.is_symlink():
                found[str(path.relative_to(root))] = str(path.readlink())
            elif path.is_file():
                found[str(path.relative_to(root))] = "file"
    return found
