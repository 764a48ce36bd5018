"""Builds the edges of one job and wires them together: what :mod:`nimpull.job` tells, this makes happen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from nimpull import __version__
from nimpull.core.artifacts import Action, Artifact, Listing, Location, Outcome
from nimpull.core.digest import Digest
from nimpull.core.events import Event as JobEvent
from nimpull.core.events import Note, Phase, Waiting
from nimpull.core.hardware import DeviceTable, Hardware, Origin, parse_gpu_override
from nimpull.core.manifest import runtime_manifest
from nimpull.core.names import STATE_DIRECTORY, ModelUri, SafePath, display
from nimpull.core.ports import Body, Clock, Wanted
from nimpull.core.report import termination_message, to_text
from nimpull.core.reported import Report, State, StoreSummary
from nimpull.core.request import LayoutKind, Request
from nimpull.core.units import show_bytes
from nimpull.errors import LeaseHeldError, NoSpaceError, StoreError
from nimpull.settings import Settings

if TYPE_CHECKING:
    from nimpull.edges.cache import NimCache
    from nimpull.edges.registries import Registries
    from nimpull.fetch import FetchLimits
    from nimpull.progress import Progress
    from nimpull.store.ingest import IngestArea
    from nimpull.store.layouts import StoreLayout
    from nimpull.store.lease import Lease
    from nimpull.store.store import Store
    from nimpull.transport import Transport

REPORT_INTERVAL: Final = 5.0  # seconds between two rewrites of an unfinished report
CONNECTIONS_PER_CPU: Final = 16  # one verifies what about thirty of a throttled CDN bring
LEASE_PATIENCE: Final = 3600.0  # seconds to wait for another pod that pulls into the same store


def leave_message(path: str, report: Report) -> str:
    """Write the termination message where Kubernetes made a file for it; returns why it could not, or ""."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_TRUNC), "wb") as file:
            file.write(termination_message(report))
    except FileNotFoundError:
        return ""  # not in a pod
    except OSError as error:
        return f"the termination message could not be written: {error}"
    return ""


class Edges:
    """Context manager around one run. Everything with a socket, a file or a clock hangs here."""

    def __init__(
        self,
        request: Request,
        settings: Settings,
        *,
        clock: Clock,
        cancel: Event,
        progress: Progress,
        report_path: str = "",
    ) -> None:
        self.request = request
        self.settings = settings
        self.clock = clock
        self.cancel = cancel
        self.progress = progress
        self.draft: Report | None = None
        self.destinations: Mapping[str, SafePath] = {}
        self.retries = 0
        self._named_twice: list[Artifact] = []
        self._told: set[str] = set()
        self._report_path = report_path
        self._stack = ExitStack()
        self._done = Event()
        self._unpublished = Lock()
        self._writer: Thread | None = None

    def emit(self, event: JobEvent) -> None:
        if isinstance(event, Waiting):
            self.retries += 1
        self.progress(event)

    def __enter__(self) -> Self:
        self._stack.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._writer:
            self._writer.join()
        self._stack.__exit__(kind, value, trace)

    # -- hardware --------------------------------------------------------------------------------------

    @cached_property
    def table(self) -> DeviceTable:
        from nimpull.detect import shipped_table

        return shipped_table()

    def hardware(self, override: str) -> Hardware:
        if override:
            return Hardware(parse_gpu_override(override, self.table), origin=Origin.OVERRIDE)
        from nimpull.detect import detect

        return detect(lookup=self.table.find, cancel=self.cancel)

    # -- sources ---------------------------------------------------------------------------------------

    @cached_property
    def transport(self) -> Transport:
        from nimpull.transport import Transport, TransportPolicy

        settings = self.settings
        policy = TransportPolicy(
            ca_files=settings.ca_files,
            ca_directories=settings.ca_directories,
            http_proxy=settings.http_proxy,
            https_proxy=settings.https_proxy,
            no_proxy=settings.no_proxy,
            user_agent=f"nimpull/{__version__}",
            retry_budget=settings.retry_seconds,
            connections=max(TransportPolicy().connections, settings.connections or 0),
        )
        return self._stack.enter_context(
            Transport(policy, clock=self.clock, cancel=self.cancel, emit=self.emit)
        )

    @cached_property
    def registries(self) -> Registries:
        from nimpull.edges.registries import Registries

        return Registries(self.settings, self.clock, lambda: self.transport)

    def get(self, location: Location, start: int, end: int | None, *, fresh_connection: bool = False) -> Body:
        """Implements :class:`nimpull.core.ports.Get` over sockets and local files."""
        opened = self.registries.local if location.url.scheme == "file" else self.transport
        return opened(location, start, end, fresh_connection=fresh_connection)

    def list(self, uri: ModelUri, wanted: Wanted, promised: Mapping[str, Digest] | None = None) -> Listing:
        """``promised``: a manifest's digests by identity; what the NIM cache has whole is not asked for."""
        if self._cache and (listing := self._cache.listing(uri, wanted, promised or {})):
            return listing
        self.emit(Phase("listing", str(uri)))
        listing = self.registries.source(uri).list(uri, wanted)
        for note in listing.notes:
            self.emit(Note(note, "warning"))
        return listing

    def locate(self, artifact: Artifact, fresh: bool) -> Location:
        """Of the copy in the NIM cache, unless that was tried."""
        if self._cache and not fresh and (near := self._cache.location(artifact)):
            return near
        return self.registries.source(artifact.uri).locate(artifact, fresh=fresh)

    # -- store -----------------------------------------------------------------------------------------

    @cached_property
    def store(self) -> Store:
        """Opened without a write: :meth:`preflight` probes once it is known that there is work."""
        from nimpull.store.store import Store

        return self._stack.enter_context(Store.open(self.request.store, read_only=True))

    @cached_property
    def layout(self) -> StoreLayout:
        if self.request.repair:
            return self.store.restored({str(each.uri): each for each in self.request.repair.lost})
        if self.request.layout is LayoutKind.LOCAL_DIR:
            return self.store.local_dir()
        if self.request.layout is LayoutKind.WORKSPACE:
            return self.store.workspace(self.destinations)
        return self.store.nim_cache(self.request.hub, self.request.ngc_hub)

    @cached_property
    def _second_layout(self) -> tuple[StoreLayout, str] | None:
        """Where else a reader looks, and its name; None where there is one place only.

        A model-free NIM looks at the store's root (NIM_MODEL_NAME) and into the hub cache (HF_HOME).
        """
        if self.request.runtime_manifest:
            return self.store.workspace(), "the hub cache"
        if self.request.layout is not LayoutKind.CACHE and self.request.hub:
            return self.store.hugging_face(self.request.hub), "the plain tree"
        return None

    @cached_property
    def _cache(self) -> NimCache | None:
        from nimpull.edges.cache import NimCache

        path = self.request.cache
        if not path or not Path(path).is_dir():
            return None
        return self._stack.enter_context(
            NimCache(path, self.settings.hf_hub_in(path), self.settings.ngc_hub_in(path))
        )

    def ready_outcomes(self, key: str) -> tuple[Outcome, ...] | None:
        """From the marker and stat calls alone; None = not ready."""
        if not Path(self.request.store).is_dir():
            return None
        ready = self.store.ready(key)
        written = self.request.runtime_manifest
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

    def preflight(self, *, dry_run: bool) -> None:
        """Raises NotWritableError before the first request."""
        if not dry_run:
            from nimpull.store.preflight import probe

            probe(self.request.store)

    @contextmanager
    def lease(self, *, dry_run: bool) -> Iterator[None]:
        if dry_run:
            yield
            return
        try:
            held = self._lease(patience=0)
        except LeaseHeldError as busy:
            self.emit(Note(f"waiting for another run: {busy.message}", "warning"))
            held = self._lease(patience=LEASE_PATIENCE)
        with held.kept(self.cancel):
            yield

    def _lease(self, *, patience: float) -> Lease:
        owner = f"{os.uname().nodename}:{os.getpid()}"
        return self.store.lease("pull", owner=owner, clock=self.clock, cancel=self.cancel, patience=patience)

    def remove_corrupt(self) -> None:
        """Before anything else: no reader shall meet it, also if its source cannot be reached."""
        if self.request.repair:
            self.store.remove(self.request.repair.corrupt)

    def looking(self) -> AbstractContextManager[None]:
        """Around many looks at the store: each directory of it is walked once."""
        return self.store.tree.holding() if Path(self.request.store).is_dir() else nullcontext()

    def present(self, artifact: Artifact) -> Outcome | None:
        """Committed and trusted, there and right, or elsewhere in this store: nothing to fetch."""
        if not os.path.isdir(self.request.store):  # a dry run makes no directory
            return None
        found = self.layout.trusted(artifact)
        action = Action.SKIPPED
        if found is None and self.request.dry_run:
            return None
        if found is None:
            found = self.layout.verify(artifact)
        if found is None and (found := self.layout.adopt(artifact)):
            action = Action.LINKED
        if found is None and self._cache and (found := self._cache.link(artifact, self.layout)):
            action = Action.LINKED
        if found is None:
            return None
        return Outcome(artifact, action, 0, 0, 0.0, found.digest.algorithm, found.size, found.digest)

    def tell_of_cache(self) -> None:
        for text in self._cache.notes() if self._cache else ():
            self.emit(Note(text))

    def check_room(self, need: int, total: int, promised: int | None) -> None:
        if promised is not None and total > promised:
            raise NoSpaceError(
                f"the selection needs {show_bytes(total)}, but storage.pvc.size is {show_bytes(promised)}: "
                f"short by {show_bytes(total - promised)}",
                hint="Raise spec.storage.pvc.size, or choose fewer profiles.",
            )
        if Path(self.request.store).is_dir():
            self.store.check_room(need)

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
        name, home = ("HF_HOME", self.settings.hf_home) if of_hub else ("NGC_HOME", self.settings.ngc_home)
        used = self.request.hub if of_hub else self.request.ngc_hub
        if self.request.layout is LayoutKind.CACHE and home and not used and name not in self._told:
            self._told.add(name)
            where = f"{name}={display(home, 200)} is outside of the store {display(self.request.store, 200)}"
            self.emit(Note(f"{where}; the files are inside of it, where the next pod finds them", "warning"))

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
            self.emit(Note(f"{what} only in {only}: {reason}", "warning"))

    def write_runtime_manifest(self, listings: Sequence[Listing]) -> None:
        """Where a model-free pull was told to; before the marker, which speaks for the whole."""
        if self.request.runtime_manifest:
            from nimpull.store.durable import replace_file, storing

            path = self.request.runtime_manifest
            with storing("write", path):
                replace_file(path, runtime_manifest(listings))

    def mark_ready(
        self, key: str, outcomes: Sequence[Outcome], plan: Sequence[Listing], ids: tuple[str, ...]
    ) -> None:
        from nimpull.store.ready import Ready

        artifacts = [outcome.artifact for outcome in outcomes]
        self._ingests.sweep(artifacts)
        if self.request.repair:  # the markers that were there speak for what was restored
            self.store.make_links(self.request.repair.links)
            return
        files = self.store.files_of(self.layout, artifacts)
        second = self._second_layout
        names = self.store.files_of(second[0], self._named_twice) if second else ()
        revisions = tuple(str(listing.uri) for listing in plan)
        self.store.mark_ready(Ready(key, self.layout.name, self.clock.time(), files, revisions, ids, names))

    def store_summary(self, size: int = 0) -> StoreSummary:
        root = self.request.store
        free = self.store.room().bytes if Path(root).is_dir() else None
        return StoreSummary(root, self.request.layout.value, size, free)

    # -- transfer --------------------------------------------------------------------------------------

    @cached_property
    def _ingests(self) -> IngestArea:
        from nimpull.store.ingest import IngestArea

        area = IngestArea(
            self.request.store,
            self.layout,
            self.store.tree.holding,
            monotonic=self.clock.monotonic,
        )
        self._stack.callback(area.close)
        return area

    def resumable(self, artifacts: Sequence[Artifact]) -> int:
        """Bytes that an earlier run left half done of these."""
        if not Path(self.request.store).is_dir():
            return 0
        return self._ingests.present(artifacts)

    def fetch(self, artifacts: Sequence[Artifact]) -> tuple[Outcome, ...]:
        from nimpull.fetch import Fetcher

        self.emit(Phase("fetching"))
        fetcher = Fetcher(
            self.locate,
            self.get,
            self._ingests,
            clock=self.clock,
            cancel=self.cancel,
            emit=self.emit,
            limits=self.limits,
        )
        return fetcher.run(artifacts)

    @property
    def limits(self) -> FetchLimits:
        """What was asked for, or what the control group's CPU allows; never more than its memory allows."""
        from nimpull.detect.cgroup import cpu_limit, memory_limit
        from nimpull.fetch import FetchLimits

        settings, usual = self.settings, FetchLimits()
        cpus = cpu_limit()
        affordable = usual.connections if cpus is None else max(2, int(cpus * CONNECTIONS_PER_CPU))
        limits = replace(
            usual,
            connections=min(usual.connections, affordable),
            small_connections=min(
                usual.small_connections, usual.small_connections // usual.connections * affordable
            ),
            retry_budget=settings.retry_seconds,
        )
        if settings.connections:
            limits = limits.with_most(settings.connections)
        memory = [limit for limit in (memory_limit(), settings.memory_limit) if limit is not None]
        return limits.within(min(memory, default=None))

    # -- report ----------------------------------------------------------------------------------------

    def drafted(self, report: Report) -> Report:
        """Remember how far it is, for the in-progress file and for a failure's report."""
        self.draft = report
        if self._writer is None and not self.request.dry_run:
            self._writer = Thread(target=self._keep_writing, name="nimpull-report", daemon=True)
            self._writer.start()
        return report

    def _keep_writing(self) -> None:
        while not self._done.wait(REPORT_INTERVAL):
            draft = self.draft
            if draft and Path(self.request.store, STATE_DIRECTORY).is_dir():
                now = self.clock.time()
                self._write(replace(draft, updated=now, progress=self.progress.snapshot()))

    def publish(self, report: Report) -> None:
        """The file, and the termination message where Kubernetes reads one. Never hides the job's outcome."""
        if report.state is State.IN_PROGRESS or not self._unpublished.acquire(blocking=False):
            return  # or a run that was given up came to its end after all: the first word stands
        self._write(report)
        if problem := leave_message(self.settings.termination_log, report):
            self.emit(Note(problem, "warning"))

    def _write(self, report: Report) -> None:
        from nimpull.store.durable import replace_file

        content = to_text(report).encode()
        try:
            if self._report_path and self._report_path != "-":
                replace_file(self._report_path, content)
            elif Path(self.request.store).is_dir() and not self.request.repair:
                self.store.tree.write(f"{STATE_DIRECTORY}/report.json", content, durable=False)
        except (StoreError, OSError) as error:
            self.emit(Note(f"the report could not be written: {error}", "warning"))
