"""From what a registry claims to a listing that can be trusted: safe names, no conflicts, within limits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Final, TypeVar

from nimpull.core.artifacts import Artifact, Wanted
from nimpull.core.digest import Digest
from nimpull.core.names import ModelUri, SafePath, display
from nimpull.errors import ListingError, NotFoundError

MAX_FILES: Final = 1_000_000
#: The Hub pages by 1,000 and NGC by 100 at the least; more pages than files at that rate is a loop.
MAX_PAGES: Final = MAX_FILES // 100
MAX_FILE_BYTES: Final = (1 << 63) - 1  # off_t
_QUESTIONS: Final = 8  # asked of one server at the same time
_REPORT: Final = "The listing comes from the registry; nothing was written. Report it to its owner."

Item = TypeVar("Item")
Told = TypeVar("Told")


class Entries:
    """The files of one repository, gathered from pages that may repeat. Every method raises ListingError.

    There may be a million of them, so each is held once, as the artifact that it becomes.
    """

    def __init__(self, repo: ModelUri, where: str = "", endpoint: str = "") -> None:
        """``where``: the place of ``repo`` in messages, if that is not its URI; it must be safe to print.
        ``endpoint``: of the artifacts, if it is known here."""
        self._repo = repo.repo
        self._where = where or display(repo.repo)
        self._endpoint = endpoint
        self._files: dict[str, Artifact] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, path: str) -> bool:
        return path in self._files

    def add(
        self, path: object, size: object = None, digests: tuple[Digest, ...] = (), etag: str = ""
    ) -> SafePath:
        """A repeated path must say the same; what one page leaves out another may add.

        ``size`` in bytes, as a number or its text; None where it is not told. Returns the path as it is held.
        """
        if not isinstance(path, str):
            raise ListingError(f"{self._where}: a listed file has no name", hint=_REPORT)
        file = Artifact(SafePath(path), self._size(path, size), digests, self._repo, etag, self._endpoint)
        known = self._files.get(file.path)
        file = self._files[file.path] = self._merge(known, file) if known else file
        if len(self._files) > MAX_FILES:
            raise ListingError(
                f"{self._where} lists more than {MAX_FILES} files",
                hint="Name the files that are needed, in a repository of their own.",
            )
        return file.path

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

    def _merge(self, known: Artifact, file: Artifact) -> Artifact:
        if None not in (known.size, file.size) and known.size != file.size:
            raise self._conflict(file.path, f"{known.size} bytes", f"{file.size} bytes")
        digests = {digest.algorithm: digest for digest in known.digests}
        for digest in file.digests:
            before = digests.setdefault(digest.algorithm, digest)
            if before != digest:
                raise self._conflict(file.path, str(before), str(digest))
        size = file.size if known.size is None else known.size
        return replace(known, size=size, digests=tuple(digests.values()), etag=known.etag or file.etag)

    def _conflict(self, path: SafePath, one: str, other: str) -> ListingError:
        return ListingError(
            f"{self._where} lists “{display(path, 120)}” twice: as {one} and as {other}", hint=_REPORT
        )

    def artifacts(self, wanted: Wanted) -> tuple[Artifact, ...]:
        """The wanted files in the order of the listing. Raises NotFoundError for an exact path not there."""
        self._refuse_file_as_directory()
        missing = sorted(wanted.paths - self._files.keys())
        if missing:
            raise NotFoundError(
                f"{self._where} has no file “{display(missing[0], 120)}”"
                + (f" (and {len(missing) - 1} more that were asked for)" if len(missing) > 1 else ""),
                hint="Check the name and the revision; names are case-sensitive.",
            )
        chosen = tuple(file for file in self._files.values() if is_wanted(file.path, wanted))
        self._refuse_collisions(chosen, wanted)
        return chosen

    def _refuse_file_as_directory(self) -> None:
        for path in self._files:
            parent = path.rpartition("/")[0]
            while parent and parent not in self._files:
                parent = parent.rpartition("/")[0]
            if parent:
                raise ListingError(
                    f"{self._where} lists “{display(parent, 120)}” as a file and as a directory",
                    hint=_REPORT,
                )

    def _refuse_collisions(self, chosen: Iterable[Artifact], wanted: Wanted) -> None:
        """Only names that are not their own key are gathered: mostly there are none, of a million."""
        others: dict[str, SafePath] = {}
        for path in (file.path for file in chosen):
            key = path.collision_key
            if key == path:
                continue
            plain = self._files.get(key)
            other = plain.path if plain and is_wanted(key, wanted) else others.setdefault(key, path)
            if other != path:
                raise ListingError(
                    f"{self._where} lists “{display(other, 120)}” and “{display(path, 120)}”, "
                    "which many file systems hold to be one name",
                    hint="Exclude one of them.",
                )


def narrowed(wanted: Wanted, uri: ModelUri) -> Wanted:
    """``wanted``, and the one file that ``uri`` names, if it names one."""
    return replace(wanted, paths=wanted.paths | {uri.path}) if uri.path else wanted


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


def at_once(ask: Callable[[Item], Told], items: Iterable[Item]) -> tuple[Told, ...]:
    """The answers in the order of the items, a few questions at a time; raises what the first one raises."""
    with ThreadPoolExecutor(_QUESTIONS, thread_name_prefix="listing") as pool:
        return tuple(pool.map(ask, items))


def relative(path: Any) -> Any:
    """Some servers write a slash before the name, some ``./``."""
    return path.removeprefix("/").removeprefix("./") if isinstance(path, str) else path


def revision_of(artifacts: Iterable[Artifact]) -> str:
    """40 hex digits for a source that has no revisions: another value once a file is another."""
    hasher = hashlib.sha256()
    for artifact in sorted(artifacts, key=lambda one: one.path):
        known = (artifact.path, artifact.size, artifact.etag, *map(str, artifact.digests))
        hasher.update("\0".join(map(str, known)).encode() + b"\n")
    return hasher.hexdigest()[:40]  # as long as a commit: layouts treat it as one


def pinned(artifacts: Iterable[Artifact], repo: ModelUri) -> tuple[Artifact, ...]:
    """The same, of a repository whose revision is known only now."""
    return tuple(replace(artifact, repo=repo) for artifact in artifacts)


def unverifiable(artifacts: Sequence[Artifact]) -> tuple[str, ...]:
    """A note on the files of which nothing but the size can be checked."""
    weak = [artifact for artifact in artifacts if not artifact.digests]
    if not weak:
        return ()
    first = f"“{display(weak[0].path, 120)}”"
    what = f"{first} has" if len(weak) == 1 else f"{len(weak)} files, {first} among them, have"
    return (f"{what} no checksum that could be checked: only the size is",)


def as_digest(algorithm: str, text: object) -> tuple[Digest, ...]:
    """From hex, perhaps with its algorithm before it; what is no digest of that kind is none at all."""
    if not isinstance(text, str):
        return ()
    try:
        digest = Digest.parse(text, default=algorithm)
    except ValueError:
        return ()
    return (digest,) if digest.algorithm == algorithm else ()
