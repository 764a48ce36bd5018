"""Which of several profiles that run is the best one: NIM's documented order, and a profile's NIM name."""

from __future__ import annotations

from typing import Final

from nimpull.core.manifest import Profile

#: Smaller is better: (how, engine, precision, qos, -tp, pp).
Rank = tuple[int, int, int, int, int, int]

ENGINES: Final = ("tensorrt_llm", "vllm", "sglang")
PRECISIONS: Final = ("mxfp4", "fp8", "int8", "fp16", "bf16", "int8wo", "nvfp4", "int4_awq")
QOS: Final = ("latency", "throughput")


def engine(profile: Profile) -> str:
    """``llm_engine``, else ``backend``, else ``model_type``, lower case; the TensorRT spellings are one."""
    tags = profile.tags
    name = (tags.get("llm_engine") or tags.get("backend") or tags.get("model_type") or "").lower()
    # Older manifests name the engine by the server around it.
    return "tensorrt_llm" if name in ("tensorrt", "triton", "trtllm", "tensorrt_llm") else name


def rank(profile: Profile, how: int) -> Rank:
    """``how``: 0 for a profile made for this GPU … 3 for a generic one."""
    tags = profile.tags
    return (
        how,
        _place(ENGINES, engine(profile)),
        _place(PRECISIONS, tags.get("precision", "").lower()),
        _place(QOS, tags.get("profile", "").lower()),
        # More GPUs for each layer answer sooner; of pipelines, the shorter one does.
        -_number(tags.get("tp", "")),
        _number(tags.get("pp", "")),
    )


def _place(order: tuple[str, ...], name: str) -> int:
    return order.index(name) if name in order else len(order)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 1


def is_true(text: str) -> bool:
    """A tag's truth: manifests write ``true`` in any case."""
    return text.strip().lower() == "true"


def has_lora(profile: Profile) -> bool:
    """By the tag ``feat_lora``."""
    return is_true(profile.tags.get("feat_lora", ""))


def is_buildable(profile: Profile) -> bool:
    """The engine is compiled on the node from the model's weights."""
    return is_true(profile.tags.get("trtllm_buildable", ""))


def profile_name(profile: Profile) -> str:
    """``<engine>[-trtllm_buildable][-<gpu>]-<precision>-tp<N>[-pp<N>][-<qos>][-lora]``, as NIM prints it.

    Parts whose tag is missing are left out; pp is named when it is more than 1. A profile with none of
    these tags is named by its ``name``, ``model_type`` or ``type``, or "profile".
    """
    tags = profile.tags
    parts = [
        tags.get("llm_engine") or tags.get("backend") or "",
        "trtllm_buildable" if is_buildable(profile) else "",
        (tags.get("gpu") or tags.get("key") or "").lower(),
        tags.get("precision", ""),
        f"tp{tags['tp']}" if tags.get("tp") else "",
        f"pp{tags['pp']}" if tags.get("pp", "1") not in ("", "1") else "",
        tags.get("profile", ""),
        "lora" if has_lora(profile) else "",
    ]
    return "-".join(part for part in parts if part) or (
        tags.get("name") or tags.get("model_type") or tags.get("type") or "profile"
    )


#: Tags that :func:`profile_name` already shows.
_NAMED_TAGS: Final = {"llm_engine", "backend", "gpu", "key", "precision", "tp", "pp", "profile"} | {
    "feat_lora",
    "trtllm_buildable",
}


def name_with_pp(profile: Profile) -> str:
    """The name with ``pp1`` written out too, which :func:`profile_name` leaves to be understood."""
    name, tp = profile_name(profile), f"-tp{profile.tags.get('tp', '')}"
    return name.replace(tp, f"{tp}-pp1", 1) if profile.tags.get("pp") == "1" else name


def description(profile: Profile) -> str:
    """The long form that newer NIMs print: pp always, and the values of all other tags in key order."""
    tags, name = profile.tags, name_with_pp(profile)
    if has_lora(profile) and tags.get("min_vram_per_device_gb"):
        name = name.removesuffix("lora") + "feat_lora"
    others = [value for key, value in sorted(tags.items()) if key not in _NAMED_TAGS and value]
    return "-".join([name, *others])
