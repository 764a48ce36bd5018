"""S3 and what speaks its protocol: ``s3://bucket/prefix`` as a model, and a bucket for mirrors.

Requests go over the one transport with URLs that boto3 has signed (:mod:`nimpull.sources.aws`), so that TLS
trust, proxies and retries are those of all other sources.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, unquote_plus

from nimpull.core.artifacts import Artifact, Listing, Location, Wanted
from nimpull.core.digest import Digest
from nimpull.core.mirror_objects import CHECKSUMS, file_key
from nimpull.core.names import ModelUri, Url, display
from nimpull.core.ports import Api
from nimpull.core.reply import Reply
from nimpull.core.s3_failures import CHECK_PLACE, coded
from nimpull.errors import (
    AuthError,
    ForbiddenError,
    ListingError,
    NimpullError,
    NotFoundError,
)
from nimpull.sources.answers import common_refusal, expiry, is_page, length, said, unquoted
from nimpull.sources.checksums import add_checksums, checksum_lines
from nimpull.sources.listing import MAX_PAGES, Entries, at_once, narrowed, pinned, revision_of, unverifiable

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

#: (operation of S3, its parameters) -> a presigned URL.
Sign = Callable[[str, Mapping[str, str]], Url]

_MD5: Final = re.compile(r"[0-9a-f]{32}")
_GOOG_MD5: Final = re.compile(r"\bmd5=([A-Za-z0-9+/=]{24})")
_STRONG: Final = frozenset({"blake3", "sha256"})
#: Storage classes whose objects must be restored before they can be read (S3 User Guide, "Restoring").
_ARCHIVES: Final = frozenset({"GLACIER", "DEEP_ARCHIVE"})
_NO_CREDENTIAL: Final = "No credential was found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
_NO_RIGHT: Final = (
    "The key may not read it, or not list it: check its policy, AWS_ACCESS_KEY_ID and "
    "AWS_REGION. Without permission to list, S3 answers so for what is missing too."
)


@dataclass(frozen=True, slots=True)
class S3Object:
    """One row of a listing; ``size`` as its text, ``etag`` unquoted."""

    key: str
    size: str
    etag: str
    archived: bool


@dataclass(frozen=True, slots=True)
class About:
    """What a HEAD tells of an object. ``size`` in bytes; ``etag`` unquoted."""

    size: int | None
    digests: tuple[Digest, ...]
    etag: str


class Bucket:
    """Requests to one bucket. Thread-safe."""

    def __init__(self, api: Api, name: str, sign: Sign, scheme: str = "s3") -> None:
        self._api = api
        self._name = name
        self._sign = sign
        self._shown = f"{scheme}://{name}"

    def place(self, key: str) -> Location:
        url = self._sign("get_object", {"Bucket": self._name, "Key": key})
        return Location(url, expires_at=expiry(url))

    def about(self, key: str) -> About:
        """Raises NotFoundError, ForbiddenError and the like."""
        url = self._sign("head_object", {"Bucket": self._name, "Key": key, "ChecksumMode": "ENABLED"})
        reply = self._api.request("HEAD", url, headers=_signed_headers(url))
        what = f"object “{display(key, 300)}” of {self._shown}"
        if reply.status != 200:
            # an answer to HEAD has no body, so no <Code>; what is there is asked for one byte of it
            told = self.small(key, headers={"Range": "bytes=0-0"})
            raise self.refusal(told if told.status >= 400 else reply, what)
        restored = 'ongoing-request="false"' in reply.headers.get("x-amz-restore", "")
        if reply.headers.get("x-amz-storage-class") in _ARCHIVES and not restored:
            raise ForbiddenError(
                f"{what} cannot be read: it is in an archive",
                hint="Restore it, or copy it to the storage class STANDARD.",
            )
        return About(length(reply), (*_sha256(reply), *_md5(reply)), unquoted(reply.headers.get("etag", "")))

    def small(self, key: str, headers: Mapping[str, str] | None = None) -> Reply:
        """A whole small object, whatever the status."""
        return self._api.request("GET", self.place(key).url, headers=headers)

    def objects(self, prefix: str) -> Iterator[S3Object]:
        """Every object whose key begins with ``prefix``, page by page. Raises ListingError.

        A server that does not know ListObjectsV2 answers as to ListObjects: there is more, but no token.
        From then on the pages are asked for as ListObjects has them, each from the last key on.
        """
        operation, cursor = "list_objects_v2", dict[str, str]()
        for _ in range(MAX_PAGES):
            reply = self._api.request(
                "GET", self._sign(operation, {"Bucket": self._name, "Prefix": prefix, **cursor})
            )
            if reply.status != 200:
                raise self.refusal(reply, f"the listing of {self._shown}")
            page = self._page(reply)
            encoded = _text(page, "EncodingType") == "url"  # which was not asked for
            rows = [_row(item, encoded) for item in page if _tag(item) == "Contents"]
            yield from (row for row in rows if row.key.startswith(prefix))
            token = _text(page, "NextContinuationToken")
            if _text(page, "IsTruncated").lower() != "true" and not token:
                return
            if token:
                following = {"ContinuationToken": token}
            else:
                operation = "list_objects"
                following = {"Marker": _text(page, "NextMarker") or (rows[-1].key if rows else "")}
            if following == cursor or not all(following.values()):
                break
            cursor = following
        raise ListingError(
            f"the listing of {self._shown} does not end: its pages say that there is more, not where",
            hint="Check that the server at AWS_ENDPOINT_URL speaks S3; nothing was written.",
        )

    def _page(self, reply: Reply) -> Element:
        """Names are compared without their namespace: AWS has one, others have another or none."""
        from defusedxml import ElementTree

        try:
            page: Element = ElementTree.fromstring(reply.body, forbid_dtd=True)
            if _tag(page) != "ListBucketResult":
                raise ValueError(f"its element is “{display(_tag(page), 60)}”")
        except (ElementTree.ParseError, ValueError) as error:
            raise ListingError(
                f"{reply.url.authority} answers with something that is not S3's listing: "
                f"{display(error, 120)}",
                hint="Check the bucket's name and AWS_ENDPOINT_URL.",
            ) from error
        return page

    def refusal(self, reply: Reply, what: str) -> NimpullError:
        """For any status but 200. Only ``<Code>`` tells a wrong key, a wrong secret and no bucket apart."""
        fault = _fault(reply)
        code, words = fault.get("Code", ""), said(fault.get("Message"))
        status = " ".join(filter(None, (f"HTTP {reply.status}", display(code, 60))))
        where = f"{reply.url.authority} answers {status} for {what}"
        region = reply.headers.get("x-amz-bucket-region") or fault.get("Region", "")
        if error := coded(where, reply.status, code, region):
            return error
        if reply.status == 404:
            return NotFoundError(f"{reply.url.authority} has no {what}{words}", hint=CHECK_PLACE)
        if reply.status in (401, 403):
            kind = AuthError if reply.status == 401 else ForbiddenError
            unsigned = "signature=" not in reply.url.reveal().lower()
            return kind(f"{where}{words}", hint=_NO_CREDENTIAL if unsigned else _NO_RIGHT)
        return common_refusal(reply, what, words)


class S3Source:
    """``s3://bucket/prefix``: every object below the prefix. Implements :class:`nimpull.core.ports.Source`.

    ``gs://`` is the same of Google Cloud Storage, whose XML API speaks S3's protocol. A bucket has no
    revisions: the revision is a hash over what was listed. A file is checked by
    ``checksums.blake3`` of the prefix, else by the object's own SHA-256, else by its MD5 (the ETag of an
    upload in one part), else by its size.

    In a mirror, a model's place is what stands behind ``ngc://`` or ``hf://``: ``s3://mirror/nim/meta/llama:hf``.
    """

    def __init__(self, api: Api, *, sign: Sign) -> None:
        self._api = api
        self._sign = sign
        self._mirrored: set[tuple[str, str]] = set()  # (bucket, place) of models that stand under NIM's keys

    def list(self, uri: ModelUri, wanted: Wanted) -> Listing:
        """See :meth:`nimpull.core.ports.Source.list`."""
        wanted = narrowed(wanted, uri)
        repo = replace(uri.repo, location=uri.location.strip("/"))
        bucket = Bucket(self._api, repo.name, self._sign, repo.scheme)
        prefix = _prefix(repo)
        entries = Entries(repo)
        archived = set()
        for path, found in self._objects(bucket, repo):
            entries.add(path, found.size, (), found.etag)
            if found.archived:
                archived.add(path)
        mirrored = (repo.name, repo.location) in self._mirrored
        if mirrored and CHECKSUMS not in entries:
            raise NotFoundError(
                f"{display(repo)} has no {CHECKSUMS}: it is not completely mirrored",
                hint="nimpull mirror writes it last: run that again.",
            )
        if not len(entries):
            raise NotFoundError(
                f"{repo.scheme}://{repo.name} has no object below “{display(prefix, 200)}”",
                hint="Check the bucket and the prefix: it is the folder that holds config.json.",
            )
        if CHECKSUMS in entries:
            reply = bucket.small(self._key(repo, CHECKSUMS))
            if reply.status != 200 or is_page(reply):
                raise bucket.refusal(reply, f"{CHECKSUMS} of {display(repo)}")
            for path, _ in checksum_lines(reply.body) if mirrored else ():
                entries.add(path)  # also what the bucket lacks: a part is not the whole
            add_checksums(entries, reply.body)
        listed = entries.artifacts(wanted)
        artifacts = with_digests(listed, lambda path: bucket.about(self._key(repo, path)), archived)
        at = repo.with_revision(revision_of(artifacts))
        where = Url(f"{repo.scheme}://{repo.name}/{prefix}")
        return Listing(at, "", pinned(artifacts, at), where, unverifiable(artifacts))

    def locate(self, artifact: Artifact, *, fresh: bool = False) -> Location:  # noqa: ARG002 - nothing is cached
        repo = artifact.uri.repo
        return Bucket(self._api, repo.name, self._sign, repo.scheme).place(self._key(repo, artifact.path))

    def _objects(self, bucket: Bucket, repo: ModelUri) -> Iterator[tuple[str, S3Object]]:
        """(path, object): below the prefix, else of a model in a mirror."""
        prefix, empty = _prefix(repo), True
        for found in bucket.objects(prefix):
            if not found.key.endswith("/"):  # what consoles make for an empty folder
                empty = False
                yield found.key.removeprefix(prefix), found
        start = file_key(repo.location, "")
        for found in bucket.objects(start) if empty and repo.location else ():
            self._mirrored.add((repo.name, repo.location))
            # The path is percent-encoded in the URI, and the URI in the key (file_key).
            yield unquote(unquote(found.key.removeprefix(start))), found

    def _key(self, repo: ModelUri, path: str) -> str:
        place = repo.location.strip("/")
        return file_key(place, path) if (repo.name, place) in self._mirrored else _prefix(repo) + path


def with_digests(
    artifacts: Sequence[Artifact], about: Callable[[str], About], always: Container[str] = ()
) -> tuple[Artifact, ...]:
    """With what a HEAD tells, for those whose size or strong digest the listing leaves out.

    ``about``: asks for the file of this path. ``always``: paths to ask for although all is known.
    """

    def described(artifact: Artifact) -> Artifact:
        known = {digest.algorithm: digest for digest in artifact.digests}
        if artifact.size is not None and known.keys() & _STRONG and artifact.path not in always:
            return artifact
        told = about(artifact.path)
        digests = {digest.algorithm: digest for digest in told.digests} | known
        size = told.size if artifact.size is None else artifact.size
        return replace(artifact, size=size, digests=tuple(digests.values()), etag=told.etag or artifact.etag)

    return at_once(described, artifacts)


def _prefix(repo: ModelUri) -> str:
    location = repo.location.strip("/")
    return f"{location}/" if location else ""


def _tag(element: Element) -> str:
    """Without its namespace; that of AWS, of s3rver and of GCS differ, and some servers have none."""
    return str(element.tag).rpartition("}")[2]


def _text(parent: Element, name: str) -> str:
    return next((child.text or "" for child in parent if _tag(child) == name), "")


def _row(item: Element, encoded: bool) -> S3Object:
    key, size, etag = (_text(item, name) for name in ("Key", "Size", "ETag"))
    archived = _text(item, "StorageClass") in _ARCHIVES
    return S3Object(unquote_plus(key) if encoded else key, size, unquoted(etag), archived)


def _fault(reply: Reply) -> Mapping[str, str]:
    """The fields of S3's error document; none where the answer is something else."""
    from defusedxml import ElementTree

    try:
        document = ElementTree.fromstring(reply.body, forbid_dtd=True)
    except (ElementTree.ParseError, ValueError):
        return {}
    return {_tag(child): child.text or "" for child in document} if _tag(document) == "Error" else {}


def _signed_headers(url: Url) -> Mapping[str, str]:
    """A header that takes part in the signature has to be sent as it was signed."""
    return {"x-amz-checksum-mode": "ENABLED"} if "x-amz-checksum-mode" in url.reveal().lower() else {}


def _sha256(reply: Reply) -> tuple[Digest, ...]:
    try:
        return (Digest.from_base64("sha256", reply.headers["x-amz-checksum-sha256"]),)
    except (KeyError, ValueError):  # absent, or of the parts of a multipart upload
        return ()


def _md5(reply: Reply) -> tuple[Digest, ...]:
    """The ETag of an upload in one part, not encrypted with a key of KMS or of the customer, is its MD5.

    Amazon S3 API Reference, "Object", ETag. Other ETags are opaque. Google's servers tell it apart from the
    ETag (``x-goog-hash: crc32c=…,md5=…``), but not of objects that were composed.
    """
    if told := _GOOG_MD5.search(reply.headers.get("x-goog-hash", "")):
        with suppress(ValueError):
            return (Digest.from_base64("md5", told[1]),)
    etag = unquoted(reply.headers.get("etag", ""))
    encryption = reply.headers.get("x-amz-server-side-encryption", "AES256")
    customer = "x-amz-server-side-encryption-customer-algorithm" in reply.headers
    if customer or encryption != "AES256" or not _MD5.fullmatch(etag):
        return ()
    return (Digest("md5", etag),)
