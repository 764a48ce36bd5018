"""Which profiles a node can run, by which rule, or what is missing.

A profile names its GPU in up to four ways: ``gpu_device`` (a PCI id), ``gpu`` or ``key`` (a family), and
``product_name_regex``. The first that holds decides; a profile with none of them is generic. Then it needs
tp x pp GPUs of one kind and, where ``min_vram_per_device_gb`` says so, that much memory on each (decimal
GB).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

import regex

from nimpull.core.criteria import compile_re2
from nimpull.core.hardware import DeviceTable, Gpu, Hardware, normal_device_id
from nimpull.core.manifest import Profile
from nimpull.core.names import display
from nimpull.core.preference import Rank, rank
from nimpull.core.units import show_counts

GB: Final = 1_000_000_000
#: An 80 GB card must not fail a need of 80 GB because the driver keeps a little for itself.
MEMORY_SLACK: Final = 0.98
#: Above this share of memory in use NIM 1.x calls a GPU "non-free" (between 3 % and 7 % as observed).
FREE_LIMIT: Final = 0.05
MAX_PATTERN: Final = 512
#: The backtracking engine gets plain groups, lookarounds and counts. It expands counted repeats when it
#: compiles, so nested ones would take all memory; recursion and fuzzy matching are its own inventions.
_GROUP: Final = regex.compile(r"\(\?(?!:|=|!|<=|<!|i\)|i:)")
_COUNT: Final = regex.compile(r"\{(?:(\d+)(?:,(\d*))?\})?")
_MAX_REPEATS: Final = 1000  # RE2's own limit
_PATTERN_SECONDS: Final = 0.05
_MAX_TIMEOUTS: Final = 8
_MAX_GPUS: Final = 4096
#: The compute capability that a precision is made for, as recent NIMs have it (cosmos3 2.0.0: BF16 for 8.0 to
#: 8.8, FP8 for 8.9 to 9.x, NVFP4 from 10.0 on). It speaks for profiles that name no GPU.
_CAPABILITIES: Final = {"bf16": (8, 0), "fp8": (8, 9), "nvfp4": (10, 0)}
_CAPABILITY: Final = re.compile(r"(\d{1,3})\.(\d{1,3})", re.ASCII)


class MatchRule(StrEnum):
    """The rule by which a profile and a GPU met."""

    EXACT = "exact"
    FAMILY = "family"
    PATTERN = "pattern"
    GENERIC = "generic"


class Reason(IntEnum):
    """Why not, nearest miss first."""

    MEMORY = 1
    COUNT = 2
    MIG = 3
    CAPABILITY = 4
    NO_GPU = 5
    GPU = 6
    BAD_PATTERN = 7
    BAD_TAG = 8


@dataclass(frozen=True, slots=True)
class Match:
    """Runs here. ``busy``: enough memory in total, too little of it free now. ``note``: for the reader."""

    rank: Rank
    how: MatchRule
    detail: str
    busy: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Does not run here: why, in words, and what would have to change."""

    reason: Reason
    detail: str
    change: str
    distance: int = 0


Verdict = Match | Mismatch


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a profile requires: GPUs in all, and decimal GB on each (None = not said)."""

    gpus: int
    memory_gb: float | None


class BadTagError(ValueError):
    """A tag that should be a number is not."""


def requirement(profile: Profile) -> Requirement:
    """Raises BadTagError."""
    tags = profile.tags
    if tags.get("tp") or tags.get("pp"):
        gpus = _whole(tags, "tp") * _whole(tags, "pp")
    else:
        gpus = _whole(tags, "number_of_gpus")
    if not 1 <= gpus <= _MAX_GPUS:
        raise BadTagError(f"{gpus} GPUs")
    return Requirement(gpus, _memory(tags.get("min_vram_per_device_gb", "")))


def _whole(tags: Mapping[str, str], key: str) -> int:
    text = tags.get(key, "")
    if not text:
        return 1
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise BadTagError(f"tag {key} is “{display(text, 40)}”, not a number")
    return int(text)


def gpu_option(profile: Profile, wanted: Requirement) -> str:
    """What ``--gpu`` would say for hardware that this profile is made for: ``H100:2``."""
    card = next((profile.tags[key] for key in ("gpu", "key", "gpu_device") if profile.tags.get(key)), "H100")
    return f"{display(card, 60)}:{wanted.gpus}"


def _memory(text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise BadTagError(f"tag min_vram_per_device_gb is “{display(text, 40)}”, not a number")
    return value


class Fitter:
    """Answers for one node. Holds the answers of product patterns, which come back in many profiles."""

    def __init__(self, hardware: Hardware, table: DeviceTable) -> None:
        self._gpus = hardware.gpus
        self._table = table
        self._patterns: dict[tuple[str, str], bool | None] = {}
        self._timeouts = 0

    def verdict(self, profile: Profile) -> Verdict:
        try:
            wanted = requirement(profile)
        except BadTagError as cause:
            return Mismatch(Reason.BAD_TAG, str(cause), "the manifest must be corrected")
        if not self._gpus:
            target = wanted_gpu(profile) or "GPU"
            return Mismatch(
                Reason.NO_GPU,
                f"needs {wanted.gpus}x {target}, no GPU found",
                f"run where the GPUs are visible, or name them: --gpu {gpu_option(profile, wanted)}",
            )
        try:
            how, matching = self._matching(profile)
        except BadPatternError as cause:
            return Mismatch(Reason.BAD_PATTERN, str(cause), "the manifest must be corrected")
        if not matching:
            target = wanted_gpu(profile)
            return Mismatch(
                Reason.GPU,
                f"needs {wanted.gpus}x {target}, found {show_counts(map(self._name, self._gpus))}",
                f"{wanted.gpus}x {target}",
                wanted.gpus,
            )
        return self._enough(profile, wanted, how, matching)

    def _matching(self, profile: Profile) -> tuple[MatchRule, tuple[Gpu, ...]]:
        """The rule that holds, and the GPUs it holds for. Raises BadPatternError."""
        tags = profile.tags
        device_id = normal_device_id(tags.get("gpu_device", ""))
        families = [tags[key] for key in ("gpu", "key") if tags.get(key)]
        pattern = tags.get("product_name_regex", "")
        # The id is what NVIDIA says to match on: names of one card change with the driver.
        exact = tuple(gpu for gpu in self._gpus if device_id and normal_device_id(gpu.device_id) == device_id)
        if exact:
            return MatchRule.EXACT, exact
        # But not alone: NIM 1.0 manifests give the L40S the id of the L40, and NIM runs them on an L40S.
        family = tuple(
            gpu for gpu in self._gpus if any(self._table.in_family(gpu, name) for name in families)
        )
        if family:
            return MatchRule.FAMILY, family
        if pattern:
            return MatchRule.PATTERN, tuple(gpu for gpu in self._gpus if self._pattern_matches(pattern, gpu))
        # It names a GPU that is not here, if only by an id that cannot be read: that is not generic.
        if device_id or families or tags.get("gpu_device"):
            return MatchRule.FAMILY, ()
        return MatchRule.GENERIC, self._gpus

    def _pattern_matches(self, pattern: str, gpu: Gpu) -> bool:
        try:
            return any(self._search(pattern, label) for label in self._table.labels(gpu))
        except BadPatternError as cause:
            raise BadPatternError(f"product_name_regex “{display(pattern, 60)}”: {cause}") from cause

    def _search(self, pattern: str, label: str) -> bool:
        key = (pattern, label)
        if key not in self._patterns:
            self._patterns[key] = self._search_once(pattern, label)
        found = self._patterns[key]
        if found is None:
            raise BadPatternError("it takes too long to match")
        return found

    def _search_once(self, pattern: str, label: str) -> bool | None:
        """RE2 where it can (linear time); a lookahead goes to a backtracking engine with a time limit."""
        if len(pattern) > MAX_PATTERN:
            raise BadPatternError(f"it is longer than {MAX_PATTERN} characters")
        # NIMs write lookaheads ("^NVIDIA-A10(?!0)"), which RE2 has not.
        linear = compile_re2(pattern)
        if linear is not None:
            return linear.search(label) is not None
        # A manifest of such patterns would else cost the time limit for each profile and label.
        if self._timeouts >= _MAX_TIMEOUTS:
            return None
        _check_backtracking(pattern)
        try:
            return regex.search(pattern, label, timeout=_PATTERN_SECONDS) is not None
        except regex.error as cause:
            raise BadPatternError(f"it is not a regular expression ({display(cause, 80)})") from cause
        except TimeoutError:
            # Kept as an answer (None) by the caller: asked again, it would take as long again.
            self._timeouts += 1
            return None

    def _enough(
        self, profile: Profile, wanted: Requirement, how: MatchRule, matching: tuple[Gpu, ...]
    ) -> Verdict:
        """Whether one kind has tp x pp GPUs with the memory. Of several kinds, the nearest answer counts."""
        # Engines of several GPUs want them equal: two H100 and two A100 are not four of anything.
        kinds: dict[tuple[str, str, str], list[Gpu]] = {}
        for gpu in matching:
            kinds.setdefault((gpu.device_id, gpu.product, gpu.mig), []).append(gpu)
        verdicts = [self._one_kind(profile, wanted, how, tuple(gpus)) for gpus in kinds.values()]
        matches = [each for each in verdicts if isinstance(each, Match)]
        if matches:
            return min(matches, key=lambda match: match.busy)
        misses = [each for each in verdicts if isinstance(each, Mismatch)]
        return min(misses, key=lambda miss: (miss.reason, miss.distance))

    def _one_kind(
        self, profile: Profile, wanted: Requirement, how: MatchRule, gpus: tuple[Gpu, ...]
    ) -> Verdict:
        product = self._name(gpus[0])
        # A slice reports the device id of the whole card, but neither its memory nor its links.
        if gpus[0].mig and (wanted.gpus > 1 or how is not MatchRule.GENERIC):
            return Mismatch(
                Reason.MIG,
                f"needs {wanted.gpus}x whole {product}, found the MIG slice {display(gpus[0].mig, 40)}",
                "a GPU without MIG",
            )
        # A profile that names its GPU was built for it; only one that names none can meet too old a card.
        if how is MatchRule.GENERIC and (incapable := self._incapable(profile, gpus[0])):
            return incapable
        if len(gpus) < wanted.gpus:
            return Mismatch(
                Reason.COUNT,
                f"needs {wanted.gpus}x {product}, found {len(gpus)}x",
                f"{wanted.gpus}x {product}",
                wanted.gpus - len(gpus),
            )
        roomy = [gpu for gpu in gpus if _fits(gpu.memory_total, wanted.memory_gb)]
        if len(roomy) < wanted.gpus:
            return self._too_small(wanted, product, gpus)
        free = [gpu for gpu in roomy if _is_free(gpu, wanted.memory_gb)]
        # GB10 and Orin do not tell it, and what is not known is no reason against a profile.
        unknown = wanted.memory_gb is not None and roomy[0].memory_total is None
        return Match(
            rank=rank(profile, list(MatchRule).index(how)),
            how=how,
            detail=self._why(profile, how, gpus[0], wanted),
            busy=len(free) < wanted.gpus,
            note="the GPU does not tell its memory" if unknown else self._note(profile, how, gpus[0]),
        )

    def _incapable(self, profile: Profile, gpu: Gpu) -> Mismatch | None:
        """None too where the GPU does not tell its capability: what is not known is no reason."""
        precision = profile.tags.get("precision", "").lower()
        floor, told = _CAPABILITIES.get(precision), _CAPABILITY.fullmatch(gpu.compute_capability)
        if floor is None or told is None or (int(told[1]), int(told[2])) >= floor:
            return None
        needed = f"compute capability {floor[0]}.{floor[1]}"
        return Mismatch(
            Reason.CAPABILITY,
            f"{precision} needs {needed}, {self._name(gpu)} has {told[0]}",
            f"a GPU with {needed} or later",
        )

    def _too_small(self, wanted: Requirement, product: str, gpus: tuple[Gpu, ...]) -> Mismatch:
        largest = max(gpu.memory_total or 0 for gpu in gpus)
        gigabytes = wanted.memory_gb or 0.0
        return Mismatch(
            Reason.MEMORY,
            f"needs {gigabytes:g} GB on each GPU, {product} has {largest / GB:.1f} GB",
            f"GPUs with {gigabytes:g} GB, or a smaller context (--max-model-len)",
            int(gigabytes - largest / GB) + 1,
        )

    def _why(self, profile: Profile, how: MatchRule, gpu: Gpu, wanted: Requirement) -> str:
        tags = profile.tags
        rule = {
            MatchRule.EXACT: f"gpu_device {display(tags.get('gpu_device', ''), 20)} is {self._name(gpu)}",
            MatchRule.FAMILY: f"gpu {wanted_gpu(profile)} is {self._name(gpu)}",
            MatchRule.PATTERN: f"product_name_regex matches {self._name(gpu)}",
            MatchRule.GENERIC: "generic, for any GPU",
        }[how]
        memory = f", {wanted.memory_gb:g} GB each" if wanted.memory_gb is not None else ""
        return f"{rule}; {wanted.gpus} GPU{'s' if wanted.gpus > 1 else ''}{memory}"

    def _note(self, profile: Profile, how: MatchRule, gpu: Gpu) -> str:
        """An engine is tied to the card that it was built for, a family may be several cards."""
        device_id = normal_device_id(profile.tags.get("gpu_device", ""))
        if how is MatchRule.FAMILY and device_id:
            built_for = self._table.find(device_id)
            name = built_for.product if built_for else device_id
            return f"made for {name} ({device_id}); this is another card of the family"
        if gpu.virtual:
            return "a vGPU: a prebuilt engine may not run on it"
        return ""

    def _name(self, gpu: Gpu) -> str:
        device = self._table.device_of(gpu)
        name = gpu.product or (device.product if device else gpu.device_id)
        return display(name.removeprefix("NVIDIA "), 60)


def _check_backtracking(pattern: str) -> None:
    """Raises BadPatternError."""
    if _GROUP.search(pattern):
        raise BadPatternError("it has a group that is neither plain nor a lookaround")
    repeats = 1
    for count in _COUNT.finditer(pattern):
        if count[1] is None:
            raise BadPatternError("it has a brace that is not a count")
        # Nested counts multiply: (a{1000}){1000} would be a million states.
        repeats *= max(1, int(count[2] or count[1]))
        if repeats > _MAX_REPEATS:
            raise BadPatternError(f"it repeats more than {_MAX_REPEATS} times")


class BadPatternError(ValueError):
    """A product pattern that cannot be used; the text says why."""


def wanted_gpu(profile: Profile) -> str:
    """The GPU that a profile names, as its tags spell it; "" for a generic one."""
    tags = profile.tags
    for key in ("gpu", "key", "gpu_device", "product_name_regex"):
        if tags.get(key):
            return display(tags[key], 60)
    return ""


def free_memory(gpu: Gpu) -> int | None:
    """Bytes; None = unknown."""
    if gpu.memory_total is None or gpu.memory_used is None:
        return gpu.memory_total
    return max(0, gpu.memory_total - gpu.memory_used)


def is_busy(gpu: Gpu) -> bool:
    """What ``list-model-profiles`` puts under "Non-free GPUs"."""
    if not gpu.memory_total or gpu.memory_used is None:
        return False
    return gpu.memory_used > gpu.memory_total * FREE_LIMIT


def _fits(memory: int | None, gigabytes: float | None) -> bool:
    return gigabytes is None or memory is None or memory >= gigabytes * GB * MEMORY_SLACK


def _is_free(gpu: Gpu, gigabytes: float | None) -> bool:
    """With a stated need the free memory decides; without one (NIM 1.x) the GPU must be nearly unused."""
    return not is_busy(gpu) if gigabytes is None else _fits(free_memory(gpu), gigabytes)
