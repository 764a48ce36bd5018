"""A mirror in place of a registry: NIM_REPOSITORY_OVERRIDE = ``s3://bucket[/prefix]`` or ``https://host[/path]``.

The override replaces protocol and repository of a manifest's URI. What is left of the URI, percent-encoded
as a whole, is the key: ``ngc://nim/meta/llama:hf?file=config.json`` is the object
``nim%2Fmeta%2Fllama%3Ahf%3Ffile%3Dconfig.json`` (NIM documentation, "Repository Override").
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Container
from typing import Final
from urllib.parse import quote, unquote

from nimpull.core.artifacts import Artifact, Listing, Location, Wanted
from nimpull.core.digest import digest_of
from nimpull.core.mirror_objects import CHECKSUMS, object_key
from nimpull.core.names import ModelUri, Url, display
from nimpull.core.ports import Api
from nimpull.core.reply import Reply
from nimpull.errors import ForbiddenError, ListingError, NimpullError, NotFoundError, UsageError
from nimpull.sources.answers import is_page, length, web_refusal
from nimpull.sources.checksums import add_checksums, checksum_lines
from nimpull.sources.listing import Entries, Told, narrowed, pinned, revision_of, unverifiable
from nimpull.sources.s3 import About, Bucket, Sign, with_digests

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class MirrorSource:
    """Implements :class:`nimpull.core.ports.Source` for ngc:// and hf://. Thread-safe."""

    def __init__(self, api: Api, *, override: str, sign: Sign | None = None) -> None:
        """``sign`` is for s3:// and needed there. Raises UsageError for what is no mirror."""
        self._api = api
        if override.partition("://")[0].lower() not in ("s3", "https", "http"):
            shown = override.partition("?")[0].rpartition("@")[2]
            raise UsageError(
                f"NIM_REPOSITORY_OVERRIDE cannot be “{display(shown, 200)}”",
                hint="Use s3://bucket[/prefix], https://host[/path] or jfrog://host[/path].",
            )
        self._mirror = ModelUri.parse(override)
        self._base, asked, query = override.rstrip("/").partition("?")
        self._signed = asked + query
        self._prefix = f"{self._mirror.location.strip('/')}/".lstrip("/")
        self._bucket = Bucket(api, self._mirror.name, sign) if sign else None
        self._asked: dict[ModelUri, ModelUri] = {}
        self._names: dict[ModelUri, str] = {}
        self._form = 0
        self._lock = threading.Lock()

    # -- Source ----------------------------------------------------------------------------------------

    def list(self, uri: ModelUri, wanted: Wanted) -> Listing:
        """See :meth:`nimpull.core.ports.Source.list`. A web server cannot be listed: it has the files that
        are named, or those of the model's ``checksums.blake3``.

        That list is written after all else: without it the mirror is not complete (NotFoundError). So is a
        file that it does not name, unless S3 has a checksum of it.
        """
        wanted = narrowed(wanted, uri)
        repo = uri.repo
        checksums = self._checksums(repo)
        promised = dict(checksum_lines(checksums))
        entries = Entries(repo, f"{self._mirror} ({display(repo)})")
        if wanted.paths:
            for path in sorted(wanted.paths):
                entries.add(path)
        else:
            if self._bucket:
                self._add_objects(repo, self._bucket, entries, promised)
            for path in (*promised, CHECKSUMS):  # also what a bucket lacks: a part is not the whole
                entries.add(path)
        add_checksums(entries, checksums)
        if CHECKSUMS in entries:  # it may not change between the two readings of it
            entries.add(CHECKSUMS, len(checksums), (digest_of(checksums),))
        described = with_digests(entries.artifacts(wanted), lambda path: self._about(repo.with_path(path)))
        self._refuse_unlisted(described)
        artifacts, at = self._at_revision(repo, described)
        return Listing(at, uri.revision, artifacts, Url(self._base), unverifiable(artifacts))

    def locate(self, artifact: Artifact, *, fresh: bool = False) -> Location:  # noqa: ARG002 - nothing is cached
        with self._lock:
            file = self._asked.get(artifact.repo, artifact.repo).with_path(artifact.path)
            name = self._names.get(file)
        return self._place(name or self._forms(file)[self._form])

    # -- listing ---------------------------------------------------------------------------------------

    def _at_revision(
        self, repo: ModelUri, artifacts: tuple[Artifact, ...]
    ) -> tuple[tuple[Artifact, ...], ModelUri]:
        """A branch of the Hub moves, its copy in a mirror has no commit: the revision is a hash of what is
        listed, and the objects keep the name that was asked for."""
        if repo.scheme != "hf" or _COMMIT.fullmatch(repo.revision):
            return artifacts, repo
        at = repo.with_revision(revision_of(artifacts))
        with self._lock:
            self._asked[at] = repo
        return pinned(artifacts, at), at

    def _add_objects(
        self, repo: ModelUri, bucket: Bucket, entries: Entries, promised: Container[str]
    ) -> None:
        """``promised``: names of the model's own list, which decide where a key can be read in two ways."""
        start = self._prefix + object_key(repo) + quote("?file=", safe="")
        objects = tuple(bucket.objects(start))
        # of most names both forms are one, so any that can only be once encoded tells of all
        twice = all(_is_encoded_twice(found.key.removeprefix(start)) for found in objects)
        for found in objects:
            path = unquote(found.key.removeprefix(start))
            if twice and path not in promised:
                path = unquote(path)
            entries.add(path, found.size, (), found.etag)
            with self._lock:
                self._names[repo.with_path(path)] = found.key
        if not len(entries):
            raise NotFoundError(
                f"{self._mirror} has no file of {display(repo)}",
                hint="Mirror it under the keys that NIM expects, and check NIM_REPOSITORY_OVERRIDE.",
            )

    # -- names -----------------------------------------------------------------------------------------

    def _forms(self, file: ModelUri) -> tuple[str, ...]:
        """What ``file`` may be called there, likeliest first.

        A name in the URI of a manifest may be percent-encoded or not, so it is once or twice in the key. On
        a web server the signs of percent may be part of a file's name, or the tree may have the names that
        they stand for: the server decodes what is asked for.
        """
        once = quote(f"{str(file.repo).partition('://')[2]}?file={file.path}", safe="")
        keys = (object_key(file), once)
        if self._bucket:
            return tuple(self._prefix + key for key in keys)
        return (*(quote(key, safe="") for key in keys), *(key.replace("%2F", "/") for key in keys))

    def _found(self, file: ModelUri, ask: Callable[[str], Told]) -> Told:
        """What ``ask`` says of the first name that is there; what it raises for the first, if none is.

        The form of the last file that was found is tried first.
        """
        forms = self._forms(file)
        failures = []
        for name in dict.fromkeys((forms[self._form], *forms)):
            try:
                told = ask(name)
            except (NotFoundError, ForbiddenError) as error:  # S3 may answer 403 for what is missing
                failures.append(error)
                continue
            with self._lock:
                self._names[file] = name
                if name != forms[self._form]:
                    self._form = forms.index(name)
            return told
        raise failures[0]

    # -- requests --------------------------------------------------------------------------------------

    def _place(self, name: str) -> Location:
        if self._bucket:
            return self._bucket.place(name)
        return Location(Url(f"{self._base.rstrip('/')}/{name}{self._signed}"))

    def _about(self, file: ModelUri) -> About:
        what = f"file “{display(file.path, 120)}” of {display(file.repo)}"

        def ask(name: str) -> About:
            if self._bucket:
                return self._bucket.about(name)
            reply = self._api.request("HEAD", self._place(name).url)
            if reply.status != 200:
                raise self._refusal(reply, what)
            return About(length(reply), (), "")

        return self._found(file, ask)

    def _checksums(self, repo: ModelUri) -> bytes:
        """The commit mark of a model in a mirror: NGC's own list, or the one that nimpull wrote."""

        def ask(name: str) -> bytes:
            reply = self._api.request("GET", self._place(name).url)
            if reply.status == 200 and is_page(reply):
                raise NotFoundError("a page instead of a list")
            if reply.status != 200:
                raise self._refusal(reply, f"file “{CHECKSUMS}” of {display(repo)}")
            return reply.body

        try:
            return self._found(repo.with_path(CHECKSUMS), ask)
        except NotFoundError as error:
            raise NotFoundError(
                f"{self._mirror} has no {CHECKSUMS} of {display(repo)}: "
                "it is not mirrored, or not completely",
                hint="nimpull mirror writes it last: run that again. In a mirror made by hand, put the "
                "output of b3sum there under that key. Check NIM_REPOSITORY_OVERRIDE.",
            ) from error

    def _refuse_unlisted(self, artifacts: tuple[Artifact, ...]) -> None:
        """What a killed run left, or nobody can check."""
        unlisted = [one.path for one in artifacts if not one.digests and one.path != CHECKSUMS]
        if unlisted:
            raise ListingError(
                f"{self._mirror} has “{display(unlisted[0], 120)}”, which {CHECKSUMS} there does not name: "
                "it is not completely mirrored",
                hint="Run nimpull mirror again; in a mirror made by hand, add the file to the list (b3sum).",
            )

    def _refusal(self, reply: Reply, what: str) -> NimpullError:
        if self._bucket:
            return self._bucket.refusal(reply, what)
        return web_refusal(
            reply, what, "Mirror it under the key that NIM expects, and check NIM_REPOSITORY_OVERRIDE."
        )


def _is_encoded_twice(text: str) -> bool:
    """Whether it is as :func:`nimpull.core.mirror_objects.file_key` writes a path."""
    return quote(quote(unquote(unquote(text)), safe="/+"), safe="") == text
