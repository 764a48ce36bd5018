"""A mirror in place of a registry: NIM_REPOSITORY_OVERRIDE = ``s3://bucket[/prefix]`` or ``https://host[/path]``.

The override replaces protocol and repository of a manifest's URI. What is left of the URI, percent-encoded
as a whole, is the key: ``ngc://nim/meta/llama:hf?file=config.json`` is the object
``nim%2Fmeta%2Fllama%3Ahf%3Ffile%3Dconfig.json`` (NIM documentation, "Repository Override").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from nimpull.core.artifacts import Artifact, Listing, Location
from nimpull.core.digest import Digest
from nimpull.core.names import ModelUri, SafePath, Url, display
from nimpull.core.ports import Api, Reply, Wanted
from nimpull.errors import AuthError, ForbiddenError, ListingError, NimpullError, NotFoundError, UsageError
from nimpull.sources.answers import common_refusal, expiry, is_page, length
from nimpull.sources.listing import MAX_PAGES, Entries
from nimpull.sources.ngc import CHECKSUMS, checksum_lines

if TYPE_CHECKING:
    from boto3 import Session

#: (operation of S3, its parameters) -> a presigned URL.
Sign = Callable[[str, Mapping[str, str]], Url]

_SIGNED_SECONDS: Final = 3600
_S3: Final = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class MirrorSource:
    """Implements :class:`nimpull.core.ports.Source`. Thread-safe."""

    def __init__(self, api: Api, *, override: str, sign: Sign | None = None) -> None:
        """``sign`` is for s3 only; the default asks boto3, see :func:`boto_signer`. Raises UsageError."""
        self._api = api
        self._mirror = ModelUri.parse(override)
        if self._mirror.scheme not in ("s3", "https", "http") or not self._mirror.name:
            raise UsageError(
                f"NIM_REPOSITORY_OVERRIDE cannot be “{self._mirror}”",
                hint="Use s3://bucket or https://host[/path].",
            )
        self._base = override.rstrip("/")
        self._prefix = f"{self._mirror.location.strip('/')}/".lstrip("/")
        self._sign = sign
        if self._mirror.scheme == "s3" and sign is None:
            self._sign = boto_signer()

    # -- Source ----------------------------------------------------------------------------------------

    def list(self, uri: ModelUri, wanted: Wanted) -> Listing:
        """See :meth:`nimpull.core.ports.Source.list`. A web server cannot be listed: name the files there."""
        if uri.path:
            wanted = replace(wanted, paths=wanted.paths | {uri.path})
        repo = uri.repo
        entries = Entries(f"{self._mirror} ({display(repo)})")
        if wanted.paths:
            for path in sorted(wanted.paths):
                size, digests = self._measure(repo, SafePath(path))
                entries.add(path, size, digests)
        elif self._sign is not None:
            for path, size_text in self._objects(repo, self._sign):
                entries.add(path, size_text)
        else:
            raise ListingError(
                f"{self._mirror} cannot say which files {repo} has: it is a web server",
                hint="Name a profile of a manifest: that names the files. Or mirror to s3://.",
            )
        notes = self._add_checksums(repo, entries)
        return Listing(repo, uri.revision, entries.artifacts(repo, wanted), Url(self._base), notes)

    def locate(self, artifact: Artifact, *, fresh: bool = False) -> Location:  # noqa: ARG002 - nothing is cached
        url = self._place("get_object", artifact.uri.repo, artifact.path)
        return Location(url, expires_at=expiry(url) if self._sign else None)

    # -- requests --------------------------------------------------------------------------------------

    def _place(self, operation: str, repo: ModelUri, path: str) -> Url:
        key = object_key(repo.with_path(path))
        if self._sign is None:
            # the signs of percent are part of the name: on the wire they are encoded once more
            return Url(f"{self._base}/{quote(key, safe='')}")
        parameters = {"Bucket": self._mirror.name, "Key": self._prefix + key}
        if operation == "head_object":
            parameters["ChecksumMode"] = "ENABLED"
        return self._sign(operation, parameters)

    def _measure(self, repo: ModelUri, path: SafePath) -> tuple[int | None, tuple[Digest, ...]]:
        """Size and, where S3 keeps one of the whole object, the SHA-256."""
        url = self._place("head_object", repo, path)
        reply = self._api.request("HEAD", url, headers=_signed_headers(url))
        if reply.status != 200:
            raise self._refusal(reply, f"file “{display(path, 120)}” of {repo}")
        return length(reply), _sha256(reply)

    def _add_checksums(self, repo: ModelUri, entries: Entries) -> tuple[str, ...]:
        """NGC models carry the BLAKE3 digests of their files; a mirror of one has that file too."""
        reply = self._api.request("GET", self._place("get_object", repo, CHECKSUMS))
        if reply.status not in (200, 403, 404):
            raise self._refusal(reply, f"file “{CHECKSUMS}” of {repo}")
        if reply.status != 200 or is_page(reply):
            return (f"{self._mirror} has no {CHECKSUMS} for {repo}: files are checked by what else is known",)
        for path, digest in checksum_lines(reply.body):
            if path in entries and path != CHECKSUMS:
                entries.add(path, None, (digest,))
        return ()

    def _objects(self, repo: ModelUri, sign: Sign) -> Iterator[tuple[str, str]]:
        """(path, size) of every object under the repository's key (ListObjectsV2)."""
        start = self._prefix + object_key(repo) + quote("?file=", safe="")
        parameters = {"Bucket": self._mirror.name, "Prefix": start}
        for _ in range(MAX_PAGES):
            reply = self._api.request("GET", sign("list_objects_v2", parameters))
            if reply.status != 200:
                raise self._refusal(reply, f"listing of {repo}")
            page = self._page(reply)
            encoded = page.findtext(f"{_S3}EncodingType") == "url"
            for item in page.iter(f"{_S3}Contents"):
                key = item.findtext(f"{_S3}Key", "")
                key = unquote(key) if encoded else key
                yield unquote(unquote(key.removeprefix(start))), item.findtext(f"{_S3}Size", "")
            token = page.findtext(f"{_S3}NextContinuationToken", "")
            if not token or token == parameters.get("ContinuationToken"):
                return
            parameters = {**parameters, "ContinuationToken": token}
        raise ListingError(f"the listing of {repo} in {self._mirror} does not end", hint="Check the bucket.")

    def _page(self, reply: Reply) -> ElementTree.Element:
        try:
            if b"<!DOCTYPE" in reply.body:
                raise ElementTree.ParseError("a document type, which S3 does not send")
            return ElementTree.fromstring(reply.body)  # noqa: S314 - no DTD, so no entities; size is bounded
        except ElementTree.ParseError as error:
            raise ListingError(
                f"{reply.url.host} answers with something that is not S3's listing: {display(error, 120)}",
                hint="Check NIM_REPOSITORY_OVERRIDE and AWS_ENDPOINT_URL.",
            ) from error

    def _refusal(self, reply: Reply, what: str) -> NimpullError:
        where = f"{self._mirror} answers HTTP {reply.status} for the {what}"
        if reply.status == 404:
            return NotFoundError(
                f"{self._mirror} has no {what}",
                hint="Mirror it under the key that NIM expects, and check NIM_REPOSITORY_OVERRIDE.",
            )
        if reply.status == 401:
            return AuthError(where, hint="Check the credential of the mirror.")
        if reply.status == 403:
            return ForbiddenError(
                where,
                hint="Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION; without permission to "
                "list the bucket, S3 answers so for an object that is missing too.",
            )
        return common_refusal(reply, what, "")


def object_key(uri: ModelUri) -> str:
    """The key of a file in a mirror, or what the keys of a repository begin with."""
    return quote(str(uri).partition("://")[2], safe="")


def boto_signer(endpoint: str = "", region: str = "") -> Sign:
    """Presigned URLs from the credentials that boto3 finds: AWS_*, web identity. Plain ones if it finds none.

    "" leaves endpoint and region to boto3. Raises UsageError without boto3, or for settings it refuses.
    """
    try:
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ModuleNotFoundError as error:
        raise UsageError(
            "a mirror in s3:// needs boto3, which is not installed", hint="Install nimpull[s3]."
        ) from error
    try:
        session = _session(region)
        signature = "s3v4" if session.get_credentials() else UNSIGNED
        client = session.client(
            "s3", endpoint_url=endpoint or None, config=Config(signature_version=signature)
        )
    except (BotoCoreError, ValueError) as error:
        raise UsageError(
            f"boto3 cannot use the settings for S3: {display(error)}",
            hint="Check AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL and the files that they name.",
        ) from error

    def sign(operation: str, parameters: Mapping[str, str]) -> Url:
        return Url(client.generate_presigned_url(operation, Params=parameters, ExpiresIn=_SIGNED_SECONDS))

    return sign


def _session(region: str) -> Session:
    """AWS_PROFILE=default without a configuration file is what boto3 takes anyway, yet refuses by name."""
    import boto3
    from botocore.exceptions import ProfileNotFound
    from botocore.session import Session as CoreSession

    try:
        return boto3.Session(region_name=region or None)
    except ProfileNotFound as error:
        if error.kwargs["profile"] != "default":
            raise
    unnamed = CoreSession(session_vars={"profile": (None, [], None, None)})
    return boto3.Session(botocore_session=unnamed, region_name=region or None)


def _signed_headers(url: Url) -> Mapping[str, str]:
    """A header that takes part in the signature has to be sent as it was signed."""
    return {"x-amz-checksum-mode": "ENABLED"} if "x-amz-checksum-mode" in url.reveal().lower() else {}


def _sha256(reply: Reply) -> tuple[Digest, ...]:
    try:
        return (Digest.from_base64("sha256", reply.headers["x-amz-checksum-sha256"]),)
    except (KeyError, ValueError):  # absent, or of the parts of a multipart upload
        return ()
