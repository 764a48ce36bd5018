"""The store as the job sees it: one root directory, its record, a layout, markers and leases.

::

    store = Store.open(root)                               # probes: NotWritableError in well under a second
    store = Store.open(root, read_only=True)               # verify, status: writes nothing
    layout = store.nim_cache(hub="huggingface/hub")        # or local_dir(), workspace(), …
    ready = store.ready(selection)                         # Ready or None, offline
    file = layout.trusted(artifact) or layout.verify(artifact) or layout.adopt(artifact)
    store.check_room(need)                                 # NoSpaceError: needs, has, short by
    with store.lease(name, owner=…, clock=…).kept(lost):   # LeaseHeldError
        …  # ingests commit through layout.place()
        layout.finish(listing, complete=True)              # refs, tags, tree file
        store.mark_ready(Ready(…, files=store.files_of(layout, artifacts)))
    store.verify().sound                                   # re-hash all; .mismatches, .missing
    store.status()                                         # selections, bytes, half done ingests
    store.close()
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Mapping
from typing import Self

from nimpull.core.artifacts import Artifact
from nimpull.core.names import STATE_DIRECTORY, SafePath
from nimpull.core.ports import Cancel, Clock
from nimpull.core.request import Lost, Repair
from nimpull.errors import NotWritableError, StoreIOError
from nimpull.store import lease, preflight
from nimpull.store.durable import store_error
from nimpull.store.layouts import (
    HuggingFaceHubLayout,
    LocalDirLayout,
    NgcHubLayout,
    NimCacheLayout,
    StoreLayout,
    WorkspaceLayout,
)
from nimpull.store.ready import Ready, ReadyFile, read_ready, write_ready
from nimpull.store.record import Record
from nimpull.store.repair import RestoredLayout, make_links, plan_repair
from nimpull.store.status import Status, status_of
from nimpull.store.tree import Tree
from nimpull.store.verify import Verification, verify_store


class Store:
    """One volume. Every method raises StoreError only."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.record = Record(tree)
        self._lease: lease.Lease | None = None

    @classmethod
    def open(cls, root: str, *, read_only: bool = False, cancel: Cancel | None = None) -> Store:
        """Make the root if need be and try to write there. NotWritableError, NoSpaceError, StoreIOError.

        ``cancel``: see :class:`nimpull.store.tree.Tree`.
        """
        if not read_only:
            preflight.probe(root)
        tree = Tree(root, cancel)
        tree.names(STATE_DIRECTORY)  # refuses a link that was planted in its place
        return cls(tree)

    @property
    def root(self) -> str:
        return self.tree.root

    # -- layouts ---------------------------------------------------------------------------------------

    def ngc_hub(self, hub: str = "") -> NgcHubLayout:
        """``hub``: NIM's cache of NGC below the root, "" = ``ngc/hub``."""
        return NgcHubLayout(self.tree, self.record, hub or "ngc/hub", self.fence)

    def hugging_face(self, hub: str = "") -> HuggingFaceHubLayout:
        """``hub``: the hub cache directory below the root, "" = ``huggingface/hub``."""
        return HuggingFaceHubLayout(self.tree, self.record, hub or "huggingface/hub", self.fence)

    def nim_cache(self, hub: str = "", ngc_hub: str = "") -> NimCacheLayout:
        return NimCacheLayout(self.ngc_hub(ngc_hub), self.hugging_face(hub))

    def local_dir(self) -> LocalDirLayout:
        return LocalDirLayout(self.tree, self.record, self.fence)

    def workspace(self, destinations: Mapping[str, SafePath] | None = None) -> WorkspaceLayout:
        """``destinations``: artifact identity -> path below the root."""
        return WorkspaceLayout(self.tree, self.record, destinations, self.fence)

    def restored(self, lost: Mapping[str, Lost]) -> RestoredLayout:
        """``lost``: by the identity of the file."""
        return RestoredLayout(self.tree, self.record, lost, self.fence)

    def name_too(self, artifact: Artifact, first: StoreLayout, second: StoreLayout) -> str:
        """Give what ``first`` has committed its place in ``second`` too. Returns why not, or ""."""
        try:
            file = first.trusted(artifact)
            if file is None or second.trusted(artifact) or second.verify(artifact):
                return ""
            path = second.path_of(artifact)
            status = self.tree.lstat(path)
            if status and stat.S_ISREG(status.st_mode) and self.record.at(path, status) is None:
                return f"something else is in its place, {self.tree.absolute(path)}"
            linked = second.adopt_from(self.tree, file, artifact)
            return "" if linked else "this file system has no hard links"
        except NotWritableError as error:
            return error.message

    # -- room ------------------------------------------------------------------------------------------

    def room(self) -> preflight.Room:
        return preflight.room(self.root)

    def check_room(self, need: int, *, files: int = 0) -> None:
        """``need`` bytes and ``files`` still to be made."""
        preflight.check_room(self.root, need, files=files)

    # -- leases and markers ----------------------------------------------------------------------------

    def lease(
        self,
        name: str,
        *,
        owner: str,
        clock: Clock,
        cancel: Cancel | None = None,
        patience: float = 0.0,
        time_to_live: float = lease.TIME_TO_LIVE,
    ) -> lease.Lease:
        """See ``lease.acquire``. From then on the layouts commit only while it is held.

        What another process committed while this one waited is taken into account.
        """
        self._lease = lease.acquire(
            self.tree,
            name,
            owner=owner,
            clock=clock,
            cancel=cancel,
            patience=patience,
            time_to_live=time_to_live,
        )
        self.record.reload()
        return self._lease

    def fence(self) -> None:
        """LeaseHeldError if this store's lease was taken over; nothing where it has none."""
        if self._lease:
            self._lease.fence()

    def files_of(self, layout: StoreLayout, artifacts: Iterable[Artifact]) -> tuple[ReadyFile, ...]:
        """What a marker says of committed artifacts. StoreIOError naming one that is not as committed."""
        with self.tree.holding():
            return tuple(self._ready_file(layout, artifact) for artifact in artifacts)

    def _ready_file(self, layout: StoreLayout, artifact: Artifact) -> ReadyFile:
        trusted, path = layout.trusted(artifact), layout.path_of(artifact)
        if trusted is None:
            raise StoreIOError(
                f"{self.tree.absolute(path)} is not as it was committed",
                hint="Something else writes into this store. Stop it, then run again.",
            )
        return ReadyFile(path, trusted.size, trusted.mtime_ns, trusted.digest)

    def ready(self, selection: str) -> Ready | None:
        return read_ready(self.tree, selection)

    def mark_ready(self, marker: Ready) -> str:
        """Last of all: the record becomes durable, then the marker. Returns the marker's path."""
        self.fence()
        self.record.sync()
        return write_ready(self.tree, marker)

    # -- looking back ----------------------------------------------------------------------------------

    def verify(
        self,
        *,
        workers: int = 0,
        on_bytes: Callable[[int], None] | None = None,
        cancel: Cancel | None = None,
    ) -> Verification:
        """Read everything again; see ``verify.verify_store``."""
        return verify_store(self.tree, self.record, workers=workers, on_bytes=on_bytes, cancel=cancel)

    def plan_repair(self, found: Verification) -> Repair:
        return plan_repair(self.tree, self.record, found)

    def make_links(self, links: Iterable[tuple[str, str]]) -> None:
        """(link, blob) of a hub cache."""
        self.fence()
        make_links(self.tree, links)

    def remove(self, paths: Iterable[str]) -> None:
        """Files that no reader should meet."""
        for path in paths:
            self.fence()
            try:
                self.tree.unlink(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise store_error(error, "remove", self.tree.absolute(path)) from error

    def status(self) -> Status:
        return status_of(self.tree, self.record)

    def close(self) -> None:
        self.record.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
