"""What was asked for, and which profiles the NIM Operator would take for it.

The rules are the operator's own, kept with its accidents (a NIMCache must cache here what it caches there):
substring matches (``A10`` takes every A100), and product patterns in RE2, where a lookahead does not
compile and so never matches. Whether a profile really runs on a GPU is :mod:`nimpull.core.fit`'s question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import re2

from nimpull.core.manifest import Manifest, Profile
from nimpull.core.names import display
from nimpull.errors import UsageError

#: What Kubernetes' YAML reader takes for true (YAML 1.1), as text.
YAML_TRUE: Final = ("y", "yes", "true", "on")
_NVIDIA: Final = ":10de"
_RE2_MEMORY: Final = 4 << 20  # bytes of one compiled pattern


@dataclass(frozen=True, slots=True)
class GpuCriterion:
    """One entry of ``gpus``: a product (a substring of the profile's tag) and PCI device ids."""

    product: str = ""
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Criteria:
    """The NIMCache ``ModelSpec``, plus ``tags`` (NIM_TAGS_SELECTOR), ``all`` and ``best_only``.

    Empty fields do not restrict. ``best_only``: of all that the criteria take, the one best fit.
    ``as_operator``: all that the operator takes, also when nothing restricts (a NIMCache without ``model``).
    """

    profiles: tuple[str, ...] = ()
    all: bool = False
    engine: str = ""
    precision: str = ""
    tensor_parallelism: str = ""
    qos: str = ""
    lora: bool | None = None
    buildable: bool | None = None
    gpus: tuple[GpuCriterion, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    best_only: bool = False
    as_operator: bool = False

    @classmethod
    def from_model_spec(cls, model_spec: Mapping[str, Any]) -> Criteria:
        """From the CRD's ModelSpec: ``engine``, ``precision``, ``tensorParallelism``, ``qosProfile``, …"""
        profiles = tuple(str(name) for name in model_spec.get("profiles") or ())
        return cls(
            profiles=profiles,
            all="all" in profiles,
            engine=_text(model_spec, "engine"),
            precision=_text(model_spec, "precision"),
            tensor_parallelism=_text(model_spec, "tensorParallelism"),
            qos=_text(model_spec, "qosProfile"),
            lora=_flag(model_spec, "lora"),
            buildable=_flag(model_spec, "buildable"),
            gpus=tuple(
                GpuCriterion(_text(entry, "product"), tuple(str(each) for each in entry.get("ids") or ()))
                for entry in model_spec.get("gpus") or ()
            ),
        )

    @property
    def restricts(self) -> bool:
        """Whether any of the operator's criteria is given (``profiles``, ``all`` and ``tags`` aside)."""
        wanted = (self.engine, self.precision, self.tensor_parallelism, self.qos, self.gpus)
        return any(wanted) or self.lora is not None or self.buildable is not None


def _text(mapping: Mapping[str, Any], key: str) -> str:
    value = mapping.get(key)
    return "" if value is None else str(value)


def _flag(mapping: Mapping[str, Any], key: str) -> bool | None:
    value = mapping.get(key)
    if value is None or isinstance(value, bool):
        return value
    return str(value).strip().lower() in YAML_TRUE


def match_criteria(manifest: Manifest, criteria: Criteria, discovered: Sequence[str]) -> list[Profile]:
    """The profiles that the operator takes, in manifest order.

    ``discovered``: values of the node label ``nvidia.com/gpu.product`` (``NVIDIA-H100-80GB-HBM3``).
    """
    matches = _matches_v2 if manifest.schema == "v2" else _matches_v1
    return [profile for profile in manifest.profiles if matches(profile.tags, criteria, discovered)]


# -- v1 ------------------------------------------------------------------------------------------------


def _matches_v1(tags: Mapping[str, str], asked: Criteria, discovered: Sequence[str]) -> bool:
    for wanted, tag in (
        (asked.precision, "precision"),
        (asked.tensor_parallelism, "tp"),
        (asked.qos, "profile"),
    ):
        if wanted and tags.get(tag, "") != wanted:
            return False
    # Not asked for: all but LoRA, where a profile without the tag counts as without. Asked for, either way:
    # the tag must be there and say so.
    lora = tags.get("feat_lora", "")
    if (lora == "true") if asked.lora is None else (lora != str(asked.lora).lower()):
        return False
    # v1 does not look at model_type; v2 does, and before backend.
    backend = tags.get("llm_engine", "") or tags.get("backend", "")
    if asked.engine and asked.engine.removesuffix("_llm") not in backend:
        return False
    # Only here does v1 look at GPUs at all: without engine and gpus it takes the profiles of every GPU.
    if "tensorrt" in asked.engine.lower() or asked.gpus:
        if "tensorrt" not in backend.lower():
            return False
        if asked.gpus or discovered:
            return _gpu_matches_v1(tags, asked.gpus, discovered)
    return True


def _gpu_matches_v1(tags: Mapping[str, str], gpus: Sequence[GpuCriterion], discovered: Sequence[str]) -> bool:
    named = (tags.get("gpu", "").lower(), tags.get("key", "").lower())
    found = False
    for entry in gpus:
        if not entry.product:
            continue
        if any(entry.product.lower() in name for name in named):
            found = True  # and stays so for the entries behind it
        if found and entry.ids:
            device = tags.get("gpu_device", "").removesuffix(_NVIDIA)
            if device not in entry.ids:
                return False
    # A profile without a gpu tag is in every label, so that its product pattern never decides.
    return found or any(
        label and (named[0] in label.lower() or re2_matches(tags.get("product_name_regex", ""), label))
        for label in discovered
    )


# -- v2 ------------------------------------------------------------------------------------------------


def _matches_v2(tags: Mapping[str, str], asked: Criteria, discovered: Sequence[str]) -> bool:
    wanted = [
        (asked.precision, "precision"),
        (asked.tensor_parallelism, "tp"),
        (asked.qos, "profile"),
    ]
    if asked.lora is not None:
        wanted.append((str(asked.lora), "feat_lora"))
    if asked.buildable is not None:
        wanted.append((str(asked.buildable), "trtllm_buildable"))
    if any(value and not equal_fold(tags.get(tag, ""), value) for value, tag in wanted):
        return False
    backend = tags.get("llm_engine", "") or tags.get("model_type", "") or tags.get("backend", "")
    # So that asking for "triton" finds nothing, as in the operator.
    if equal_fold(backend, "triton"):
        backend = "tensorrt"
    if asked.engine and asked.engine.lower().removesuffix("_llm") not in backend.lower():
        return False
    # A buildable profile is compiled on the node, whatever its GPU.
    return _gpu_matches_v2(tags, asked.gpus, discovered) or equal_fold(
        tags.get("trtllm_buildable", ""), "true"
    )


def _gpu_matches_v2(tags: Mapping[str, str], gpus: Sequence[GpuCriterion], discovered: Sequence[str]) -> bool:
    named = [tags[key].lower() for key in ("gpu", "key") if tags.get(key)]
    pattern = tags.get("product_name_regex", "")
    if not gpus:
        if not discovered or not (named or pattern):
            return True
        return any(
            any(name in label.lower() for name in named) or re2_matches(pattern, label)
            for label in discovered
        )
    # Products and ids of all entries are pooled: each entry is no condition of its own, as it is in v1.
    ids = {each for entry in gpus for each in entry.ids}
    device = tags.get("gpu_device", "").removesuffix(_NVIDIA)
    if ids and (not device or device not in ids):
        return False
    products = [entry.product.lower() for entry in gpus if entry.product]
    return not products or any(product in name for product in products for name in named)


# -- Go's rules for text -------------------------------------------------------------------------------


def equal_fold(left: str, right: str) -> bool:
    """Go's ``strings.EqualFold``: simple case folding, character by character."""
    # str.casefold would make "ss" of "ß", which Go does not.
    return len(left) == len(right) and all(
        one == other or one.lower() == other.lower() or one.upper() == other.upper()
        for one, other in zip(left, right, strict=True)
    )


def re2_matches(pattern: str, label: str) -> bool:
    """Go's ``regexp.MatchString``: RE2 syntax, unanchored; what does not compile does not match."""
    compiled = compile_re2(pattern) if pattern else None
    return compiled is not None and compiled.search(label) is not None


@lru_cache(maxsize=128)
def compile_re2(pattern: str) -> Any:
    """None for what is not RE2: a lookahead, a back-reference, a broken pattern."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _RE2_MEMORY
    try:
        return re2.compile(pattern, options)
    except re2.error:
        return None


def parse_tags_selector(text: str) -> tuple[tuple[str, str], ...]:
    """NIM_TAGS_SELECTOR: ``key=value,key=value``, all of which must hold. Raises UsageError."""
    pairs = []
    for part in (each.strip() for each in text.split(",")):
        if not part:
            continue
        key, separator, value = part.partition("=")
        if not separator or not key.strip():
            raise UsageError(
                f"NIM_TAGS_SELECTOR: “{display(part, 80)}” is not key=value",
                hint="The form is key=value,key=value, e.g. precision=fp8,tp=2.",
            )
        pairs.append((key.strip(), value.strip()))
    return tuple(pairs)
