"""Listings and refusals of S3, as its many servers word them; what is cut off is not taken for the whole."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from nimpull.core.artifacts import Wanted
from nimpull.core.names import ModelUri
from nimpull.core.ports import Source
from nimpull.errors import AuthError, ForbiddenError, ListingError, NotFoundError, UsageError
from nimpull.sources.aws import boto_signer
from nimpull.sources.repository_override import MirrorSource
from nimpull.sources.s3 import S3Source
from nimpull.transport import HttpApi
from tests.buckets import AWS, Bucket, listed, mirrored
from tests.listings import content_of
from tests.servers import Peer, ScriptedServer, Seen

MODEL = ModelUri.parse("s3://bucket/models/tiny")
#: What has a meaning of its own in URLs, in XML or in the encoding of either.
NAMES = (
    "a=b.json",
    "with blank.txt",
    "plus+sign.txt",
    "am&per;sand<.txt",
    "100%.txt",
    "lit%20eral.txt",
    "q?ue#st.txt",
    "ünï/漢字.txt",
)
FILES = {path: path.encode() * 3 for path in NAMES}
MANY = {f"models/tiny/part-{number:03}.bin": b"x" * number for number in range(30)}

pytestmark = pytest.mark.usefixtures("keys")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)


def s3(api: HttpApi, server: ScriptedServer) -> S3Source:
    return S3Source(api, sign=boto_signer(server.url().reveal().rstrip("/"), "us-east-1"))


def contents(source: Source, uri: ModelUri, *named: str) -> dict[str, bytes]:
    found = {}
    for artifact in source.list(uri, Wanted(paths=frozenset(named))).artifacts:
        found[str(artifact.path)] = content_of(source, artifact)
        assert artifact.size == len(found[str(artifact.path)])
    return found


# -- pages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("xmlns", ["http://s3.amazonaws.com/doc/2006-03-01/", "http://doc.s3.example/", ""])
def test_every_page_of_every_dialect_is_read(api: HttpApi, version: int, xmlns: str) -> None:
    bucket = Bucket("/bucket/", MANY, page=7)
    bucket.version, bucket.xmlns, bucket.checksums = version, xmlns, False
    with ScriptedServer(bucket) as server:
        listing = s3(api, server).list(MODEL, Wanted())
    assert [artifact.size for artifact in listing.artifacts] == list(range(30))


def _cut_off(seen: Seen, peer: Peer) -> None:
    """More, and no way to ask for it: the marker is passed over."""
    key = "<Contents><Key>models/tiny/config.json</Key><Size>2</Size></Contents>"
    peer.reply(200, f"<ListBucketResult><IsTruncated>true</IsTruncated>{key}</ListBucketResult>".encode())


def _cut_off_and_empty(seen: Seen, peer: Peer) -> None:
    peer.reply(200, b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>")


@pytest.mark.parametrize("answer", [_cut_off, _cut_off_and_empty])
def test_a_listing_that_is_cut_off_is_not_the_whole(api: HttpApi, answer: object) -> None:
    with (
        ScriptedServer(answer) as server,  # type: ignore[arg-type]
        pytest.raises(ListingError, match="does not end"),
    ):
        s3(api, server).list(MODEL, Wanted())


DTD = '<?xml version="1.0" encoding="{}"?><!DOCTYPE x [<!ENTITY a "b">]><ListBucketResult/>'
NOT_LISTINGS = {
    "page": b"<html><body>Welcome</body></html>",
    "broken": b"<ListBucketResult>",
    "json": b"{}",
    "document-type": b"<!DOCTYPE x><ListBucketResult/>",
    "entities": DTD.format("utf-8").encode(),
    "entities-in-utf-16": DTD.format("utf-16").encode("utf-16"),
}


@pytest.mark.parametrize("body", NOT_LISTINGS.values(), ids=NOT_LISTINGS)
def test_what_is_no_listing_is_no_empty_bucket(api: HttpApi, body: bytes) -> None:
    with (
        ScriptedServer(lambda seen, peer: peer.reply(200, body)) as server,
        pytest.raises(ListingError, match="not S3's listing"),
    ):
        s3(api, server).list(MODEL, Wanted())


# -- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encodes", [False, True])
def test_names_stay_as_they_are_listed(api: HttpApi, encodes: bool) -> None:
    bucket = Bucket("/bucket/", {f"models/tiny/{path}": content for path, content in FILES.items()}, page=3)
    bucket.encodes = encodes
    with ScriptedServer(bucket) as server:
        assert contents(s3(api, server), MODEL) == FILES


NGC = ModelUri.parse("ngc://nim/meta/tiny:hf")
ENCODED = {
    "twice": mirrored({str(NGC): FILES}),
    "once": {
        quote(f"nim/meta/tiny:hf?file={path}", safe=""): content for path, content in listed(FILES).items()
    },
}


@pytest.mark.parametrize("named", [(), NAMES], ids=["listed", "named"])
@pytest.mark.parametrize("objects", ENCODED.values(), ids=ENCODED)
def test_a_mirror_gives_the_keys_that_it_has(
    api: HttpApi, objects: dict[str, bytes], named: tuple[str, ...]
) -> None:
    with ScriptedServer(Bucket("/mirror/", objects, page=3)) as server:
        sign = boto_signer(server.url().reveal().rstrip("/"), "us-east-1")
        source = MirrorSource(api, override="s3://mirror", sign=sign)
        assert contents(source, NGC, *named) == (FILES if named else listed(FILES))


@pytest.mark.parametrize("decoded", [False, True], ids=["encoded", "decoded"])
def test_a_web_mirror_may_have_either_names_on_its_disk(api: HttpApi, decoded: bool) -> None:
    files = {"config.json": b"{}", "trt/rank 0.engine": b"weights"}
    keys = {f"nim/meta/tiny:hf?file={path}": content for path, content in listed(files).items()}
    objects = {key if decoded else quote(key, safe=""): content for key, content in keys.items()}
    with ScriptedServer(Bucket("/mirror/", objects)) as server:
        source = MirrorSource(api, override=server.url("/mirror").reveal())
        assert contents(source, NGC, *files) == files


# -- refusals ----------------------------------------------------------------------------------------------

REFUSALS = {
    "NoSuchBucket": (404, NotFoundError, "no such bucket", "bucket's name"),
    "InvalidAccessKeyId": (403, AuthError, "access key is not known", "AWS_ACCESS_KEY_ID"),
    "SignatureDoesNotMatch": (403, AuthError, "secret key", "AWS_SECRET_ACCESS_KEY"),
    "ExpiredToken": (400, AuthError, "expired", "AWS_SESSION_TOKEN"),
    "RequestTimeTooSkewed": (403, AuthError, "clock", "clock"),
    "AccessDenied": (403, ForbiddenError, "AccessDenied", "policy"),
    "AuthorizationHeaderMalformed": (400, UsageError, "eu-west-1", "AWS_REGION=eu-west-1"),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_the_code_of_s3_tells_what_the_status_does_not(api: HttpApi, code: str) -> None:
    status, kind, message, hint = REFUSALS[code]
    region = "<Region>eu-west-1</Region>" if code.startswith("Auth") else ""
    body = f"<Error><Code>{code}</Code><Message>As it is.</Message>{region}</Error>".encode()
    with (
        ScriptedServer(lambda seen, peer: peer.reply(status, body)) as server,
        pytest.raises(kind, match=message) as caught,
    ):
        s3(api, server).list(MODEL, Wanted())
    assert hint in caught.value.hint and code in caught.value.message


def test_without_a_key_the_hint_is_to_set_one(api: HttpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with (
        ScriptedServer(lambda seen, peer: peer.reply(403)) as server,
        pytest.raises(ForbiddenError) as caught,
    ):
        s3(api, server).list(MODEL, Wanted())
    assert caught.value.hint.startswith("No credential was found")


def test_a_refused_object_is_told_by_its_code_too(api: HttpApi) -> None:
    """An answer to HEAD has no body."""
    bucket = Bucket("/bucket/", {"models/tiny/config.json": b"{}"})
    body = b"<Error><Code>AccessDenied</Code><Message>No kms:Decrypt</Message></Error>"

    def answer(seen: Seen, peer: Peer) -> None:
        if "prefix=" in seen.target:
            bucket(seen, peer)
        else:
            peer.head(403, {}) if seen.method == "HEAD" else peer.reply(403, body)

    with ScriptedServer(answer) as server, pytest.raises(ForbiddenError, match="No kms:Decrypt"):
        s3(api, server).list(MODEL, Wanted())


@pytest.mark.parametrize("restored", [False, True])
def test_an_archived_object_is_told_before_the_pull(api: HttpApi, restored: bool) -> None:
    bucket = Bucket("/bucket/", {"models/tiny/config.json": b"{}"})
    bucket.encryption = {"x-amz-storage-class": "GLACIER"}
    if restored:
        bucket.encryption["x-amz-restore"] = 'ongoing-request="false", expiry-date="Fri, 21 Dec 2027"'
    with ScriptedServer(bucket) as server:
        if restored:
            assert len(s3(api, server).list(MODEL, Wanted()).artifacts) == 1
            return
        with pytest.raises(ForbiddenError, match="archive") as caught:
            s3(api, server).list(MODEL, Wanted())
    assert "STANDARD" in caught.value.hint


@pytest.mark.parametrize("digits", ["9" * 400, "9" * 5000])
def test_a_number_without_end_is_no_size(api: HttpApi, digits: str) -> None:
    bucket = Bucket("/bucket/", {"models/tiny/config.json": b"{}"})
    bucket.size = digits
    with ScriptedServer(bucket) as server, pytest.raises(ListingError, match="impossible size"):
        s3(api, server).list(MODEL, Wanted())
