"""Lists of digests that lie beside the files: ``checksums.blake3`` in every NGC version, ``SHA256SUMS``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from nimpull.core.digest import Digest
from nimpull.core.mirror_objects import CHECKSUMS
from nimpull.sources.listing import Entries, as_digest, relative

#: Lists by name, with the algorithm of their digests; the first that is there is taken.
LISTS: Final = {CHECKSUMS: "blake3", "SHA256SUMS": "sha256"}
#: As b3sum and sha256sum (GNU coreutils) write it; the star says that the file was read as binary.
_LINE: Final = re.compile(r"([0-9A-Fa-f]{32,128}) [ *](.+)")


def checksum_lines(content: bytes, algorithm: str = "blake3") -> Iterator[tuple[str, Digest]]:
    """(path, digest) of each line ``<hex>  <path>``; other lines are not checksums."""
    for text in content.decode("utf-8", "replace").splitlines():
        line = _LINE.fullmatch(text)
        digests = as_digest(algorithm, line[1]) if line else ()
        if line and digests:
            yield relative(line[2]), digests[0]


def add_checksums(entries: Entries, content: bytes, name: str = CHECKSUMS) -> None:
    """Adds the digests of the list ``name`` to the files that are listed; of itself it can have none."""
    for path, digest in checksum_lines(content, LISTS[name]):
        if path in entries and path != name:
            entries.add(path, None, (digest,))
