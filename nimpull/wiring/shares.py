"""The reports of runs that share a store: each has its own, and ``report.json`` is one whole report.

``.nimpull/reports/<selection>.<pod>.<pid>.json`` is a run's own. ``report.json`` is the last report of a
run that did work; beside its own share it tells what the other pods of the same pull did. A run that only
waits leaves it alone while others write there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from nimpull.core.report import PodShare, Report, State, artifact_rows, to_bytes
from nimpull.core.units import show_count
from nimpull.errors import StoreError
from nimpull.store.presence import EXPIRY, RUNS
from nimpull.store.report_file import REPORTS, write_report
from nimpull.store.tree import Tree

_SAME_PULL: Final = 3600.0  # seconds before this run's report within which another's is of the same pull
_KEPT: Final = 7 * 86400.0  # seconds that the report of a pod stays
_NO_NAME: Final = re.compile(r"[^0-9A-Za-z-]")
_LIMIT: Final = 64 << 20  # bytes


def leave(
    tree: Tree, report: Report, *, selection: str = "", token: str = "", works: bool = True, last: bool
) -> None:
    """``selection``: the key of the ready marker, "" = not known yet; ``token``: of the run, see
    :mod:`nimpull.store.presence`; ``works``: whether it did more than wait; ``last``: no report follows.

    Raises StoreError.
    """
    rows = artifact_rows(report)
    if not (selection and report.pods):
        _write_whole(tree, report, rows, last=last)
        return
    own = f"{REPORTS}/{selection}.{_NO_NAME.sub('-', report.pods[0].pod)[:80]}.json"
    with suppress(StoreError):  # a full volume: what was set aside is for the one that a controller reads
        tree.write(own, to_bytes(report, rows), durable=False)
    written = tree.lstat(own)
    now = written.st_mtime if written else 0.0
    if works or report.state is State.READY or not _others_write(tree, token, now):
        whole = replace(report, pods=(*report.pods, *_other_shares(tree, selection, own, now)))
        _write_whole(tree, whole, rows, last=last)
    if last:
        _sweep(tree, now)


def _write_whole(tree: Tree, report: Report, rows: bytes, *, last: bool) -> None:
    """Room is set aside before the files are known: on a full volume their list may be too long for it."""
    shorter = b""
    if last and report.artifacts:
        note = f"the list of {show_count(len(report.artifacts), 'file')} is left out: the volume has no room"
        shorter = to_bytes(replace(report, artifacts=(), notes=(*report.notes, note)))
    write_report(tree, to_bytes(report, rows), last=last, shorter=shorter)


def _others_write(tree: Tree, token: str, now: float) -> bool:
    """Whether runs beside this one, with its ``token``, write; ``now``: by the volume's clock."""
    runs = (tree.lstat(f"{RUNS}/{name}") for name in tree.names(RUNS) if name != token)
    return any(status and now - status.st_mtime < EXPIRY for status in runs)


def _other_shares(tree: Tree, selection: str, own: str, now: float) -> Iterator[PodShare]:
    for name in tree.names(REPORTS):
        path = f"{REPORTS}/{name}"
        status = tree.lstat(path)
        if path == own or name.partition(".")[0] != selection or not status:
            continue
        if status.st_mtime > now - _SAME_PULL and (share := _share_in(tree.read(path, _LIMIT))):
            yield share


def _share_in(content: bytes | None) -> PodShare | None:
    """Of the pod that wrote the report; anyone may have written it."""
    try:
        share = json.loads(content or b"")["pods"][0]
        return PodShare(
            str(share["name"])[:200],
            State(share["state"]),
            max(0, int(share["files"])),
            max(0, int(share["bytes"])),
            str(share["waitingFor"])[:500],
        )
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        return None


def _sweep(tree: Tree, now: float) -> None:
    """Pods of a Job have new names each time."""
    with suppress(StoreError, OSError):
        for name in tree.names(REPORTS):
            status = tree.lstat(f"{REPORTS}/{name}")
            if status and status.st_mtime < now - _KEPT:
                tree.unlink(f"{REPORTS}/{name}")
