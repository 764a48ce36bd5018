"""What nimpull is meant to reach, and whether a run reached it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from scripts.benchmark.measure import Result
from scripts.benchmark.tables import cpu, ratios, rss, shares, table, walls

#: Of what is fetched again: the half that is missing and the window, a 16th of a file (docs/architecture.md).
_KILLED = 50 + 100 / 16
_UNVERIFIED = ("curl", "hf", "ngcsdk")


@dataclass(frozen=True, slots=True)
class Goal:
    """``measure``: the figure, None where the run cannot tell. ``bar``: it is to be at most, or ``at_least``,
    that."""

    case: str
    what: str
    bar: float
    measure: Callable[[Result], float | None]
    at_least: bool = False


def _ratio(own: str, *peers: str) -> Callable[[Result], float | None]:
    """The median of ``own`` to the best of ``peers``."""

    def measure(result: Result) -> float | None:
        mine = result.row(own)
        theirs = [row for row in result.rows if row.peer.key in peers]
        if not mine or not theirs:
            return None
        best = min(theirs, key=lambda row: statistics.median(walls(row)))
        return statistics.median(ratios(mine, best))

    return measure


def _cpu(result: Result) -> float | None:
    row = result.row("engine")
    return statistics.median(cpu(row, result.case.size)) if row else None


def _rss(result: Result) -> float | None:
    row = result.row("nimpull")
    return float(rss(row)) if row else None


def _share(result: Result) -> float | None:
    row = result.row("engine")
    return statistics.median(shares(result.case, row)) if row else None


def _far(result: Result) -> float | None:
    near, far = (result.row("nimpull", link) for link in result.case.links)
    return statistics.median(ratios(far, near)) if near and far else None


def _fetched(result: Result) -> float | None:
    row = result.row("nimpull")
    return 100 * statistics.median(row.figures["fetched"]) if row else None


def _wall(result: Result) -> float | None:
    row = result.row("nimpull")
    return statistics.median(walls(row)) if row else None


GOALS = (
    Goal("one", "engine to curl, which checks nothing", 0.9, _ratio("engine", "curl")),
    Goal("one", "engine to that before", 1.0, _ratio("engine", "before")),
    Goal("one", "engine to aria2c", 0.25, _ratio("engine", "aria2c")),
    Goal("one", "engine to aria2-next", 0.6, _ratio("engine", "aria2-next")),
    Goal("one", "CPU s per GiB of the engine", 1.35, _cpu),
    Goal("one-https", "CPU s per GiB of the engine", 1.75, _cpu),
    Goal("one", "peak RSS of nimpull, MiB", 140, _rss),
    Goal("repo", "nimpull to hf download", 0.3, _ratio("nimpull", "hf")),
    Goal("repo", "engine to that before", 1.0, _ratio("engine", "before")),
    Goal("repo", "engine to aria2c", 0.2, _ratio("engine", "aria2c")),
    Goal("repo", "engine to aria2-next", 0.6, _ratio("engine", "aria2-next")),
    Goal("repo", "engine to the best that checks nothing", 0.75, _ratio("engine", *_UNVERIFIED)),
    Goal("repo", "CPU s per GiB of the engine", 1.35, _cpu),
    Goal("repo-far", "nimpull at 40 ms to nimpull at 0 ms", 1.3, _far),
    Goal("small", "nimpull to hf download", 0.25, _ratio("nimpull", "hf")),
    Goal("small", "engine to aria2c", 0.5, _ratio("engine", "aria2c")),
    Goal("small", "engine to curl, which checks nothing", 1.7, _ratio("engine", "curl")),
    Goal("small", "nimpull to curl, which checks nothing", 2.5, _ratio("nimpull", "curl")),
    Goal("small-far", "engine to curl, which checks nothing", 1.0, _ratio("engine", "curl")),
    Goal(
        "small-far-https", "engine to curl over HTTP/1.1, which checks nothing", 0.6, _ratio("engine", "curl")
    ),
    Goal("limited", "share of 16 connections' rate", 0.9, _share, at_least=True),
    Goal("resume", "fetched again after a kill at half, %", _KILLED, _fetched),
    Goal("resume-large", "fetched again after a kill at half, %", _KILLED, _fetched),
    Goal("warm", "wall s of nimpull", 1.0, _wall),
)


def goal_section(result: Result) -> list[str]:
    """The goals of the case that ran, those that its rows can answer; [] where there is none."""
    rows = []
    for goal in GOALS:
        found = goal.measure(result) if goal.case == result.case.name and result.rows else None
        if found is not None:
            met = found >= goal.bar if goal.at_least else found <= goal.bar
            bar = f"{'at least' if goal.at_least else 'at most'} {goal.bar:g}"
            rows.append([f"{goal.what}: {bar}", f"{found:.2f}", "yes" if met else "no"])
    return ["", *table(["goal", "median", "reached"], rows)] if rows else []
