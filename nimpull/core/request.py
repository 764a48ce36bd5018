"""What one run was asked to do: every entry point (NIM commands, nimpull, a NIMCache) builds one of these."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum

from nimpull.core.artifacts import Wanted
from nimpull.core.criteria import Criteria
from nimpull.core.digest import Digest
from nimpull.core.names import ModelUri, SafePath


class LayoutKind(StrEnum):
    """How the files stand in the store: as in NIM's and the Hub's caches, or plain."""

    CACHE = "cache"
    LOCAL_DIR = "local-dir"
    WORKSPACE = "workspace"


@dataclass(frozen=True, slots=True)
class LostFile:
    """A committed file that is not as it was. ``paths``: all its names below the store's root, that time
    (``mtime_ns``, since the epoch) it had.
    """

    uri: ModelUri
    digest: Digest
    mtime_ns: int
    paths: tuple[SafePath, ...]


@dataclass(frozen=True, slots=True)
class Repair:
    """``corrupt``: paths to remove at once; ``links``: (link, blob); ``unknown``: paths of which nothing says
    where they came from.
    """

    lost: tuple[LostFile, ...]
    corrupt: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MirrorTo:
    """``target``: s3://bucket[/prefix], or a directory. ``check``: compare, and send nothing.

    ``addressing``: where a bucket stands in a URL, auto, virtual or path.
    """

    target: str
    check: bool = False
    addressing: str = "auto"


@dataclass(frozen=True, slots=True)
class Request:
    """``uris`` are fetched whole (``wanted`` filters), or the profiles of ``manifest`` that match.

    ``store``: directory. ``room``: bytes that the volume was promised (``storage.pvc.size``), None = not
    said. ``refresh``: ask the source even if the store is complete. ``gpus``: override, e.g. ``H100:8``.
    ``hub``: the hub cache below the store: the cache layout's own, "" = where NIM has it; beside plain files
    a second place that names them too, "" = none. ``ngc_hub``: the cache layout's for NGC. ``cache``: another
    store, the NIM cache, whose files are linked where they can be. ``runtime_manifest``: where the manifest
    of a model-free pull is written, "" = nowhere; its files are named in the store's root too. ``offline``:
    the variable by which the network must not be asked, only a complete store be taken; "" = none.
    ``repair``: nothing is pulled but what a verification found lost. ``ignore_failure``: the caller
    goes on without the model (NIM_IGNORE_MODEL_DOWNLOAD_FAIL). ``mirror``: where the files go from the store.
    """

    store: str
    uris: tuple[ModelUri, ...] = ()
    manifest: bytes = field(default=b"", repr=False)
    criteria: Criteria = field(default_factory=Criteria)
    wanted: Wanted = field(default_factory=Wanted)
    layout: LayoutKind = LayoutKind.CACHE
    dry_run: bool = False
    refresh: bool = False
    room: int | None = None
    gpus: str = ""
    hub: str = ""
    ngc_hub: str = ""
    cache: str = ""
    runtime_manifest: str = ""
    offline: str = ""
    ignore_failure: bool = False
    repair: Repair | None = None
    mirror: MirrorTo | None = None

    def selection_key(self, profiles: tuple[str, ...], endpoints: tuple[str, ...]) -> str:
        """32 hex digits: equal for the same files of the same registries in the same layout; the name of the
        ready marker."""
        identity = {
            # Criteria and GPUs are not in it: what they chose is, as profiles.
            "uris": sorted(str(uri) for uri in self.uris),
            "paths": sorted(self.wanted.paths),
            "include": self.wanted.include,
            "exclude": self.wanted.exclude,
            "layout": self.layout.value,
            "profiles": sorted(profiles),
            # Another registry may have other content under the same name: its store is another one.
            "endpoints": endpoints,
            # A profile of one id may list other files in the next release of a NIM.
            "manifest": hashlib.sha256(self.manifest).hexdigest() if self.manifest else "",
            "places": (self.hub, self.ngc_hub, bool(self.runtime_manifest)),
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
