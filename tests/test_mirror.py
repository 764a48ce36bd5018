"""A mirror named by NIM_REPOSITORY_OVERRIDE: keys as NIM documents them, from S3 and from a web server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from blake3 import blake3

from nimpull.core.artifacts import Wanted
from nimpull.core.mirror_objects import object_key
from nimpull.core.names import ModelUri
from nimpull.errors import ForbiddenError, ListingError, NotFoundError, UsageError
from nimpull.sources.aws import boto_signer
from nimpull.sources.repository_override import MirrorSource
from nimpull.transport import HttpApi
from tests.buckets import Bucket, mirrored
from tests.listings import content_of
from tests.servers import ScriptedServer

MODEL = ModelUri.parse("ngc://nim/meta/llama3-8b-instruct:hf")
CONFIG, WEIGHTS = b'{"a": 1}', b"weights" * 1000
SUMS = (
    f"{blake3(CONFIG).hexdigest()}  config.json\n{blake3(WEIGHTS).hexdigest()}  trt/rank 0.engine\n".encode()
)
FILES = {"config.json": CONFIG, "trt/rank 0.engine": WEIGHTS, "checksums.blake3": SUMS}
OBJECTS = mirrored({str(MODEL): FILES})
SECRET = "canary-4d1c"


@pytest.fixture
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with ScriptedServer(Bucket("/nim_bucket/", OBJECTS, page=2)) as server:
        yield server


def s3_source(api: HttpApi, server: ScriptedServer) -> MirrorSource:
    sign = boto_signer(server.url().reveal().rstrip("/"), "us-east-1")
    return MirrorSource(api, override="s3://nim_bucket", sign=sign)


def fetched(source: MirrorSource, listed: Wanted) -> dict[str, bytes]:
    contents = {}
    for artifact in source.list(MODEL, listed).artifacts:
        contents[str(artifact.path)] = content_of(source, artifact)
        assert artifact.size == len(contents[str(artifact.path)])
    return contents


def test_the_key_is_the_documented_one() -> None:
    uri = ModelUri.parse("ngc://nim/meta/llama3-8b-instruct:hf?file=config.json")
    assert object_key(uri) == "nim%2Fmeta%2Fllama3-8b-instruct%3Ahf%3Ffile%3Dconfig.json"


def test_named_files_come_from_a_bucket(api: HttpApi, s3_server: ScriptedServer) -> None:
    source = s3_source(api, s3_server)
    wanted = Wanted(paths=frozenset({"config.json", "trt/rank 0.engine"}))
    listing = source.list(MODEL, wanted)
    for artifact in listing.artifacts:
        algorithms = {digest.algorithm: digest.hex for digest in artifact.digests}
        assert algorithms == {
            "blake3": blake3(FILES[artifact.path]).hexdigest(),
            "md5": hashlib.md5(FILES[artifact.path]).hexdigest(),
            "sha256": hashlib.sha256(FILES[artifact.path]).hexdigest(),
        }
    assert (listing.notes, listing.requested) == ((), "hf")
    assert fetched(source, wanted) == {
        "config.json": CONFIG,
        "trt/rank 0.engine": WEIGHTS,
    }
    assert s3_server.seen[0].target.startswith("/nim_bucket/nim%252Fmeta%252Fllama3-8b-instruct%253Ahf%253F")
    expires_at = source.locate(listing.artifacts[0]).expires_at
    assert expires_at is not None
    assert SECRET not in "".join(f"{seen.target}{seen.headers}" for seen in s3_server.seen)


def test_a_bucket_is_listed_page_by_page(api: HttpApi, s3_server: ScriptedServer) -> None:
    assert fetched(s3_source(api, s3_server), Wanted()) == FILES


def test_a_file_missing_from_the_mirror_is_named(api: HttpApi, s3_server: ScriptedServer) -> None:
    with pytest.raises(NotFoundError, match=r"has no object .*tokenizer"):
        s3_source(api, s3_server).list(MODEL, Wanted(paths=frozenset({"tokenizer.json"})))


def test_no_permission_says_what_it_may_mean(api: HttpApi, s3_server: ScriptedServer) -> None:
    s3_server.answer = lambda seen, peer: peer.reply(403)
    with pytest.raises(ForbiddenError, match="HTTP 403") as caught:
        s3_source(api, s3_server).list(MODEL, Wanted())
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


@pytest.mark.parametrize("body", [b"<html>", b'<!DOCTYPE x [<!ENTITY a "b">]><ListBucketResult/>'])
def test_something_else_than_a_listing(api: HttpApi, s3_server: ScriptedServer, body: bytes) -> None:
    right = s3_server.answer
    s3_server.answer = lambda seen, peer: (
        peer.reply(200, body) if "list-type" in seen.target else right(seen, peer)
    )
    with pytest.raises(ListingError, match="not S3's listing"):
        s3_source(api, s3_server).list(MODEL, Wanted())


def test_a_web_server_gives_named_files_and_those_of_the_checksums(api: HttpApi) -> None:
    bucket = Bucket("/mirror/", OBJECTS)
    with ScriptedServer(bucket) as server:
        source = MirrorSource(api, override=server.url("/mirror/").reveal())
        assert fetched(source, Wanted(paths=frozenset({"config.json"}))) == {"config.json": CONFIG}
        assert fetched(source, Wanted()) == FILES
        del bucket.objects[object_key(MODEL.with_path("checksums.blake3"))]
        with pytest.raises(NotFoundError, match="not completely"):
            source.list(MODEL, Wanted())


@pytest.mark.parametrize("wanted", [Wanted(), Wanted(paths=frozenset({"config.json"}))])
@pytest.mark.parametrize("kind", ["s3", "web"])
def test_f70_a_mirror_without_its_list_of_checksums_is_not_complete(
    api: HttpApi, s3_server: ScriptedServer, kind: str, wanted: Wanted
) -> None:
    bucket = Bucket("/nim_bucket/", OBJECTS)
    del bucket.objects[object_key(MODEL.with_path("checksums.blake3"))]
    s3_server.answer = bucket
    web = MirrorSource(api, override=s3_server.url("/nim_bucket/").reveal())
    source = s3_source(api, s3_server) if kind == "s3" else web
    with pytest.raises(NotFoundError, match="not mirrored, or not completely") as caught:
        source.list(MODEL, wanted)
    assert "nimpull mirror" in caught.value.hint


def test_f67_a_file_that_the_list_does_not_name_is_no_part_of_the_mirror(api: HttpApi) -> None:
    bucket = Bucket("/", {**OBJECTS, object_key(MODEL.with_path("late.bin")): b"late"})
    with ScriptedServer(bucket) as server:
        source = MirrorSource(api, override=server.url().reveal())
        with pytest.raises(ListingError, match=r"late.bin.*does not name"):
            source.list(MODEL, Wanted(paths=frozenset({"config.json", "late.bin"})))


def test_f67_a_bucket_that_lacks_what_its_list_names_is_no_whole_model(
    api: HttpApi, s3_server: ScriptedServer
) -> None:
    bucket = Bucket("/nim_bucket/", OBJECTS)
    del bucket.objects[object_key(MODEL.with_path("config.json"))]
    s3_server.answer = bucket
    with pytest.raises(NotFoundError, match=r"config.json"):
        s3_source(api, s3_server).list(MODEL, Wanted())


@pytest.mark.parametrize("override", ["ngc://nim/meta/x:1", "file:///x", "bucket", "s3:///x"])
def test_what_is_no_mirror_is_refused(api: HttpApi, override: str) -> None:
    with pytest.raises(UsageError):
        MirrorSource(api, override=override)


def test_a_profile_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_PROFILE", "team")
    with pytest.raises(UsageError, match="team") as caught:
        boto_signer(region="us-east-1")
    assert "AWS_PROFILE" in caught.value.hint
