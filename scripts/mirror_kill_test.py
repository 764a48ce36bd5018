"""Kill a mirror at every request to its bucket and before every call on its directory, and read what is left.

Each point is a mirror of its own: a process with a whole store, a bucket or a directory, SIGKILL at request
or call number N (every second request is carried out before the kill). Then no reader may take the mirror for
complete unless it is; the next run must make it whole, byte for byte; the run after that must send nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mirror_kills import (
    calls_of,
    killed_at_call,
    killed_at_request,
    mirror,
    requests_of,
    tree_server,
)
from tests.volume_faults import COMPILER

QUICK = 5  # points of each kind


def chosen(count: int, points: int) -> Sequence[int]:
    """``points`` numbers from 1 to ``count``, evenly; all and again from the start where there are fewer."""
    if points <= count:
        return [1 + index * (count - 1) // max(1, points - 1) for index in range(points)]
    return [1 + index % count for index in range(points)]


def kill(what: str, numbers: Sequence[int], point: Callable[[int, int], list[str]]) -> int:
    """Returns how many went wrong."""
    wrong = 0
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda pair: point(*pair), enumerate(numbers))
        for number, complaints in zip(numbers, results, strict=True):
            wrong += bool(complaints)
            for complaint in complaints:
                print(f"{what}: killed at {number}: {complaint}", flush=True)
    print(f"{what}: killed {len(numbers)} times, {wrong} of them went wrong", flush=True)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} kills of each kind, not 50")
    parser.add_argument("--kills", type=int, default=50, help="of each kind [50]")
    options = parser.parse_args()
    points = QUICK if options.quick else options.kills
    with tempfile.TemporaryDirectory(prefix="nimpull-mirror-") as scratch, mirror(Path(scratch)) as made:
        requests = requests_of(made)
        print(f"a mirror makes {requests} requests to a bucket")
        wrong = kill(
            "bucket",
            chosen(requests, points),
            lambda index, number: killed_at_request(made, number, after=bool(index % 2)),
        )
        if COMPILER is None:
            print("directory: skipped: there is no cc here", file=sys.stderr)
        else:
            calls = calls_of(made)
            print(f"a mirror makes {calls} calls that change its directory")
            wrong += kill(
                "directory",
                chosen(calls, points),
                lambda _, number: killed_at_call(made, number, tree_server),
            )
    if wrong:
        sys.exit(f"mirror-kill-test: {wrong} kills went wrong")


if __name__ == "__main__":
    main()
