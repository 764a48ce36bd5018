"""How nimpull's cost grows with sizes, connections and files: wall with the bytes, memory not at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from scripts.benchmark.cases import Case, show, small_files
from scripts.benchmark.content import MIB
from scripts.benchmark.measure import Bench, Result, Row, in_rounds
from scripts.benchmark.peers import ENGINE, NIMPULL, Peer


@dataclass(frozen=True, slots=True)
class Step:
    """One point of a series. ``connections``: what the engine is made to open, 0 = as it finds best."""

    label: str
    files: tuple[int, ...]
    connections: int = 0


@dataclass(frozen=True, slots=True)
class Series:
    """``sparse``: the files are, because their sizes do not fit memory."""

    name: str
    title: str
    peer: Peer
    steps: tuple[Step, ...]
    sparse: bool = False


def all_series(unit: int, count: int) -> tuple[Series, ...]:
    """With ``unit`` 64 and ``count`` 5,000: 1 to 16 GiB, 1 to 64 connections, 100 to 10,000 files."""
    gib = 16 * unit * MIB
    sizes = (gib << power for power in range(5))
    widths = (1 << power for power in range(7))
    counts = (max(2, count // 50), max(20, count // 5), 2 * count)
    return (
        Series(
            "growth-size",
            f"one file of {show(gib)} to {show(gib << 4)}, http",
            NIMPULL,
            tuple(Step(show(size), (size,)) for size in sizes),
            sparse=True,
        ),
        Series(
            "growth-connections",
            f"one file of {show(2 * gib)} over 1 to 64 connections that are opened at once, http",
            ENGINE,
            tuple(Step(str(width), (2 * gib,), width) for width in widths),
        ),
        Series(
            "growth-files",
            f"{counts[0]:,} to {counts[-1]:,} files of 4 to 64 KiB, http",
            NIMPULL,
            tuple(Step(f"{number:,}", small_files(number)) for number in counts),
        ),
    )


def run_series(bench: Bench, series: Series, rounds: int) -> list[tuple[Step, Result]]:
    """Step after step: sizes of 16 GiB leave no room for the files of all of them at once."""
    return [(step, _run_step(bench, series, step, rounds)) for step in series.steps]


def _run_step(bench: Bench, series: Series, step: Step, rounds: int) -> Result:
    repository = bench.repository(step.files, sparse=series.sparse)
    case = Case(f"{series.name} {step.label}", series.title, step.files)
    with ExitStack() as stack:
        server = stack.enter_context(bench.servers.serve(repository))
        work = replace(bench.work(repository, server.endpoint), connections=step.connections)
        run: Callable[[Row, int], None] = bench.downloading(series.peer, work)
        return in_rounds(case, [(Row(series.peer), run)], rounds)
