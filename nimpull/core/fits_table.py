"""``nimpull fits``: the profiles of a published NIM against one machine type after the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nimpull.core.fit import BadTagError, Fitter, Match, Mismatch, Verdict, requirement
from nimpull.core.hardware import DeviceTable, Hardware
from nimpull.core.names import display
from nimpull.core.preference import profile_name
from nimpull.core.published_profiles import PublishedProfile, Unknown
from nimpull.core.units import aligned


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine type: its name in the heading, and its GPUs."""

    name: str
    hardware: Hardware


@dataclass(frozen=True, slots=True)
class FitTable:
    """``verdicts``: by profile, then by machine. ``profiles`` None = the service does not know the NIM."""

    nim: str
    machines: tuple[Machine, ...]
    profiles: tuple[PublishedProfile, ...] | None
    verdicts: tuple[tuple[Verdict | Unknown, ...], ...] = ()

    @classmethod
    def of(
        cls,
        nim: str,
        machines: Sequence[Machine],
        profiles: tuple[PublishedProfile, ...] | None,
        table: DeviceTable,
    ) -> FitTable:
        fitters = [Fitter(machine.hardware, table) for machine in machines]
        verdicts = tuple(tuple(each.judge(fitter, table) for fitter in fitters) for each in profiles or ())
        return cls(nim, tuple(machines), profiles, verdicts)

    def best(self, machine: int) -> int | None:
        """The profile that nimpull would take there, by its place; None where none surely fits."""
        ranks = {
            place: verdict.rank
            for place, row in enumerate(self.verdicts)
            if isinstance(verdict := row[machine], Match)
        }
        return min(ranks, key=lambda place: ranks[place], default=None)


def render_text(table: FitTable, *, explain: bool) -> str:
    """Those that fit somewhere first. Ends in a line feed."""
    if not table.profiles:
        return "\n".join([f"{table.nim}: {nothing_known(table)}", *_GUIDE]) + "\n"
    best = {table.best(place): place for place in range(len(table.machines))}
    order = sorted(range(len(table.profiles)), key=lambda place: _promise(table.verdicts[place]))
    rows = [["", "NAME", "ID", "GPUS", "GB/GPU", *(machine.name for machine in table.machines)]]
    reasons = []
    for place in order:
        profile, verdicts = table.profiles[place].profile, table.verdicts[place]
        needs = ["?" if value is None else f"{value:g}" for value in _requires(table.profiles[place])]
        name = display(profile_name(profile), 60)
        rows.append(["*" if place in best else "", name, profile.id[:12], *needs, *map(_word, verdicts)])
        reasons.append(f"  {name}  {profile.id[:12]}")
        reasons += (
            f"    {machine.name}: {_word(verdict)}: {verdict.detail}"
            for machine, verdict in zip(table.machines, verdicts, strict=True)
        )
    told = ["", *reasons] if explain else []
    return "\n".join([f"{table.nim}:", *aligned(rows, " "), *told, "", *closing(table)]) + "\n"


_GUIDE = ("A manifest says it for sure: nimpull list-profiles --manifest FILE, from the NIM's image.",)


def nothing_known(table: FitTable) -> str:
    if table.profiles is None:
        return "unknown. The metadata service does not have it, as is normal for older NIMs"
    return "unknown. The metadata service has it, but no profile of it"


def closing(table: FitTable) -> list[str]:
    """How many fit on each machine, and what the marks mean."""
    lines = []
    for place, machine in enumerate(table.machines):
        words = [_word(row[place]) for row in table.verdicts]
        unknown = f", of {words.count('?')} it is unknown" if "?" in words else ""
        lines.append(f"{machine.name}: {words.count('yes')} of {len(words)} profiles fit{unknown}.")
    if not table.machines:
        lines.append("No GPU here: name a machine, --gpu H100:8.")
    if any(table.best(place) is not None for place in range(len(table.machines))):
        lines.append("* is what nimpull would take on one of them.")
    return [*lines, "The service tells no sizes. ? = it does not say enough."]


def _promise(verdicts: Sequence[Verdict | Unknown]) -> tuple[bool, bool]:
    words = [_word(each) for each in verdicts]
    return "yes" not in words, "?" not in words


def _word(verdict: Verdict | Unknown) -> str:
    match verdict:
        case Match():
            return "busy" if verdict.busy else "yes"
        case Mismatch():
            return "no"
    return "?"


def _requires(published: PublishedProfile) -> tuple[int | None, float | None]:
    """(GPUs in all, decimal GB on each) as far as they are said."""
    try:
        wanted = requirement(published.profile)
    except BadTagError:
        return None, None
    # requirement() takes 1 where nothing is said; the service's silence is no number.
    return wanted.gpus if published.profile.tags.get("tp") else None, wanted.memory_gb


def render_json(table: FitTable) -> str:
    """``fits`` is null where it is unknown, as are ``gpus`` and ``memoryGb``."""
    document = {
        "schemaVersion": "nimpull/v1",
        "nim": table.nim,
        "known": table.profiles is not None,
        "machines": [
            {"name": machine.name, "gpus": len(machine.hardware.gpus), "best": _best_id(table, place)}
            for place, machine in enumerate(table.machines)
        ],
        "profiles": [
            _profile_document(table, published, verdicts)
            for published, verdicts in zip(table.profiles or (), table.verdicts, strict=True)
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _best_id(table: FitTable, machine: int) -> str | None:
    place = table.best(machine)
    return None if place is None or table.profiles is None else table.profiles[place].profile.id


def _profile_document(
    table: FitTable, published: PublishedProfile, verdicts: Sequence[Verdict | Unknown]
) -> dict[str, Any]:
    gpus, memory = _requires(published)
    return {
        "id": published.profile.id,
        "name": display(profile_name(published.profile), 300),
        "requires": {"gpus": gpus, "memoryGb": memory},
        "tags": {key: display(value) for key, value in published.profile.tags.items()},
        "verdicts": [
            {
                "machine": machine.name,
                "fits": None if isinstance(verdict, Unknown) else isinstance(verdict, Match),
                "detail": verdict.detail,
            }
            for machine, verdict in zip(table.machines, verdicts, strict=True)
        ],
    }
