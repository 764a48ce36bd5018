"""From profiles to repositories, and from their listings to what is there and what has to be fetched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from nimpull.core.artifacts import Artifact, Listing, Outcome, Wanted
from nimpull.core.digest import Digest
from nimpull.core.manifest import Profile
from nimpull.core.names import ModelUri, SafePath
from nimpull.core.request import Repair
from nimpull.errors import ManifestError, UsageError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Needs:
    """Repositories with their wanted files, shared ones once; ``promised``: the manifest's own digests, by
    the file's identity.
    """

    repositories: Mapping[ModelUri, Wanted]
    promised: Mapping[str, Digest] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """``present``: outcomes that need no byte; ``missing``: artifacts to fetch; sizes in bytes.

    ``resumed``: bytes of the missing ones that an earlier run left half done.
    """

    present: tuple[Outcome, ...]
    missing: tuple[Artifact, ...]
    resumed: int = 0

    @property
    def total(self) -> int:
        return sum(o.size for o in self.present) + self.missing_bytes

    @property
    def missing_bytes(self) -> int:
        return sum(artifact.size or 0 for artifact in self.missing)

    @property
    def to_fetch(self) -> int:
        """What has to come over the network and needs room: never below 0, a journal may claim too much."""
        return max(0, self.missing_bytes - self.resumed)


def needs_of(profiles: Iterable[Profile]) -> Needs:
    """Raises ManifestError for a file whose URI names no model."""
    paths: dict[ModelUri, set[str]] = {}
    promised: dict[str, Digest] = {}
    for profile in profiles:
        for file in profile.files:
            uri = source_of(file.uri, profile)
            paths.setdefault(uri.repo, set()).add(uri.path)
            if file.digest:
                promised[str(uri)] = file.digest
    # a URI without a file means the whole repository, whatever single files others want of it
    wanted = {uri: Wanted() if "" in files else Wanted(frozenset(files)) for uri, files in paths.items()}
    return Needs(wanted, promised)


def needs_to_repair(repair: Repair) -> Needs:
    """The files that are lost, each with the digest that it had."""
    paths: dict[ModelUri, set[str]] = {}
    for lost in repair.lost:
        paths.setdefault(lost.uri.repo, set()).add(lost.uri.path)
    wanted = {uri: Wanted(frozenset(files)) for uri, files in paths.items()}
    return Needs(wanted, {str(lost.uri): lost.digest for lost in repair.lost})


def destinations(profiles: Iterable[Profile]) -> dict[str, SafePath]:
    """Where each file stands in a profile's workspace, by its identity. Raises ManifestError."""
    return {str(source_of(file.uri, profile)): file.path for profile in profiles for file in profile.files}


def resolved(by_identity: Mapping[str, T], listings: Mapping[ModelUri, Listing]) -> dict[str, T]:
    """The same by the identities that the listings gave the files: a URI may name a moving revision."""
    renamed = {}
    for identity, value in by_identity.items():
        # The manifest may say "hf", the listing the version that it is now: commits must meet by the latter.
        uri = ModelUri.parse(identity)
        listing = listings.get(uri.repo)
        renamed[str(listing.uri.with_path(uri.path)) if listing else identity] = value
    return renamed


def source_of(text: str, profile: Profile) -> ModelUri:
    """The URI of one of the profile's files. Raises ManifestError."""
    try:
        return ModelUri.parse(text)
    except UsageError as error:
        raise ManifestError(f"profile {profile.id[:12]}: {error.message}", hint=error.hint) from error


def completed(listing: Listing, promised: Mapping[str, Digest], endpoint: str) -> Listing:
    """With the digests that the manifest promises, by identity, and the registry that has the files."""
    if not promised and all(each.endpoint == endpoint for each in listing.artifacts):
        return listing  # of a million files there should not be two of each
    artifacts = []
    for each in listing.artifacts:
        digest = promised.get(each.identity) if promised else None
        digests = (*each.digests, digest) if digest else each.digests
        artifacts.append(Artifact(each.path, each.size, digests, each.repo, each.etag, endpoint))
    return replace(listing, artifacts=tuple(artifacts))


def distinct(listings: Sequence[Listing]) -> tuple[Artifact, ...]:
    """Each file once: profiles share files, and two revisions may be one commit."""
    if len(listings) == 1:
        return listings[0].artifacts
    found: list[Artifact] = []
    seen: dict[ModelUri, set[str]] = {}
    for listing in listings:
        for each in listing.artifacts:
            paths = seen.setdefault(each.repo, set())  # holds their own strings; identities would be new ones
            if each.path not in paths:
                paths.add(each.path)
                found.append(each)
    return tuple(found)
