"""Kill a pull before every call that changes its store, and look at what is left.

Each point is a pull of its own: a process against a registry in this one, a store on the disk, SIGKILL before
call number N on that store. Then no file under a final name may be torn and no ready marker stand before its
files; the next run must end well and fetch no more again than what was in flight; nothing may be left behind.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.crashing import Case, Recovery, calls_of, killed, recover, serving
from tests.registry import Registry
from tests.running import ended
from tests.small_steps import IN_FLIGHT
from tests.volume_faults import CHANGES, COMPILER, WITHOUT

QUICK = 12  # points of each layout


@dataclass(frozen=True, slots=True)
class Point:
    """One kill. ``recovery``: None where the pull made fewer calls than that, and was not killed."""

    number: int
    recovery: Recovery | None


def try_point(case: Case, registry: Registry, number: int) -> Point:
    with tempfile.TemporaryDirectory(prefix="nimpull-crash-") as scratch:
        store = Path(scratch, "store")
        run = killed(case, registry, store, number)
        if run.code == 0:
            return Point(number, None)
        if run.code != -9:
            return Point(number, Recovery((f"it ended with {run.code} before the kill: {run.text}",)))
        return Point(number, recover(case, registry, store))


def traced(case: Case, registry: Registry) -> dict[str, int] | None:
    """How often strace(1) sees each call in a whole pull; None where it cannot be used.

    The calls are counted by a preloaded library; strace tells whether some never come by it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        store, log = Path(scratch, "store"), Path(scratch, "log")
        names = ",".join("ftruncate" if call == "ftruncate64" else call for call in CHANGES)
        under = ("strace", "-f", "-qq", "-yy", "-s0", "-o", str(log), "-e", f"trace={names}")
        try:
            run = ended(case.start(registry, store, under=under), store)
        except FileNotFoundError:
            return None
        if run.code:
            return None
        below = [line for line in log.read_text(errors="replace").splitlines() if str(store) in line]
        made = Counter(found[1] for line in below if (found := re.match(r"\d+ +(\w+)\(", line)))
    return {"ftruncate64" if call == "ftruncate" else call: made[call] for call in made}


def crash(name: str, case: Case, registry: Registry, quick: bool) -> list[Point]:
    calls = calls_of(case, registry)
    numbers: Sequence[int] = range(1, len(calls) + 1)
    if quick:
        numbers = [1 + index * (len(calls) - 1) // (QUICK - 1) for index in range(QUICK)]
    seen = Counter(call.partition(" ")[0] for call in calls)
    print(f"{name}: a pull makes {len(calls)} calls that change its store: ", end="")
    print(", ".join(f"{count} {call}" for call, count in seen.most_common()), flush=True)
    strace = traced(case, registry)
    if strace is None:
        print(f"{name}: strace cannot be used here: not checked whether it sees other calls")
    else:
        other = {call: count for call, count in strace.items() if not seen[call]}
        print(f"{name}: strace sees {sum(strace.values())}", end="")
        print(f", and these that are not counted: {other}" if other else ", of the same kinds")
    points = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for point in pool.map(lambda number: try_point(case, registry, number), numbers):
            points.append(point)
            for wrong in point.recovery.wrong if point.recovery else ():
                print(f"{name}: killed before call {point.number}: {wrong}", flush=True)
            if len(points) % 20 == 0:
                print(f"{name}: {len(points)} of {len(numbers)} points", flush=True)
    tell(name, points, case)
    return points


def tell(name: str, points: Sequence[Point], case: Case) -> None:
    recoveries = [point.recovery for point in points if point.recovery]
    good = [recovery for recovery in recoveries if not recovery.wrong]
    total = sum(map(len, case.files.values()))
    print(f"{name}: killed at {len(recoveries)} points, {len(recoveries) - len(good)} of them went wrong.")
    most = max((recovery.again for recovery in good), default=0)
    print(
        f"{name}: in {len(good)} no file under a final name was torn, no marker came before its files,\n"
        f"  nothing was left behind, and the next run made all {len(case.files)} files whole; of {total}\n"
        f"  bytes it fetched at most {most} again (allowed: {IN_FLIGHT}).",
        flush=True,
    )
    if few := len(points) - len(recoveries):
        print(f"{name}: {few} more were not killed: they made fewer calls than the first one did")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} points of each layout")
    parser.add_argument("--layout", choices=("ngc", "hub", "local-dir"), help="this one alone")
    options = parser.parse_args()
    if COMPILER is None:
        print(f"crash-test: skipped: there is no cc here, and {WITHOUT}", file=sys.stderr)
        sys.exit(77)
    wrong = 0
    with serving() as (registry, cases):
        for name, case in cases.items():
            if options.layout in (None, name):
                points = crash(name, case, registry, options.quick)
                wrong += sum(bool(point.recovery and point.recovery.wrong) for point in points)
    if wrong:
        sys.exit(f"crash-test: {wrong} points went wrong")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"crash-test: {error}")
