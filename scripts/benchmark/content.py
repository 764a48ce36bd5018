"""What is served: files, their digests, and the documents of a Hugging Face hub about them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30
LFS_FROM = MIB  # bytes; a hub keeps larger files as LFS objects, known by SHA-256, and smaller ones in git
_POOL = 16 * MIB


@dataclass(frozen=True, slots=True)
class File:
    """``oid``: what a hub calls it, the SHA-256 of an LFS object or else the id of a git blob."""

    name: str
    size: int
    sha256: str
    oid: str

    @property
    def lfs(self) -> bool:
        return self.size >= LFS_FROM


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository below ``www``, where a server finds its documents and files by their URLs' paths."""

    www: Path
    repo_id: str
    commit: str
    files: tuple[File, ...]

    @property
    def path(self) -> str:
        """Of the files' URLs, from the root."""
        return f"{self.repo_id}/resolve/{self.commit}"

    @property
    def folder(self) -> Path:
        return self.www / self.path

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def make_repository(www: Path, sizes: tuple[int, ...], *, sparse: bool = False) -> Repository:
    """Files of ``sizes`` and their documents.

    ``sparse``: only the first 4 KiB of each MiB are random, so that a file larger than memory can be served
    from memory.
    """
    commit = hashlib.sha1(repr((sizes, sparse)).encode()).hexdigest()
    repo_id = f"bench/{commit[:8]}"
    folder = www / repo_id / "resolve" / commit
    folder.mkdir(parents=True)
    pool = memoryview(os.urandom(_POOL + MIB))
    files = tuple(
        _make_file(folder / _name(number, size), number, size, pool, sparse)
        for number, size in enumerate(sizes)
    )
    made = Repository(www, repo_id, commit, files)
    _write_documents(made)
    return made


def _name(number: int, size: int) -> str:
    return f"model-{number:05}.safetensors" if size >= LFS_FROM else f"part-{number:05}.json"


def _make_file(path: Path, number: int, size: int, pool: memoryview, sparse: bool) -> File:
    """No two blocks of a MiB are alike, in one file or in two."""
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    zeros = memoryview(bytes(MIB))
    with path.open("wb", buffering=0) as file:
        for offset in range(0, size, MIB):
            length = min(MIB, size - offset)
            head = b"%016x%016x" % (number, offset)
            start = (number * 7919 + offset // MIB * 104729) * 32 % _POOL
            random = min(4096 if sparse else MIB, length)
            first = (head + pool[start : start + random - len(head)])[:random]
            file.write(first)
            file.seek(offset + length)
            for part in (first, zeros[: length - random]):
                sha256.update(part)
                if size < LFS_FROM:
                    git.update(part)
        file.truncate(size)
    oid = sha256.hexdigest() if size >= LFS_FROM else git.hexdigest()
    return File(path.name, size, sha256.hexdigest(), oid)


def _write_documents(repository: Repository) -> None:
    """The two answers that list a repository (huggingface.co/docs/hub/api)."""
    api = repository.www / "api" / "models" / repository.repo_id
    about = {
        "id": repository.repo_id,
        "sha": repository.commit,
        "private": False,
        "gated": False,
        "siblings": [{"rfilename": file.name} for file in repository.files],
    }
    (api / "revision").mkdir(parents=True)
    (api / "revision" / "main").write_text(json.dumps(about))
    (api / "tree").mkdir()
    (api / "tree" / repository.commit).write_text(json.dumps([_row(file) for file in repository.files]))


def _row(file: File) -> dict[str, object]:
    row: dict[str, object] = {"type": "file", "path": file.name, "size": file.size, "oid": file.oid}
    if not file.lfs:
        return row
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.oid}\nsize {file.size}\n".encode()
    )
    return row | {
        "oid": hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest(),
        "lfs": {"oid": file.oid, "size": file.size, "pointerSize": len(pointer)},
    }


def difference(repository: Repository, target: Path) -> str:
    """Which file in ``target`` is not byte for byte what was served, "" where all are."""
    for file in repository.files:
        try:
            if not _same(repository.folder / file.name, target / file.name):
                return f"{file.name} has other bytes than were served"
        except OSError as error:
            return f"{file.name} cannot be read: {error.strerror}"
    return ""


def _same(one: Path, other: Path) -> bool:
    with one.open("rb", buffering=0) as left, other.open("rb", buffering=0) as right:
        while True:
            expected, found = left.read(MIB), right.read(MIB)
            if expected != found:
                return False
            if not expected:
                return True


def occupied(target: Path) -> int:
    """Bytes of the disk that the files below ``target`` take: what of a sparse file is really there."""
    total = 0
    for folder, _, names in os.walk(target):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                continue  # renamed meanwhile
    return total
