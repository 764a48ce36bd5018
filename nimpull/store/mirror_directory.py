"""A mirror as a directory: files under NIM's keys, for any web server, and what nginx needs to be a hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.resources import files as resources
from typing import BinaryIO, Final

from nimpull.core.digest import Digest
from nimpull.core.events import Advanced, Note
from nimpull.core.mirror_hub import HUB_MAP, HubFile, hub_documents, hub_map, plain_names
from nimpull.core.mirror_objects import (
    CHECKSUMS,
    ExistingObject,
    MirrorFile,
    MirrorRepository,
    VerifiedReader,
    is_there,
    object_key,
)
from nimpull.core.names import MAX_SEGMENT_BYTES, display
from nimpull.core.ports import Cancel, Emit
from nimpull.errors import ListingError, StoreError
from nimpull.store import preflight
from nimpull.store.durable import write_all
from nimpull.store.record import Entry, Record
from nimpull.store.tree import NO_LINKS, Tree

NGINX_CONF: Final = "nginx.conf"
_BLOCK: Final = 1 << 20  # bytes
_HUB_DIGESTS: Final = ("sha256", "git")


class DirectoryTarget:
    """Implements :class:`nimpull.core.mirror_objects.Target`.

    A file stands under the key of its immutable revision; the key of the revision that was asked for, and the
    names that a server makes of a key, are links to it. What was written is recorded as a store's files are:
    size and time of a file tell whether it has to be read again.
    """

    def __init__(
        self,
        root: str,
        *,
        opened: Callable[[str], BinaryIO],
        cancel: Cancel,
        emit: Emit,
        read_only: bool = False,
    ) -> None:
        self.name = os.path.abspath(root)
        self._tree = Tree(root, cancel)
        if not read_only:
            self._tree.adapt(preflight.probe(root))
        self._record = Record(self._tree)
        self._opened = opened
        self._cancel = cancel
        self._emit = emit
        self._read_only = read_only
        self._unlinked = False

    # -- Target ----------------------------------------------------------------------------------------

    def key(self, repository: MirrorRepository, path: str) -> str:
        name = object_key(repository.at.with_path(path))
        if len(name) > MAX_SEGMENT_BYTES:
            raise ListingError(
                f"“{display(path, 200)}” of {display(repository.uri, 200)} has a key of {len(name)} "
                f"characters, and no file can have a name of more than {MAX_SEGMENT_BYTES}",
                hint="Mirror it to a bucket (--to s3://…), or leave it out (--exclude).",
            )
        return name

    def beside(self, key: str) -> str:
        return key

    def look(self, repository: MirrorRepository) -> Mapping[str, ExistingObject]:
        found: dict[str, ExistingObject] = {}
        if not os.path.isdir(self.name):  # a dry run makes no directory
            return found
        with self._tree.holding():
            for file in repository.files:
                key = self.key(repository, file.path)
                if standing := self._standing(key, file):
                    found[key] = standing
        return found

    def compare(self, key: str, file: MirrorFile) -> bool:
        status = self._tree.lstat(key) if os.path.isdir(self.name) else None
        if status is None or file.digest is None or file.size not in (None, status.st_size):
            return False
        return self._tree.hash(key, file.digest.algorithm)[0] == file.digest

    def send(self, key: str, file: MirrorFile) -> str:
        with self._opened(file.stored) as opened:
            return self._store(key, file, opened)

    def _store(self, key: str, file: MirrorFile, opened: BinaryIO) -> str:
        content = VerifiedReader(opened, file, self._cancel)
        position = 0
        with self._tree.replacing(key) as target:
            while block := content.read(_BLOCK):
                write_all(target, block, position)
                position += len(block)
                self._emit(Advanced(len(block)))
        status = self._tree.lstat(key)
        if status:
            digest = file.digest or Digest("blake3", content.blake3)
            self._record.add(Entry(key, status.st_size, status.st_mtime_ns, digest, key))
        return content.blake3

    def read(self, key: str) -> bytes | None:
        return self._tree.read(key) if os.path.isdir(self.name) else None

    def write(self, key: str, content: bytes) -> None:
        if self._tree.read(key) != content:
            self._tree.write(key, content)

    def check_room(self, size: int, files: int) -> None:
        if os.path.isdir(self.name):
            preflight.check_room(self.name, size, files=files)

    def publish(self, repository: MirrorRepository, files: Mapping[str, MirrorFile]) -> None:
        """The links, that of the commit mark last; then the hub."""
        for path, file in files.items():
            for name, own in plain_names(repository, path).items():
                self._alias(name, own, file)
        if repository.at.scheme == "hf":
            self._publish_hub(repository, files)
        if self._tree.lstat(HUB_MAP) is None:
            self._tree.write(HUB_MAP, b"")
        if self._tree.lstat(NGINX_CONF) is None:
            template = (resources("nimpull") / "store" / "mirror_nginx.conf").read_text()
            self._tree.write(NGINX_CONF, template.replace("@ROOT@", self.name).encode())

    def close(self) -> None:
        if not self._read_only:
            self._record.sync()
        self._record.close()

    # -- files -----------------------------------------------------------------------------------------

    def _standing(self, key: str, file: MirrorFile) -> ExistingObject | None:
        """By the record, else by reading: a tree that was carried here has no record that fits."""
        status = self._tree.lstat(key)
        if status is None:
            return None
        entry = self._record.at(key, status)
        expected = file.digest
        if expected is None or file.size not in (None, status.st_size):
            return ExistingObject(status.st_size, (entry.digest,) if entry else ())
        if entry is None or entry.digest.algorithm != expected.algorithm:
            found, status = self._tree.hash(key, expected.algorithm)
            entry = Entry(key, status.st_size, status.st_mtime_ns, found, key)
            if not self._read_only:
                self._record.add(entry)
        return ExistingObject(status.st_size, (entry.digest,))

    def _alias(self, name: str, own: str, file: MirrorFile) -> None:
        """Another name of a file. Where no link can be made, the bytes of a key are written twice."""
        try:
            if self._tree.abilities.symlinks:
                self._tree.symlink(own, name)
                return
            self._tree.link(os.path.basename(own), name)
        except (OSError, StoreError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LINKS:
                raise
            if "/" in name:
                self._tell_unlinked(error)
            elif not is_there(file, self._standing(name, file)):
                with os.fdopen(self._tree.open(own), "rb") as opened:
                    self._store(name, file, opened)

    def _tell_unlinked(self, error: Exception) -> None:
        if not self._unlinked:
            self._unlinked = True
            text = f"{self.name} takes no links of that kind ({display(error, 200)})"
            self._emit(Note(f"{text}: a client that does not encode keys twice finds nothing", "warning"))

    # -- the hub ---------------------------------------------------------------------------------------

    def _publish_hub(self, repository: MirrorRepository, files: Mapping[str, MirrorFile]) -> None:
        own = repository.own_list is not None
        listed = [
            HubFile(file.path, file.size or 0, self._hub_digest(repository, file), self.key(repository, path))
            for path, file in files.items()
            if own or path != CHECKSUMS  # a list of nimpull's own is no file of the repository
        ]
        before = self._tree.read(HUB_MAP) or b""
        self.write(HUB_MAP, hub_map(before, repository, listed))
        if repository.whole:  # a part must not be taken for the whole
            for path, document in hub_documents(repository, listed).items():
                self.write(path, document)

    def _hub_digest(self, repository: MirrorRepository, file: MirrorFile) -> Digest:
        known = {digest.algorithm: digest for digest in file.digests}
        for algorithm in _HUB_DIGESTS:
            if algorithm in known:
                return known[algorithm]
        return self._tree.hash(self.key(repository, file.path), "sha256")[0]
