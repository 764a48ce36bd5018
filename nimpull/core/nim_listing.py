"""The text of ``list-model-profiles``, as the NIM container prints it, for scripts that parse it.

The grammar is what public logs of NIM 1.0 to 2.x and of the Riva and retriever NIMs show. Which of the three
forms is printed follows from the manifest: memory needs (2.x), language models without them (1.x), others.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

from nimpull.core.fit import Match, Mismatch, Reason, Verdict, is_busy
from nimpull.core.hardware import Gpu, Hardware
from nimpull.core.manifest import Profile
from nimpull.core.names import display
from nimpull.core.preference import description, has_lora, is_buildable, profile_name

Judged = Sequence[tuple[Profile, Verdict]]

RUNNABLE: Final = "- Compatible with system and runnable:"
NOT_FREE: Final = (
    "- Compatible with system but not runnable due to low GPU free memory"  # NIM has no colon here
)
LOW_MEMORY: Final = "- Compatible with system but low memory:"
COMPILABLE: Final = "- Compilable to TRT-LLM using just-in-time compilation of HF models to TRTLLM engines:"
COMPATIBLE: Final = "- Compatible with system:"
INCOMPATIBLE: Final = "- Incompatible with system:"
WITH_LORA: Final = "  - With LoRA support:"
NONE: Final = " <None>"


class Group(Enum):
    """Where a profile stands in a listing; the values are headings for people."""

    RUNNABLE = "runnable"
    LOW_MEMORY = "low memory"
    NEEDS_BUILDING = "needs building"
    OTHER_HARDWARE = "other hardware"


def group_of(profile: Profile, verdict: Verdict) -> Group:
    """A buildable profile that fits needs its engine compiled first; too little memory is not other
    hardware.
    """
    if isinstance(verdict, Mismatch):
        return Group.LOW_MEMORY if verdict.reason is Reason.MEMORY else Group.OTHER_HARDWARE
    if verdict.busy:
        return Group.LOW_MEMORY
    return Group.NEEDS_BUILDING if is_buildable(profile) else Group.RUNNABLE


def in_group(judged: Judged, group: Group) -> list[tuple[Profile, Verdict]]:
    """Best first where they run, manifest order elsewhere."""
    members = [pair for pair in judged if group_of(*pair) is group]
    return sorted(members, key=lambda pair: pair[1].rank if isinstance(pair[1], Match) else ())


def render(judged: Judged, hardware: Hardware) -> str:
    """SYSTEM INFO and MODEL PROFILES, ending in a line feed. The real tool exits 0 even when nothing runs."""
    profiles = [profile for profile, _ in judged]
    if any(profile.tags.get("min_vram_per_device_gb") for profile in profiles):
        body = _modern(judged)
    elif any(profile.tags.get("llm_engine") or profile.tags.get("tp") for profile in profiles):
        body = _classic(judged)
    else:
        body = _by_tags(judged)
    return "\n".join([*_system(hardware.gpus), "MODEL PROFILES", *body]) + "\n"


def _system(gpus: Sequence[Gpu]) -> list[str]:
    free = [gpu for gpu in gpus if not is_busy(gpu)]
    busy = [gpu for gpu in gpus if is_busy(gpu)]
    lines = ["SYSTEM INFO", "- Free GPUs:" + ("" if free else NONE), *map(_gpu, free)]
    return [*lines, "- Non-free GPUs:", *map(_gpu, busy)] if busy else lines


def _gpu(gpu: Gpu) -> str:
    device = gpu.device_id or "0000:10de"
    product = display(gpu.product or "NVIDIA GPU", 100)
    # What NIM prints for GPUs that share the host's memory; "utilization" is of memory.
    used = "N/A"
    if gpu.memory_total and gpu.memory_used is not None:
        used = str(gpu.memory_used * 100 // gpu.memory_total)
    return f"  -  [{device}] ({gpu.index}) {product} [current utilization: {used}%]"


def _modern(judged: Judged) -> list[str]:
    """2.x: every heading always, memory needs behind each profile."""
    return [
        *_section(RUNNABLE, in_group(judged, Group.RUNNABLE), lora=True, long=True),
        *_section(LOW_MEMORY, in_group(judged, Group.LOW_MEMORY), indent=4, long=True),
        *_section(COMPILABLE, in_group(judged, Group.NEEDS_BUILDING), lora=True, long=True),
        INCOMPATIBLE,
        *(_line(profile, 4, long=True) for profile, _ in in_group(judged, Group.OTHER_HARDWARE)),
    ]


def _classic(judged: Judged) -> list[str]:
    """1.x: a heading for busy GPUs only if there are such profiles, for compilable ones if the manifest
    has any.
    """
    # The versions that print all tag values are those whose manifests have this tag.
    long = any(profile.tags.get("nim_workspace_hash_v1") for profile, _ in judged)
    lines = _section(RUNNABLE, in_group(judged, Group.RUNNABLE), lora=True, long=long)
    waiting = in_group(judged, Group.LOW_MEMORY)
    if waiting:
        lines += _section(NOT_FREE, waiting, lora=True, long=long)
    if any(is_buildable(profile) for profile, _ in judged):
        lines += _section(COMPILABLE, in_group(judged, Group.NEEDS_BUILDING), lora=True, long=long)
    lines.append(INCOMPATIBLE)
    return lines + [_line(profile, 2, long=long) for profile, _ in in_group(judged, Group.OTHER_HARDWARE)]


def _by_tags(judged: Judged) -> list[str]:
    """Riva and retriever NIMs: two groups, each profile with its tags instead of a name."""
    # These NIMs know no third group: what is busy now counts as compatible.
    compatible = [profile for profile, verdict in judged if isinstance(verdict, Match)]
    others = [profile for profile, verdict in judged if isinstance(verdict, Mismatch)]
    return [
        COMPATIBLE + ("" if compatible else NONE),
        *map(_tags_line, compatible),
        INCOMPATIBLE,
        *map(_tags_line, others),
    ]


def _tags_line(profile: Profile) -> str:
    tags = "|".join(f"{key}:{value}" for key, value in sorted(profile.tags.items()))
    return f"    - {_id(profile)} - {display(tags)}"


def _section(heading: str, members: Judged, *, long: bool, lora: bool = False, indent: int = 2) -> list[str]:
    """``lora``: profiles with LoRA go into a sub-list of their own."""
    plain = [profile for profile, _ in members if not (lora and has_lora(profile))]
    with_lora = [profile for profile, _ in members if lora and has_lora(profile)]
    lines = [heading if members else heading + NONE]
    lines += [_line(profile, indent, long=long) for profile in plain]
    if with_lora:
        lines += [WITH_LORA, *(_line(profile, 4, long=long) for profile in with_lora)]
    return lines


def _line(profile: Profile, indent: int, *, long: bool) -> str:
    """Scripts cut the name at the first closing bracket, so it holds none."""
    name = display(description(profile) if long else profile_name(profile), 300)
    need = profile.tags.get("min_vram_per_device_gb", "")
    is_number = need.replace(".", "", 1).isdecimal() and need.isascii()
    requires = f" [requires >={float(need):g} GB/gpu]" if is_number else ""
    return f"{' ' * indent}- {_id(profile)} ({name.translate(_BRACKETS)}){requires}"


_BRACKETS: Final = str.maketrans("()", "[]")


def _id(profile: Profile) -> str:
    return display(profile.id, 128)
