"""Looking at the volume: what of a pull is there already. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nimpull.core.artifacts import Action, Artifact, Outcome
from nimpull.core.events import Note
from nimpull.core.names import MAX_STORED_BYTES, ModelUri, SafePath, display
from nimpull.core.ports import Emit
from nimpull.core.units import show_count, show_seconds
from nimpull.errors import NotWritableError, UsageError

if TYPE_CHECKING:
    from nimpull.store.layouts import StoredFile, StoreLayout
    from nimpull.store.ready import Ready
    from nimpull.wiring.cache import NimCacheStore


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of a request stand. ``second``: where another reader looks, by other names of the same
    files; ``only``: what has the files alone where that cannot be.
    """

    first: StoreLayout
    second: StoreLayout | None = None
    only: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """Content that needs no byte. ``committed``: it stands in its place and the record says so; ``cache``:
    the store that it is in, None = this one.
    """

    artifact: Artifact
    file: StoredFile
    action: Action
    committed: bool = False
    cache: NimCacheStore | None = None

    @property
    def outcome(self) -> Outcome:
        return Outcome.present(self.artifact, self.action, self.file.size, self.file.digest)


def find(artifact: Artifact, layout: StoreLayout, cache: NimCacheStore | None) -> Found | None:
    """In its place, elsewhere in this store, or in the NIM cache: the cheapest look first.

    Raises StoreError.
    """
    if file := layout.committed(artifact):
        return Found(artifact, file, Action.SKIPPED, committed=True)
    if file := layout.read(artifact):
        return Found(artifact, file, Action.SKIPPED)
    if file := layout.elsewhere(artifact):
        return Found(artifact, file, Action.LINKED)
    if cache and (file := cache.find(artifact)):
        return Found(artifact, file, Action.LINKED, cache=cache)
    return None


def unsettled(layout: StoreLayout, artifacts: Sequence[Artifact]) -> list[tuple[str, Artifact]]:
    """(path, artifact) of those that do not stand in their place, where they can: a planted link hinders."""
    found = []
    for artifact in artifacts:
        with suppress(NotWritableError):
            if not (layout.committed(artifact) or layout.read(artifact)):
                found.append((layout.path_of(artifact), artifact))
    return found


def outcomes_of(ready: Ready) -> tuple[Outcome, ...]:
    """By the marker alone."""
    source = ModelUri("file")
    with suppress(UsageError):  # anyone may have written the marker
        source = ModelUri.parse(ready.revisions[0]) if len(ready.revisions) == 1 else source
    return tuple(
        Outcome.present(
            Artifact(SafePath(file.path, MAX_STORED_BYTES), file.size, (file.digest,), source),
            Action.SKIPPED,
            file.size,
            file.digest,
        )
        for file in ready.files
    )


def tell_of_ready(ready: Ready, now: float, emit: Emit, *, options: bool) -> None:
    """What was looked at, and what not: bytes that rotted under an old time are for ``nimpull verify``.

    ``options``: whether the reader has those of nimpull.
    """
    what = ", ".join(display(revision, 200) for revision in ready.revisions[:2])
    more = f" and {len(ready.revisions) - 2} more" if len(ready.revisions) > 2 else ""
    files, age = show_count(len(ready.files), "file"), show_seconds(max(0.0, now - ready.time))
    ask = " (--refresh asks)" if options else ""
    emit(Note(f"complete already: {what}{more}"))
    emit(Note(f"{files}, size and time as when verified {age} ago; nothing was asked of the network{ask}"))
