"""From what a registry claims to a listing that can be trusted: safe names, no conflicts, within limits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final, TypeVar

from nimpull.core.artifacts import Artifact
from nimpull.core.digest import Digest
from nimpull.core.names import ModelUri, SafePath, display
from nimpull.core.ports import Wanted
from nimpull.errors import ListingError, NotFoundError

MAX_FILES: Final = 1_000_000
#: The Hub pages by 1,000 and NGC by 100 at the least; more pages than files at that rate is a loop.
MAX_PAGES: Final = MAX_FILES // 100
MAX_FILE_BYTES: Final = (1 << 63) - 1  # off_t
_QUESTIONS: Final = 8  # asked of one server at the same time
_REPORT: Final = "The listing comes from the registry; nothing was written. Report it to its owner."

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed file. ``size`` in bytes, None where it is not told."""

    path: SafePath
    size: int | None
    digests: tuple[Digest, ...] = ()
    etag: str = ""


class Entries:
    """The files of one revision, gathered from pages that may repeat. Every method raises ListingError."""

    def __init__(self, where: str) -> None:
        """``where`` names the repository in messages; it must be safe to print."""
        self._where = where
        self._entries: dict[SafePath, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def paths(self) -> frozenset[str]:
        return frozenset(self._entries)

    def add(
        self, path: object, size: object = None, digests: tuple[Digest, ...] = (), etag: str = ""
    ) -> None:
        """A repeated path must say the same; what one page leaves out another may add."""
        if not isinstance(path, str):
            raise ListingError(f"{self._where}: a listed file has no name", hint=_REPORT)
        entry = Entry(SafePath(path), self._size(path, size), digests, etag)
        known = self._entries.get(entry.path)
        self._entries[entry.path] = self._merge(known, entry) if known else entry
        if len(self._entries) > MAX_FILES:
            raise ListingError(
                f"{self._where} lists more than {MAX_FILES} files",
                hint="Name the files that are needed, in a repository of their own.",
            )

    def _size(self, path: str, size: object) -> int | None:
        if size is None:
            return None
        try:
            number = int(size) if isinstance(size, str) else size
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_FILE_BYTES:
            raise ListingError(
                f"{self._where}: “{display(path, 120)}” has the impossible size {display(size, 40)}",
                hint=_REPORT,
            )
        return number

    def _merge(self, known: Entry, entry: Entry) -> Entry:
        if None not in (known.size, entry.size) and known.size != entry.size:
            raise self._conflict(entry.path, f"{known.size} bytes", f"{entry.size} bytes")
        digests = {digest.algorithm: digest for digest in known.digests}
        for digest in entry.digests:
            before = digests.setdefault(digest.algorithm, digest)
            if before != digest:
                raise self._conflict(entry.path, str(before), str(digest))
        size = entry.size if known.size is None else known.size
        return Entry(known.path, size, tuple(digests.values()), known.etag or entry.etag)

    def _conflict(self, path: SafePath, one: str, other: str) -> ListingError:
        return ListingError(
            f"{self._where} lists “{display(path, 120)}” twice: as {one} and as {other}", hint=_REPORT
        )

    def artifacts(self, uri: ModelUri, wanted: Wanted) -> tuple[Artifact, ...]:
        """The wanted files in the order of the listing. Raises NotFoundError for an exact path not there."""
        self._refuse_file_as_directory()
        missing = sorted(wanted.paths - self._entries.keys())
        if missing:
            raise NotFoundError(
                f"{self._where} has no file “{display(missing[0], 120)}”"
                + (f" (and {len(missing) - 1} more that were asked for)" if len(missing) > 1 else ""),
                hint="Check the name and the revision; names are case-sensitive.",
            )
        chosen = [entry for entry in self._entries.values() if is_wanted(entry.path, wanted)]
        self._refuse_collisions(entry.path for entry in chosen)
        return tuple(
            Artifact(entry.path, entry.size, entry.digests, uri.with_path(entry.path), entry.etag)
            for entry in chosen
        )

    def _refuse_file_as_directory(self) -> None:
        for path in self._entries:
            segments = path.segments
            for depth in range(1, len(segments)):
                parent = "/".join(segments[:depth])
                if parent in self._entries:
                    raise ListingError(
                        f"{self._where} lists “{display(parent, 120)}” as a file and as a directory",
                        hint=_REPORT,
                    )

    def _refuse_collisions(self, paths: Iterable[SafePath]) -> None:
        seen: dict[str, SafePath] = {}
        for path in paths:
            other = seen.setdefault(path.collision_key, path)
            if other != path:
                raise ListingError(
                    f"{self._where} lists “{display(other, 120)}” and “{display(path, 120)}”, "
                    "which many file systems hold to be one name",
                    hint="Exclude one of them.",
                )


def is_wanted(path: str, wanted: Wanted) -> bool:
    """The globs are those of huggingface_hub: fnmatch over the whole path, ``dir/`` means ``dir/*``."""
    if wanted.paths and path not in wanted.paths:
        return False
    if wanted.include and not _any_match(path, wanted.include):
        return False
    return not _any_match(path, wanted.exclude)


def _any_match(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, f"{glob}*" if glob.endswith("/") else glob) for glob in patterns)


def with_sizes(
    artifacts: Iterable[Artifact], measure: Callable[[Artifact], int | None]
) -> tuple[Artifact, ...]:
    """Ask once for each size that the listing leaves out; None stays where ``measure`` cannot tell."""
    artifacts = tuple(artifacts)
    sizes = iter(at_once(measure, [artifact for artifact in artifacts if artifact.size is None]))
    return tuple(
        artifact if artifact.size is not None else replace(artifact, size=next(sizes))
        for artifact in artifacts
    )


def at_once(ask: Callable[[Item], Answer], items: Iterable[Item]) -> tuple[Answer, ...]:
    """The answers in the order of the items, a few questions at a time; raises what the first one raises."""
    with ThreadPoolExecutor(_QUESTIONS, thread_name_prefix="listing") as pool:
        return tuple(pool.map(ask, items))


def relative(path: Any) -> Any:
    """Some servers write a slash before the name, some ``./``."""
    return path.removeprefix("/").removeprefix("./") if isinstance(path, str) else path


def sealed(artifacts: Iterable[Artifact]) -> str:
    """40 hex digits for a source that has no revisions: another value once a file is another."""
    seal = hashlib.sha256()
    for artifact in sorted(artifacts, key=lambda one: one.path):
        known = (artifact.path, artifact.size, artifact.etag, *map(str, artifact.digests))
        seal.update("\0".join(map(str, known)).encode() + b"\n")
    return seal.hexdigest()[:40]


def as_digest(algorithm: str, text: object) -> tuple[Digest, ...]:
    """From hex, perhaps with its algorithm before it; what is no digest of that kind is none at all."""
    if not isinstance(text, str):
        return ()
    try:
        digest = Digest.parse(text, default=algorithm)
    except ValueError:
        return ()
    return (digest,) if digest.algorithm == algorithm else ()
