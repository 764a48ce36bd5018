"""Filling the volume: what was found is taken into its place, and the fetch writes the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from nimpull.core.artifacts import Artifact, Location, Outcome
from nimpull.core.events import Note
from nimpull.core.names import Url, display
from nimpull.core.ports import Cancel, Clock, Emit
from nimpull.core.units import show_bytes, show_count
from nimpull.settings import Settings
from nimpull.store import preflight
from nimpull.store.area import IngestArea
from nimpull.store.claims import Claims
from nimpull.store.layouts import Found, StoreLayout
from nimpull.store.resuming import present_of
from nimpull.store.scratch import ScratchRoom
from nimpull.store.sharing import SharedWork
from nimpull.store.store import Store


class Filling:
    """The store while it is filled. Raises StoreError."""

    def __init__(self, store: Store, layout: StoreLayout, *, clock: Clock, emit: Emit) -> None:
        self.layout = layout
        self._store = store
        self._clock = clock
        self._emit = emit

    @contextmanager
    def sharing(
        self, artifacts: Sequence[Artifact], claims: Claims, *, settings: Settings, cancel: Cancel
    ) -> Iterator[tuple[SharedWork, IngestArea]]:
        """What is missing as work that other pods may have begun, and where a fetch writes."""
        tree = self._store.tree
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
            fits=ScratchRoom(tree).fits if tree.has_scratch else None,
        )
        area = IngestArea(tree, self.layout, fence=work, monotonic=self._clock.monotonic)
        with closing(area) as ingests:
            yield work, ingests

    def resumable(self, artifacts: Sequence[Artifact]) -> int:
        """Bytes that earlier runs left of these."""
        return present_of(self._store.tree, artifacts)

    def _by_now(self, artifact: Artifact) -> Outcome | None:
        """What another pod may have brought since this one looked."""
        if self._store.tree.lstat(self.layout.path_of(artifact)):
            self._store.record.news()  # before it is read: a line of the record is cheaper
        found = self.layout.find(artifact)
        return found.outcome if found and self.layout.take(found) else None

    def take(
        self, found: Sequence[Found]
    ) -> tuple[tuple[Outcome, ...], tuple[Artifact, ...], dict[str, Location]]:
        """Let what was found stand in its place. Returns the outcomes, what cannot be linked, and where the
        NIM cache has that: it is copied from there, and checked on the way. Locations by identity."""
        with self._store.tree.holding():
            taken = [self.layout.take(each) is not None for each in found]
        linked = [each for each, done in zip(found, taken, strict=True) if done and each.tree]
        unlinked = [each for each, done in zip(found, taken, strict=True) if not done]
        copies = {
            each.artifact.identity: Location(Url(Path(each.tree.absolute(each.file.path)).as_uri()))
            for each in unlinked
            if each.tree
        }
        self._tell(linked, "are hard links to the NIM cache {}")
        self._tell(
            [each for each in unlinked if each.tree],
            "are in the NIM cache {} and are copied: no hard link can be made from there (another file "
            "system, or another owner)",
        )
        outcomes = tuple(each.outcome for each, done in zip(found, taken, strict=True) if done)
        return outcomes, tuple(each.artifact for each in unlinked), copies

    def _tell(self, found: Sequence[Found], what: str) -> None:
        if found and (tree := found[0].tree):
            size = show_bytes(sum(each.file.size for each in found))
            text = what.format(display(tree.root, 200))
            self._emit(Note(f"{show_count(len(found), 'file')}, {size}, {text}"))

    def check_targets(self, artifacts: Sequence[Artifact]) -> None:
        """Raises NotWritableError or ListingError for targets that a rename cannot reach or that are one."""
        tree = self._store.tree
        preflight.check_one_file_system(tree, [self.layout.path_of(each) for each in artifacts])
        folding = preflight.folds_names(tree)
        preflight.check_names([artifact.path for artifact in artifacts], folding=folding)
