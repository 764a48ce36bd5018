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


def hub_tree(listing: Listing) -> bytes | None:
    """huggingface_hub's ``trees/<commit>.json``, format 1; None if the listing lacks a size or a blob id."""
    files: dict[str, dict[str, object]] = {}
    for artifact in sorted(listing.artifacts, key=lambda one: one.path):
        by_algorithm = {digest.algorithm: digest.hex for digest in artifact.digests}
        sha256, git = by_algorithm.get("sha256"), by_algorithm.get("git")
        if artifact.size is None or not (sha256 or git):
            return None
        if sha256 and artifact.etag == sha256:
            # the blob id of a large file is that of its pointer, which git-lfs fixes byte for byte
            blob_id = _pointer_id(sha256, artifact.size)
            lfs: dict[str, object] = {"lfs_sha256": sha256, "lfs_size": artifact.size}
            files[artifact.path] = {"size": artifact.size, "blob_id": blob_id, **lfs}
        elif git:
            files[artifact.path] = {"size": artifact.size, "blob_id": git}
        else:
            return None
    return json.dumps({"format_version": 1, "files": files}).encode()


def _pointer_id(sha256: str, size: int) -> str:
    """Git blob id of the git-lfs pointer file (specification version 1)."""
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize %d\n" % (sha256.encode(), size)
    return hashlib.sha1(b"blob %d\0" % len(text) + text, usedforsecurity=False).hexdigest()
