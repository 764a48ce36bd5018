"""How large profiles are on disk, how much of that a store lacks, and the GPU memory that this hints at."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from nimpull.core.artifacts import Artifact, Listing
from nimpull.core.fit import BadTagError, Match, Verdict, requirement
from nimpull.core.hardware import Hardware
from nimpull.core.manifest import Profile
from nimpull.core.names import ModelUri
from nimpull.core.plan import source_of
from nimpull.core.units import show_bytes

#: KV cache, activations and CUDA graphs of a small context: what published needs exceed the weights by.
OVERHEAD: Final = 4 << 30
#: The share of a GPU's memory that the engines take by default (``--gpu-memory-utilization``).
USABLE: Final = 0.9


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes; None = unknown. ``weights``: the safetensors files, or all files where there are none."""

    total: int | None = None
    to_fetch: int | None = None
    weights: int | None = None


UNKNOWN: Final = Size()


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the sources told of a manifest's files. ``artifacts``: by the URI as the manifest writes it;
    ``missing``: identities that the store lacks, None = it could not be read; ``note``: why something is
    unknown, "" = nothing is.
    """

    artifacts: Mapping[str, tuple[Artifact, ...]] = field(default_factory=dict)
    missing: frozenset[str] | None = None
    note: str = ""

    @classmethod
    def of(
        cls,
        profiles: Iterable[Profile],
        listings: Mapping[ModelUri, Listing],
        missing: Iterable[Artifact] | None,
        note: str,
    ) -> Sizes:
        """``listings``: by the repository that was asked; ``missing``: in the store, None = it could not be
        read. Raises ManifestError for a URI of no model."""
        known: dict[tuple[ModelUri, str], tuple[Artifact, ...]] = {}
        for repository, listing in listings.items():
            known[repository, ""] = listing.artifacts
            known.update({(repository, each.path): (each,) for each in listing.artifacts})
        artifacts: dict[str, tuple[Artifact, ...]] = {}
        for profile in profiles:
            for file in profile.files:
                uri = source_of(file.uri, profile)
                if found := known.get((uri.repo, uri.path)):
                    artifacts[file.uri] = found
        return cls(artifacts, None if missing is None else frozenset(each.identity for each in missing), note)

    def of_one(self, profile: Profile) -> Size:
        """Unknown if one of its files is."""
        # A sum without one of the files would look like a small profile.
        if profile.problem or not profile.files or any(f.uri not in self.artifacts for f in profile.files):
            return UNKNOWN
        return self._of(self._files((profile,)))

    def together(self, profiles: Iterable[Profile]) -> tuple[Size, bool]:
        """Of those that are known, shared files counted once; and whether that is all of them."""
        asked = tuple(profiles)
        known = [profile for profile in asked if self.of_one(profile).total is not None]
        return self._of(self._files(known)), len(known) == len(asked)

    def _files(self, profiles: Iterable[Profile]) -> tuple[Artifact, ...]:
        return tuple(
            {
                artifact.identity: artifact
                for profile in profiles
                for file in profile.files
                for artifact in self.artifacts[file.uri]
            }.values()
        )

    def _of(self, files: Collection[Artifact]) -> Size:
        # Repositories often hold the weights twice, for another framework too, which is not loaded.
        weights = [artifact for artifact in files if artifact.path.endswith(".safetensors")]
        missing = self.missing
        return Size(
            _sum(files),
            None if missing is None else _sum([each for each in files if each.identity in missing]),
            _sum(weights or files),
        )


def _sum(files: Iterable[Artifact]) -> int | None:
    sizes = [artifact.size for artifact in files]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def memory_hint(profile: Profile, verdict: Verdict, hardware: Hardware, size: Size) -> str:
    """What each GPU would need by the weights, for a profile whose tags do not say; "" where they do, or
    where the weights are unknown. An estimate from published needs of NIM profiles: for the reader only, no
    verdict follows from it.
    """
    try:
        wanted = requirement(profile)
    except BadTagError:
        return ""
    if wanted.memory_gb is not None or size.weights is None:
        return ""
    estimate = size.weights // wanted.gpus + OVERHEAD
    hint = (
        f"about {show_bytes(estimate)} on each GPU ({show_bytes(size.weights)} of weights"
        f"{f' over {wanted.gpus} GPUs' if wanted.gpus > 1 else ''} and {show_bytes(OVERHEAD)})"
    )
    memories = [gpu.memory_total for gpu in hardware.gpus if gpu.memory_total]
    if not memories or not isinstance(verdict, Match):
        return hint
    smallest = min(memories)
    likely = (
        "should fit"
        if estimate <= smallest * USABLE
        else "may fit"
        if estimate <= smallest
        else "may not fit"
    )
    return f"{hint}: {likely} in {show_bytes(smallest)}"
