"""What in a store nobody needs: found by :func:`plan`, removed by :func:`carry_out`.

Kept, whatever else is said: all that a marker names, all that this store has not written (the record does
not know it as it is), and everything while a run writes. A marker that cannot be read may name anything, so
then no snapshot goes. Plain files are never removed: nothing tells those that somebody still uses.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from nimpull.core.names import ModelUri, display
from nimpull.errors import NimpullError, StoreError
from nimpull.store.ingest import remove_ingest
from nimpull.store.ready import READY, Ready, all_ready
from nimpull.store.record import Record
from nimpull.store.report_file import REPORT, REPORTS, SPARE
from nimpull.store.status import partials
from nimpull.store.tree import INGESTS, Tree

_BLOCK = 512  # bytes of st_blocks (POSIX, sys/stat.h)
_MOST_REPORT = 64 << 20  # bytes
#: ``<hub>/models--…`` and what is below it.
_IN_HUB = re.compile(r"(?P<repository>.+/(?:models|datasets)--[^/]+)/(?P<kind>blobs|snapshots)/(?P<rest>.+)")
_LINK = re.compile(r"(?:\.\./)+blobs/([^/]+)")


@dataclass(frozen=True, slots=True)
class Removable:
    """``what`` and ``name``: for people; ``paths``: below the root, in the order of removal; ``bytes``: that
    the volume gets back.
    """

    what: str
    name: str
    paths: tuple[str, ...]
    bytes: int


def plan(tree: Tree, record: Record) -> tuple[Removable, ...]:
    """Looks only. Raises StoreError."""
    markers = all_ready(tree)
    found = [*_half_done(tree, markers), *_reports(tree)]
    if len(markers) == len(tree.names(READY)):
        found += _snapshots(tree, record, markers)
    return tuple(found)


def carry_out(tree: Tree, record: Record, removable: Removable) -> None:
    """Links go before what they lead to: no reader meets one that leads nowhere. Raises StoreError.

    The record forgets first: a file that is left over after a kill is adopted by the next pull, one that the
    record has and the store has not would be reported as lost.
    """
    record.forget(frozenset(removable.paths))
    for path in removable.paths:
        status = tree.lstat(path)
        if status and stat.S_ISDIR(status.st_mode):
            remove_ingest(tree, path)
            continue
        tree.remove(path)
        _remove_empty(tree, path.rpartition("/")[0])


def _remove_empty(tree: Tree, directory: str) -> None:
    """Up to the repository's: a hub cache without files is none."""
    while "--" in directory:
        try:
            tree.remove_directory(directory)
        except (OSError, StoreError):
            return
        directory = directory.rpartition("/")[0]


# -- files that are half done, and reports ---------------------------------------------------------------


def _half_done(tree: Tree, markers: Iterable[Ready]) -> Iterator[Removable]:
    """Of revisions that no marker names: one that is named may be on its way to be repaired."""
    named = {revision for ready in markers for revision in ready.revisions}
    for part in partials(tree):
        if part.identity.partition("?file=")[0] not in named:
            name = display(part.identity, 200) or f"{part.name[:16]}…"
            yield Removable("half done", name, (f"{INGESTS}/{part.name}",), part.bytes)
    for name in tree.names(INGESTS):
        status = tree.lstat(f"{INGESTS}/{name}")
        if status and stat.S_ISREG(status.st_mode):  # small files: of a run that was killed
            yield Removable("half done", f"{name[:16]}…", (f"{INGESTS}/{name}",), status.st_blocks * _BLOCK)


def _reports(tree: Tree) -> Iterator[Removable]:
    """Room for a report that was not needed, the report of a run that did not end well, each pod's own."""
    reports = [("room for a report", SPARE)]
    try:
        state = json.loads(tree.read(REPORT, _MOST_REPORT) or b"")["status"]["state"]
    except (ValueError, KeyError, TypeError, RecursionError):
        state = ""
    if state != "Ready":
        reports.append(("report of a run that failed", REPORT))
    for what, path in reports:
        if (status := tree.lstat(path)) and stat.S_ISREG(status.st_mode):
            yield Removable(what, path, (path,), status.st_blocks * _BLOCK)
    pods = tuple(f"{REPORTS}/{name}" for name in tree.names(REPORTS))
    if pods:
        yield Removable("reports of single runs", REPORTS, pods, sum(_freed(tree, each) for each in pods))


# -- snapshots of hub caches -----------------------------------------------------------------------------


def _snapshots(tree: Tree, record: Record, markers: Sequence[Ready]) -> Iterator[Removable]:
    revisions: dict[str, dict[str, str]] = {}  # by repository: what its snapshots are called, and are of
    for entry in record.entries:
        inside = _IN_HUB.fullmatch(entry.path)
        for each in record.of_path(entry.path) if inside else ():
            with suppress(NimpullError):
                uri = ModelUri.parse(each.identity).repo
                name = uri.revision.replace("/", "--") or "latest"
                revisions.setdefault(inside["repository"], {})[name] = str(uri)  # type: ignore[index]
    named = {row.path for ready in markers for row in (*ready.files, *ready.names)}
    for repository, own in revisions.items():
        yield from _of_repository(tree, record, repository, own, named)


def _of_repository(
    tree: Tree, record: Record, repository: str, own: dict[str, str], named: set[str]
) -> Iterator[Removable]:
    leaves = {
        name: tuple(_leaves(tree, f"{repository}/snapshots/{name}"))
        for name in tree.names(f"{repository}/snapshots")
    }
    old = {
        name
        for name, paths in leaves.items()
        if name in own
        and not named.intersection(paths)
        and all(_is_own(tree, record, each) for each in paths)
    }
    used = {_blob(tree, each) for name, paths in leaves.items() if name not in old for each in paths}
    blobs = {
        blob: status
        for blob in (f"{repository}/blobs/{name}" for name in tree.names(f"{repository}/blobs"))
        if blob not in used | named and (status := tree.lstat(blob)) and record.at(blob, status)
    }
    for name in sorted(old):
        mine = [blob for blob in dict.fromkeys(_blob(tree, each) for each in leaves[name]) if blob in blobs]
        files = [each for each in leaves[name] if tree.readlink(each) is None]
        size = sum(_freed(tree, each) for each in (*mine, *files))
        beside = (*_references(tree, repository, name), f"{repository}/trees/{name}.json")
        for blob in mine:
            del blobs[blob]
        yield Removable("unused snapshot", own[name], (*beside, *leaves[name], *mine), size)
    if blobs:
        size = sum(_freed(tree, blob) for blob in blobs)
        yield Removable("blobs of no snapshot", repository, tuple(blobs), size)


def _leaves(tree: Tree, directory: str) -> Iterator[str]:
    for name in tree.names(directory):
        path = f"{directory}/{name}"
        status = tree.lstat(path)
        if status and stat.S_ISDIR(status.st_mode):
            yield from _leaves(tree, path)
        else:
            yield path


def _is_own(tree: Tree, record: Record, path: str) -> bool:
    """A link to a blob of its repository, or a file as this store committed it."""
    if tree.readlink(path) is not None:
        return bool(_blob(tree, path))
    status = tree.lstat(path)
    return status is not None and record.at(path, status) is not None


def _blob(tree: Tree, path: str) -> str:
    inside, link = _IN_HUB.fullmatch(path), _LINK.fullmatch(tree.readlink(path) or "")
    return f"{inside['repository']}/blobs/{link[1]}" if inside and link else ""


def _freed(tree: Tree, path: str) -> int:
    """Nothing while it has another name."""
    status = tree.lstat(path)
    return status.st_blocks * _BLOCK if status and status.st_nlink == 1 else 0


def _references(tree: Tree, repository: str, snapshot: str) -> Iterator[str]:
    for path in _leaves(tree, f"{repository}/refs"):
        with suppress(StoreError):
            if tree.read(path, 1 << 10) == snapshot.encode():
                yield path
