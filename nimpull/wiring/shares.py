"""The reports of runs that share a store: each has its own, and ``report.json`` is one whole report.

``.nimpull/reports/<selection>.<pod>.<pid>.json`` is a run's own. ``report.json`` is of the run that began
to work last, until that ends; ``report.owner`` names it. Others write it once that one has ended, or for
the same selection, when they are ready: then the pull is, whoever says so. Beside its own share it tells
what the other pods of the same pull did. The metrics go with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from nimpull.core.report.contents import PodShare, Report, State
from nimpull.core.report.document import artifact_rows, to_bytes
from nimpull.core.units import show_count
from nimpull.errors import NoSpaceError, StoreError
from nimpull.store import presence
from nimpull.store.presence import RUNS, is_gone, process_of
from nimpull.store.report_file import OWNER, REPORTS, write_report
from nimpull.store.sharing import SharedWork
from nimpull.store.tree import Tree

_SAME_PULL: Final = 3600.0  # seconds before this run's report within which another's is of the same pull
_KEPT: Final = 7 * 86400.0  # seconds that the report of a pod stays
_NO_NAME: Final = re.compile(r"[^0-9A-Za-z-]")
_OWNER: Final = re.compile(rb"([0-9a-f]{32}) ([0-9A-Za-z._-]{1,100})")
_LIMIT: Final = 64 << 20  # bytes


def leave(
    tree: Tree,
    report: Report,
    *,
    work: SharedWork | None = None,
    selection: str = "",
    begins: bool = False,
    last: bool,
) -> bool:
    """Returns whether ``report.json`` was this run's to write.

    ``work``: what the run shares with others, None = nothing yet; ``selection``: the key of the ready marker
    of that; ``begins``: whether it is new that it does more than wait; ``last``: no report follows.

    Raises StoreError.
    """
    rows = artifact_rows(report)
    if work is None:
        ours = not _is_live(tree, _owner(tree)[0], _now(tree))
        if ours:
            _write_whole(tree, report, rows, last=last)
        return ours
    share = PodShare(work.owner, report.state, work.files, work.bytes, work.waiting)
    report = replace(report, pods=(share,))
    own = f"{REPORTS}/{selection}.{_NO_NAME.sub('-', work.owner)[:80]}.json"
    with suppress(StoreError):  # a full volume: what was set aside is for the one that a controller reads
        tree.write(own, to_bytes(report, rows), durable=False)
    written = tree.lstat(own)
    now = written.st_mtime if written else 0.0
    if begins:
        with suppress(StoreError):
            tree.write(OWNER, f"{work.token} {selection}".encode(), durable=False)
    owner, its = _owner(tree)
    if owner == work.token or (report.state is State.READY and its == selection):
        ours = True
    else:
        waits = report.state is State.IN_PROGRESS and not work.works
        ours = not (_is_live(tree, owner, now) or (waits and _others_write(tree, work.token, now)))
    if ours:
        whole = replace(report, pods=(share, *_other_shares(tree, selection, own, now)))
        _write_whole(tree, whole, rows, last=last)
    if last:
        _sweep(tree, now)
    return ours


def _owner(tree: Tree) -> tuple[str, str]:
    """Token and selection of the run that ``report.json`` is of; anyone may have written it."""
    found = _OWNER.fullmatch(tree.read(OWNER, _LIMIT) or b"")
    return (found[1].decode(), found[2].decode()) if found else ("", "")


def _is_live(tree: Tree, token: str, now: float) -> bool:
    """Whether the run with this token writes; ``now``: by the volume's clock."""
    status = tree.lstat(f"{RUNS}/{token}") if token else None
    if status is None or not -presence.EXPIRY < now - status.st_mtime < presence.EXPIRY:
        return False
    return not is_gone(process_of(tree.read(f"{RUNS}/{token}", _LIMIT) or b""))


def _now(tree: Tree) -> float:
    """By the volume's clock; 0 where it has no room for a file that would tell."""
    path = tree.temporary()
    try:
        tree.create(path, b"")
        status = tree.lstat(path)
    except NoSpaceError:
        status = None
    tree.drop(path)
    return status.st_mtime if status else 0.0


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
    return any(status and now - status.st_mtime < presence.EXPIRY for status in runs)


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
