"""Markdown: a section for each case, which a later run replaces."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmark.cases import Case, Kind
from scripts.benchmark.content import GIB, MIB
from scripts.benchmark.growth import Series, Step
from scripts.benchmark.measure import Result, Row, available_memory


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Least, median and most."""
    three = (min(values), statistics.median(values), max(values))
    return " / ".join(f"{value:.{digits}f}" for value in three)


def ratios(mine: Row, theirs: Row) -> list[float]:
    """``mine`` to ``theirs`` in the same round; below 1, ``mine`` is faster."""
    return [own.wall / other.wall for own, other in zip(mine.samples, theirs.samples, strict=True)]


def walls(row: Row) -> list[float]:
    return [sample.wall for sample in row.samples]


def cpu(row: Row, size: int) -> list[float]:
    """CPU seconds per GiB."""
    return [sample.cpu / (size / GIB) for sample in row.samples]


def rss(row: Row) -> int:
    """MiB."""
    return max(sample.rss for sample in row.samples) >> 20


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(headings)
    return [f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows)]


def section(result: Result) -> list[str]:
    lines = table(*_tables[result.case.kind](result)) if result.rows else []
    return [*lines, *(f"\n{note[:1].upper()}{note[1:]}." for note in result.notes)]


_SPREAD = "(min / median / max)"


def _cost(case: Case, row: Row) -> list[str]:
    used = [sample.cpu for sample in row.samples] if case.many else cpu(row, case.size)
    return [spread(walls(row)), spread(used), str(rss(row))]


def _cost_headings(case: Case) -> list[str]:
    return [f"wall s {_SPREAD}", "CPU s" if case.many else "CPU s per GiB", "peak RSS MiB"]


def _downloads(result: Result) -> tuple[list[str], list[list[str]]]:
    case = result.case
    headings = ["downloader", "checks", *_cost_headings(case)]
    if case.cap:
        headings.append(f"share of {case.cap // MIB} MiB/s")
    if len(case.links) > 1:
        return [*headings, f"to {case.links[0]}"], _to_first_link(result)
    rows = []
    for row in result.rows:
        cells = [row.label, row.peer.checks, *_cost(case, row)]
        if case.cap:
            cells.append(spread(shares(case, row)))
        for key in ("engine", "nimpull"):
            own = result.row(key)
            cells.append(spread(ratios(own, row)) if own and own is not row else "")
        rows.append(cells)
    return [*headings, "engine to it", "nimpull to it"], rows


def shares(case: Case, row: Row) -> list[float]:
    """Of the rate that all connections together could reach, from the start of the process to its end."""
    return [case.size / wall / case.cap for wall in walls(row)]


def _to_first_link(result: Result) -> list[list[str]]:
    rows = []
    for row in result.rows:
        first = result.row(row.peer.key, result.case.links[0])
        ratio = spread(ratios(row, first)) if first and first is not row else ""
        rows.append([row.label, row.peer.checks, *_cost(result.case, row), ratio])
    return rows


def _resumes(result: Result) -> tuple[list[str], list[list[str]]]:
    headings = ["downloader", f"on disk when killed, % {_SPREAD}", "sent by the server to the next run, %",
                "wall s of that run"]  # fmt: skip
    rows = [
        [
            row.label,
            spread([100 * share for share in row.figures["kept"]], 1),
            spread([100 * share for share in row.figures["fetched"]], 1),
            spread(walls(row)),
        ]
        for row in result.rows
    ]
    return headings, rows


def _warm(result: Result) -> tuple[list[str], list[list[str]]]:
    rows = [[row.label, *_cost(result.case, row), spread(row.figures["requests"], 0)] for row in result.rows]
    return ["downloader", *_cost_headings(result.case), "requests"], rows


def _verifications(result: Result) -> tuple[list[str], list[list[str]]]:
    rows = [
        [row.label, *_cost(result.case, row), spread([result.case.size / GIB / wall for wall in walls(row)])]
        for row in result.rows
    ]
    return ["command", *_cost_headings(result.case), "GiB/s"], rows


_tables = {
    Kind.DOWNLOAD: _downloads,
    Kind.RESUME: _resumes,
    Kind.WARM: _warm,
    Kind.VERIFY: _verifications,
}


def growth_section(series: Series, results: Sequence[tuple[Step, Result]]) -> list[str]:
    many = results[0][1].case.many
    per = ("ms per file", "CPU ms per file") if many else ("wall s per GiB", "CPU s per GiB")
    headings = [series.name.removeprefix("growth-"), f"wall s {_SPREAD}", *per, "peak RSS MiB"]
    rows = []
    for step, result in results:
        (row,) = result.rows
        share = len(step.files) / 1000 if many else sum(step.files) / GIB
        used = [sample.cpu / share for sample in row.samples]
        each = [wall / share for wall in walls(row)]
        rows.append([step.label, spread(walls(row)), spread(each), spread(used), str(rss(row))])
    return table(headings, rows)


# -- the document --------------------------------------------------------------------------------------


def machine(target: Path, source: str, versions: Sequence[str]) -> list[str]:
    """Where the figures come from."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    facts = [
        f"{len(os.sched_getaffinity(0))} cores ({model[1].strip() if model else platform.machine()})",
        f"{available_memory() / GIB:.0f} GiB of memory available",
        f"Linux {platform.release()}",
        f"downloads to {file_system(target)}",
        f"served from {source}",
        f"Python {platform.python_version()}",
        *versions,
        f"load {os.getloadavg()[0]:.1f} at the start",
    ]
    return [f"Measured on: {', '.join(facts)}."]


def file_system(path: Path) -> str:
    """The type of the file system that holds ``path`` (proc(5), mountinfo)."""
    best, kind = "", "an unknown file system"
    resolved = str(path.resolve())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        mount = fields.split()[4].replace("\\040", " ")
        inside = resolved == mount or resolved.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, rest.split()[0]
    return kind


def put(document: str, name: str, title: str, lines: Sequence[str]) -> str:
    """``document`` with the section of that name replaced, or added at the end."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    heading = [f"### {name}: {title}", ""] if title else []
    text = "\n".join([begin, *heading, *lines, end])
    before, found, rest = document.partition(begin)
    if not found:
        return f"{document.rstrip()}\n\n{text}\n".lstrip()
    return before + text + rest.partition(end)[2]
