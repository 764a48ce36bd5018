"""Filling the volume: what was found is taken into its place, and the fetch writes the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from nimpull.core.artifacts import Artifact, Location, Outcome
from nimpull.core.events import Note
from nimpull.core.names import Url, display
from nimpull.core.units import show_bytes, show_count
from nimpull.store import preflight
from nimpull.store.area import IngestArea
from nimpull.store.claims import Claims
from nimpull.store.layouts import Found, StoreLayout
from nimpull.store.scratch import ScratchRoom
from nimpull.store.sharing import SharedWork
from nimpull.wiring.volume import Volume


@contextmanager
def sharing(
    volume: Volume, layout: StoreLayout, artifacts: Sequence[Artifact], claims: Claims
) -> Iterator[tuple[SharedWork, IngestArea]]:
    """What is missing as work that other pods may have begun, and where a fetch writes. Raises StoreError."""
    tree, record, settings = volume.store.tree, volume.store.record, volume.settings

    def by_now(artifact: Artifact) -> Outcome | None:
        """What another pod may have brought since this one looked."""
        if tree.lstat(layout.path_of(artifact)):
            record.news()  # before it is read: a line of the record is cheaper
        found = layout.find(artifact)
        return found.outcome if found and layout.take(found) else None

    work = SharedWork(
        artifacts,
        claims,
        by_now,
        record.news,
        pod=settings.pod,
        index=settings.pod_index,
        clock=volume.clock,
        cancel=volume.cancel,
        emit=volume.emit,
        patience=settings.retry_seconds,
        fits=ScratchRoom(tree).fits if tree.has_scratch else None,
    )
    with closing(IngestArea(tree, layout, fence=work, monotonic=volume.clock.monotonic)) as ingests:
        yield work, ingests


def take(
    volume: Volume, layout: StoreLayout, found: Sequence[Found]
) -> tuple[tuple[Outcome, ...], tuple[Artifact, ...], dict[str, Location]]:
    """Let what was found stand in its place. Returns the outcomes, what cannot be linked, and where the
    NIM cache has that: it is copied from there, and checked on the way. Locations by identity."""
    with volume.store.tree.holding():
        taken = [layout.take(each) is not None for each in found]
    done = [each for each, there in zip(found, taken, strict=True) if there]
    unlinked = [each for each, there in zip(found, taken, strict=True) if not there]
    copies = {
        each.artifact.identity: Location(Url(Path(each.tree.absolute(each.file.path)).as_uri()))
        for each in unlinked
        if each.tree
    }
    _tell(volume, done, "are hard links to the NIM cache {}")
    _tell(
        volume,
        unlinked,
        "are in the NIM cache {} and are copied: no hard link can be made from there (another file "
        "system, or another owner)",
    )
    return tuple(each.outcome for each in done), tuple(each.artifact for each in unlinked), copies


def _tell(volume: Volume, found: Sequence[Found], what: str) -> None:
    """Of those that are in the NIM cache."""
    cached = [each for each in found if each.tree]
    if cached and (tree := cached[0].tree):
        size = show_bytes(sum(each.file.size for each in cached))
        text = what.format(display(tree.root, 200))
        volume.emit(Note(f"{show_count(len(cached), 'file')}, {size}, {text}"))


def check_targets(volume: Volume, layout: StoreLayout, artifacts: Sequence[Artifact]) -> None:
    """Raises NotWritableError or ListingError for targets that a rename cannot reach or that are one."""
    tree = volume.store.tree
    preflight.check_one_file_system(tree, [layout.path_of(each) for each in artifacts])
    preflight.check_names([each.path for each in artifacts], folding=preflight.folds_names(tree))
