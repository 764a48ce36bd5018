"""Filling the volume: what was found is taken into its place, and the fetch writes the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from nimpull.core.artifacts import Artifact, Location, Outcome
from nimpull.core.events import Note
from nimpull.core.names import display
from nimpull.core.ports import Clock, Emit
from nimpull.core.units import show_bytes, show_count
from nimpull.wiring.looking import Found, Places, unsettled

if TYPE_CHECKING:
    from nimpull.store.store import Store


class Filling:
    """The store while it is filled. ``ingests``: where a fetch writes. Raises StoreError."""

    def __init__(self, store: Store, places: Places, *, clock: Clock, emit: Emit) -> None:
        from nimpull.store.area import IngestArea

        self._store = store
        self.places = places
        self._emit = emit
        self.ingests = IngestArea(store.tree, places.first, monotonic=clock.monotonic)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ingests.close()

    def take(
        self, found: Sequence[Found]
    ) -> tuple[tuple[Outcome, ...], tuple[Artifact, ...], dict[str, Location]]:
        """Let what was found stand in its place. Returns the outcomes, what cannot be linked, and where the
        NIM cache has that: it is copied from there. Locations by identity."""
        outcomes: list[Outcome] = []
        unlinked: list[Artifact] = []
        copies: dict[str, Location] = {}
        with self._store.tree.holding():
            for each in found:
                of = each.cache.tree if each.cache else None
                if each.committed or self.places.first.take(each.artifact, each.file, of=of):
                    outcomes.append(each.outcome)
                    continue
                unlinked.append(each.artifact)
                if each.cache:
                    copies[each.artifact.identity] = each.cache.location(each.file)
        from_cache = [each for each in found if each.cache]
        self._tell(
            [each for each in from_cache if each.artifact.identity not in copies],
            "are hard links to the NIM cache {}",
        )
        self._tell(
            [each for each in from_cache if each.artifact.identity in copies],
            "are in the NIM cache {} and are copied: no hard link can be made from there (another file "
            "system, or another owner)",
        )
        return tuple(outcomes), tuple(unlinked), copies

    def _tell(self, found: Sequence[Found], what: str) -> None:
        if found and (cache := found[0].cache):
            size = show_bytes(sum(each.file.size for each in found))
            root = display(cache.tree.root, 200)
            self._emit(Note(f"{show_count(len(found), 'file')}, {size}, {what.format(root)}"))

    def check_targets(self, artifacts: Sequence[Artifact]) -> None:
        """Raises NotWritableError or ListingError for targets that a rename cannot reach or that are one."""
        from nimpull.store import preflight

        tree = self._store.tree
        preflight.check_one_file_system(tree, [self.places.first.path_of(each) for each in artifacts])
        preflight.check_names([artifact.path for artifact in artifacts], folding=preflight.folds_names(tree))


def check_owners(
    store: Store,
    places: Places,
    artifacts: Sequence[Artifact],
    moving: Sequence[Artifact],
    *,
    selection: str,
    emit: Emit,
) -> None:
    """Before anything changes: what nimpull did not write is replaced, and named in one line.

    ``moving``: the artifacts that get a file or a link. Raises NotWritableError for files of another
    model.
    """
    with store.tree.holding():
        targets = [(places.first.path_of(each), each) for each in moving]
        if places.second:
            targets += unsettled(places.second, artifacts)
    foreign = store.foreign(targets, selection)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        files = f"{display(foreign[0], 300)}{more} in {display(store.root, 200)}"
        emit(Note(f"replaced, for nimpull did not write it: {files}", "warning"))
