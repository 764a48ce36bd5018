"""What runs on which hardware, as rows and columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nimpull.core.fit import Match, Verdict
from nimpull.core.manifest import Profile
from nimpull.core.preference import is_buildable, profile_name
from nimpull.core.published_profiles import Unknown
from nimpull.core.units import show_counts

_NEAR: Final = frozenset({"memory", "count"})  # the right GPU, too little of it
#: What a cell shows for its state; the words are for those who cannot see it.
SIGNS: Final[Mapping[str, tuple[str, str]]] = {
    "fits": ("●", "runs"),
    "build": ("◍", "runs once its engine was built on the node"),
    "busy": ("◑", "fits, but the memory is in use now"),
    "near": ("◐", "the right GPU, too little of it"),
    "no": ("·", "does not run"),
    "unknown": ("?", "unknown"),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """``state``: fits, build, busy, near, no or unknown; ``why``: in words."""

    state: str
    why: str

    @classmethod
    def of(cls, profile: Profile, verdict: Verdict | Unknown) -> Cell:
        if isinstance(verdict, Unknown):
            return cls("unknown", verdict.detail)
        if isinstance(verdict, Match):
            state = "busy" if verdict.busy else "build" if is_buildable(profile) else "fits"
            return cls(state, "; ".join(filter(None, (verdict.detail, verdict.note))))
        return _missed(verdict.reason.name.lower(), verdict.detail, verdict.change)


@dataclass(frozen=True, slots=True)
class Row:
    """``notes``: what stands below the name (size, GPUs); ``chosen``: what a pull takes, or took."""

    name: str
    id: str
    cells: tuple[Cell, ...]
    notes: str = ""
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Matrix:
    """``columns``: the hardware."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def ordered(self) -> tuple[Row, ...]:
        """What runs somewhere first; else as in the manifest."""
        # The table above is in the order of how near a profile is to running.
        states = list(SIGNS)
        return tuple(
            sorted(
                self.rows, key=lambda row: min((states.index(cell.state) for cell in row.cells), default=0)
            )
        )

    @property
    def states(self) -> list[str]:
        """Those that there are."""
        found = {cell.state for row in self.rows for cell in row.cells}
        return [state for state in SIGNS if state in found]


def matrix_of(
    columns: Mapping[str, Sequence[tuple[Profile, Verdict | Unknown]]],
    *,
    chosen: Collection[str] = (),
    notes: Mapping[str, str] = {},
) -> Matrix:
    """``columns``: for each hardware the verdicts over the same profiles; ``chosen`` and ``notes`` by id."""
    judged = list(columns.values())
    rows = []
    for number, (profile, _) in enumerate(judged[0] if judged else ()):
        cells = tuple(Cell.of(*verdicts[number]) for verdicts in judged)
        is_chosen = profile.id in chosen
        rows.append(Row(profile_name(profile), profile.id, cells, notes.get(profile.id, ""), is_chosen))
    return Matrix(tuple(columns), tuple(rows))


def matrix_of_report(document: Mapping[str, Any]) -> Matrix | None:
    """Of a report (JSON), with the hardware of its run as the only column; None without a selection.

    Raises KeyError, TypeError or ValueError for what is no report.
    """
    selection = document.get("selection")
    if not selection or not selection["verdicts"]:
        return None
    gpus = document.get("hardware", {}).get("gpus", [])
    hardware = show_counts(gpu["product"] or gpu["deviceId"] or "unknown GPU" for gpu in gpus) or "no GPU"
    return Matrix(
        (hardware,),
        tuple(
            Row(
                str(verdict["name"]),
                str(verdict["profile"]),
                (_reported(verdict),),
                chosen=verdict["profile"] in selection["chosen"],
            )
            for verdict in selection["verdicts"]
        ),
    )


def _reported(verdict: Mapping[str, Any]) -> Cell:
    if verdict["matches"]:
        return Cell("fits", str(verdict["detail"]))
    return _missed(str(verdict["reason"]), str(verdict["detail"]), str(verdict["change"]))


def _missed(reason: str, detail: str, change: str) -> Cell:
    why = f"{detail}. It would take: {change}" if change else detail
    return Cell("near" if reason in _NEAR else "no", why)
