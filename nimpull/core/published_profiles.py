"""What NIM's metadata service says of a NIM, judged by the rules that hold for the profiles of a manifest.

The service speaks for published images ("NIM Metadata API" 1.0.0, "Response Fields"). Nothing in its answer
is null and nothing is promised: a field that is absent is unknown, never false, 0 or "no". It names no files,
so it tells no sizes and cannot take the place of a manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nimpull.core.fit import Fitter, Match, Mismatch, Reason, Verdict
from nimpull.core.hardware import DeviceTable
from nimpull.core.manifest import Profile
from nimpull.core.names import display
from nimpull.errors import ListingError, UsageError

#: The service's fields by the tags of a manifest that mean the same.
_TAGS: Final = {
    "inference_backend": "llm_engine",
    "precision": "precision",
    "tensor_parallel_size": "tp",
    "pipeline_parallel_size": "pp",
    "latency": "profile",
    "feat_lora": "feat_lora",
    "buildable_profile": "trtllm_buildable",
    "min_vram_per_device_gb": "min_vram_per_device_gb",
}
#: Without these no profile fits for sure. A pipeline_parallel_size that is not there counts as 1, as in the
#: service's own example of how many GPUs a profile needs.
_TELLING: Final = {"tp": "how many GPUs it needs", "min_vram_per_device_gb": "how much memory on each"}


@dataclass(frozen=True, slots=True)
class Unknown:
    """Neither fits nor does not: what is not said, in words."""

    detail: str


@dataclass(frozen=True, slots=True)
class PublishedProfile:
    """``profile``: its tags as a manifest would have them, without those of the GPU where it names several:
    then each of ``variants`` names one.
    """

    profile: Profile
    variants: tuple[Profile, ...]

    def judge(self, fitter: Fitter, table: DeviceTable) -> Verdict | Unknown:
        """By the GPU that suits it best, or the nearest miss. Only what is said can say no."""
        tags = self.profile.tags
        verdicts = [fitter.verdict(variant) for variant in self.variants]
        if matches := [each for each in verdicts if isinstance(each, Match)]:
            unsaid = [words for tag, words in _TELLING.items() if tag not in tags]
            if unsaid:
                return Unknown(f"a GPU that it may run on; {' and '.join(unsaid)} is not said")
            # One of its GPUs is enough: the service lists those that the profile was made or tested for.
            return min(matches, key=lambda match: (match.busy, match.rank))
        misses = [each for each in verdicts if isinstance(each, Mismatch)]
        nearest = min(misses, key=lambda miss: (miss.reason, miss.distance))
        # The service sent something else than a number: that says nothing of the profile.
        if nearest.reason is Reason.BAD_TAG:
            return Unknown(nearest.detail)
        if nearest.reason is Reason.GPU and (names := [*self._strange(table)]):
            return Unknown(f"it names a GPU that is not known here: {', '.join(names)}")
        return nearest

    def _strange(self, table: DeviceTable) -> Iterator[str]:
        for variant in self.variants:
            name, device = variant.tags.get("gpu", ""), variant.tags.get("gpu_device", "")
            if name and not device and table.named(name) is None:
                yield display(name, 60)


def parse_resource(text: str) -> tuple[str, str]:
    """(resource, tag) of ``[nvcr.io/]nim/meta/llama-3.1-8b-instruct:1.8.5``, also with ``ngc://`` before it.

    Raises UsageError.
    """
    rest = text.partition("://")[2] or text
    path, *parts = rest.partition("@")[0].split("/")
    # A first part with a dot or a port is a registry's host, as in any image's name.
    parts = parts if "." in path or ":" in path or path == "localhost" else [path, *parts]
    name, _, tag = "/".join(parts).partition(":")
    if not tag or not 2 <= len(name.split("/")) <= 4 or not all(name.split("/")):
        raise UsageError(
            f"not a NIM with its tag: “{display(text, 200)}”",
            hint="The form is nim/meta/llama-3.1-8b-instruct:1.8.5, or the image: nvcr.io/nim/….",
        )
    return name, tag


def parse_metadata(document: object) -> tuple[PublishedProfile, ...]:
    """The profiles of an answer, in its order; () where it has none. Raises ListingError."""
    rows = document.get("profiles", []) if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ListingError(
            "the NIM metadata service answers with something else than profiles",
            hint="Check NGC_API_ENDPOINT; the service may speak a later version than nimpull knows.",
        )
    return tuple(_published(row) for row in rows)


def _published(row: Mapping[str, Any]) -> PublishedProfile:
    tags = {tag: text for field, tag in _TAGS.items() if (text := _text(row.get(field)))}
    names, devices = _texts(row.get("gpu")), _texts(row.get("gpu_device"))
    named: list[dict[str, str]]
    if len(names) <= 1 and len(devices) <= 1:
        both = {"gpu": "".join(names), "gpu_device": "".join(devices)}
        named = [{tag: text for tag, text in both.items() if text}]
    else:
        # The two lists do not go in pairs: each entry is a card of its own.
        named = [{"gpu_device": device} for device in devices] + [{"gpu": name} for name in names]
    own = named[0] if len(named) == 1 else {}
    name = display(_text(row.get("profile_id")), 128)
    variants = tuple(Profile(name, tags | each) for each in named)
    return PublishedProfile(Profile(name, tags | own), variants)


def _text(value: object) -> str:
    """As a manifest's tag would be written; "" for what is no text, number or truth."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value:g}" if abs(value) < 1e9 else "?"
        case str():
            return value.strip()
    return ""


def _texts(value: object) -> tuple[str, ...]:
    """Both forms are in use, one name and a list of them."""
    values = value if isinstance(value, list) else [value]
    return tuple(text for each in values if (text := _text(each)))
