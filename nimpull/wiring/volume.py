"""The volume of one request: opened on first use, probed before a write."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from nimpull.core.abilities import WriteMode
from nimpull.core.artifacts import Artifact, Listing, Wanted
from nimpull.core.digest import Digest
from nimpull.core.events import Note
from nimpull.core.names import ModelUri, SafePath, Url, display
from nimpull.core.plan import Plan
from nimpull.core.ports import Cancel, Clock, Emit
from nimpull.core.report.contents import StoreSummary
from nimpull.core.request import LayoutKind, Request
from nimpull.core.units import show_bytes
from nimpull.errors import NoSpaceError, StoreError, UsageError
from nimpull.settings import Settings, hub_in
from nimpull.store import preflight
from nimpull.store.claims import Claims
from nimpull.store.layouts import Found, FoundBy, StoreLayout
from nimpull.store.ready import Ready
from nimpull.store.scratch import ScratchRoom
from nimpull.store.store import Store

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of a request stand. ``second``: where another reader looks, by other names of the same
    files; ``only``: what has the files alone where that cannot be.
    """

    first: StoreLayout
    second: StoreLayout | None = None
    only: str = ""


class NimCacheStore:
    """What the NIM cache already has of a model that goes elsewhere: another store, only read.

    A file counts by that store's record, or by its digest once it was read; what cannot be read is not
    there."""

    def __init__(self, store: Store, hub: str, ngc_hub: str) -> None:
        """``hub``, ``ngc_hub``: the caches of the Hub and of NGC below its root, "" = NIM's own."""
        self._layout = store.nim_cache(hub, ngc_hub)
        self.tree = store.tree

    def find(self, artifact: Artifact) -> Found | None:
        with suppress(StoreError):
            found = self._layout.find(artifact)
            return replace(found, by=FoundBy.ELSEWHERE, tree=self.tree) if found else None
        return None

    def listing(
        self, uri: ModelUri, wanted: Wanted, promised: Mapping[str, Digest], endpoint: str
    ) -> Listing | None:
        """Of named files at a revision that never changes, if all are here: nobody has to be asked."""
        if not wanted.paths or wanted.include or wanted.exclude or not _is_immutable(uri):
            return None
        artifacts = []
        for path in sorted(wanted.paths):
            digest = promised.get(str(uri.with_path(path)))
            digests = (digest,) if digest else ()
            found = self.find(Artifact(SafePath(path), None, digests, uri.repo, endpoint=endpoint))
            if found is None:
                return None
            artifacts.append(Artifact(SafePath(path), found.file.size, (found.file.digest,), uri.repo))
        return Listing(uri.repo, uri.revision, tuple(artifacts), Url(Path(self.tree.root).as_uri()))


def _is_immutable(uri: ModelUri) -> bool:
    """An NGC version, or a commit."""
    if uri.scheme == "ngc":
        return uri.revision not in ("", "latest")
    return uri.scheme == "hf" and bool(_COMMIT.fullmatch(uri.revision))


@dataclass(eq=False)
class Volume:
    """Raises StoreError, and what a method says beside it. ``stack``: closes what is opened."""

    request: Request
    settings: Settings
    clock: Clock
    cancel: Cancel
    emit: Emit
    stack: ExitStack

    @property
    def exists(self) -> bool:
        """A dry run makes no directory."""
        return os.path.isdir(self.request.store)

    @cached_property
    def store(self) -> Store:
        """Opened without a write: :meth:`probe` comes once it is known that there is work."""
        return self.stack.enter_context(Store(self.request.store, self.cancel))

    @cached_property
    def cache(self) -> NimCacheStore | None:
        """The NIM cache that plain files are linked from; None where there is none."""
        path = self.request.cache
        if not path or not os.path.isdir(path):
            return None
        hubs = hub_in(path, self.settings.hf_home), hub_in(path, self.settings.ngc_home)
        return NimCacheStore(self.stack.enter_context(Store(path, self.cancel)), *hubs)

    def places(self, destinations: Mapping[str, SafePath]) -> Places:
        """``destinations``: in a workspace, by the identity of the artifact.

        A model-free NIM looks at the store's root (NIM_MODEL_NAME) and into the hub cache (HF_HOME).
        """
        request, store = self.request, self.store
        if request.layout is LayoutKind.CACHE:
            cache = store.nim_cache(request.hub, request.ngc_hub)
            return (
                Places(cache, store.workspace(), "the hub cache")
                if request.runtime_manifest
                else Places(cache)
            )
        plain = store.local_dir() if request.layout is LayoutKind.LOCAL_DIR else store.workspace(destinations)
        return Places(plain, store.nim_cache(request.hub), "the plain tree") if request.hub else Places(plain)

    def ready(self, selection: str, asked: Iterable[ModelUri]) -> Ready | None:
        """By the marker and stat calls alone; the manifest of a model-free pull is part of it.

        ``asked``: the repositories in the order of their listings. Another hub or another selection may
        have moved the cache's references since the marker was written: they lead back to what is ready.
        """
        written = self.request.runtime_manifest
        if not self.exists or (written and not os.path.isfile(written)):
            return None
        ready = self.store.ready(selection)
        if ready and self.request.layout is LayoutKind.CACHE and not self.request.dry_run:
            hub = self.places({}).first
            for uri, text in zip(asked, ready.revisions, strict=False):
                with suppress(UsageError):  # anyone may have written the marker
                    resolved = ModelUri.parse(text)
                    if replace(resolved, revision="") == replace(uri.repo, revision=""):
                        hub.refer(resolved, uri.revision)
        return ready

    def probe(self) -> None:
        """Before the first request: how the store writes to this volume. Raises NotWritableError."""
        root, settings = self.request.store, self.settings
        abilities = preflight.probe(root)
        if settings.no_symlinks:
            abilities = replace(abilities, symlinks=False)
        sequential = abilities.mode is WriteMode.SEQUENTIAL
        self.store.tree.adapt(abilities, preflight.make_scratch(settings.scratch, root) if sequential else "")
        if sequential:
            why = f"{', '.join(abilities.missing)}: files are assembled in {display(settings.scratch, 200)}"
            self.emit(Note(f"the volume takes files only whole and in order ({why})"))
        if self.request.runtime_manifest:
            preflight.probe_place(self.request.runtime_manifest)

    def claims(self) -> Claims:
        """For the time in which this run writes, beside any number of others."""
        return Claims(self.store.tree, owner=f"{self.settings.pod}:{os.getpid()}", clock=self.clock)

    def check_room(self, plan: Plan, layout: StoreLayout) -> None:
        """Raises NoSpaceError: before the first byte, and for a plan alone."""
        promised, total = self.request.room, plan.total
        if promised is not None and total > promised:
            raise NoSpaceError(
                f"the selection needs {show_bytes(total)}, but storage.pvc.size is {show_bytes(promised)}: "
                f"short by {show_bytes(total - promised)}",
                hint="Ask for a larger volume (NIMCache: spec.storage.pvc.size), or choose fewer profiles.",
            )
        if self.exists:
            # what was resumed has its files already; how many, only the ingests know
            paths = () if plan.resumed else (layout.path_of(artifact) for artifact in plan.missing)
            # beside a file: its link in a hub cache, the metadata of huggingface_hub in a local-dir
            each = 1 if self.request.layout is LayoutKind.WORKSPACE else 2
            files = preflight.inodes_for(self.store.tree, paths, each=each) if plan.missing else 0
            preflight.check_room(self.store.root, plan.to_fetch, files=files)
            if self.store.tree.has_scratch:
                ScratchRoom(self.store.tree).check(plan.missing)

    def summary(self, size: int = 0) -> StoreSummary:
        """``size``: bytes of the selection."""
        free = preflight.room(self.store.root).bytes if self.exists else None
        can = self.store.tree.abilities
        return StoreSummary(
            self.request.store, self.request.layout.value, size, free, can.mode.value, can.missing
        )
