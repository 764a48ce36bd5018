"""The small files that huggingface_hub keeps beside the downloaded ones."""

from __future__ import annotations

import hashlib
import json
from typing import Final

from nimpull.core.artifacts import Listing
from nimpull.store.tree import Tree

#: As huggingface_hub writes it (Cache Directory Tagging Standard): backup tools skip the directory.
CACHEDIR_TAG: Final = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# This file is a cache directory tag created by huggingface_hub.\n"
    b"# For information about cache directory tags, see:\n"
    b"#\thttps://bford.info/cachedir/\n"
)


def write_once(tree: Tree, path: str, content: bytes) -> None:
    """What is there already stays: huggingface_hub may have written it."""
    if tree.lstat(path) is None:
        tree.write(path, content)


def write_tree(tree: Tree, path: str, listing: Listing) -> None:
    """``trees/<commit>.json``, by which an offline ``snapshot_download`` tells a partial snapshot.

    Only for a whole repository: of a part huggingface_hub would take it for the whole.
    """
    if content := _hub_tree(listing):
        tree.write(path, content)


def _hub_tree(listing: Listing) -> bytes | None:
    """Format 1; None if the listing lacks a size or a blob id."""
    files: dict[str, dict[str, object]] = {}
    for artifact in sorted(listing.artifacts, key=lambda one: one.path):
        digests = {digest.algorithm: digest.hex for digest in artifact.digests}
        blob_id, lfs, sha256 = digests.get("git"), {}, digests.get("sha256")
        if sha256 and artifact.etag == sha256:
            # the blob id of a large file is that of its pointer, which git-lfs fixes byte for byte
            blob_id = _pointer_id(sha256, artifact.size or 0)
            lfs = {"lfs_sha256": sha256, "lfs_size": artifact.size}
        if artifact.size is None or not blob_id:
            return None
        files[artifact.path] = {"size": artifact.size, "blob_id": blob_id, **lfs}
    return json.dumps({"format_version": 1, "files": files}).encode()


def _pointer_id(sha256: str, size: int) -> str:
    """Git blob id of the git-lfs pointer file (specification version 1)."""
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize %d\n" % (sha256.encode(), size)
    return hashlib.sha1(b"blob %d\0" % len(text) + text, usedforsecurity=False).hexdigest()
