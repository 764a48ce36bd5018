"""What the file system of a volume can do, and so how a store writes there.

=============  ==========================================================================================
*direct*       all of it: sparse files written past the page cache, renamed into place, linked
*plain*        writes at any offset and renames, but one of the others is missing: FAT, CIFS, blobfuse2
*sequential*   a file is written once, from its first byte on (mountpoint-s3 and others that stand for an
               object store): what is fetched is assembled elsewhere, then brought over in order, read
               back and compared, and its name is the last step
=============  ==========================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final


class WriteMode(StrEnum):
    DIRECT = "direct"
    PLAIN = "plain"
    SEQUENTIAL = "sequential"


@dataclass(frozen=True, slots=True)
class Abilities:
    """``offsets``: bytes may be written in any order; ``replacing``: rename(2) over another file; ``links``:
    hard ones; ``holes``: a file may be longer than what was written to it, at no cost; ``direct``: O_DIRECT.
    """

    offsets: bool = True
    replacing: bool = True
    links: bool = True
    symlinks: bool = True
    holes: bool = True
    direct: bool = True

    @property
    def mode(self) -> WriteMode:
        # Without either a file cannot be filled in, then named: it is assembled elsewhere and brought over.
        if not (self.offsets and self.replacing):
            return WriteMode.SEQUENTIAL
        return WriteMode.DIRECT if not self.missing else WriteMode.PLAIN

    @property
    def missing(self) -> tuple[str, ...]:
        """For people: "no hard links", …"""
        return tuple(f"no {_WORDS[each.name]}" for each in fields(self) if not getattr(self, each.name))


_WORDS: Final = {
    "offsets": "writes at an offset",
    "replacing": "rename over a file",
    "links": "hard links",
    "symlinks": "symbolic links",
    "holes": "sparse files",
    "direct": "O_DIRECT",
}
