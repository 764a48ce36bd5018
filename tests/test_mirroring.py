"""nimpull mirror: what a bucket or a directory gets, in which order, and what readers make of it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import trustme
from blake3 import blake3

from nimpull.core.abilities import Abilities
from nimpull.core.digest import Digest, digest_of
from nimpull.core.events import Event, Note
from nimpull.core.mirror_objects import (
    ExistingObject,
    MirrorFile,
    MirrorRepository,
    checksum_list,
    digests_in,
    is_there,
    object_key,
    part_size,
)
from nimpull.core.names import ModelUri, SafePath
from nimpull.store import preflight
from nimpull.store.mirror_directory import DirectoryTarget
from tests.buckets import AWS
from tests.certificates import served
from tests.registry import Registry
from tests.running import FILES, Run, check, nimpull
from tests.servers import Peer, Proxy, ScriptedServer, Seen
from tests.writable_buckets import WritableBucket

HUB, NGC = "hf://acme/Tiny-LM", "ngc://nim/meta/tiny:hf-1"
BIG = bytes(range(256)) * (80 << 10)  # 20 MiB: three parts
MODEL = {**FILES, "big.bin": BIG, "with blank+%.txt": b"odd"}
MARK = "checksums.blake3"


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as made:
        made.add_hub_repo("acme/Tiny-LM", MODEL)
        made.add_ngc_model("nim", "meta", "tiny", "hf-1", MODEL)
        yield made


class S3:
    """A bucket that is written to, and how nimpull reaches it."""

    def __init__(self, server: ScriptedServer, bucket: WritableBucket) -> None:
        self.server = server
        self.bucket = bucket
        self.environment = {
            **AWS,
            "AWS_ENDPOINT_URL": server.url("").reveal(),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }

    @property
    def sent(self) -> list[str]:
        """Keys of what was written, in the order of the requests that made it visible."""
        seen = [each for each in self.server.seen if each.method == "PUT" and "partNumber" not in each.target]
        done = [each for each in self.server.seen if each.method == "POST" and "uploadId" in each.target]
        visible = [each for each in self.server.seen if each in (*seen, *done)]
        return [unquote(urlsplit(each.target).path).removeprefix("/models/") for each in visible]


@pytest.fixture
def s3() -> Iterator[S3]:
    bucket = WritableBucket()
    with ScriptedServer(bucket) as server:
        yield S3(server, bucket)


def mirror(registry: Registry, root: Path, s3: S3 | None, *arguments: str, **environment: str) -> Run:
    to = "s3://models" if s3 else str(root / "mirror")
    known = s3.environment if s3 else {}
    run = nimpull(registry, root / "store", "mirror", *arguments, "--to", to, **{**known, **environment})
    if run.report:
        check(run.report)
    return run


def keys(uri: str, *paths: str) -> set[str]:
    return {object_key(ModelUri.parse(uri).with_path(path)) for path in paths}


def read_back(registry: Registry, store: Path, uri: str, override: str, **environment: str) -> Run:
    registry.requests.clear()
    return nimpull(
        registry, store, "download", uri, NIM_REPOSITORY_OVERRIDE=override, NGC_API_KEY="", **environment
    )


def snapshot_of(store: Path) -> dict[str, bytes]:
    (found,) = store.glob("*/hub/models--*/snapshots/*")
    return {
        path.relative_to(found).as_posix(): path.read_bytes() for path in found.rglob("*") if path.is_file()
    }


# -- the core ----------------------------------------------------------------------------------------------


def test_a_file_is_there_by_size_and_every_digest_that_both_know() -> None:
    right, wrong = Digest("sha256", "a" * 64), Digest("sha256", "b" * 64)
    file = MirrorFile(SafePath("x"), "x", 3, (right, Digest("blake3", "c" * 64)))
    assert is_there(file, ExistingObject(3, (right,)))
    assert not is_there(file, ExistingObject(4, (right,)))
    assert not is_there(file, ExistingObject(3, (wrong,)))
    assert not is_there(file, ExistingObject(3, (Digest("md5", "0" * 32),))), "nothing that both know"
    assert not is_there(file, ExistingObject(3))
    assert not is_there(file, None)


def test_the_list_keeps_what_another_profile_brought() -> None:
    first = checksum_list({"b/x.bin": "1" * 64, "a.json": "2" * 64})
    assert first.decode().splitlines() == [f"{'2' * 64}  a.json", f"{'1' * 64}  b/x.bin"]
    both = checksum_list({"a.json": "3" * 64, "c": "4" * 64}, first)
    assert digests_in(both) == {"a.json": "3" * 64, "b/x.bin": "1" * 64, "c": "4" * 64}


def test_parts_grow_where_ten_thousand_are_not_enough() -> None:
    assert part_size(10_000 * 8, 8) == 8
    assert part_size(10_000 * 8 + 1, 8) == 16


# -- a bucket ----------------------------------------------------------------------------------------------


def test_a_bucket_gets_every_file_and_the_list_last(registry: Registry, tmp_path: Path, s3: S3) -> None:
    run = mirror(registry, tmp_path, s3, HUB, NGC)
    assert run.code == 0, run.text
    for uri in (f"{HUB}:main", NGC):
        stored = {path: s3.bucket.contents[key] for path in MODEL for key in keys(uri, path)}
        assert stored == MODEL
        (mark,) = keys(uri, MARK)
        of_this = [key for key in s3.sent if key.startswith(object_key(ModelUri.parse(uri)))]
        assert of_this[-1] == mark
        listed = digests_in(s3.bucket.contents[mark])
        assert listed == {path: blake3(content).hexdigest() for path, content in MODEL.items()}
    document = run.report["mirror"]
    assert (document["files"], document["filesSent"], document["filesSkipped"]) == (12, 12, 0)
    assert document["bytesSent"] == 2 * sum(map(len, MODEL.values()))
    manifest = json.loads(s3.bucket.contents[document["manifest"]])
    (profile,) = manifest["profiles"]
    assert len(profile["workspace"]["files"]) == 12
    assert "mirrored to s3://models: 12 files" in run.out


def test_a_second_run_sends_nothing_and_asks_no_registry(registry: Registry, tmp_path: Path, s3: S3) -> None:
    assert mirror(registry, tmp_path, s3, NGC).code == 0
    registry.requests.clear()
    s3.server.seen.clear()
    run = mirror(registry, tmp_path, s3, NGC)
    assert (run.code, s3.sent, registry.log()) == (0, [], []), run.text
    assert (run.report["mirror"]["bytesSent"], run.report["mirror"]["filesSkipped"]) == (0, 6)


def test_a_dry_run_tells_what_would_be_sent(registry: Registry, tmp_path: Path, s3: S3) -> None:
    run = mirror(registry, tmp_path, s3, NGC, "--dry-run")
    assert (run.code, s3.sent) == (0, []), run.text
    assert "6 files, 24.9 MiB to send to s3://models; 0 files there." in run.out
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("uri", [HUB, NGC])
def test_what_was_mirrored_is_read_back_without_a_key(
    registry: Registry, tmp_path: Path, s3: S3, uri: str
) -> None:
    assert mirror(registry, tmp_path, s3, uri).code == 0
    back = read_back(registry, tmp_path / "back", uri, "s3://models", **s3.environment)
    assert (back.code, registry.log()) == (0, []), back.text
    found = snapshot_of(tmp_path / "back")
    assert {path: found[path] for path in MODEL} == MODEL


@pytest.mark.parametrize("uri", [f"{HUB}:main", NGC])
def test_a_mirrored_model_has_an_address_of_its_own_in_the_bucket(
    registry: Registry, tmp_path: Path, s3: S3, uri: str
) -> None:
    assert mirror(registry, tmp_path, s3, uri).code == 0
    address = f"s3://models/{uri.partition('://')[2]}"
    arguments = ("download", address, "--layout", "local-dir")
    back = nimpull(registry, tmp_path / "back", *arguments, **s3.environment)
    assert back.code == 0, back.text
    assert {path: (tmp_path / "back" / path).read_bytes() for path in MODEL} == MODEL
    (mark,) = keys(uri, MARK)
    del s3.bucket.objects[mark]
    torn = nimpull(registry, tmp_path / "torn", *arguments, **s3.environment)
    assert (torn.code, "not completely mirrored" in torn.err) == (21, True), torn.text


@pytest.mark.parametrize("keeps", [True, False], ids=["checksums", "read-back"])
def test_f69_what_somebody_overwrote_is_found_and_sent_again(
    registry: Registry, tmp_path: Path, s3: S3, keeps: bool
) -> None:
    s3.bucket.keeps_checksums = keeps
    assert mirror(registry, tmp_path, s3, NGC).code == 0
    assert mirror(registry, tmp_path, s3, NGC, "--check").code == 0
    bad = keys(NGC, "big.bin", "config.json")
    for key in bad:
        s3.bucket.overwrite(key, bytes(len(s3.bucket.contents[key])))
    s3.server.seen.clear()
    found = mirror(registry, tmp_path, s3, NGC, "--check")
    assert (found.code, found.report["error"]["reference"], s3.sent) == (33, "corrupt", []), found.text
    differing = {each["key"] for each in found.report["mirror"]["objects"] if each["action"] == "differs"}
    assert differing == bad
    back = read_back(registry, tmp_path / "back", NGC, "s3://models", **s3.environment)
    assert (back.code, back.report["status"]["state"]) == (33, "Failed"), back.text
    again = mirror(registry, tmp_path, s3, NGC)
    assert (again.code, set(s3.sent)) == (0, bad), again.text
    assert mirror(registry, tmp_path, s3, NGC, "--check").code == 0


def test_f69_a_target_that_tells_another_checksum_is_not_believed(
    registry: Registry, tmp_path: Path, s3: S3
) -> None:
    right = s3.server.answer

    def lying(seen: Seen, peer: Peer) -> None:
        right(seen, peer)
        if seen.method == "PUT" and "config.json" in seen.target:
            s3.bucket.objects[unquote(urlsplit(seen.target).path).removeprefix("/models/")].sha256 = (
                "A" * 43 + "="
            )

    s3.server.answer = lying
    run = mirror(registry, tmp_path, s3, NGC)
    assert (run.code, run.report["error"]["reference"]) == (33, "corrupt"), run.text
    assert not keys(NGC, MARK) & set(s3.bucket.contents)


def test_f67_a_list_that_is_missing_is_written_again(registry: Registry, tmp_path: Path, s3: S3) -> None:
    assert mirror(registry, tmp_path, s3, NGC).code == 0
    (mark,) = keys(NGC, MARK)
    del s3.bucket.objects[mark]
    back = read_back(registry, tmp_path / "back", NGC, "s3://models", **s3.environment)
    assert (back.code, back.report["error"]["reference"]) == (21, "not-found"), back.text
    s3.server.seen.clear()
    again = mirror(registry, tmp_path, s3, NGC)
    assert (again.code, s3.sent) == (0, [mark]), again.text


def test_what_rotted_in_the_store_is_not_sent(registry: Registry, tmp_path: Path, s3: S3) -> None:
    assert nimpull(registry, tmp_path / "store", "download", NGC).code == 0
    (blob,) = {path.resolve() for path in (tmp_path / "store").rglob("big.bin")}
    status = blob.stat()
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(b"rot")
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    run = mirror(registry, tmp_path, s3, NGC)
    assert (run.code, run.report["error"]["reference"]) == (33, "corrupt"), run.text
    assert "verify --repair" in run.report["error"]["hint"]
    assert not keys(NGC, "big.bin", MARK) & set(s3.bucket.contents)


REFUSALS = {
    "no-bucket": ((404, "NoSuchBucket"), "not-found", "nimpull makes none"),
    "no-right": ((403, "AccessDenied"), "forbidden", "s3:PutObject"),
    "key": ((403, "InvalidAccessKeyId"), "unauthorized", "AWS_ACCESS_KEY_ID"),
    "session": ((400, "ExpiredToken"), "unauthorized", "AWS_SESSION_TOKEN"),
    "region": ((400, "AuthorizationHeaderMalformed"), "bad-usage", "AWS_REGION=eu-west-1"),
    "quota": ((403, "QuotaExceeded"), "no-space", "quota"),
    "full": ((507, "XMinioStorageFull"), "no-space", "free room"),
    "down": ((503, "ServiceUnavailable"), "network", "Run again"),
    "slow": ((503, "SlowDown"), "network", "Run again"),
    "digest": ((400, "BadDigest"), "corrupt", "Run again"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_f68_refusals_are_told_apart(registry: Registry, tmp_path: Path, s3: S3, case: str) -> None:
    refusal, reference, hint = REFUSALS[case]
    s3.bucket.region = "eu-west-1" if case == "region" else ""
    s3.bucket.refuse = lambda seen: refusal if seen.method == "PUT" else None
    run = mirror(registry, tmp_path, s3, NGC, NIMPULL_RETRY_SECONDS="0")
    error = run.report["error"]
    assert (error["reference"], run.report["status"]["state"]) == (reference, "Failed"), run.text
    assert run.code == error["exitCode"]
    assert hint in error["hint"]
    assert not keys(NGC, MARK) & set(s3.bucket.contents)
    s3.bucket.refuse = lambda seen: None
    assert mirror(registry, tmp_path, s3, NGC).code == 0, "the next run goes on"


def test_f68_a_profile_of_aws_that_is_not_there(registry: Registry, tmp_path: Path, s3: S3) -> None:
    nowhere = {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    run = mirror(registry, tmp_path, s3, NGC, AWS_PROFILE="team", **nowhere)
    assert (run.code, "team" in run.err, "AWS_PROFILE" in run.err) == (2, True, True), run.text


def test_f68_what_heals_is_tried_again(registry: Registry, tmp_path: Path, s3: S3) -> None:
    refused: set[str] = set()

    def once(seen: Seen) -> tuple[int, str] | None:
        if seen.method != "PUT" or seen.target in refused:
            return None
        refused.add(seen.target)
        return 503, "SlowDown"

    s3.bucket.refuse = once
    run = mirror(registry, tmp_path, s3, NGC, NIMPULL_RETRY_SECONDS="5")
    assert (run.code, len(refused) > 6) == (0, True), run.text
    assert "SlowDown" in run.err


def test_an_object_with_the_coding_of_its_upload_is_read(registry: Registry, tmp_path: Path, s3: S3) -> None:
    assert mirror(registry, tmp_path, s3, NGC).code == 0
    right = s3.server.answer

    def coded(seen: Seen, peer: Peer) -> None:
        head = peer.head
        peer.head = lambda status, headers, **more: head(  # type: ignore[method-assign]
            status, {**headers, "Content-Encoding": "aws-chunked"}, **more
        )
        right(seen, peer)
        peer.head = head  # type: ignore[method-assign]

    s3.server.answer = coded
    back = read_back(registry, tmp_path / "back", NGC, "s3://models", **s3.environment)
    assert back.code == 0, back.text


def test_f27_a_bucket_behind_tls_of_a_private_ca(registry: Registry, tmp_path: Path) -> None:
    authority, bundle, bucket = trustme.CA(), tmp_path / "corp.pem", WritableBucket()
    authority.cert_pem.write_to_path(bundle)
    with ScriptedServer(bucket, tls=served(authority, "127.0.0.1")) as server:
        s3 = S3(server, bucket)
        s3.environment["AWS_SESSION_TOKEN"] = "session-canary"
        untrusted = mirror(registry, tmp_path, s3, NGC)
        assert untrusted.report["error"]["reference"] == "tls-untrusted", untrusted.text
        run = mirror(registry, tmp_path, s3, NGC, SSL_CERT_FILE=str(bundle))
        assert run.code == 0, run.text
        assert all(seen.headers["x-amz-security-token"] == "session-canary" for seen in server.seen)
        coded = [seen.target for seen in server.seen if "aws-chunked" in str(seen.headers)]
        assert coded == [], "some servers keep that coding as the object's"
    assert set(MODEL.values()) <= set(bucket.contents.values())
    assert "canary" not in run.text + json.dumps(run.report)


def test_f25_through_a_proxy_with_the_bucket_before_the_host(registry: Registry, tmp_path: Path) -> None:
    bucket = WritableBucket("")
    with ScriptedServer(bucket) as server, Proxy() as proxy:
        proxy.rules.names = {"models.s3.test": (server.host, server.port)}
        s3 = S3(server, bucket)
        s3.environment |= {"AWS_ENDPOINT_URL": "http://s3.test:9000", "HTTP_PROXY": proxy.url().reveal()}
        s3.environment["NO_PROXY"] = "127.0.0.1"
        run = mirror(registry, tmp_path, s3, NGC, "--s3-addressing", "virtual")
        assert run.code == 0, run.text
        assert {seen.headers["host"] for seen in server.seen} == {"models.s3.test:9000"}
    assert set(MODEL.values()) <= set(bucket.contents.values())


# -- a directory -------------------------------------------------------------------------------------------


def served_directory(root: Path) -> subprocess.Popen[str]:
    """python3 -m http.server, as it is."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(root), "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("uri", [HUB, NGC])
def test_a_directory_is_read_back_from_any_web_server(registry: Registry, tmp_path: Path, uri: str) -> None:
    run = mirror(registry, tmp_path, None, uri)
    assert run.code == 0, run.text
    with served_directory(tmp_path / "mirror") as server:
        try:
            assert server.stdout
            port = server.stdout.readline().split()[5]
            back = read_back(registry, tmp_path / "back", uri, f"http://127.0.0.1:{port}/")
            name = uri.partition("://")[2] + (":main" if uri == HUB else "")
            plain = ("download", f"http://127.0.0.1:{port}/{name}", "--layout", "local-dir")
            direct = nimpull(registry, tmp_path / "direct", *plain)
        finally:
            server.kill()
    assert (back.code, registry.log()) == (0, []), back.text
    found = snapshot_of(tmp_path / "back")
    assert {path: found[path] for path in MODEL} == MODEL
    assert direct.code == 0, direct.text
    assert {path: (tmp_path / "direct" / path).read_bytes() for path in MODEL} == MODEL


def test_a_directory_has_the_names_that_servers_make_of_a_key(registry: Registry, tmp_path: Path) -> None:
    assert mirror(registry, tmp_path, None, HUB).code == 0
    root = tmp_path / "mirror"
    for path, content in MODEL.items():
        key = object_key(ModelUri.parse(f"{HUB}:main").with_path(path))
        assert (root / key).read_bytes() == content
        assert (root / unquote(key)).read_bytes() == content


def test_f69_a_directory_that_was_changed_is_found_and_mended(registry: Registry, tmp_path: Path) -> None:
    assert mirror(registry, tmp_path, None, NGC).code == 0
    (key,) = keys(NGC, "big.bin")
    changed = tmp_path / "mirror" / key
    changed.write_bytes(bytes(len(BIG)))
    assert mirror(registry, tmp_path, None, NGC, "--check").code == 33
    assert changed.read_bytes() == bytes(len(BIG)), "a comparison changes nothing"
    again = mirror(registry, tmp_path, None, NGC)
    assert (again.code, again.report["mirror"]["filesSent"]) == (0, 1), again.text
    assert changed.read_bytes() == BIG
    assert mirror(registry, tmp_path, None, NGC, "--check").code == 0


def test_where_no_links_can_be_made_a_key_is_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, told = tmp_path / "plain", list[Event]()
    monkeypatch.setattr(preflight, "try_out", lambda tree: Abilities(links=False, symlinks=False))
    revision = "0123456789abcdef0123456789abcdef01234567"
    content = MODEL["config.json"]
    file = MirrorFile(SafePath("config.json"), "x", len(content), (digest_of(content),))
    asked = ModelUri.parse(f"{HUB}:main")
    repository = MirrorRepository(asked, asked.with_revision(revision), (file,), whole=False)
    for _ in range(2):
        target = DirectoryTarget(
            str(root), opened=lambda _: io.BytesIO(content), cancel=threading.Event(), emit=told.append
        )
        target.send(target.key(repository, "config.json"), file)
        told.clear()
        target.publish(repository, {"config.json": file})
        target.close()
    (key,) = keys(f"{HUB}:main", "config.json")
    assert (root / key).read_bytes() == content
    assert not (root / "acme").exists()
    assert [type(event) for event in told] == [Note], "the second time, no byte is written again"


def test_a_directory_that_was_carried_elsewhere_is_hashed_and_not_sent(
    registry: Registry, tmp_path: Path
) -> None:
    assert mirror(registry, tmp_path, None, NGC).code == 0
    shutil.rmtree(tmp_path / "mirror/.nimpull")
    again = mirror(registry, tmp_path, None, NGC)
    assert (again.code, again.report["mirror"]["filesSent"]) == (0, 0), again.text


def test_a_moved_branch_has_both_commits_in_the_directory(registry: Registry, tmp_path: Path) -> None:
    assert mirror(registry, tmp_path, None, HUB).code == 0
    newer = {**MODEL, "config.json": b'{"newer": true}'}
    registry.add_hub_repo("acme/Tiny-LM", newer)
    assert mirror(registry, tmp_path, None, HUB, "--refresh").code == 0
    root = tmp_path / "mirror"
    (key,) = keys(f"{HUB}:main", "config.json")
    assert (root / key).read_bytes() == newer["config.json"]
    both = {path.read_bytes() for path in root.glob("*config.json")}
    assert both == {MODEL["config.json"], newer["config.json"]}
    lines = (root / "hub.map").read_text().splitlines()
    assert sum("/config.json" in line for line in lines) == 3, "each commit, and the branch"


def test_a_directory_target_that_is_full(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "mirror").write_text("no directory")
    run = mirror(registry, tmp_path, None, NGC)
    assert run.report["error"]["reference"] == "not-writable", run.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("s3://other/model", "--to", "x"), "has no place in a mirror"),
        ((NGC, "--to", "https://host/x"), "--to cannot be https"),
        ((NGC,), "--to"),
        ((NGC, "--to", ""), "it is empty"),
    ],
)
def test_what_cannot_be_mirrored(
    registry: Registry, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    run = nimpull(registry, tmp_path / "store", "mirror", *arguments)
    assert (run.code, message in run.err) == (2, True), run.text


def test_a_nimcache_says_what_is_mirrored(registry: Registry, tmp_path: Path) -> None:
    cache = tmp_path / "nimcache.yaml"
    source = {"endpoint": registry.hub_url, "namespace": "acme", "modelName": "Tiny-LM", "authSecret": "hf"}
    pvc = {"create": True, "size": "1Gi", "volumeAccessMode": "ReadWriteMany"}
    document = {
        "apiVersion": "apps.nvidia.com/v1alpha1",
        "kind": "NIMCache",
        "metadata": {"name": "tiny"},
        "spec": {
            "source": {"hf": {**source, "modelPuller": "r/nimpull:1", "pullSecret": "r"}},
            "storage": {"pvc": pvc},
        },
    }
    cache.write_text(json.dumps(document))
    run = mirror(registry, tmp_path, None, "-f", str(cache))
    assert run.code == 0, run.text
    for path, content in MODEL.items():
        (key,) = keys(f"{HUB}:main", path)
        assert (tmp_path / "mirror" / key).read_bytes() == content
    again = mirror(registry, tmp_path, None, "-f", str(cache))
    assert (again.code, again.report["mirror"]["filesSent"]) == (0, 0), again.text


def test_profiles_share_their_files(registry: Registry, tmp_path: Path, s3: S3) -> None:
    def workspace(*paths: str) -> dict[str, Any]:
        return {"files": {path: {"uri": f"{NGC}?file={path}"} for path in paths}}

    profiles = [
        {"id": "a" * 64, "tags": {}, "workspace": workspace("config.json", "big.bin")},
        {"id": "b" * 64, "tags": {}, "workspace": workspace("config.json", "empty.txt")},
    ]
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(json.dumps({"schema_version": "2.0", "profiles": profiles}))
    first = mirror(registry, tmp_path, s3, "--manifest", str(manifest), "-p", "a" * 64)
    assert (first.code, first.report["mirror"]["filesSent"]) == (0, 2), first.text
    both = mirror(registry, tmp_path, s3, "--manifest", str(manifest), "--all")
    assert (both.code, both.report["mirror"]["filesSent"]) == (0, 1), both.text
    (mark,) = keys(NGC, MARK)
    assert set(digests_in(s3.bucket.contents[mark])) == {"config.json", "big.bin", "empty.txt"}
    assert s3.bucket.contents[both.report["mirror"]["manifest"]] == manifest.read_bytes()
    back = nimpull(
        registry,
        tmp_path / "back",
        "download",
        "--manifest",
        str(manifest),
        "--all",
        NIM_REPOSITORY_OVERRIDE="s3://models",
        **s3.environment,
    )
    assert back.code == 0, back.text
