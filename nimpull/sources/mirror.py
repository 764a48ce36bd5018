"""A mirror in place of a registry: NIM_REPOSITORY_OVERRIDE = ``s3://bucket[/prefix]`` or ``https://host[/path]``.

The override replaces protocol and repository of a manifest's URI. What is left of the URI, percent-encoded
as a whole, is the key: ``ngc://nim/meta/llama:hf?file=config.json`` is the object
``nim%2Fmeta%2Fllama%3Ahf%3Ffile%3Dconfig.json`` (NIM documentation, "Repository Override").
"""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from typing import Final
from urllib.parse import quote, unquote

from nimpull.core.artifacts import Artifact, Listing, Location
from nimpull.core.names import ModelUri, Url, display
from nimpull.core.ports import Api, Reply, Wanted
from nimpull.errors import AuthError, ForbiddenError, ListingError, NimpullError, NotFoundError, UsageError
from nimpull.sources.answers import common_refusal, is_page, length
from nimpull.sources.checksums import CHECKSUMS, checksum_lines
from nimpull.sources.listing import Entries, sealed, with_sizes
from nimpull.sources.s3 import Bucket, Sign, unverifiable, with_digests

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class MirrorSource:
    """Implements :class:`nimpull.core.ports.Source` for ngc:// and hf://. Thread-safe."""

    def __init__(self, api: Api, *, override: str, sign: Sign | None = None) -> None:
        """``sign`` is for s3:// and needed there. Raises UsageError for what is no mirror."""
        self._api = api
        if override.partition("://")[0].lower() not in ("s3", "https", "http"):
            raise UsageError(
                f"NIM_REPOSITORY_OVERRIDE cannot be “{display(override.rpartition('@')[2], 200)}”",
                hint="Use s3://bucket[/prefix], https://host[/path] or jfrog://host[/path].",
            )
        self._mirror = ModelUri.parse(override)
        self._base = override.rstrip("/")
        self._prefix = f"{self._mirror.location.strip('/')}/".lstrip("/")
        self._bucket = Bucket(api, self._mirror.name, sign) if sign else None
        self._asked: dict[ModelUri, ModelUri] = {}
        self._lock = threading.Lock()

    # -- Source ----------------------------------------------------------------------------------------

    def list(self, uri: ModelUri, wanted: Wanted) -> Listing:
        """See :meth:`nimpull.core.ports.Source.list`. A web server cannot be listed: it has the files that
        are named, or those of the model's ``checksums.blake3``."""
        if uri.path:
            wanted = replace(wanted, paths=wanted.paths | {uri.path})
        repo = uri.repo
        checksums = self._checksums(repo)
        entries = Entries(f"{self._mirror} ({display(repo)})")
        if not wanted.paths and self._bucket:
            self._add_objects(repo, self._bucket, entries)
        else:
            for path in self._names(repo, wanted, checksums):
                entries.add(path)
        for path, digest in checksum_lines(checksums or b""):
            if path in entries and path != CHECKSUMS:
                entries.add(path, None, (digest,))
        artifacts = self._described(repo, entries.artifacts(repo, wanted))
        pinned = self._pinned(repo, artifacts)
        artifacts = tuple(replace(one, uri=pinned.with_path(one.path)) for one in artifacts)
        return Listing(pinned, uri.revision, artifacts, Url(self._base), unverifiable(artifacts))

    def locate(self, artifact: Artifact, *, fresh: bool = False) -> Location:  # noqa: ARG002 - nothing is cached
        with self._lock:
            repo = self._asked.get(artifact.uri.repo, artifact.uri.repo)
        return self._place(repo, artifact.path)

    # -- listing ---------------------------------------------------------------------------------------

    def _pinned(self, repo: ModelUri, artifacts: tuple[Artifact, ...]) -> ModelUri:
        """A branch of the Hub moves, its copy in a mirror has no commit: the revision is a hash of what is
        listed, and the objects keep the name that was asked for."""
        if repo.scheme != "hf" or _COMMIT.fullmatch(repo.revision):
            return repo
        pinned = repo.with_revision(sealed(artifacts))
        with self._lock:
            self._asked[pinned] = repo
        return pinned

    def _names(self, repo: ModelUri, wanted: Wanted, checksums: bytes | None) -> tuple[str, ...]:
        if wanted.paths:
            return tuple(sorted(wanted.paths))
        if checksums is None:
            raise ListingError(
                f"{self._mirror} cannot say which files {display(repo)} has: it is a web server, and has no "
                f"{CHECKSUMS} of it",
                hint="Name a profile of a manifest: that names the files. Or mirror to s3://.",
            )
        return tuple(dict.fromkeys([*(path for path, _ in checksum_lines(checksums)), CHECKSUMS]))

    def _add_objects(self, repo: ModelUri, bucket: Bucket, entries: Entries) -> None:
        start = self._prefix + object_key(repo) + quote("?file=", safe="")
        for found in bucket.objects(start):
            path = unquote(unquote(found.key.removeprefix(start)))
            entries.add(path, found.size, (), found.etag)
        if not len(entries):
            raise NotFoundError(
                f"{self._mirror} has no file of {display(repo)}",
                hint="Mirror it under the keys that NIM expects, and check NIM_REPOSITORY_OVERRIDE.",
            )

    def _described(self, repo: ModelUri, artifacts: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
        """With sizes, and what S3 tells of the content."""
        if self._bucket:
            return with_digests(self._bucket, artifacts, lambda one: self._key(repo, one.path))
        return with_sizes(artifacts, lambda one: self._measure(repo, one.path))

    # -- requests --------------------------------------------------------------------------------------

    def _key(self, repo: ModelUri, path: str) -> str:
        return self._prefix + object_key(repo.with_path(path))

    def _place(self, repo: ModelUri, path: str) -> Location:
        if self._bucket:
            return self._bucket.place(self._key(repo, path))
        # the signs of percent are part of the name: on the wire they are encoded once more
        return Location(Url(f"{self._base}/{quote(object_key(repo.with_path(path)), safe='')}"))

    def _measure(self, repo: ModelUri, path: str) -> int | None:
        reply = self._api.request("HEAD", self._place(repo, path).url)
        if reply.status != 200:
            raise self._refusal(reply, f"file “{display(path, 120)}” of {display(repo)}")
        return length(reply)

    def _checksums(self, repo: ModelUri) -> bytes | None:
        """NGC models carry the BLAKE3 digests of their files; a mirror of one has that file too."""
        reply = self._api.request("GET", self._place(repo, CHECKSUMS).url)
        if reply.status not in (200, 403, 404):
            raise self._refusal(reply, f"file “{CHECKSUMS}” of {display(repo)}")
        return reply.body if reply.status == 200 and not is_page(reply) else None

    def _refusal(self, reply: Reply, what: str) -> NimpullError:
        if self._bucket:
            return self._bucket.refusal(reply, what)
        where = f"{self._mirror} answers HTTP {reply.status} for {what}"
        if reply.status == 404:
            return NotFoundError(
                f"{self._mirror} has no {what}",
                hint="Mirror it under the key that NIM expects, and check NIM_REPOSITORY_OVERRIDE.",
            )
        if reply.status in (401, 403):
            kind = AuthError if reply.status == 401 else ForbiddenError
            return kind(where, hint="Check the user and password in NIM_REPOSITORY_OVERRIDE, if it has any.")
        return common_refusal(reply, what, "")


def object_key(uri: ModelUri) -> str:
    """The key of a file in a mirror, or what the keys of a repository begin with."""
    return quote(str(uri).partition("://")[2], safe="")
