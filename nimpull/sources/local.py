"""A directory as a source: a volume that already has the model, or an unpacked archive."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, unquote

from nimpull.core.artifacts import Artifact, Listing, Location, Wanted
from nimpull.core.names import ModelUri, Url, display
from nimpull.errors import NotFoundError, UsageError
from nimpull.sources.checksums import LISTS, add_checksums
from nimpull.sources.listing import Entries, narrowed, pinned, unverifiable


class LocalSource:
    """Implements :class:`nimpull.core.ports.Source`.

    Files are checked by the directory's own ``checksums.blake3`` or ``SHA256SUMS``, if it has one. The
    revision is a hash over names, sizes and times: it changes when the directory does.
    """

    def list(self, uri: ModelUri, wanted: Wanted) -> Listing:
        """Raises NotFoundError, ListingError; UsageError for ``file://host/…``. Follows links to files."""
        root = directory_of(uri)
        entries = Entries(uri)
        hasher = hashlib.sha256()
        for path, status in _files(root):
            # as web servers make an ETag of a file
            entries.add(path, status.st_size, (), f"{status.st_mtime_ns:x}-{status.st_size:x}")
            hasher.update(
                f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogatepass")
            )
        if name := next((name for name in LISTS if name in entries), ""):
            add_checksums(entries, (root / name).read_bytes(), name)
        repo = uri.repo.with_revision(hasher.hexdigest()[:40])
        artifacts = pinned(entries.artifacts(narrowed(wanted, uri)), repo)
        return Listing(repo, uri.revision, artifacts, Url(root.as_uri()), unverifiable(artifacts))

    def locate(self, artifact: Artifact, *, fresh: bool = False) -> Location:  # noqa: ARG002 - as the port has it
        root = directory_of(artifact.repo)
        return Location(Url(f"{root.as_uri().rstrip('/')}/{quote(artifact.path)}"))


def directory_of(uri: ModelUri) -> Path:
    """Of ``file:///DIR``. Raises UsageError for one of another host."""
    if uri.name not in ("", "localhost"):
        raise UsageError(
            f"a file URI names no host: “{display(uri, 200)}”",
            hint="Write three slashes: file:///directory.",
        )
    return Path("/" + unquote(uri.location).lstrip("/"))


def _files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Regular files below ``root`` in name order, links to them included."""

    def give_up(error: OSError) -> NoReturn:
        raise NotFoundError(
            f"cannot read the directory “{display(error.filename, 200)}”: {error.strerror}",
            hint="Check the path and its permissions.",
        ) from error

    for directory, folders, names in os.walk(root, onerror=give_up):
        folders.sort()
        for name in sorted(names):
            path = Path(directory) / name
            try:
                status = path.stat()
            except OSError as error:
                give_up(error)
            if stat.S_ISREG(status.st_mode):
                yield path.relative_to(root).as_posix(), status
