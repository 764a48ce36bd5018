"""``nimpull list-profiles``: the profiles of a manifest for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

from nimpull.core.fit import BadTagError, Match, Verdict, requirement
from nimpull.core.hardware import Gpu, Hardware
from nimpull.core.manifest import Manifest, Profile
from nimpull.core.names import display
from nimpull.core.nim_listing import Group, group_of, in_group
from nimpull.core.preference import engine, has_lora, profile_name
from nimpull.core.sizes import UNKNOWN, Size, Sizes, memory_hint
from nimpull.core.units import aligned, show_bytes

FORMATS: Final = ("table", "wide", "json", "yaml", "ids")
SHORT_ID: Final = 12
_EXPLANATIONS: Final = {
    Group.RUNNABLE: "Runnable here, best first",
    Group.LOW_MEMORY: "The right GPU, too little memory (or too little of it free now)",
    Group.NEEDS_BUILDING: "Runs here after its engine was compiled on the node",
    Group.OTHER_HARDWARE: "For other hardware",
}


@dataclass(frozen=True, slots=True)
class ProfileList:
    """What is shown. ``judged``: the profiles that the filters left, in manifest order; ``best``: an id
    or ""; ``sizes``: what the sources told, None = they were not asked.
    """

    manifest: Manifest
    hardware: Hardware
    judged: tuple[tuple[Profile, Verdict], ...]
    best: str = ""
    sizes: Sizes | None = None


def render(listing: ProfileList, form: str = "table", *, explain: bool = False) -> str:
    """``form`` is one of FORMATS. ``ids`` is one id a line, runnable first; ends in a line feed if not
    empty.
    """
    if form == "ids":
        ordered = [pair for group in Group for pair in in_group(listing.judged, group)]
        return "".join(f"{display(profile.id, 128)}\n" for profile, _ in ordered)
    if form == "json":
        return json.dumps(as_document(listing), indent=2, ensure_ascii=False) + "\n"
    if form == "yaml":
        return str(yaml.safe_dump(as_document(listing), sort_keys=False, allow_unicode=True, width=110))
    lines = [_headline(listing.hardware), *(f"Note: {display(note)}" for note in listing.hardware.notes)]
    lines += [f"Note: {display(note)}" for note in listing.manifest.notes]
    if listing.sizes and listing.sizes.note:
        lines.append(f"Note: {display(listing.sizes.note)}")
    for group in Group:
        members = in_group(listing.judged, group)
        if members:
            lines += ["", f"{_EXPLANATIONS[group]}:"]
            lines += _explained(members, listing) if explain else _rows(members, listing, form == "wide")
    return "\n".join([*lines, "", _closing(listing)]) + "\n"


# -- text ----------------------------------------------------------------------------------------------


def _headline(hardware: Hardware) -> str:
    if not hardware.gpus:
        return "Hardware: no GPU found"
    counts: dict[str, tuple[int, Gpu]] = {}
    for gpu in hardware.gpus:
        kind = display(gpu.product or gpu.device_id or "unknown GPU", 80) + (
            f" MIG {gpu.mig}" if gpu.mig else ""
        )
        counts[kind] = (counts.get(kind, (0, gpu))[0] + 1, gpu)
    parts = []
    for kind, (count, gpu) in counts.items():
        memory = f", {show_bytes(gpu.memory_total)} each" if gpu.memory_total else ""
        parts.append(f"{count}x {kind} ({gpu.device_id or 'no PCI id'}{memory})")
    return f"Hardware: {'; '.join(parts)} [{hardware.origin.value}]"


def _rows(members: Sequence[tuple[Profile, Verdict]], listing: ProfileList, wide: bool) -> list[str]:
    header = [" ", "NAME", "ID", "GPUS", "GB/GPU", "FILES"]
    header += (["SIZE", "TO FETCH"] if listing.sizes else []) + (["WHY"] if wide else [])
    rows = [header]
    for profile, verdict in members:
        gpus, memory = _needs(profile)
        row = [
            "*" if profile.id == listing.best else "",
            display(profile_name(profile), 200 if wide else 60),
            display(profile.id, 128) if wide else display(profile.id[:SHORT_ID], SHORT_ID),
            gpus,
            memory,
            # What could be read of a broken workspace is not how many files it has.
            str(len(profile.files)) if not profile.problem else "?",
        ]
        if listing.sizes:
            size = listing.sizes.of_one(profile)
            row += [_bytes(size.total), _bytes(size.to_fetch)]
        rows.append(row + ([verdict.detail] if wide else []))
    return [f" {line}" for line in aligned(rows)]


def _bytes(count: int | None) -> str:
    return "?" if count is None else show_bytes(count)


def _needs(profile: Profile) -> tuple[str, str]:
    try:
        wanted = requirement(profile)
    except BadTagError:
        return "?", "?"
    return str(wanted.gpus), "-" if wanted.memory_gb is None else f"{wanted.memory_gb:g}"


def _explained(members: Sequence[tuple[Profile, Verdict]], listing: ProfileList) -> list[str]:
    lines = []
    for profile, verdict in members:
        mark = "*" if profile.id == listing.best else "-"
        lines.append(
            f" {mark} {display(profile_name(profile), 200)}  {display(profile.id[:SHORT_ID], SHORT_ID)}"
        )
        if isinstance(verdict, Match):
            lines.append(
                f"     {'fits, but the memory is in use now' if verdict.busy else 'fits'}: {verdict.detail}"
            )
            if verdict.note:
                lines.append(f"     note: {verdict.note}")
        else:
            lines += [f"     no: {verdict.detail}", f"     would change it: {verdict.change}"]
        if listing.sizes:
            size = listing.sizes.of_one(profile)
            lines.append(f"     size: {_bytes(size.total)}, {_bytes(size.to_fetch)} to fetch")
            if hint := memory_hint(profile, verdict, listing.hardware, size):
                lines.append(f"     estimated memory: {hint}")
        if profile.problem:
            lines.append(f"     cannot be fetched: {profile.problem}")
    return lines


def _closing(listing: ProfileList) -> str:
    profiles = [profile for profile, _ in listing.judged]
    references = [file.uri for profile in profiles for file in profile.files]
    files = f"{len(references)} files, {len(set(references))} distinct" if references else "no files"
    choice = " * is what nimpull downloads when nothing else is asked for." if listing.best else ""
    count = f"{len(profiles)} of {len(listing.manifest.profiles)} profiles ({files})."
    return f"{count}{choice} {_together(listing.sizes, profiles)}"


def _together(sizes: Sizes | None, profiles: Sequence[Profile]) -> str:
    if sizes is None:
        return "--sizes asks the registry how large they are."
    size, complete = sizes.together(profiles)
    if size.total is None or not (size.total or complete):
        return "How large they are together is unknown."
    least = "" if complete else "at least "
    return (
        f"Together {least}{show_bytes(size.total)}, {_bytes(size.to_fetch)} of it to fetch, "
        "shared files counted once."
    )


# -- documents -----------------------------------------------------------------------------------------


def as_document(listing: ProfileList) -> dict[str, Any]:
    """Everything, camelCase like the report. Memory in bytes, but ``memoryGb`` in the manifest's decimal
    GB. ``sizeBytes`` and ``toFetchBytes`` are null where unknown; at the top, shared files count once.
    """
    sizes = listing.sizes or Sizes()
    size, complete = sizes.together(profile for profile, _ in listing.judged)
    return {
        "schemaVersion": "nimpull/v1",
        "manifest": {
            "schema": listing.manifest.schema,
            "selectionCriteria": display(listing.manifest.selection_criteria, 100),
            "notes": [display(note) for note in listing.manifest.notes],
        },
        "hardware": {
            "origin": listing.hardware.origin.value,
            "gpus": [_gpu_document(gpu) for gpu in listing.hardware.gpus],
            "notes": [display(note) for note in listing.hardware.notes],
        },
        "best": listing.best,
        # A part of a sum would be taken for the whole by whatever reads the document.
        **_size_document(size if complete else UNKNOWN),
        "sizeNotes": [display(sizes.note)] if sizes.note else [],
        "profiles": [
            _profile_document(profile, verdict, listing.best) | _size_document(sizes.of_one(profile))
            for profile, verdict in listing.judged
        ],
    }


def _size_document(size: Size) -> dict[str, Any]:
    return {"sizeBytes": size.total, "toFetchBytes": size.to_fetch}


def _gpu_document(gpu: Gpu) -> dict[str, Any]:
    return {
        "index": gpu.index,
        "product": display(gpu.product, 100),
        "deviceId": gpu.device_id,
        "memoryTotal": gpu.memory_total,
        "memoryUsed": gpu.memory_used,
        "mig": gpu.mig,
    }


def _profile_document(profile: Profile, verdict: Verdict, best: str) -> dict[str, Any]:
    try:
        wanted = requirement(profile)
        requires: dict[str, Any] = {"gpus": wanted.gpus, "memoryGb": wanted.memory_gb}
    except BadTagError as cause:
        requires = {"problem": str(cause)}
    return {
        "id": display(profile.id, 128),
        "name": display(profile_name(profile), 300),
        "model": display(profile.model, 200),
        "release": display(profile.release, 60),
        "engine": display(engine(profile), 60),
        "lora": has_lora(profile),
        "group": group_of(profile, verdict).value,
        "best": profile.id == best,
        "verdict": _verdict_document(verdict),
        "requires": requires,
        "tags": {display(key, 200): display(value) for key, value in profile.tags.items()},
        "files": len(profile.files),
        "problem": profile.problem,
    }


def _verdict_document(verdict: Verdict) -> dict[str, Any]:
    if isinstance(verdict, Match):
        return {
            "fits": True,
            "how": verdict.how.value,
            "detail": verdict.detail,
            "busy": verdict.busy,
            "note": verdict.note,
        }
    return {
        "fits": False,
        "reason": verdict.reason.name.lower().replace("_", "-"),
        "detail": verdict.detail,
        "change": verdict.change,
    }
