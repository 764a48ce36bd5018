"""The journal of an ingest: what of a file is on the disk, as lines that a kill or a power cut may tear.

A line is a checkpoint: the digest of the file up to there, and a CRC of the line itself. A header
(``artifact``) says what the bytes are of: identity, size, digest, validator.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nimpull.core.artifacts import Artifact
from nimpull.core.ranges import Checkpoint, disjoint
from nimpull.store.record import UNREADABLE
from nimpull.store.tree import Tree

DATA, JOURNAL, ARTIFACT = "data", "journal", "artifact"
#: Of header and lines; of another one nothing is believed. Version 2 had chunks that were hashed alone.
VERSION: Final = 3
_MAX_HEADER: Final = 1 << 16  # bytes
_MAX_JOURNAL: Final = 64 << 20  # bytes; more lines than any file that fits a volume has chunks


@dataclass(frozen=True, slots=True)
class Written:
    """What an earlier run noted. ``size`` in bytes, -1 = nothing is known."""

    size: int
    validator: str
    checkpoints: tuple[Checkpoint, ...]

    @property
    def spans(self) -> Sequence[tuple[int, int]]:
        """[start, end) of the bytes that were noted, each once."""
        return tuple(disjoint(((each.start, each.end) for each in self.checkpoints), self.size))

    @property
    def present(self) -> int:
        """Bytes of these; nothing was read back."""
        return sum(end - start for start, end in self.spans)


NOTHING: Final = Written(-1, "", ())


def journal_line(checkpoint: Checkpoint) -> bytes:
    """``VERSION START END DIGEST CRC32``, offsets in bytes."""
    text = f"{VERSION} {checkpoint.start} {checkpoint.end} {checkpoint.digest.hex()}"
    return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


def parse_journal(content: bytes, size: int) -> tuple[Checkpoint, ...]:
    """Those of a journal, without lines that are torn, damaged, out of range or of another version."""
    found = (_parse_line(line, size) for line in content.split(b"\n"))
    return tuple(checkpoint for checkpoint in found if checkpoint is not None)


def _parse_line(line: bytes, size: int) -> Checkpoint | None:
    text, _, check = line.rpartition(b" ")
    fields = text.split(b" ")
    if len(fields) != 4 or check != b"%08x" % zlib.crc32(text) or fields[0] != b"%d" % VERSION:
        return None
    try:
        start, end, digest = int(fields[1]), int(fields[2]), bytes.fromhex(fields[3].decode("ascii"))
    except ValueError:
        return None
    good = 0 <= start < end <= size and 16 <= len(digest) <= 32
    return Checkpoint(start, end, digest) if good else None


def header(artifact: Artifact, size: int, validator: str) -> bytes:
    """What the bytes beside it are of. ``size`` of the whole file, in bytes."""
    return json.dumps(_facts(artifact, size, validator)).encode()


def _facts(artifact: Artifact, size: int, validator: str) -> dict[str, object]:
    return {
        "version": VERSION,
        "identity": artifact.identity,
        "size": size,
        "digest": str(artifact.digest or ""),
        "validator": validator,
    }


def load(tree: Tree, directory: str, artifact: Artifact) -> Written:
    """Of the ingest in ``directory``; nothing unless it is of this very artifact and of this version.

    Raises StoreError.
    """
    try:
        facts = json.loads(tree.read(f"{directory}/{ARTIFACT}", _MAX_HEADER) or b"")
        size, validator = facts["size"], facts["validator"]
    except UNREADABLE:
        return NOTHING
    good = type(size) is int and size >= 0 and artifact.size in (None, size) and isinstance(validator, str)
    if not good or facts != _facts(artifact, size, validator):
        return NOTHING
    journal = tree.read(f"{directory}/{JOURNAL}", _MAX_JOURNAL) or b""
    return Written(size, validator, parse_journal(journal, size))
