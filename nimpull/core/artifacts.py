"""What a source lists, where a file can be fetched from now, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from nimpull.core.digest import Digest, strongest
from nimpull.core.names import ModelUri, SafePath, Url


@dataclass(frozen=True, slots=True)
class Artifact:
    """One remote file at an immutable revision.

    ``path``: below the snapshot, as the source lists it. ``size`` in bytes, None where the listing has none.
    ``repo``: the repository, one value for all its files, of which there may be a million. ``etag``: the
    name a hub cache gives the blob, where the listing knows it (git blob id or LFS sha256 on the Hub); NGC
    tells its ETag only with the bytes.
    ``endpoint``: of the registry that answers for it, without a secret, "" = the URI says it all.
    """

    path: SafePath
    size: int | None
    digests: tuple[Digest, ...]
    repo: ModelUri
    etag: str = ""
    endpoint: str = ""

    @property
    def uri(self) -> ModelUri:
        """Of this one file."""
        return self.repo.with_path(self.path)

    @property
    def revision(self) -> str:
        return self.repo.revision

    @property
    def identity(self) -> str:
        """Equal for the same remote content; the name of an ingest is a hash of it."""
        return self.repo.of_file(self.path)

    @property
    def digest(self) -> Digest | None:
        return self.digests[0] if len(self.digests) == 1 else strongest(self.digests)


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of one repository at one revision.

    ``uri`` has the immutable revision (commit or NGC version); ``requested`` is the revision that was asked
    for (``main``, ``latest``), which the layouts record as a ref.
    """

    uri: ModelUri
    requested: str
    artifacts: tuple[Artifact, ...]
    endpoint: Url
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which files of a repository: exact ``paths`` (empty = all), then include and exclude globs."""

    paths: frozenset[str] = frozenset()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Location:
    """Where an artifact's bytes can be had now.

    ``headers`` may hold a credential: they go to the origin of ``url`` only, never across a redirect.
    ``expires_at``: seconds since the epoch (presigned URLs), None = does not expire.
    """

    url: Url
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    expires_at: float | None = None


class Action(StrEnum):
    """What a run did, or would do, with an artifact."""

    SKIPPED = "skipped"  # committed and trusted already
    LINKED = "linked"  # the blob was in the store under another profile
    RESUMED = "resumed"
    FETCHED = "fetched"
    REPAIRED = "repaired"
    SENT = "sent"  # to a mirror


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one artifact. ``fetched``: bytes over the network; ``seconds``: wall time of its fetch.

    ``verified``: the algorithm that was checked ("blake3", "sha256", "git", "md5"), or "size".
    """

    artifact: Artifact
    action: Action
    fetched: int
    attempts: int
    seconds: float
    verified: str
    size: int
    digest: Digest | None = None

    @classmethod
    def present(cls, artifact: Artifact, action: Action, size: int, digest: Digest) -> Outcome:
        """Of content that needed no byte."""
        return cls(artifact, action, 0, 0, 0.0, digest.algorithm, size, digest)
