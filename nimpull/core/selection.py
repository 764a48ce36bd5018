"""Manifest x criteria x hardware -> which profiles to fetch, and why not the others.

:func:`select` is the whole of it; :func:`match_model_spec` is the NIM Operator's part alone, for comparison.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nimpull.core.criteria import Criteria, equal_fold, match_criteria
from nimpull.core.fit import Fitter, Match, Mismatch, Reason, Verdict, gpu_option, requirement, wanted_gpu
from nimpull.core.hardware import DeviceTable, Hardware
from nimpull.core.manifest import Manifest, Profile
from nimpull.core.names import did_you_mean, display
from nimpull.core.preference import description, engine, has_lora, name_with_pp, profile_name
from nimpull.errors import ManifestError, NoProfileError

NEAREST: Final = 3
_MIN_PREFIX: Final = 4
_MAX_COMPARED: Final = 2000  # names that difflib looks at; it is quadratic
_PASTED: Final = re.compile(r"(\S+)\s+\(.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Selection:
    """``verdicts``: one per profile, in manifest order. ``rule``: how ``chosen`` came about, for the
    report.
    """

    verdicts: tuple[tuple[Profile, Verdict], ...]
    chosen: tuple[Profile, ...]
    rule: str


def match_model_spec(
    manifest: Manifest, model_spec: Mapping[str, Any], discovered_gpus: Sequence[str]
) -> list[str]:
    """The profile ids that the NIM Operator selects, in manifest order.

    ``model_spec``: the CRD's ModelSpec as JSON (``engine``, ``precision``, ``tensorParallelism``,
    ``qosProfile``, ``lora``, ``buildable``, ``gpus[].product``, ``gpus[].ids``). ``discovered_gpus``:
    values of the node label ``nvidia.com/gpu.product``.
    """
    criteria = Criteria.from_model_spec(model_spec)
    return [profile.id for profile in match_criteria(manifest, criteria, discovered_gpus)]


def select(manifest: Manifest, criteria: Criteria, hardware: Hardware, table: DeviceTable) -> Selection:
    """Explicit profiles as named; all; with criteria all that the operator takes; else the one best fit.

    ``criteria.tags`` (NIM_TAGS_SELECTOR) filters before any of these but explicit names. Raises
    NoProfileError with the nearest misses and what each would need.
    """
    fitter = Fitter(hardware, table)
    verdicts = tuple((profile, fitter.verdict(profile)) for profile in manifest.profiles)
    if not manifest.profiles:
        raise NoProfileError(
            "the manifest holds no profile",
            hint="Use the NIM's own: with NIM_MANIFEST_PATH, or in the image of the modelPuller, whose "
            "default is enough for Hugging Face and DataStore only (docs/image.md).",
        )
    # A NIMCache writes `profiles: ["all"]`, the command line --all.
    if criteria.all or "all" in criteria.profiles:
        return Selection(verdicts, _whole(_by_tags(manifest.profiles, criteria)), "all")
    if criteria.profiles:
        return Selection(verdicts, _whole(named(manifest, criteria.profiles)), "named")
    if criteria.restricts or criteria.as_operator:
        # The operator has the node label of each GPU; it is made here of what was detected.
        labels = [label for gpu in hardware.gpus for label in table.labels(gpu)[:1]]
        taken = _by_tags(match_criteria(manifest, criteria, labels), criteria)
        if not taken:
            raise nothing_asked_for(manifest, criteria)
        if not criteria.best_only:
            return Selection(verdicts, _whole(taken), "criteria")
    else:
        taken = _by_tags(manifest.profiles, criteria)
    # By identity: two profiles of a v2 manifest may have one id, and equal content.
    candidates = {id(profile) for profile in taken}
    chosen = best([pair for pair in verdicts if id(pair[0]) in candidates], lora=bool(criteria.lora))
    return Selection(verdicts, _whole((chosen,)), "best fit")


def _whole(chosen: tuple[Profile, ...]) -> tuple[Profile, ...]:
    """Half a profile must never look like a whole one."""
    for profile in chosen:
        if profile.problem:
            raise ManifestError(
                f"profile {display(profile_name(profile), 80)} ({display(profile.id, 12)}) "
                f"cannot be fetched: {profile.problem}",
                hint="Choose another profile, or correct its workspace in the manifest.",
            )
    return chosen


def best(verdicts: Sequence[tuple[Profile, Verdict]], *, lora: bool = False) -> Profile:
    """The best of those that run; as NIM does, one for LoRA only if that was asked for.

    Raises NoProfileError with the nearest misses.
    """
    # The place in the manifest decides between equals: the first, as in NIM.
    running = [
        (verdict.rank, place, profile)
        for place, (profile, verdict) in enumerate(verdicts)
        if isinstance(verdict, Match) and has_lora(profile) is lora
    ]
    if running:
        return min(running, key=lambda each: each[:2])[2]
    if blind := [profile for profile, verdict in verdicts if _is_blind(verdict)]:
        raise _nothing_to_choose_by(blind)
    raise NoProfileError(
        "no profile of the manifest runs on this hardware; nearest:\n" + "\n".join(nearest_misses(verdicts)),
        hint="Name a profile with NIM_MODEL_PROFILE (nimpull: --profile), or say which GPUs will run it with "
        "NIMPULL_GPUS (nimpull: --gpu) (NIMCache: spec.source.ngc.model).",
    )


def _is_blind(verdict: Verdict) -> bool:
    return isinstance(verdict, Mismatch) and verdict.reason is Reason.NO_GPU


def _nothing_to_choose_by(profiles: Sequence[Profile]) -> NoProfileError:
    """Usual for a caching Job: nothing but the node that serves needs a GPU."""
    first = profiles[0]
    cards = list(dict.fromkeys(filter(None, map(wanted_gpu, profiles))))
    more = f" and {len(cards) - 4} more" if len(cards) > 4 else ""
    told = f" for {', '.join(display(card, 40) for card in cards[:4])}{more}" if cards else ""
    gpus = gpu_option(first, requirement(first))
    return NoProfileError(
        f"no GPU is visible here to choose a profile by; the manifest has {len(profiles)}{told}",
        hint=f"Three ways: say which GPUs will run it, NIMPULL_GPUS={gpus} (nimpull: or --gpu {gpus}); "
        f"name a profile, NIM_MODEL_PROFILE={display(profile_name(first), 80)} (nimpull: or --profile); "
        "or give criteria (nimpull: --engine, --precision, --tp, …) (NIMCache: spec.source.ngc.model).",
    )


def nearest_misses(verdicts: Sequence[tuple[Profile, Verdict]]) -> list[str]:
    """Up to three lines: name, id and what it needs; in one line where several need the same."""
    misses: list[tuple[int, int, int, str]] = []
    for place, (profile, verdict) in enumerate(verdicts):
        if isinstance(verdict, Mismatch):
            known = verdict.change in verdict.detail
            text = verdict.detail if known else f"{verdict.detail} (change: {verdict.change})"
            misses.append((verdict.reason, verdict.distance, place, text))
        elif has_lora(profile):  # and it was not asked for, or it would have been taken
            misses.append((0, 0, place, "runs, but is for LoRA; ask for it with --lora"))
    by_text: dict[str, list[Profile]] = {}
    for *_, place, text in sorted(misses)[:NEAREST]:
        by_text.setdefault(text, []).append(verdicts[place][0])
    return [_line(profiles, text) for text, profiles in by_text.items()]


def _line(profiles: Sequence[Profile], text: str) -> str:
    names = ", ".join(f"{display(profile_name(each), 80)} ({display(each.id, 12)})" for each in profiles)
    return f"  {names}: {text}"


# -- by name -------------------------------------------------------------------------------------------


def named(manifest: Manifest, names: Sequence[str]) -> tuple[Profile, ...]:
    """Each by its id, a unique prefix of it (4 characters or more) or its NIM name, in the order given, once.

    ``<id> (<description>)``, as pasted from a listing, is the id. Raises NoProfileError for an unknown
    name, with the nearest ones, or for one that means several profiles, with their ids.
    """
    chosen: list[Profile] = []
    for name in names:
        profile = _resolve(manifest, name)
        if profile not in chosen:
            chosen.append(profile)
    return tuple(chosen)


def _resolve(manifest: Manifest, text: str) -> Profile:
    name = text.strip()
    # NIM itself refuses this, and people paste it all the same.
    pasted = _PASTED.fullmatch(name)
    if pasted:
        name = pasted[1]
    profiles = manifest.profiles
    found = [profile for profile in profiles if profile.id == name]
    found = found or [profile for profile in profiles if name and name in spellings(profile)]
    found = found or [profile for profile in profiles if equal_fold(profile_name(profile), name)]
    if not found and len(name) >= _MIN_PREFIX:
        found = [profile for profile in profiles if profile.id.startswith(name.lower())]
    # v2 manifests may list one profile twice; that is no ambiguity.
    distinct = [profile for place, profile in enumerate(found) if profile not in found[:place]]
    if len(distinct) == 1:
        return distinct[0]
    if distinct:
        ids = ", ".join(display(profile.id, 16) for profile in distinct[:5])
        raise NoProfileError(
            f"“{display(name, 100)}” means {len(distinct)} profiles: {ids}",
            hint="Name one by its whole id.",
        )
    raise NoProfileError(
        f"no profile “{display(name, 100)}” in the manifest", hint=_did_you_mean(profiles, name)
    )


def spellings(profile: Profile) -> tuple[str, ...]:
    """The NIM name, also with ``pp1`` written out, and the long description of newer NIMs."""
    return (profile_name(profile), name_with_pp(profile), description(profile))


def _did_you_mean(profiles: Sequence[Profile], name: str) -> str:
    known: dict[str, None] = {}
    for profile in profiles[:_MAX_COMPARED]:
        known[profile.id] = None
        known[profile_name(profile)] = None
    near = difflib.get_close_matches(name[:200], known, n=NEAREST, cutoff=0.0)
    return "Nearest: " + ", ".join(display(each, 80) for each in near) + ". See nimpull list-profiles."


# -- by criteria ---------------------------------------------------------------------------------------


def _by_tags(profiles: Sequence[Profile], criteria: Criteria) -> tuple[Profile, ...]:
    if not criteria.tags:
        return tuple(profiles)
    taken = tuple(
        profile
        for profile in profiles
        if all(equal_fold(profile.tags.get(key, ""), value) for key, value in criteria.tags)
    )
    if taken:
        return taken
    asked = ",".join(f"{key}={value}" for key, value in criteria.tags)
    raise NoProfileError(
        f"no profile has the tags {display(asked, 200)}",
        hint="See the tags of each profile with nimpull list-profiles -o json.",
    )


def nothing_asked_for(manifest: Manifest, criteria: Criteria) -> NoProfileError:
    """A value that no profile has, with those that there are; else the profiles that differ in least."""
    if unknown := _unknown_value(manifest, criteria):
        return unknown
    points = [(differences(profile, criteria), profile) for profile in manifest.profiles]
    near = sorted((each for each in points if each[0]), key=lambda each: len(each[0]))
    lines = [_line((profile,), "; ".join(texts)) for texts, profile in near[:NEAREST]]
    return NoProfileError(
        "no profile of the manifest is what was asked for; nearest:\n" + "\n".join(lines)
        if lines
        else "no profile of the manifest is for the GPUs found",
        hint="Change the criteria (NIMCache: spec.source.ngc.model), or name a profile by its id.",
    )


def _unknown_value(manifest: Manifest, criteria: Criteria) -> NoProfileError | None:
    """Where one value alone is none that any profile has."""
    errors = []
    for what, asked, values in (
        ("engine", criteria.engine.removesuffix("_llm"), map(engine, manifest.profiles)),
        ("precision", criteria.precision, _values(manifest, "precision")),
        ("tensor parallelism", criteria.tensor_parallelism, _values(manifest, "tp")),
        ("qos", criteria.qos, _values(manifest, "profile")),
    ):
        there = sorted(set(filter(None, values)))
        known = any(asked.lower() in each if what == "engine" else equal_fold(asked, each) for each in there)
        if asked and not known:
            shown = ", ".join(display(value, 40) for value in there[:20]) or "none"
            error = NoProfileError(
                f"no profile has the {what} “{display(asked, 40)}”; the manifest has {shown}",
                hint=did_you_mean(asked, there) or "Ask for one of these.",
            )
            errors.append(error)
    return errors[0] if len(errors) == 1 else None


def _values(manifest: Manifest, tag: str) -> Iterator[str]:
    return (profile.tags.get(tag, "") for profile in manifest.profiles)


def differences(profile: Profile, asked: Criteria) -> list[str]:
    """Each point in which a profile is not what was asked for, in words; case does not count."""
    flags = {True: "true", False: "false", None: ""}
    tags = profile.tags
    points = [
        f"{tag} is {display(tags.get(tag) or 'not set', 40)}, asked for {display(value, 40)}"
        for tag, value in (
            ("precision", asked.precision),
            ("tp", asked.tensor_parallelism),
            ("profile", asked.qos),
            ("feat_lora", flags[asked.lora]),
            ("trtllm_buildable", flags[asked.buildable]),
        )
        if value and not equal_fold(tags.get(tag, ""), value)
    ]
    if asked.engine and asked.engine.lower().removesuffix("_llm") not in engine(profile):
        points.append(f"engine is {display(engine(profile), 40)}, asked for {display(asked.engine, 40)}")
    return points + (_gpu_differences(profile, asked) if asked.gpus else [])


def _gpu_differences(profile: Profile, asked: Criteria) -> list[str]:
    tags = profile.tags
    named_here = [tags.get(key, "").lower() for key in ("gpu", "key")]
    products = [entry.product for entry in asked.gpus if entry.product]
    ids = [each for entry in asked.gpus for each in entry.ids]
    points = []
    if products and not any(product.lower() in name for product in products for name in named_here):
        gpu = tags.get("gpu") or tags.get("key") or "not set"
        points.append(f"gpu is {display(gpu, 40)}, asked for {display(', '.join(products), 80)}")
    if ids and tags.get("gpu_device", "").removesuffix(":10de") not in ids:
        device = tags.get("gpu_device") or "not set"
        points.append(f"gpu_device is {display(device, 40)}, asked for {display(', '.join(ids), 80)}")
    return points
