"""What a job does to the volume that it fills: look, take the lease, make room, give names, mark it ready."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from nimpull.core.artifacts import Action, Artifact, Listing, Outcome
from nimpull.core.events import Note
from nimpull.core.manifest import runtime_manifest
from nimpull.core.names import ModelUri, SafePath, display
from nimpull.core.plan import Plan
from nimpull.core.ports import Cancel, Clock, Emit
from nimpull.core.report import StoreSummary
from nimpull.core.request import LayoutKind, Request
from nimpull.core.units import show_bytes
from nimpull.errors import LeaseHeldError, NoSpaceError
from nimpull.settings import Settings

if TYPE_CHECKING:
    from nimpull.store.area import IngestArea
    from nimpull.store.layouts import StoreLayout
    from nimpull.store.lease import Lease
    from nimpull.store.store import Store
    from nimpull.wiring.cache import CacheStore

LEASE_PATIENCE: Final = 3600.0  # seconds to wait for another pod that pulls into the same store


class Volume:
    """The store of one request, and the NIM cache beside it; opened on first use.

    Raises StoreError, and what a method says beside it.
    """

    def __init__(
        self, request: Request, settings: Settings, *, clock: Clock, cancel: Cancel, emit: Emit
    ) -> None:
        self.destinations: Mapping[str, SafePath] = {}
        self._request = request
        self._settings = settings
        self._clock = clock
        self._cancel = cancel
        self._emit = emit
        self._named_twice: list[Artifact] = []
        self._told: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def store(self) -> Store:
        """Opened without a write: :meth:`preflight` probes once it is known that there is work."""
        from nimpull.store.store import Store

        return self._stack.enter_context(Store.open(self._request.store, read_only=True, cancel=self._cancel))

    @cached_property
    def layout(self) -> StoreLayout:
        """Where the files of this request stand."""
        if self._request.repair:
            return self.store.restored({str(each.uri): each for each in self._request.repair.lost})
        if self._request.layout is LayoutKind.LOCAL_DIR:
            return self.store.local_dir()
        if self._request.layout is LayoutKind.WORKSPACE:
            return self.store.workspace(self.destinations)
        return self.store.nim_cache(self._request.hub, self._request.ngc_hub)

    @cached_property
    def _second_layout(self) -> tuple[StoreLayout, str] | None:
        """Where else a reader looks, and its name; None where there is one place only.

        A model-free NIM looks at the store's root (NIM_MODEL_NAME) and into the hub cache (HF_HOME).
        """
        if self._request.runtime_manifest:
            return self.store.workspace(), "the hub cache"
        if self._request.layout is not LayoutKind.CACHE and self._request.hub:
            return self.store.hugging_face(self._request.hub), "the plain tree"
        return None

    @cached_property
    def cache(self) -> CacheStore | None:
        """The NIM cache that plain files are linked from; None where there is none."""
        from nimpull.wiring.cache import CacheStore

        path = self._request.cache
        if not path or not Path(path).is_dir():
            return None
        return self._stack.enter_context(
            CacheStore(path, self._settings.hf_hub_in(path), self._settings.ngc_hub_in(path), self._cancel)
        )

    def ready_outcomes(self, key: str) -> tuple[Outcome, ...] | None:
        """From the marker and stat calls alone; None = not ready."""
        if not Path(self._request.store).is_dir():
            return None
        ready = self.store.ready(key)
        written = self._request.runtime_manifest
        if ready is None or (written and not Path(written).is_file()):
            return None
        source = ModelUri.parse(ready.revisions[0]) if len(ready.revisions) == 1 else ModelUri("file")
        return tuple(
            Outcome(
                Artifact(SafePath(file.path), file.size, (file.digest,), source.with_path(file.path)),
                Action.SKIPPED,
                0,
                0,
                0.0,
                file.digest.algorithm,
                file.size,
                file.digest,
            )
            for file in ready.files
        )

    def preflight(self) -> None:
        """Raises NotWritableError before the first request."""
        if not self._request.dry_run:
            from nimpull.store.preflight import probe, probe_place

            probe(self._request.store)
            if self._request.runtime_manifest:
                probe_place(self._request.runtime_manifest)

    @contextmanager
    def leased(self) -> Iterator[None]:
        """While this run alone writes into the store. Waits an hour for another; then LeaseHeldError."""
        if self._request.dry_run:
            yield
            return
        try:
            held = self._lease(patience=0)
        except LeaseHeldError as busy:
            self._emit(Note(f"waiting for another run: {busy.message}", "warning"))
            held = self._lease(patience=LEASE_PATIENCE)
        with held.kept(self._cancel):
            yield

    def _lease(self, *, patience: float) -> Lease:
        owner = f"{os.uname().nodename}:{os.getpid()}"
        return self.store.lease(
            "pull", owner=owner, clock=self._clock, cancel=self._cancel, patience=patience
        )

    def remove_corrupt(self) -> None:
        """Before anything else: no reader shall meet it, also if its source cannot be reached."""
        if self._request.repair:
            self.store.remove(self._request.repair.corrupt)

    def looking(self) -> AbstractContextManager[None]:
        """Around many looks at the store: each directory of it is walked once."""
        return self.store.tree.holding() if Path(self._request.store).is_dir() else nullcontext()

    def present(self, artifact: Artifact) -> Outcome | None:
        """Committed and trusted, there and right, or elsewhere in this store: nothing to fetch."""
        if not os.path.isdir(self._request.store):  # a dry run makes no directory
            return None
        found = self.layout.trusted(artifact)
        action = Action.SKIPPED
        if found is None and self._request.dry_run:
            return None
        if found is None:
            found = self.layout.verify(artifact)
        if found is None and (found := self.layout.adopt(artifact)):
            action = Action.LINKED
        if found is None and self.cache and (found := self.cache.link(artifact, self.layout)):
            action = Action.LINKED
        if found is None:
            return None
        return Outcome(artifact, action, 0, 0, 0.0, found.digest.algorithm, found.size, found.digest)

    def tell_of_cache(self) -> None:
        for text in self.cache.notes() if self.cache else ():
            self._emit(Note(text))

    def check_room(self, plan: Plan) -> None:
        """Raises NoSpaceError: before the first byte, and for a plan alone."""
        promised, total = self._request.room, plan.total
        if promised is not None and total > promised:
            raise NoSpaceError(
                f"the selection needs {show_bytes(total)}, but storage.pvc.size is {show_bytes(promised)}: "
                f"short by {show_bytes(total - promised)}",
                hint="Ask for a larger volume (NIMCache: spec.storage.pvc.size), or choose fewer profiles.",
            )
        if Path(self._request.store).is_dir():
            # what was resumed has its files already; how many, only the ingests know
            self.store.check_room(plan.to_fetch, files=0 if plan.resumed else len(plan.missing))

    def check_targets(self, artifacts: Sequence[Artifact]) -> None:
        """Raises NotWritableError or ListingError for targets that a rename cannot reach or that are one."""
        from nimpull.store import preflight

        tree = self.store.tree
        preflight.check_one_file_system(tree, [self.layout.path_of(artifact) for artifact in artifacts])
        preflight.check_names([artifact.path for artifact in artifacts], folding=preflight.folds_names(tree))

    def finish(self, listing: Listing, *, complete: bool) -> None:
        self.layout.finish(listing, complete=complete)
        self._tell_of_home(listing)

    def _tell_of_home(self, listing: Listing) -> None:
        """A home outside of the store is lost with its pod: it is not used, and that is told once."""
        of_hub = listing.uri.scheme == "hf"
        name, home = ("HF_HOME", self._settings.hf_home) if of_hub else ("NGC_HOME", self._settings.ngc_home)
        used = self._request.hub if of_hub else self._request.ngc_hub
        if self._request.layout is LayoutKind.CACHE and home and not used and name not in self._told:
            self._told.add(name)
            where = f"{name}={display(home, 200)} is outside of the store {display(self._request.store, 200)}"
            self._emit(Note(f"{where}; the files are inside of it, where the next pod finds them", "warning"))

    def name_twice(self, listings: Sequence[Listing], *, complete: bool) -> None:
        """Second names where another reader looks: no second bytes. What cannot be is told once."""
        if self._second_layout is None:
            return
        layout, only = self._second_layout
        failed: dict[str, list[tuple[SafePath, str]]] = {}
        for listing in listings:
            for artifact in listing.artifacts:
                if reason := self.store.name_too(artifact, self.layout, layout):
                    kind = reason.rpartition(": ")[2]
                    failed.setdefault(kind, []).append((artifact.path, reason))
                else:
                    self._named_twice.append(artifact)
            if not failed:
                layout.finish(listing, complete=complete)
        for (path, reason), *others in failed.values():
            what = f"{len(others) + 1} files are" if others else f"{path} is"
            self._emit(Note(f"{what} only in {only}: {reason}", "warning"))

    def write_runtime_manifest(self, listings: Sequence[Listing]) -> None:
        """Where a model-free pull was told to; before the marker, which speaks for the whole."""
        if self._request.runtime_manifest:
            from nimpull.store.durable import replace_file, storing

            path = self._request.runtime_manifest
            with storing("write", path):
                replace_file(path, runtime_manifest(listings))

    def mark_ready(
        self, key: str, outcomes: Sequence[Outcome], plan: Sequence[Listing], ids: tuple[str, ...]
    ) -> None:
        """``key``: of the selection; ``ids``: of its profiles. Last of all, once every file is durable."""
        from nimpull.store.ready import Ready

        artifacts = [outcome.artifact for outcome in outcomes]
        self.ingests.sweep(artifacts)
        if self._request.repair:  # the markers that were there speak for what was restored
            self.store.make_links(self._request.repair.links)
            return
        files = self.store.files_of(self.layout, artifacts)
        second = self._second_layout
        names = self.store.files_of(second[0], self._named_twice) if second else ()
        revisions = tuple(str(listing.uri) for listing in plan)
        self.store.mark_ready(Ready(key, self.layout.name, self._clock.time(), files, revisions, ids, names))

    def summary(self, size: int = 0) -> StoreSummary:
        root = self._request.store
        free = self.store.room().bytes if Path(root).is_dir() else None
        return StoreSummary(root, self._request.layout.value, size, free)

    @cached_property
    def ingests(self) -> IngestArea:
        from nimpull.store.area import IngestArea

        area = IngestArea(self.store.tree, self.layout, monotonic=self._clock.monotonic)
        self._stack.callback(area.close)
        return area

    def resumable(self, artifacts: Sequence[Artifact]) -> int:
        """Bytes that an earlier run left half done of these."""
        if not Path(self._request.store).is_dir():
            return 0
        return self.ingests.present(artifacts)
