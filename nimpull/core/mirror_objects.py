"""A mirror of models: under which keys their files stand, what is sent, and what says that all is there.

A mirror is a bucket or a directory that stands in for the registries (``NIM_REPOSITORY_OVERRIDE``). The key
of a file is what is left of its URI behind ``ngc://`` or ``hf://``, percent-encoded as a whole (NIM
documentation, "Repository Override"). ``checksums.blake3`` of a repository is written after all of its other
files: it is the commit mark. Without it, what is there is a part, and no reader takes it for the whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO, Final, Protocol
from urllib.parse import quote

from nimpull.core.digest import Digest, Hasher, new_hasher
from nimpull.core.manifest import manifest_of
from nimpull.core.names import ModelUri, SafePath, display
from nimpull.core.ports import Cancel
from nimpull.errors import Cancelled, IntegrityError, UsageError

#: The list of a repository's digests. NGC's versions bring their own, which is sent as it is.
CHECKSUMS: Final = "checksums.blake3"
_SUM: Final = re.compile(r"([0-9a-f]{64})  (.+)")


def object_key(uri: ModelUri) -> str:
    """The key of a file in a mirror, or what the keys of a repository begin with."""
    return quote(str(uri).partition("://")[2], safe="")


def file_key(model: str, path: str) -> str:
    """The same for a model as it stands behind ``ngc://`` or ``hf://``; path "": what its keys begin with."""
    return quote(f"{model}?file={quote(path, safe='/+')}", safe="")


def manifest_key(manifest: bytes) -> str:
    """Where the manifest lies that a mirror was made for. No key of a model can begin like this: they hold
    no slash."""
    return f"manifests/{hashlib.sha256(manifest).hexdigest()[:16]}.yaml"


@dataclass(frozen=True, slots=True)
class MirrorFile:
    """One file of a repository. ``stored``: the file below the store's root, "" = it is not there.

    ``size`` in bytes, None = unknown; ``digests``: what the store verified, or the listing promises.
    """

    path: SafePath
    stored: str
    size: int | None
    digests: tuple[Digest, ...]

    @property
    def digest(self) -> Digest | None:
        return self.digests[0] if self.digests else None


@dataclass(frozen=True, slots=True)
class MirrorRepository:
    """``uri``: as it was asked for, of which the keys are made; ``at``: the immutable revision of that.

    ``whole``: ``files`` are all that the repository has.
    """

    uri: ModelUri
    at: ModelUri
    files: tuple[MirrorFile, ...]
    whole: bool

    @property
    def own_list(self) -> MirrorFile | None:
        """The repository's own ``checksums.blake3``."""
        return next((file for file in self.files if file.path == CHECKSUMS), None)

    @property
    def contents(self) -> tuple[MirrorFile, ...]:
        """What is sent before the list."""
        return tuple(file for file in self.files if file.path != CHECKSUMS)


@dataclass(frozen=True, slots=True)
class ExistingObject:
    """What a target has under a key. ``digests``: those of its content that can be believed without reading
    it; () = none can."""

    size: int
    digests: tuple[Digest, ...] = ()


class MirrorAction(StrEnum):
    """What a run did, or would do, with an object."""

    SENT = "sent"
    SKIPPED = "skipped"
    DIFFERS = "differs"  # found by a comparison that sends nothing
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class MirrorObject:
    """``size`` in bytes."""

    key: str
    size: int
    action: MirrorAction


def is_there(file: MirrorFile, standing: ExistingObject | None) -> bool:
    """Whether nothing has to be sent: the size, and every digest that both sides know."""
    if standing is None or file.size not in (None, standing.size):
        return False
    known = {digest.algorithm: digest.hex for digest in standing.digests}
    common = [digest for digest in file.digests if digest.algorithm in known]
    # A size alone proves nothing: an update of a model often keeps it.
    return bool(common) and all(known[digest.algorithm] == digest.hex for digest in common)


def checksum_list(digests: Mapping[str, str], before: bytes = b"") -> bytes:
    """The list as b3sum writes it, by path. ``before``: a list whose other files stay in it: another profile
    of the same repository brought them."""
    # What is sent now wins over an older list.
    lines = dict(digests_in(before)) | dict(digests)
    return "".join(f"{hexadecimal}  {path}\n" for path, hexadecimal in sorted(lines.items())).encode()


def digests_in(content: bytes) -> dict[str, str]:
    """BLAKE3 by path, from what :func:`checksum_list` wrote; other lines are none."""
    lines = map(_SUM.fullmatch, content.decode("utf-8", "replace").splitlines())
    return {line[2]: line[1] for line in lines if line}


def mirror_manifest(repositories: Iterable[MirrorRepository], blake3: Mapping[tuple[str, str], str]) -> bytes:
    """What was mirrored without a manifest, see :func:`nimpull.core.manifest.manifest_of`.

    ``blake3``: by repository and path. With one repository its files stand at their own paths, of several
    each has a directory of its own.
    """
    listed = tuple(repositories)
    files = {}
    for repository in listed:
        folder = "" if len(listed) == 1 else f"{repository.uri.repo_id.replace('/', '--')}/"
        for file in repository.files:
            entry = {"uri": str(repository.uri.with_path(file.path))}
            known = blake3.get((str(repository.uri), file.path))
            files[f"{folder}{file.path}"] = entry | ({"checksum": f"blake3:{known}"} if known else {})
    return manifest_of(files)


def check_mirrored(uris: Iterable[ModelUri]) -> None:
    """Raises UsageError for a source whose files have no key in a mirror."""
    for uri in uris:
        if uri.scheme not in ("ngc", "hf"):
            raise UsageError(
                f"{display(uri, 200)} has no place in a mirror: only models of ngc:// and hf:// do",
                hint="Copy a bucket or a web server with its own tools.",
            )


class VerifiedReader:
    """A file that is read once, in order, and is hashed on its way: what is sent is what was verified.

    Raises IntegrityError with the last byte, before a target has the whole, Cancelled and OSError.
    ``parts``: SHA-256 of each ``read``, of which S3 makes the checksum of an upload in parts; not kept
    unless ``in_parts``.
    """

    def __init__(self, opened: BinaryIO, file: MirrorFile, cancel: Cancel, *, in_parts: bool = False) -> None:
        self.size = file.size or 0
        self.parts: list[bytes] = []
        self._in_parts = in_parts
        self._opened = opened
        self._file = file
        self._cancel = cancel
        self._hashers: dict[str, Hasher] = {"blake3": new_hasher("blake3", self.size)}
        if file.digest:
            self._hashers.setdefault(file.digest.algorithm, new_hasher(file.digest.algorithm, self.size))
        self._position = 0

    def read(self, count: int = -1) -> bytes:
        if self._cancel.is_set():
            raise Cancelled("stopped while a file was sent", hint="Run again to continue.")
        wanted = self.size - self._position
        if count >= 0:
            wanted = min(count, wanted)
        block = self._opened.read(wanted) if wanted else b""
        if len(block) < wanted:
            raise IntegrityError(f"{self._name} became shorter while it was read", hint=_REPAIR)
        # boto3 reads a part at a time, so that each read is a part of the upload.
        if block and self._in_parts:
            self.parts.append(hashlib.sha256(block).digest())
        for hasher in self._hashers.values():
            hasher.update(block)
        self._position += len(block)
        # Before the last byte is handed over: a target that has not got it has not got the object.
        if self._position == self.size:
            self._check()
        return block

    def _check(self) -> None:
        expected = self._file.digest
        if expected and (found := self._hashers[expected.algorithm].hexdigest()) != expected.hex:
            raise IntegrityError(
                f"{self._name} is {expected.algorithm}:{found} and was committed as {expected}: "
                "it was not sent",
                hint=_REPAIR,
            )

    @property
    def _name(self) -> str:
        return f"“{display(self._file.stored, 300)}” of the store"

    @property
    def blake3(self) -> str:
        """Hexadecimal, once the whole was read."""
        return self._hashers["blake3"].hexdigest()

    # what boto3's transfer manager asks for to learn the size; it reads from the start then

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        if self._position not in (0, self.size) or self.parts:
            raise OSError("only a file of which nothing was read yet can be sought in")
        self._position = self.size if whence == 2 else offset
        return self._position

    def tell(self) -> int:
        return self._position


_REPAIR: Final = "Run nimpull verify --repair, then mirror again."


def part_size(size: int, least: int) -> int:
    """Bytes of each part but the last of an upload: ``least``, doubled until 10,000 parts are enough
    (Amazon S3 User Guide, "Multipart upload limits"; boto3's transfer manager does the same)."""
    part = least
    # -(-a // b) rounds up.
    while -(-size // part) > 10_000:
        part *= 2
    return part


class Target(Protocol):
    """Where a mirror is written. Thread-safe; every object appears whole or not at all.

    Raises SourceError, TransferError, StoreError, Cancelled. ``name``: as a user knows it.
    """

    name: str

    def key(self, repository: MirrorRepository, path: str) -> str:
        """Where the file itself stands."""
        ...

    def beside(self, key: str) -> str:
        """The key of something that belongs to no repository."""
        ...

    def look(self, repository: MirrorRepository) -> Mapping[str, ExistingObject]:
        """What is there of a repository, by key, without reading its content."""
        ...

    def compare(self, key: str, file: MirrorFile) -> bool:
        """Whether the content is that of ``file``: by a checksum that the target keeps, or by reading it."""
        ...

    def send(self, key: str, file: MirrorFile) -> str:
        """Replaces what is there, once the whole of the store's file was read and is what ``file`` says.
        Returns its BLAKE3."""
        ...

    def read(self, key: str) -> bytes | None:
        """A small object."""
        ...

    def write(self, key: str, content: bytes) -> None:
        """A small object, durable on return."""
        ...

    def check_room(self, size: int, files: int) -> None:
        """Before the first byte, where it can be told: ``size`` bytes in ``files`` are still to be sent."""
        ...

    def publish(self, repository: MirrorRepository, files: Mapping[str, MirrorFile]) -> None:
        """After the commit mark: what else readers look for. ``files``: by path, the mark among them, with
        the sizes and digests that are now known."""
        ...

    def close(self) -> None: ...
