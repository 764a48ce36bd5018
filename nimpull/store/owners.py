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
from functools import cached_property

from nimpull.core.artifacts import Artifact
from nimpull.core.names import ModelUri, display
from nimpull.errors import NotWritableError, UsageError
from nimpull.store.ready import Ready, ReadyFile, all_ready
from nimpull.store.record import Record
from nimpull.store.tree import Tree

_SHOWN = 3  # names of files in one message


class Owners:
    """What the record and the markers say of the files there. ``selection``: that is about to write."""

    def __init__(self, tree: Tree, record: Record, selection: str) -> None:
        self._tree = tree
        self._record = record
        self._selection = selection

    def foreign(self, targets: Sequence[tuple[str, Artifact]]) -> tuple[str, ...]:
        """Of paths that are about to be written, those with a file that nobody here knows.

        Raises NotWritableError for files of another model, before any of them is touched.
        """
        unknown: list[str] = []
        others: list[tuple[str, ModelUri]] = []
        with self._tree.holding():
            for path, artifact in targets:
                status = self._tree.lstat(path)
                if status is None or not stat.S_ISREG(status.st_mode):
                    continue  # free, or refused by the layout
                owners = self._of(path, status)
                if not owners:
                    unknown.append(path)
                own = any(ready.selection == self._selection for ready, _ in self._rows.get(path, ()))
                mine = _model(artifact.uri, any_version=own)
                others += [(path, uri) for uri in owners if _model(uri, any_version=own) != mine][:1]
        if others:
            raise _occupied(self._tree, others, targets[0][1].uri)
        return tuple(unknown)

    def _of(self, path: str, status: os.stat_result) -> Sequence[ModelUri]:
        """The models whose file it is: as it was committed, else as it was before somebody changed it."""
        entries = self._record.of_path(path)
        matching = [entry for entry in entries if entry.matches(status)]
        if matching:
            return _uris(entry.identity for entry in matching)
        rows = self._rows.get(path, ())
        as_it_is = (status.st_size, status.st_mtime_ns)
        for ready, row in rows:
            if (row.size, row.mtime_ns) == as_it_is:
                return _uris(ready.revisions)
        if entries:
            return _uris((max(entries, key=lambda entry: entry.mtime_ns).identity,))
        return _uris(rows[0][0].revisions) if rows else ()

    @cached_property
    def _rows(self) -> dict[str, list[tuple[Ready, ReadyFile]]]:
        """Of every marker, by path; read only where something stands in the way."""
        found: dict[str, list[tuple[Ready, ReadyFile]]] = {}
        for ready in all_ready(self._tree):
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


def _occupied(tree: Tree, others: Sequence[tuple[str, ModelUri]], wanted: ModelUri) -> NotWritableError:
    names = ", ".join(display(path, 120) for path, _ in others[:_SHOWN])
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return NotWritableError(
        f"{names}{more} in {display(tree.root, 200)} belong to {display(others[0][1].repo, 200)}; "
        f"{display(wanted.repo, 200)} has other files of these names",
        hint="Nothing was replaced. Give each model a directory of its own: storage.pvc.subPath of the "
        "NIMCache, another claim, or --store and --local-dir.",
    )
