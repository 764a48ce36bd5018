"""What a mirror is made of and where it goes: repositories of the store, and a bucket or a directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO, Final

from nimpull.core.artifacts import Artifact, Wanted
from nimpull.core.manifest import parse_manifest
from nimpull.core.mirror_objects import MirrorFile, MirrorRepository, Target, VerifiedReader
from nimpull.core.names import ModelUri, SafePath, Url, display
from nimpull.core.plan import Needs, needs_of
from nimpull.core.report.contents import Report
from nimpull.core.request import MirrorTo
from nimpull.errors import StoreIOError
from nimpull.wiring.edges import Edges
from nimpull.wiring.fetch_limits import usable_memory

if TYPE_CHECKING:
    from nimpull.store.record import StoredFile

CONNECTIONS: Final = 8
#: Of the memory limit, what the parts under way may take.
_MEMORY_SHARE: Final = 4
_SLOT: Final = 24 << 20  # bytes: a part of 8 MiB under way, and a small file that a worker holds


class MirrorStore:
    """The files of one request as they lie in its store, and the target; opened on first use.

    ``report``: of the pull that made sure that they are there, or of a dry run of it.
    """

    def __init__(self, to: MirrorTo, edges: Edges, report: Report) -> None:
        self._to = to
        self._request = edges.volume.request
        self._edges = edges
        self._report = report

    @property
    def workers(self) -> int:
        """Files that are sent at a time."""
        settings = self._edges.settings
        memory = usable_memory(settings)
        affordable = CONNECTIONS if memory is None else max(1, memory // _MEMORY_SHARE // _SLOT)
        return min(CONNECTIONS, affordable, settings.connections or CONNECTIONS)

    # -- repositories ----------------------------------------------------------------------------------

    @cached_property
    def repositories(self) -> tuple[MirrorRepository, ...]:
        """As they were asked for. Raises StoreIOError for a file that is not as it was committed."""
        needs = self._needs.repositories
        key = self._request.selection_key(self._chosen, self._edges.endpoints(needs))
        ready = self._edges.volume.ready(key, needs)
        # without a marker it is a dry run of what is not there
        at = ready.revisions if ready else tuple(source.uri for source in self._report.sources)
        if len(needs) != len(at):
            raise StoreIOError(
                f"the store {display(self._request.store, 300)} is marked ready for other repositories",
                hint="Run again with --refresh.",
            )
        repositories = []
        for (uri, wanted), text in zip(needs.items(), at, strict=True):
            revision = ModelUri.parse(text).repo
            files = self._stored(revision, ready.files) if ready else self._listed(revision)
            whole = wanted == Wanted() and not uri.path
            repositories.append(MirrorRepository(uri.repo, revision, files, whole))
        return tuple(repositories)

    @property
    def _chosen(self) -> tuple[str, ...]:
        return self._report.selection.chosen if self._report.selection else ()

    @property
    def _needs(self) -> Needs:
        """The order of its repositories is that of the ready marker's revisions."""
        if not self._request.manifest:
            return Needs(dict.fromkeys(self._request.uris, self._request.wanted))
        chosen = frozenset(self._chosen)
        profiles = parse_manifest(self._request.manifest).profiles
        return needs_of(profile for profile in profiles if profile.id in chosen)

    def _stored(self, at: ModelUri, stored: Sequence[StoredFile]) -> tuple[MirrorFile, ...]:
        """The files of one revision among all of a ready marker."""
        layout, endpoint = self._edges.volume.places({}).first, self._edges.registries.endpoint(at)
        below = layout.path_of(Artifact(SafePath("x"), None, (), at)).removesuffix("x")
        files = []
        with self._edges.volume.store.tree.holding():
            for each in stored:
                if not each.path.startswith(below):
                    continue
                path = SafePath(each.path.removeprefix(below))
                artifact = Artifact(path, each.size, (each.digest,), at, endpoint=endpoint)
                file = layout.committed(artifact)
                if file is None:
                    raise StoreIOError(
                        f"{display(path, 200)} of {display(at, 200)} is not as it was committed",
                        hint="Run nimpull verify --repair, then mirror again.",
                    )
                files.append(MirrorFile(path, file.path, file.size, (file.digest,)))
        return tuple(files)

    def _listed(self, at: ModelUri) -> tuple[MirrorFile, ...]:
        return tuple(
            MirrorFile(outcome.artifact.path, "", outcome.artifact.size, outcome.artifact.digests)
            for outcome in self._report.artifacts
            if outcome.artifact.repo == at
        )

    # -- files -----------------------------------------------------------------------------------------

    def open(self, stored: str) -> BinaryIO:
        """By its path in the store. Raises StoreError."""
        tree = self._edges.volume.store.tree
        with tree.storing("read", stored):
            return os.fdopen(tree.open(stored), "rb", buffering=0)

    def read(self, file: MirrorFile) -> bytes:
        """A small one, as it was committed. Raises IntegrityError for another."""
        with self.open(file.stored) as opened:
            content = VerifiedReader(opened, file, self._edges.cancel)
            return content.read()

    # -- the target ------------------------------------------------------------------------------------

    @cached_property
    def target(self) -> Target:
        """To be closed. Raises UsageError, NotWritableError."""
        if self._to.target.startswith("s3://"):
            return self._bucket()
        from nimpull.sources.local import directory_of
        from nimpull.store.mirror_directory import DirectoryTarget

        target = self._to.target
        return DirectoryTarget(
            str(directory_of(ModelUri.parse(target))) if target.startswith("file://") else target,
            opened=self.open,
            cancel=self._edges.cancel,
            emit=self._edges.emit,
            read_only=self._request.dry_run,
        )

    def _bucket(self) -> Target:
        from nimpull.mirror.bucket import S3Target
        from nimpull.mirror.s3_client import s3_client
        from nimpull.sources.aws import aws_session

        settings, uri = self._edges.settings, ModelUri.parse(self._to.target)
        network, region = self._edges.network, settings.s3_region or "us-east-1"
        client = s3_client(
            aws_session(settings.s3_region, network.authorities.path),
            endpoint=settings.s3_endpoint,
            addressing=self._to.addressing,
            proxy=network.proxy_for(Url(settings.s3_endpoint or f"https://s3.{region}.amazonaws.com")),
            patient=settings.retry_seconds > 0,
            connections=self.workers + 2,
            emit=self._edges.emit,
        )
        return S3Target(
            client,
            uri.name,
            uri.location,
            opened=self.open,
            connections=self.workers,
            retry_seconds=settings.retry_seconds,
            clock=self._edges.clock,
            cancel=self._edges.cancel,
            emit=self._edges.emit,
        )
