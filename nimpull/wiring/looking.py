"""Looking at the volume: what of a pull is there already, and what is in its way. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from nimpull.core.artifacts import Action, Artifact, Listing, Outcome
from nimpull.core.events import Note, Phase
from nimpull.core.names import MAX_STORED_BYTES, ModelUri, SafePath, display
from nimpull.core.plan import distinct
from nimpull.core.units import show_count, show_seconds
from nimpull.errors import NotWritableError, UsageError
from nimpull.store.layouts import Found, FoundBy
from nimpull.store.owners import foreign
from nimpull.store.ready import Ready
from nimpull.wiring.volume import Places, Volume


def look(
    volume: Volume, places: Places, listings: Sequence[Listing], selection: str
) -> tuple[tuple[Found, ...], tuple[Artifact, ...]]:
    """(what needs no byte, what is missing). The NIM cache is looked into last. Raises StoreError, and
    NotWritableError for files of another model that are in the way."""
    volume.emit(Phase("checking what is there"))
    found: list[Found] = []
    missing: list[Artifact] = []
    if not volume.exists:  # a dry run makes none
        return (), distinct(listings)
    cache = volume.cache
    with volume.store.tree.holding():
        for artifact in distinct(listings):
            there = places.first.find(artifact) or (cache.find(artifact) if cache else None)
            if there:
                found.append(there)
            else:
                missing.append(artifact)
    _check_owners(volume, places, found, missing, selection)
    return tuple(found), tuple(missing)


def _check_owners(
    volume: Volume, places: Places, found: Sequence[Found], missing: Sequence[Artifact], selection: str
) -> None:
    """Before anything changes: what is replaced that is not as nimpull wrote it is named in one line."""
    store = volume.store
    moving = (*(each.artifact for each in found if each.by is FoundBy.ELSEWHERE), *missing)
    targets = [(places.first.path_of(each), each) for each in moving]
    if second := places.second:
        with store.tree.holding():
            for artifact in (*(each.artifact for each in found), *missing):
                with suppress(NotWritableError):  # a planted link: only the first place has it then
                    there = second.find(artifact)
                    if there is None or there.by is FoundBy.ELSEWHERE:
                        targets.append((second.path_of(artifact), artifact))
    unknown, changed = foreign(store.tree, store.record, selection, targets)
    for paths, why, level in (
        (unknown, "nimpull did not write it", "warning"),
        (changed, "it was changed since it was downloaded", "info"),
    ):
        if paths:
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            files = f"{display(paths[0], 300)}{more} in {display(store.root, 200)}"
            volume.emit(Note(f"to be replaced, for {why}: {files}", level))


def outcomes_of(ready: Ready) -> tuple[Outcome, ...]:
    """By the marker alone."""
    source = ModelUri("file")
    with suppress(UsageError):  # anyone may have written the marker
        source = ModelUri.parse(ready.revisions[0]) if len(ready.revisions) == 1 else source
    found = []
    for file in ready.files:
        artifact = Artifact(SafePath(file.path, MAX_STORED_BYTES), file.size, (file.digest,), source)
        found.append(Outcome.present(artifact, Action.SKIPPED, file.size, file.digest))
    return tuple(found)


def tell_of_ready(ready: Ready, volume: Volume) -> None:
    """What was looked at, and what not: bytes that rotted under an old time are for ``nimpull verify``."""
    what = ", ".join(display(revision, 200) for revision in ready.revisions[:2])
    more = f" and {len(ready.revisions) - 2} more" if len(ready.revisions) > 2 else ""
    files, age = (
        show_count(len(ready.files), "file"),
        show_seconds(max(0.0, volume.clock.time() - ready.time)),
    )
    ask = "" if volume.settings.drop_in else " (--refresh asks)"
    volume.emit(Note(f"complete already: {what}{more}"))
    volume.emit(
        Note(f"{files}, size and time as when verified {age} ago; nothing was asked of the network{ask}")
    )
