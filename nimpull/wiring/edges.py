"""Builds the edges of one job and wires them together: what :mod:`nimpull.job` tells, this makes happen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import cached_property
from threading import Event
from typing import TYPE_CHECKING, Self

from nimpull import __version__
from nimpull.clock import SystemClock
from nimpull.core.artifacts import Artifact, Listing, Location, Outcome, Wanted
from nimpull.core.digest import Digest
from nimpull.core.events import Event as JobEvent
from nimpull.core.events import Finished, Note, Phase
from nimpull.core.limits import FetchLimits
from nimpull.core.names import ModelUri
from nimpull.core.ports import Clock, Ingests, Supply
from nimpull.core.request import Request
from nimpull.settings import Settings
from nimpull.wiring.fetch_limits import fetch_limits
from nimpull.wiring.registries import Registries
from nimpull.wiring.report_writer import ReportWriter
from nimpull.wiring.volume import Volume

if TYPE_CHECKING:
    from nimpull.progress import Progress
    from nimpull.transport import HttpApi, Network, TransportPolicy
    from nimpull.transport.loop import Loop


def transport_policy(settings: Settings) -> TransportPolicy:
    from nimpull.transport import TransportPolicy

    return TransportPolicy(
        ca_files=settings.ca_files,
        ca_directories=settings.ca_directories,
        proxies=settings.proxies,
        user_agent=f"nimpull/{__version__}",
        retry_budget=settings.retry_seconds,
        connections=max(TransportPolicy().connections, settings.connections or 0),
    )


class Edges:
    """Context manager around one run. Everything with a socket, a file or a clock hangs here."""

    def __init__(self, request: Request, settings: Settings, *, cancel: Event, progress: Progress) -> None:
        self.settings = settings
        self.clock: Clock = SystemClock()
        self.cancel = cancel
        self.progress = progress
        self.finished: list[Outcome] = []  # so far: a failure's report has them too
        self._stack = ExitStack()
        self.volume = Volume(request, settings, self.clock, cancel, self.emit, self._stack)
        self.reporter = ReportWriter(request, settings, self.clock, progress)
        self._loop: Loop | None = None

    def emit(self, event: JobEvent) -> None:
        if isinstance(event, Finished):
            self.finished.append(event.outcome)
        self.progress(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.reporter.close()
        self._stack.close()

    @cached_property
    def network(self) -> Network:
        """What registry answers and bytes share. Raises TlsError for a CA bundle that cannot be read."""
        from nimpull.transport import Network

        return Network(transport_policy(self.settings), self.clock)

    @cached_property
    def api(self) -> HttpApi:
        """Made once a registry is needed: a store that is complete costs no TLS."""
        from nimpull.transport import HttpApi

        api = HttpApi(self.network, clock=self.clock, cancel=self.cancel, emit=self.emit)
        self._stack.callback(api.close)
        return api

    def prepare(self) -> None:
        """Before the first request: a volume that cannot be written is told in under a second, and a limit
        that is too low later looks like a fault of network or volume. Raises NotWritableError, LimitError.
        """
        self.volume.probe()
        self.limits: FetchLimits = fetch_limits(self.settings)

    @property
    def connections(self) -> int:
        """The most that brought files at one time."""
        return self._loop.most if self._loop else 0

    @cached_property
    def registries(self) -> Registries:
        return Registries(self.settings, self.clock, lambda: self.api)

    def endpoints(self, uris: Iterable[ModelUri]) -> tuple[str, ...]:
        """Of the registries that answer for them, sorted; without a secret."""
        return tuple(sorted({endpoint for uri in uris if (endpoint := self.registries.endpoint(uri))}))

    def list(self, uri: ModelUri, wanted: Wanted, promised: Mapping[str, Digest]) -> Listing:
        """``promised``: a manifest's digests by identity; what the NIM cache has whole is not asked for."""
        cache, endpoint = self.volume.cache, self.registries.endpoint(uri)
        listing = cache.listing(uri, wanted, promised, endpoint) if cache else None
        if listing is None:
            self.emit(Phase("listing", str(uri)))
            listing = self.registries.source(uri).list(uri, wanted)
        for note in listing.notes:
            self.emit(Note(note, "warning"))
        return listing

    def fetch(self, supply: Supply, ingests: Ingests, copies: Mapping[str, Location]) -> tuple[Outcome, ...]:
        """What the supply gives, verified and committed. ``copies``: nearer places of some, by identity.

        Raises NimpullError for the first that cannot be had.
        """
        from nimpull.fetch import Fetcher
        from nimpull.transport.loop import Loop

        def locate(artifact: Artifact, fresh: bool) -> Location:
            near = None if fresh else copies.get(artifact.identity)  # once that was tried, the source
            return near or self.registries.source(artifact.uri).locate(artifact, fresh=fresh)

        def connect() -> Loop:
            self._loop = Loop(self.network)
            return self._loop

        self.emit(Phase("fetching"))
        fetcher = Fetcher(
            locate,
            connect,
            ingests,
            clock=self.clock,
            cancel=self.cancel,
            emit=self.emit,
            pauses=self.network.pauses,
            limits=self.limits,
        )
        return fetcher.run(supply)
