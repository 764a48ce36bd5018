"""S3 and what speaks its protocol: ``s3://bucket/prefix`` as a model, and a bucket for mirrors.

boto3 finds the credentials and signs; every request goes over the one transport, so that TLS trust, proxies
and retries are those of all other sources.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from nimpull.core.artifacts import Artifact, Listing, Location
from nimpull.core.digest import Digest
from nimpull.core.names import ModelUri, Url, display
from nimpull.core.ports import Api, Reply, Wanted
from nimpull.errors import (
    AuthError,
    ForbiddenError,
    ListingError,
    NetworkError,
    NimpullError,
    NotFoundError,
    ProxyError,
    TlsError,
    UsageError,
)
from nimpull.sources.answers import common_refusal, expiry, is_page, length
from nimpull.sources.checksums import CHECKSUMS, checksum_lines
from nimpull.sources.listing import MAX_PAGES, Entries, at_once, sealed

if TYPE_CHECKING:
    from boto3 import Session

#: (operation of S3, its parameters) -> a presigned URL.
Sign = Callable[[str, Mapping[str, str]], Url]

_SIGNED_SECONDS: Final = 3600
_NAMESPACE: Final = "{http://s3.amazonaws.com/doc/2006-03-01/}"
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_STRONG: Final = frozenset({"blake3", "sha256"})


@dataclass(frozen=True, slots=True)
class S3Object:
    """One row of a listing; ``size`` as its text, ``etag`` unquoted."""

    key: str
    size: str
    etag: str


@dataclass(frozen=True, slots=True)
class About:
    """What a HEAD tells of an object. ``size`` in bytes; ``etag`` unquoted."""

    size: int | None
    digests: tuple[Digest, ...]
    etag: str


class Bucket:
    """Requests to one bucket. Thread-safe."""

    def __init__(self, api: Api, name: str, sign: Sign) -> None:
        self._api = api
        self._name = name
        self._sign = sign

    def place(self, key: str) -> Location:
        url = self._sign("get_object", {"Bucket": self._name, "Key": key})
        return Location(url, expires_at=expiry(url))

    def about(self, key: str) -> About:
        """Raises NotFoundError, ForbiddenError and the like."""
        url = self._sign("head_object", {"Bucket": self._name, "Key": key, "ChecksumMode": "ENABLED"})
        reply = self._api.request("HEAD", url, headers=_signed_headers(url))
        if reply.status != 200:
            raise self.refusal(reply, f"object “{display(key, 300)}” of s3://{self._name}")
        return About(length(reply), (*_sha256(reply), *_md5(reply)), _unquoted(reply.headers.get("etag", "")))

    def small(self, key: str) -> Reply:
        """A whole small object, whatever the status."""
        return self._api.request("GET", self.place(key).url)

    def objects(self, prefix: str) -> Iterator[S3Object]:
        """Every object whose key begins with ``prefix`` (ListObjectsV2, page by page)."""
        parameters = {"Bucket": self._name, "Prefix": prefix}
        for _ in range(MAX_PAGES):
            reply = self._api.request("GET", self._sign("list_objects_v2", parameters))
            if reply.status == 404:
                raise NotFoundError(
                    f"{reply.url.host} has no bucket “{display(self._name, 80)}”",
                    hint="Check the name and AWS_ENDPOINT_URL.",
                )
            if reply.status != 200:
                raise self.refusal(reply, f"the listing of s3://{self._name}")
            page = self._page(reply)
            encoded = page.findtext(f"{_NAMESPACE}EncodingType") == "url"
            for item in page.iter(f"{_NAMESPACE}Contents"):
                key, size, etag = (item.findtext(f"{_NAMESPACE}{tag}", "") for tag in ("Key", "Size", "ETag"))
                yield S3Object(unquote_plus(key) if encoded else key, size, _unquoted(etag))
            token = page.findtext(f"{_NAMESPACE}NextContinuationToken", "")
            if not token or token == parameters.get("ContinuationToken"):
                return
            parameters = {**parameters, "ContinuationToken": token}
        raise ListingError(f"the listing of s3://{self._name} does not end", hint="Check the server.")

    def _page(self, reply: Reply) -> ElementTree.Element:
        try:
            if b"<!DOCTYPE" in reply.body:
                raise ElementTree.ParseError("a document type, which S3 does not send")
            return ElementTree.fromstring(reply.body)  # noqa: S314 - no DTD, so no entities; size is bounded
        except ElementTree.ParseError as error:
            raise ListingError(
                f"{reply.url.host} answers with something that is not S3's listing: {display(error, 120)}",
                hint="Check the bucket's name and AWS_ENDPOINT_URL.",
            ) from error

    def refusal(self, reply: Reply, what: str) -> NimpullError:
        where = f"{reply.url.host} answers HTTP {reply.status} for {what}"
        region = display(reply.headers.get("x-amz-bucket-region", ""), 40)
        if region and reply.status in (301, 307, 400):
            return UsageError(f"{where}: the bucket is in {region}", hint=f"Set AWS_REGION={region}.")
        if reply.status == 404:
            return NotFoundError(
                f"{reply.url.host} has no {what}",
                hint="Check bucket and prefix, in the URI or in NIM_REPOSITORY_OVERRIDE, and "
                "AWS_ENDPOINT_URL; keys are case-sensitive.",
            )
        if reply.status == 401:
            return AuthError(where, hint="Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
        if reply.status == 403:
            return ForbiddenError(
                where,
                hint="Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION; without permission to "
                "list the bucket, S3 answers so for an object that is missing too.",
            )
        return common_refusal(reply, what, "")


class S3Source:
    """``s3://bucket/prefix``: every object below the prefix. Implements :class:`nimpull.core.ports.Source`.

    A bucket has no revisions: the revision is a hash over what was listed. A file is checked by
    ``checksums.blake3`` of the prefix, else by the object's own SHA-256, else by its MD5 (the ETag of an
    upload in one part), else by its size.
    """

    def __init__(self, api: Api, *, sign: Sign) -> None:
        self._api = api
        self._sign = sign

    def list(self, uri: ModelUri, wanted: Wanted) -> Listing:
        """See :meth:`nimpull.core.ports.Source.list`."""
        if uri.path:
            wanted = replace(wanted, paths=wanted.paths | {uri.path})
        repo = replace(uri.repo, location=uri.location.strip("/"))
        bucket = Bucket(self._api, repo.name, self._sign)
        prefix = _prefix(repo)
        entries = Entries(display(repo))
        for found in bucket.objects(prefix):
            if not found.key.endswith("/"):  # what consoles make for an empty folder
                entries.add(found.key.removeprefix(prefix), found.size, (), found.etag)
        if not len(entries):
            raise NotFoundError(
                f"s3://{repo.name} has no object below “{display(prefix, 200)}”",
                hint="Check the bucket and the prefix: it is the folder that holds config.json.",
            )
        self._add_checksums(repo, bucket, entries)
        listed = entries.artifacts(repo, wanted)
        artifacts = with_digests(bucket, listed, lambda artifact: prefix + artifact.path)
        pinned = repo.with_revision(sealed(artifacts))
        artifacts = tuple(replace(one, uri=pinned.with_path(one.path)) for one in artifacts)
        return Listing(pinned, "", artifacts, Url(f"s3://{repo.name}/{prefix}"), unverifiable(artifacts))

    def locate(self, artifact: Artifact, *, fresh: bool = False) -> Location:  # noqa: ARG002 - nothing is cached
        repo = artifact.uri.repo
        return Bucket(self._api, repo.name, self._sign).place(_prefix(repo) + artifact.path)

    def _add_checksums(self, repo: ModelUri, bucket: Bucket, entries: Entries) -> None:
        if CHECKSUMS not in entries:
            return
        reply = bucket.small(_prefix(repo) + CHECKSUMS)
        if reply.status != 200 or is_page(reply):
            raise bucket.refusal(reply, f"{CHECKSUMS} of {display(repo)}")
        for path, digest in checksum_lines(reply.body):
            if path in entries and path != CHECKSUMS:
                entries.add(path, None, (digest,))


def unverifiable(artifacts: Sequence[Artifact]) -> tuple[str, ...]:
    """A note on the files of which nothing but the size can be checked."""
    weak = [artifact for artifact in artifacts if not artifact.digests]
    if not weak:
        return ()
    first = f"“{display(weak[0].path, 120)}”"
    what = f"{first} has" if len(weak) == 1 else f"{len(weak)} files, {first} among them, have"
    return (f"{what} no checksum that could be checked: only the size is",)


def with_digests(
    bucket: Bucket, artifacts: Sequence[Artifact], key_of: Callable[[Artifact], str]
) -> tuple[Artifact, ...]:
    """With what a HEAD tells, for those whose size or strong digest the listing leaves out."""

    def described(artifact: Artifact) -> Artifact:
        known = {digest.algorithm: digest for digest in artifact.digests}
        if artifact.size is not None and known.keys() & _STRONG:
            return artifact
        about = bucket.about(key_of(artifact))
        digests = {digest.algorithm: digest for digest in about.digests} | known
        size = about.size if artifact.size is None else artifact.size
        return replace(artifact, size=size, digests=tuple(digests.values()), etag=about.etag or artifact.etag)

    return at_once(described, artifacts)


def _prefix(repo: ModelUri) -> str:
    location = repo.location.strip("/")
    return f"{location}/" if location else ""


def boto_signer(endpoint: str = "", region: str = "", ca_bundle: str = "") -> Sign:
    """Presigned URLs from the credentials that boto3 finds: AWS_*, web identity. Plain ones if it finds none.

    "" leaves endpoint and region to boto3. ``ca_bundle``: what boto3 trusts when it asks for credentials
    itself, unless AWS_CA_BUNDLE says otherwise. Raises UsageError without boto3, or for settings it refuses.
    """
    try:
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError as error:
        raise UsageError("s3:// needs boto3, which is not installed", hint="Install nimpull[s3].") from error
    try:
        session = _session(region, ca_bundle)
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
        try:
            return Url(client.generate_presigned_url(operation, Params=parameters, ExpiresIn=_SIGNED_SECONDS))
        except (BotoCoreError, ClientError, OSError) as error:
            raise _no_credential(error) from error

    return sign


def _no_credential(error: Exception) -> NimpullError:
    """boto3 asks for short-lived credentials itself (STS, the metadata service) when it has to sign."""
    from botocore import exceptions as boto

    said = getattr(error, "kwargs", {})
    where = Url(said.get("endpoint_url") or "AWS")  # shown without user and password
    match error:
        case boto.SSLError():
            return TlsError(
                f"boto3 cannot ask for credentials: the certificate of {where} is not trusted",
                hint="For a private CA: set AWS_CA_BUNDLE (NIMCache: or spec.proxy.certConfigMap).",
            )
        case boto.ProxyConnectionError():
            return ProxyError(
                f"boto3 cannot ask for credentials: cannot reach the proxy {Url(said.get('proxy_url', ''))}",
                hint="Check HTTPS_PROXY (NIMCache: spec.proxy.httpsProxy), or name the host in NO_PROXY.",
            )
        case boto.ConnectionError() | boto.HTTPClientError():
            return NetworkError(
                f"boto3 cannot ask for credentials: {where} does not answer",
                hint="Check the network policies, AWS_REGION and AWS_ENDPOINT_URL_STS.",
            )
    return AuthError(
        f"boto3 has no credential for S3: {display(error, 300)}",
        hint="Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_ROLE_ARN, the role's trust policy "
        "and the file that AWS_WEB_IDENTITY_TOKEN_FILE names.",
    )


def _session(region: str, ca_bundle: str) -> Session:
    """AWS_PROFILE=default without a configuration file is what boto3 takes anyway, yet refuses by name."""
    import boto3
    from botocore.exceptions import ProfileNotFound
    from botocore.session import Session as CoreSession

    def made(core: CoreSession) -> Session:
        if ca_bundle and not core.get_config_variable("ca_bundle"):
            core.set_config_variable("ca_bundle", ca_bundle)
        return boto3.Session(botocore_session=core, region_name=region or None)

    try:
        return made(CoreSession())
    except ProfileNotFound as error:
        if error.kwargs["profile"] != "default":
            raise
    return made(CoreSession(session_vars={"profile": (None, [], None, None)}))


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

    Amazon S3 API Reference, "Object", ETag. Other ETags are opaque.
    """
    etag = _unquoted(reply.headers.get("etag", ""))
    encryption = reply.headers.get("x-amz-server-side-encryption", "AES256")
    customer = "x-amz-server-side-encryption-customer-algorithm" in reply.headers
    if customer or encryption != "AES256" or not _MD5.fullmatch(etag):
        return ()
    return (Digest("md5", etag),)


def _unquoted(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')
