"""``nimpull status --watch``: a pull that runs elsewhere, by what it leaves on the volume."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TextIO

from nimpull.core.names import display
from nimpull.core.report.contents import ProgressSummary
from nimpull.core.report.sentences import moving
from nimpull.core.units import show_bytes
from nimpull.errors import Cancelled
from nimpull.progress import Mode, choose_mode
from nimpull.progress.stream import TextStream
from nimpull.settings import is_dumb_terminal
from nimpull.store.presence import Running, Watcher
from nimpull.store.report_file import REPORT
from nimpull.store.status import Partial, partials
from nimpull.store.tree import Tree

LOOK: Final = 1.0  # seconds between two looks; a report is rewritten every five
LINE: Final = 10.0  # seconds between two lines of a log
_MOST_REPORT: Final = 64 << 20  # bytes
_MOST_FILES: Final = 8  # lines of files in flight
_BAR: Final = 72  # columns


def watch(root: str, *, sleep: Callable[[float], None] = time.sleep) -> int:
    """Until the last report is there and no run writes any more. Returns the exit code of that pull.

    Raises StoreError; Cancelled for a run that ended without a report (it was killed).
    """
    tree = Tree(root)
    watcher = Watcher(tree, time.monotonic)
    screen = Screen(sys.stdout)
    somebody = False
    while True:
        report = read_report(tree)
        runs = watcher.living()
        # Before the first writer was seen, an unfinished report that moves is a run that begins.
        somebody = somebody or bool(runs)
        unfinished = _part(report, "status").get("state") == "InProgress" and watcher.moves(REPORT)
        if not runs and (somebody or not unfinished):
            screen.clear()
            return _ended(read_report(tree), screen)  # the last word may have come between the two looks
        screen.show(lines_of(report, runs, partials(tree)))
        sleep(LOOK)


def read_report(tree: Tree) -> dict[str, Any]:
    """Empty where there is none that can be understood: anyone who can write to the volume can write it."""
    try:
        found = json.loads(tree.read(REPORT, _MOST_REPORT) or b"")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _ended(report: dict[str, Any], screen: Screen) -> int:
    status = _part(report, "status")
    if status.get("state") not in ("Ready", "Failed"):
        raise Cancelled(
            "the run that wrote here is gone and left no last report: it was killed",
            hint="Run the same nimpull download again: it goes on from what is on the volume.",
        )
    conditions = status.get("conditions")
    first = conditions[0] if isinstance(conditions, list) and conditions else {}
    message = first.get("message") if isinstance(first, dict) else ""
    screen.line(f"nimpull: {status['state']}: {display(message or '', 1500)}")
    code = _part(report, "error").get("exitCode")
    return 0 if status["state"] == "Ready" else code if isinstance(code, int) and 0 < code < 256 else 1


def lines_of(report: dict[str, Any], runs: tuple[Running, ...], files: tuple[Partial, ...]) -> list[str]:
    """The bar of the whole, a line for each file in flight, and who works here."""
    progress = progress_of(report)
    lines = ["starting"]
    if progress:
        share = min(1.0, progress.done / progress.total) if progress.total else 1.0
        lines = [moving(progress), f"  |{'#' * int(share * _BAR):<{_BAR}}|"]
    writing = {run.token for run in runs}
    # where a store has but one writer, an ingest has no token
    under_way = [each for each in files if each.name.partition(".")[2] in {*writing, ""}]
    for each in sorted(under_way, key=lambda part: -part.modified)[:_MOST_FILES]:
        name = each.identity.rpartition("?file=")[2] or each.name[:16]
        part = (
            f"{min(100, 100 * each.bytes // each.size):>3}% of {show_bytes(each.size)}" if each.size else ""
        )
        lines.append(f"  {display(name, 60)}  {part or show_bytes(each.bytes)}")
    if len(under_way) > _MOST_FILES:
        lines.append(f"  and {len(under_way) - _MOST_FILES} more files")
    return [*lines, *([f"writing: {', '.join(run.owner for run in runs)}"] if runs else [])]


def progress_of(report: dict[str, Any]) -> ProgressSummary | None:
    found = _part(report, "progress")
    total = _number(found.get("bytesTotal"))
    if _part(report, "status").get("state") != "InProgress" or total is None:
        return None
    files_total = _number(found.get("filesTotal"))
    return ProgressSummary(
        phase=display(found.get("phase") or "", 40),
        done=int(_number(found.get("bytesDone")) or 0),
        total=int(total),
        rate=_number(found.get("bytesPerSecond")) or 0.0,
        eta=_number(found.get("etaSeconds")),
        files=int(_number(found.get("filesDone")) or 0),
        files_total=None if files_total is None else int(files_total),
    )


def _part(report: dict[str, Any], name: str) -> dict[str, Any]:
    found = report.get(name)
    return found if isinstance(found, dict) else {}


def _number(value: object) -> float | None:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2.0**63
    return float(value) if fine else None  # type: ignore[arg-type]


class Screen:
    """Lines that take the place of those before on a terminal; elsewhere the first of them, now and then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = TextStream(stream)
        self._in_place = choose_mode(stream, dumb=is_dumb_terminal()) is Mode.BAR
        self._next = -math.inf
        self._shown: list[int] = []  # lengths

    def show(self, lines: list[str]) -> None:
        if self._in_place:
            columns = self._stream.columns - 1
            cut = [line[:columns] for line in lines]
            self._stream.write(self._up() + "".join(f"{line}\n" for line in cut))
            self._shown = [len(line) for line in cut]
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE
            self.line(lines[0])

    def line(self, text: str) -> None:
        self._stream.write(f"{text}\n")

    def clear(self) -> None:
        self._stream.write(self._up())
        self._shown = []

    def _up(self) -> str:
        """To the first of the lines shown, also where a narrower terminal has broken them since."""
        columns = self._stream.columns
        rows = sum(max(1, -(-length // columns)) for length in self._shown)
        return f"\x1b[{rows}F\x1b[J" if rows else ""
