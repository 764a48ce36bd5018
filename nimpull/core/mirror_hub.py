"""What a directory needs to answer as a Hugging Face hub behind nginx: JSON, and a table of headers.

The Hub's client wants of every file ``X-Repo-Commit``, an ETag that names its content, ``X-Linked-Etag`` and
``X-Linked-Size`` (huggingface_hub, ``get_hf_file_metadata``). A web server has no such thing for a file, so
``hub.map`` tells nginx for each: one line from the address that is asked for to commit, ETag, size and file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from nimpull.core.digest import Digest
from nimpull.core.mirror_objects import MirrorRepository, object_key
from nimpull.core.names import SafePath

HUB_MAP: Final = "hub.map"
_HEAD: Final = (
    "# From an address of the Hub to “commit etag size file”: included by nginx.conf, written by nimpull.\n"
)


@dataclass(frozen=True, slots=True)
class HubFile:
    """``digest``: git or sha256, as the Hub names content; ``file``: its name in the directory."""

    path: SafePath
    size: int
    digest: Digest
    file: str


def hub_documents(repository: MirrorRepository, listed: Iterable[HubFile]) -> dict[str, bytes]:
    """The API's answers by path below the directory, for a whole repository: revision and tree.

    As hub_files of the store's layouts has it, the blob id of a large file is that of its git-lfs pointer.
    """
    at, asked = repository.at, repository.uri.revision
    entries = sorted(listed, key=lambda one: one.path)
    about = {
        "id": at.repo_id,
        "modelId": at.repo_id,
        "sha": at.revision,
        "private": False,
        "gated": False,
        "disabled": False,
        "tags": [],
        "siblings": [{"rfilename": entry.path} for entry in entries],
    }
    tree = [_tree_entry(entry) for entry in entries]
    folder = f"api/{_kind(repository)}s/{at.repo_id}"
    documents: dict[str, object] = {}
    for revision in dict.fromkeys((at.revision, asked)):
        documents[f"{folder}/tree/{revision}.json"] = tree
        documents[f"{folder}/revision/{revision}.json"] = about
    if asked == "main":
        documents[f"{folder}.json"] = about
    return {str(SafePath(path)): json.dumps(value, indent=1).encode() for path, value in documents.items()}


def _kind(repository: MirrorRepository) -> str:
    return "dataset" if repository.at.repo_type == "dataset" else "model"


def _tree_entry(entry: HubFile) -> dict[str, object]:
    if entry.digest.algorithm == "git":
        return {"type": "file", "path": entry.path, "size": entry.size, "oid": entry.digest.hex}
    # The Hub's "oid" of a large file is the blob id of its pointer, as git has it; the content's is under
    # "lfs".
    pointer = pointer_text(entry.digest.hex, entry.size)
    blob = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer, usedforsecurity=False).hexdigest()
    lfs = {"oid": entry.digest.hex, "size": entry.size, "pointerSize": len(pointer)}
    return {"type": "file", "path": entry.path, "size": entry.size, "oid": blob, "lfs": lfs}


def pointer_text(sha256: str, size: int) -> bytes:
    """The git-lfs pointer file (specification version 1)."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize %d\n" % (sha256.encode(), size)


def hub_map(before: bytes, repository: MirrorRepository, listed: Iterable[HubFile]) -> bytes:
    """``before`` with the lines of ``listed`` for its commit and for the revision that was asked for.

    Other commits of the repository keep theirs: their files stand under names of their own.
    """
    lines = {line.split('" "')[0]: line for line in before.decode().splitlines() if line.startswith('"/')}
    at, owner = repository.at, "/datasets/" if _kind(repository) == "dataset" else "/"
    for revision in dict.fromkeys((at.revision, repository.uri.revision)):
        start = f"{owner}{at.repo_id}/resolve/{revision}/"
        # A branch that moved on has other files: its old lines go, those of its commits stay.
        lines = {name: line for name, line in lines.items() if not name.startswith(f'"{start}')}
        for entry in listed:
            asked = f"{start}{entry.path}".replace('"', '\\"')
            value = f"{at.revision} {entry.digest.hex} {entry.size} {entry.file}"
            lines[f'"{asked}'] = f'"{asked}" "{value}";'
    return (_HEAD + "".join(f"{line}\n" for _, line in sorted(lines.items()))).encode()


def plain_names(repository: MirrorRepository, path: str) -> Mapping[str, str]:
    """Where else than under ``object_key(at)`` a file is looked for: the name there, by what is asked.

    A server decodes the address once. A client that encodes the key once more asks for the first form, others
    for the names that its signs of percent stand for; both for the revision that was asked for, too.
    """
    own = object_key(repository.at.with_path(path))
    found: dict[str, str] = {}
    for uri in dict.fromkeys((repository.at, repository.uri)):
        flat = object_key(uri.with_path(path))
        decoded = str(uri.with_path(path)).partition("://")[2]
        found |= {flat: own, decoded: f"{'../' * decoded.count('/')}{own}"}
    found.pop(own)
    return found
