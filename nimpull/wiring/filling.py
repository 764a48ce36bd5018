"""Filling the volume: what was found is taken into its place, and the fetch writes the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from nimpull.core.artifacts import Artifact, Location, Outcome
from nimpull.core.events import Note
from nimpull.core.names import display
from nimpull.core.ports import Cancel, Clock, Emit
from nimpull.core.units import show_bytes, show_count
from nimpull.settings import Settings
from nimpull.wiring.looking import Found, Places, find, unsettled

if TYPE_CHECKING:
    from nimpull.store.area import IngestArea
    from nimpull.store.claims import Claims
    from nimpull.store.sharing import SharedWork
    from nimpull.store.store import Store


class Filling:
    """The store while it is filled. Raises StoreError."""

    def __init__(self, store: Store, places: Places, *, clock: Clock, emit: Emit) -> None:
        self._store = store
        self.places = places
        self._clock = clock
        self._emit = emit

    @contextmanager
    def sharing(
        self, artifacts: Sequence[Artifact], claims: Claims, *, settings: Settings, cancel: Cancel
    ) -> Iterator[tuple[SharedWork, IngestArea]]:
        """What is missing as work that other pods may have begun, and where a fetch writes."""
        from nimpull.store.area import IngestArea
        from nimpull.store.sharing import SharedWork

        work = SharedWork(
            artifacts,
            claims,
            self._by_now,
            self._store.record.news,
            pod=settings.pod,
            index=settings.pod_index,
            clock=self._clock,
            cancel=cancel,
            emit=self._emit,
            patience=settings.retry_seconds,
        )
        tree, layout = self._store.tree, self.places.first
        with closing(IngestArea(tree, layout, fence=work, monotonic=self._clock.monotonic)) as ingests:
            yield work, ingests

    def resumable(self, artifacts: Sequence[Artifact]) -> int:
        """Bytes that earlier runs left of these."""
        from nimpull.store.resuming import present_of

        return present_of(self._store.tree, artifacts)

    def _by_now(self, artifact: Artifact) -> Outcome | None:
        """What another pod may have brought since this one looked."""
        layout = self.places.first
        if self._store.tree.lstat(layout.path_of(artifact)):
            self._store.record.news()  # before it is read: a line of the record is cheaper
        found = find(artifact, layout, None)
        if found and (found.committed or layout.take(artifact, found.file)):
            return found.outcome
        return None

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
