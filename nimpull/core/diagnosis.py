"""What would go wrong here, judged from facts: the findings of ``nimpull doctor``, and their page."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

from nimpull.core.abilities import Abilities, WriteMode
from nimpull.core.hardware import Hardware
from nimpull.core.names import Url, display
from nimpull.core.units import show_bytes, show_count, show_seconds
from nimpull.errors import NimpullError, NoSpaceError

#: Of the token of a presigned URL; S3 refuses requests of clocks that are 15 minutes apart.
_CLOCK_DRIFT: Final = 300.0  # seconds
_LITTLE_MEMORY: Final = 256 << 20  # bytes; below it buffers and connections are cut
_LITTLE_ROOM: Final = 1 << 30  # bytes; no model that a NIM serves is smaller
_FEW_INODES: Final = 1000
_NGC_KEY: Final = re.compile(r"nvapi-[\w-]{40,}|eyJ[\w-]*\.[\w-]+\.[\w-]*|[A-Za-z0-9+/=]{60,}")
_HUB_TOKEN: Final = re.compile(r"hf_[A-Za-z0-9]{20,}|eyJ[\w-]*\.[\w-]+\.[\w-]*")


class Mark(StrEnum):
    """How a finding stands: a problem ends a pull, a warning may."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that was looked at. ``exit_code``: that of a pull which meets the problem."""

    subject: str
    mark: Mark
    text: str
    hint: str = ""
    exit_code: int = 0

    @classmethod
    def of(cls, subject: str, error: NimpullError) -> Diagnosis:
        return cls(subject, Mark.PROBLEM, error.message, error.hint, error.exit_code)


def judge_store(path: str, abilities: Abilities | None, free: int | None, inodes: int | None) -> Diagnosis:
    """``abilities`` None: it is not there yet, but can be made. ``free`` in bytes; None = it does not say."""
    room = "room unknown" if free is None else f"{show_bytes(free)} free"
    text = f"{display(path, 300)}: {room}"
    if free == 0 or inodes == 0:
        what = "no room is left" if free == 0 else "no inode is left"
        error = NoSpaceError(f"{text}; {what}", hint="Enlarge the volume, or see nimpull prune.")
        return Diagnosis.of("store", error)
    if abilities is None:
        text += ", not there yet; it can be made"
    elif abilities.mode is not WriteMode.DIRECT:
        text += f", written to as it can ({abilities.mode.value}: {', '.join(abilities.missing)})"
    if (free is not None and free < _LITTLE_ROOM) or (inodes is not None and inodes < _FEW_INODES):
        left = "" if inodes is None else f", {inodes} inodes"
        return Diagnosis(
            "store", Mark.WARNING, text + left, "That is little for a model: --dry-run says how much."
        )
    return Diagnosis("store", Mark.OK, text)


def judge_machine(memory: int | None, cpus: float | None, files: int | None) -> Diagnosis:
    """The control group's limits, in bytes and processors, and that of open files; None = no limit."""
    known = (
        "no memory limit" if memory is None else f"memory {show_bytes(memory)}",
        "no CPU limit" if cpus is None else f"{cpus:g} CPU",
        "" if files is None else show_count(files, "open file"),
    )
    text = ", ".join(filter(None, known))
    if memory is not None and memory < _LITTLE_MEMORY:
        return Diagnosis("limits", Mark.WARNING, text, "Pulls are slower with so little memory; give 512Mi.")
    if files is not None and files < 256:
        return Diagnosis("limits", Mark.WARNING, text, "Few connections fit into that; raise ulimit -n.")
    return Diagnosis("limits", Mark.OK, text)


def judge_gpus(hardware: Hardware) -> Diagnosis:
    names = [gpu.product or "unknown" for gpu in hardware.gpus]
    if not names:  # the notes say what to do
        return Diagnosis("gpus", Mark.WARNING, " ".join(hardware.notes) or "none")
    text = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    problems = [f"GPU {gpu.index}: {problem}" for gpu in hardware.gpus for problem in gpu.problems]
    if problems:
        return Diagnosis("gpus", Mark.WARNING, f"{text}; {'; '.join(problems)}", "See nimpull gpus.")
    return Diagnosis("gpus", Mark.OK, text)


def judge_key(subject: str, variable: str, key: str) -> Diagnosis:
    """By its form alone: whether it is good, only a registry can say. The key is in no finding."""
    if not key:
        return Diagnosis(subject, Mark.OK, f"none: what is public only; {variable} would hold one")
    known = _NGC_KEY if subject == "ngc key" else _HUB_TOKEN
    if not known.fullmatch(key):
        form = "nvapi-…" if subject == "ngc key" else "hf_…"
        hint = f"Compare it with where it was made, {form}: it may be cut off, or another service's."
        return Diagnosis(
            subject, Mark.WARNING, f"{variable} has {len(key)} characters of an unknown form", hint
        )
    return Diagnosis(subject, Mark.OK, f"{variable} is set and well-formed")


def judge_answer(
    subject: str,
    url: Url,
    proxy: Url | None,
    status: int,
    headers: Mapping[str, str],
    *,
    seconds: float,
    now: float,
) -> Diagnosis:
    """What ``url`` answered to a HEAD after ``seconds``. Any answer is one: a bare address may well be 404.

    ``now``: of the clock here, seconds since the epoch.
    """
    via = f" through the proxy {proxy}" if proxy is not None else ""
    text = f"{url}{via}: HTTP {status} after {show_seconds(seconds)}"
    # A bare address may be 404 or 401 by right; these say that the service itself is in trouble.
    if status >= 500 or status == 429:
        return Diagnosis(
            subject, Mark.WARNING, text, "The service is in trouble, or busy: a pull would ask again."
        )
    try:
        drift = parsedate_to_datetime(headers.get("date", "")).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        drift = 0.0
    if abs(drift) > _CLOCK_DRIFT:
        side = "behind" if drift > 0 else "ahead"
        text += f"; the clock here is {show_seconds(abs(drift))} {side}"
        return Diagnosis(
            subject, Mark.WARNING, text, "Set the clock: signed addresses and certificates have times."
        )
    return Diagnosis(subject, Mark.OK, text)


def exit_code_of(findings: Sequence[Diagnosis]) -> int:
    """Of the first problem, 0 without one."""
    return next((each.exit_code for each in findings if each.mark is Mark.PROBLEM), 0)


def page(findings: Sequence[Diagnosis], width: int) -> str:
    """For a terminal of ``width`` columns: a line a finding, its hint below it, and what it comes to."""
    first = max(map(len, Mark)) + 2
    column = first + max(len(each.subject) for each in findings) + 2
    lines: list[str] = []
    for each in findings:
        lead = f"{each.mark.value:<{first}}{each.subject:<{column - first}}"
        for text in filter(None, (each.text, each.hint)):
            wrapped = textwrap.wrap(
                text,
                max(width, column + 30),
                initial_indent=lead,
                subsequent_indent=" " * column,
                break_long_words=False,
                break_on_hyphens=False,
            )
            lines += wrapped
            lead = " " * column
    marks = [each.mark for each in findings]
    problems, warnings = (marks.count(mark) for mark in (Mark.PROBLEM, Mark.WARNING))
    lines += ["", f"{show_count(problems, 'problem')}, {show_count(warnings, 'warning')}."]
    return "\n".join(lines)
