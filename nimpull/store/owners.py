"""Whose is what: a file that stands where another must go is replaced, or it is not.

A file that this store committed for the same model is replaced, as an update replaces it. One of another
model is not: two models in one directory would take each other's ``config.json``. What nimpull did not write
is replaced, as ``hf download --local-dir`` does, and that is told.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from nimpull.core.artifacts import Artifact
from nimpull.core.names import ModelUri, display
from nimpull.errors import NotWritableError, UsageError
from nimpull.store.ready import Ready, all_ready
from nimpull.store.record import Entry, Record, StoredFile
from nimpull.store.tree import Tree

_SHOWN = 3  # names of files in one message


def foreign(
    tree: Tree, record: Record, selection: str, targets: Iterable[tuple[str, Artifact]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of paths that ``selection`` is about to write: those with a file that nobody here knows, and those with
    one that was changed since it was committed.

    Raises NotWritableError for files of another model, before any of them is touched.
    """
    unknown: list[str] = []
    changed: list[str] = []
    others: list[tuple[str, ModelUri, ModelUri]] = []
    with tree.holding():
        standing = [  # what is no file is free, or refused by the layout
            (path, artifact, status)
            for path, artifact in targets
            if (status := tree.lstat(path)) and stat.S_ISREG(status.st_mode)
        ]
    if standing:
        record.news()  # another run puts there just now what this one wants too
    markers = _by_path(all_ready(tree)) if standing else {}
    for path, artifact, status in standing:
        rows = markers.get(path, ())
        owners, as_committed = _owners_of(record.of_path(path), rows, status)
        if not owners:
            unknown.append(path)
        elif not as_committed:
            changed.append(path)
        own = any(ready.selection == selection for ready, _ in rows)
        mine = _model(artifact.repo, any_version=own)
        theirs = [uri for uri in owners if _model(uri, any_version=own) != mine]
        others += [(path, uri, artifact.repo) for uri in theirs[:1]]
    if others:
        raise occupied(tree, others)
    return tuple(unknown), tuple(changed)


def _owners_of(
    entries: Sequence[Entry], rows: Sequence[tuple[Ready, StoredFile]], status: os.stat_result
) -> tuple[Sequence[ModelUri], bool]:
    """The models whose file it is, and whether it is as it was committed."""
    if matching := [entry for entry in entries if entry.matches(status)]:
        return _uris(entry.identity for entry in matching), True
    for ready, row in rows:  # where the record is lost
        if row.matches(status):
            return _uris(ready.revisions), True
    if entries:
        return _uris((max(entries, key=lambda entry: entry.mtime_ns).identity,)), False
    return (_uris(rows[0][0].revisions) if rows else ()), False


def _by_path(markers: Iterable[Ready]) -> dict[str, list[tuple[Ready, StoredFile]]]:
    found: dict[str, list[tuple[Ready, StoredFile]]] = {}
    for ready in markers:
        for row in (*ready.files, *ready.names):
            found.setdefault(row.path, []).append((ready, row))
    return found


def _uris(texts: Iterable[str]) -> tuple[ModelUri, ...]:
    found = []
    for text in dict.fromkeys(texts):
        with suppress(UsageError):  # a line of the record that names no model speaks for nobody
            found.append(ModelUri.parse(text))
    return tuple(found)


def _model(uri: ModelUri, *, any_version: bool) -> ModelUri:
    """A hub's revisions follow each other in one directory; NGC's versions are models side by side, unless
    the selection that is there asked for the same (``latest``)."""
    revision = "" if any_version or uri.scheme != "ngc" else uri.revision
    return replace(uri, path="", revision=revision)


def occupied(tree: Tree, others: Sequence[tuple[str, ModelUri, ModelUri]]) -> NotWritableError:
    """``others``: path, whose file it is, what should take its place."""
    _, theirs, wanted = others[0]
    names = ", ".join(display(path, 120) for path, *_ in others[:_SHOWN])
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return NotWritableError(
        f"{names}{more} in {display(tree.root, 200)} belong to {display(theirs.repo, 200)}; "
        f"{display(wanted, 200)} has other files of these names",
        hint="Nothing was replaced. Give each model a directory of its own, on a shared claim by subPath "
        "(NIMCache: spec.storage.pvc.subPath) (nimpull: --store).",
    )


def check_late(tree: Tree, record: Record, path: str, status: os.stat_result, artifact: Artifact) -> None:
    """Another model's run may have put a file at ``path`` since this one looked. Raises NotWritableError."""
    if record.at(path, status) is None and record.news() and (entry := record.at(path, status)):
        for uri in _uris((entry.identity,)):
            if _model(uri, any_version=False) != _model(artifact.repo, any_version=False):
                raise occupied(tree, [(path, uri, artifact.repo)])
