"""The store as the job sees it: one root directory, its record, a layout and markers.

::

    preflight.probe(root)                                  # NotWritableError in well under a second
    store = Store(root)                                    # writes nothing
    layout = store.nim_cache(hub="huggingface/hub")        # or local_dir(), workspace(), …
    ready = store.ready(selection)                         # Ready or None, offline
    found = layout.find(artifact)                          # in its place, or elsewhere in this store
    layout.take(found)                                     # a line in the record, or a link to it
    with Claims(store.tree, owner=…, clock=…) as claims:   # beside any number of other runs
        …  # ingests commit through layout.place()
    layout.finish(listing, complete=True)                  # refs, tags, tree file
    store.mark_ready(Ready(…, files=store.files_of(layout, artifacts)))
    store.verify().sound                                   # re-hash all; .mismatches, .missing
    store.status()                                         # selections, bytes, half done ingests
    store.close()
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Self

from nimpull.core.artifacts import Artifact
from nimpull.core.names import STATE_DIRECTORY, SafePath
from nimpull.core.ports import Cancel
from nimpull.core.request import LostFile
from nimpull.errors import StoreIOError
from nimpull.store.layouts import FoundBy, HubLayout, LocalDirLayout, StoreLayout, WorkspaceLayout
from nimpull.store.ready import Ready, marker_of, read_ready, superseded, write_ready
from nimpull.store.record import Record, StoredFile
from nimpull.store.repair import RestoredLayout
from nimpull.store.status import Status, status_of
from nimpull.store.tree import Tree
from nimpull.store.verify import Promised, Verification, verify_store


class Store:
    """One volume. Every method raises StoreError only."""

    def __init__(self, root: str, cancel: Cancel | None = None) -> None:
        """Writes nothing: ``preflight.probe`` does, once there is work. ``cancel``: see
        :class:`nimpull.store.tree.Tree`."""
        self.tree = Tree(root, cancel)
        if os.path.isdir(root):
            self.tree.names(STATE_DIRECTORY)  # refuses a link that was planted in its place
        self.record = Record(self.tree)

    @property
    def root(self) -> str:
        return self.tree.root

    # -- layouts ---------------------------------------------------------------------------------------

    def nim_cache(self, hub: str = "", ngc_hub: str = "") -> HubLayout:
        """The caches of huggingface_hub and of NIM below the root, "" = where NIM has them."""
        return HubLayout(self.tree, self.record, hub or "huggingface/hub", ngc_hub or "ngc/hub")

    def local_dir(self) -> LocalDirLayout:
        return LocalDirLayout(self.tree, self.record)

    def workspace(self, destinations: Mapping[str, SafePath] | None = None) -> WorkspaceLayout:
        """``destinations``: artifact identity -> path below the root."""
        return WorkspaceLayout(self.tree, self.record, destinations)

    def restored(self, lost: Mapping[str, LostFile]) -> RestoredLayout:
        """``lost``: by the identity of the file."""
        return RestoredLayout(self.tree, self.record, lost)

    # -- markers -----------------------------------------------------------------------------------------

    def files_of(self, layout: StoreLayout, artifacts: Iterable[Artifact]) -> tuple[StoredFile, ...]:
        """What a marker says of committed artifacts. StoreIOError naming one that is not as committed."""
        with self.tree.holding():
            return tuple(self._ready_file(layout, artifact) for artifact in artifacts)

    def _ready_file(self, layout: StoreLayout, artifact: Artifact) -> StoredFile:
        file, path = layout.committed(artifact), layout.path_of(artifact)
        if file is None and self.record.news():  # another run put the same content there once more
            file = layout.committed(artifact)
        if file is None and (found := layout.find(artifact)) and found.by is FoundBy.HASH:
            file = layout.take(found)  # some servers set the time of a file late
        if file is None:
            raise StoreIOError(
                f"{self.tree.absolute(path)} is not as it was committed",
                hint="Something else writes into this store. Stop it, then run again.",
            )
        return StoredFile(path, file.size, file.mtime_ns, file.digest)

    def ready(self, selection: str) -> Ready | None:
        return read_ready(self.tree, selection)

    def mark_ready(self, marker: Ready) -> str:
        """Last of all: the record becomes durable, then the marker. Returns the marker's path.

        Markers that this one has taken files from go: they would speak of a damage that is an update.
        """
        self.record.sync()
        path = write_ready(self.tree, marker)
        self.remove(marker_of(old.selection) for old in superseded(self.tree, marker))
        return path

    # -- looking back ----------------------------------------------------------------------------------

    def verify(self, *, workers: int = 0, promised: Promised | None = None) -> Verification:
        """Read everything again; see ``verify.verify_store``."""
        return verify_store(self.tree, self.record, workers=workers, promised=promised)

    def remove(self, paths: Iterable[str]) -> None:
        """Files that no reader should meet."""
        for path in paths:
            self.tree.remove(path)

    def status(self) -> Status:
        return status_of(self.tree, self.record)

    def close(self) -> None:
        self.record.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
