"""``modelEndpoint`` of a universal NIM: S3, addresses of NGC, plain web servers; and mirrors of the Hub."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from blake3 import blake3

from nimpull.core.artifacts import Wanted
from nimpull.core.mirror_objects import object_key
from nimpull.core.names import ModelUri
from nimpull.errors import AuthError, UsageError
from nimpull.sources.aws import boto_signer
from nimpull.sources.repository_override import MirrorSource
from nimpull.sources.s3 import S3Source
from nimpull.sources.web import WebSource
from nimpull.transport import HttpApi
from tests.buckets import AWS, Bucket, listed, mirrored, model_bucket
from tests.calls import FILES, call, plain
from tests.registry import Registry
from tests.running import CLOSED
from tests.servers import Peer, ScriptedServer, Seen, serve_directory

MODEL = ModelUri.parse("s3://bucket/models/tiny")
UNIVERSAL = ("create-model-store", "--model-repo")


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as started:
        started.add_ngc_model("acme", "", "tiny", "1.0", FILES)
        yield started


def s3(api: HttpApi, server: ScriptedServer) -> S3Source:
    return S3Source(api, sign=boto_signer(server.url().reveal().rstrip("/"), "us-east-1"))


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)


def report(store: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((store / ".nimpull/report.json").read_text())
    return document


def verified(store: Path) -> dict[str, str]:
    return {entry["path"]: entry["verifiedBy"] for entry in report(store)["artifacts"]}


# -- s3://, the listing ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("keys")
def test_a_prefix_is_listed_page_by_page_with_what_s3_knows(api: HttpApi) -> None:
    files = {**FILES, "a b+c.json": b"[]"}
    with ScriptedServer(model_bucket(files)) as server:
        listing = s3(api, server).list(MODEL, Wanted())
    listed = {
        str(each.path): (each.size, {str(digest) for digest in each.digests}) for each in listing.artifacts
    }
    assert listed == {
        path: (
            len(content),
            {f"sha256:{hashlib.sha256(content).hexdigest()}", f"md5:{hashlib.md5(content).hexdigest()}"},
        )
        for path, content in files.items()
    }
    assert listing.notes == ()
    assert "aws-canary" not in "".join(f"{seen.target}{seen.headers}" for seen in server.seen)


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("encryption", "digests"),
    [
        ({}, 1),
        ({"x-amz-server-side-encryption": "AES256"}, 1),
        ({"x-amz-server-side-encryption": "aws:kms"}, 0),
        ({"x-amz-server-side-encryption-customer-algorithm": "AES256"}, 0),
        ({"ETag": '"b4176c7b80db34b87dc36f66287c7fed-3"'}, 0),
    ],
)
def test_an_etag_is_a_digest_only_where_it_is_the_md5(
    api: HttpApi, encryption: dict[str, str], digests: int
) -> None:
    made = model_bucket({"config.json": b"{}"})
    made.checksums, made.encryption = False, encryption
    with ScriptedServer(made) as server:
        listing = s3(api, server).list(MODEL, Wanted())
    assert len(listing.artifacts[0].digests) == digests
    assert [("config.json" in note) for note in listing.notes] == [True] * (1 - digests)


@pytest.mark.usefixtures("keys")
def test_the_checksums_of_an_ngc_version_go_along(api: HttpApi) -> None:
    sums = "".join(f"{blake3(content).hexdigest()}  {path}\n" for path, content in FILES.items())
    with ScriptedServer(model_bucket({**FILES, "checksums.blake3": sums.encode()})) as server:
        listing = s3(api, server).list(MODEL, Wanted(include=("*.json",)))
    (config,) = listing.artifacts
    assert str(config.digest) == f"blake3:{blake3(FILES['config.json']).hexdigest()}"
    assert not [seen for seen in server.seen if seen.method == "HEAD"], "all is known already"


@pytest.mark.usefixtures("keys")
def test_a_bucket_elsewhere_says_where(api: HttpApi) -> None:
    with (
        ScriptedServer(
            lambda seen, peer: peer.reply(301, b"", {"x-amz-bucket-region": "eu-west-1"})
        ) as server,
        pytest.raises(UsageError) as caught,
    ):
        s3(api, server).list(MODEL, Wanted())
    assert caught.value.hint == "Set AWS_REGION=eu-west-1."


# -- the Jobs ----------------------------------------------------------------------------------------------


def test_the_job_of_an_s3_endpoint(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "pvc"
    command = (*UNIVERSAL, "s3://bucket/models/tiny", "--model-store", str(store))
    made = model_bucket(FILES)
    with ScriptedServer(made) as server:
        env = {**AWS, "AWS_ENDPOINT_URL": server.url().reveal().rstrip("/")}
        code, text = call(registry, store, *command, **env)
        assert code == 0, text
        assert plain(store) == FILES
        assert verified(store) == dict.fromkeys(FILES, "sha256")
        assert report(store)["source"]["uri"] == "s3://bucket/models/tiny"
        asked = len(server.seen)
        assert call(registry, store, *command, **env)[0] == 0
        assert len(server.seen) == asked, "the second pod asks nothing"
        made.objects.clear()
        code, text = call(registry, store, "nimpull", "download", "s3://bucket/other", **env)
        assert code == 21, text
    assert "aws-canary" not in text + (store / ".nimpull/report.json").read_text()
    assert registry.log() == []


def test_an_object_that_changed_comes_anew_although_its_size_is_the_same(
    registry: Registry, tmp_path: Path
) -> None:
    made = model_bucket({"config.json": b"{1}", "same.json": b"[]"})
    made.checksums, made.encryption = False, {"x-amz-server-side-encryption": "aws:kms"}
    pull = ("nimpull", "download", "s3://bucket/models/tiny", "--layout", "local-dir")
    with ScriptedServer(made) as server:
        env = {**AWS, "AWS_ENDPOINT_URL": server.url().reveal().rstrip("/")}
        assert call(registry, tmp_path, *pull, **env)[0] == 0
        made.objects["models/tiny/config.json"] = b"{2}"
        code, text = call(registry, tmp_path, *pull, "--refresh", **env)
    assert code == 0, text
    assert "“config.json” among them" in text
    assert (tmp_path / "config.json").read_bytes() == b"{2}"
    assert {entry["path"]: entry["action"] for entry in report(tmp_path)["artifacts"]} == {
        "config.json": "fetched",
        "same.json": "skipped",
    }


ADDRESS = "https://api.ngc.nvidia.com/v2/models/acme/tiny/versions/1.0"
NIMCACHE = f"""apiVersion: apps.nvidia.com/v1alpha1
kind: NIMCache
metadata: {{name: uni-https}}
spec:
  source:
    ngc: {{modelPuller: image, authSecret: secret, modelEndpoint: "{ADDRESS}"}}
  storage: {{pvc: {{create: true, size: 50Gi}}}}
"""


def test_the_job_of_an_ngc_address(registry: Registry, tmp_path: Path) -> None:
    store, cache = tmp_path / "pvc", tmp_path / "nimcache.yaml"
    cache.write_text(NIMCACHE)
    code, text = call(registry, store, *UNIVERSAL, ADDRESS, "--model-store", str(store))
    assert code == 0, text
    assert plain(store) == FILES
    assert report(store)["source"]["uri"] == "ngc://acme/tiny:1.0"
    asked = len(registry.log())
    code, text = call(registry, store, "nimpull", "download", "-f", str(cache), "--store", str(store))
    assert code == 0, text
    assert len(registry.log()) == asked, "the NIMCache asks for what its Job has left"


def test_a_nimcache_without_a_secret_is_for_later_operators(registry: Registry, tmp_path: Path) -> None:
    for model in registry.ngc.models.values():
        model.public = True
    store, cache = tmp_path / "pvc", tmp_path / "nimcache.yaml"
    cache.write_text(NIMCACHE.replace("authSecret: secret, ", ""))
    command = ("nimpull", "download", "-f", str(cache), "--store", str(store))
    code, text = call(registry, store, *command, NGC_API_KEY="")
    assert (code, "authSecret: Required value" in text, "--lenient" in text) == (2, True, True), text
    code, text = call(registry, store, *command, "--lenient", NGC_API_KEY="")
    assert code == 0, text
    assert plain(store) == FILES


REFERRING = """  env:
  - {name: PLACE, valueFrom: {configMapKeyRef: {name: places, key: ngc}}}
  - {name: NGC_API_ENDPOINT, value: "$(PLACE)"}
"""


def test_a_nimcache_whose_variables_refer_to_another(registry: Registry, tmp_path: Path) -> None:
    cache = tmp_path / "nimcache.yaml"
    cache.write_text(NIMCACHE + REFERRING)
    command = ("nimpull", "download", "-f", str(cache), "--store", str(tmp_path / "pvc"))
    places = {"PLACE": registry.ngc_url, "NGC_API_ENDPOINT": CLOSED}
    code, text = call(registry, tmp_path, *command, **places)
    assert code == 0, text
    assert plain(tmp_path / "pvc") == FILES


def test_a_bucket_of_google_cloud_storage(registry: Registry, tmp_path: Path) -> None:
    """Its ETag need not be the MD5, which has a header of its own."""
    made = model_bucket(FILES)
    made.checksums = False
    store, command = tmp_path / "s", (*UNIVERSAL, "gs://bucket/models/tiny", "--model-store")

    def answer(seen: Seen, peer: Peer) -> None:
        content = made.objects.get(unquote(urlsplit(seen.target).path.removeprefix("/bucket/")), b"")
        md5 = b64encode(hashlib.md5(content).digest()).decode()
        here = copy(made)  # two are asked for at a time
        here.encryption = {"x-goog-hash": f"crc32c=AAAAAA==,md5={md5}", "ETag": '"CKicn4fknuQCEAE="'}
        here(seen, peer)

    with ScriptedServer(answer) as server:
        address = server.url("").reveal().rstrip("/")
        code, text = call(registry, store, *command, str(store), **AWS, AWS_ENDPOINT_URL=address)
    assert code == 0, text
    assert (plain(store), set(verified(store).values())) == (FILES, {"md5"})
    assert report(store)["source"]["uri"] == "gs://bucket/models/tiny"
    assert "X-Amz-Signature=" in server.seen[0].target


# -- a plain web server ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mark"), [("SHA256SUMS", " *"), ("checksums.blake3", "  ")])
def test_a_web_server_with_a_list_of_checksums(
    registry: Registry, tmp_path: Path, name: str, mark: str
) -> None:
    digest = hashlib.sha256 if name == "SHA256SUMS" else blake3
    sums = "".join(f"{digest(content).hexdigest()}{mark}./{path}\n" for path, content in FILES.items())
    files = {**FILES, name: sums.encode()}
    with ScriptedServer(serve_directory("/models/tiny/", files)) as server:
        address = server.url("/models/tiny").reveal()
        store = tmp_path / "pvc"
        code, text = call(registry, store, *UNIVERSAL, address, "--model-store", str(store))
        assert code == 0, text
        assert plain(store) == files
        algorithm = "sha256" if name == "SHA256SUMS" else "blake3"
        assert verified(store) == {**dict.fromkeys(FILES, algorithm), name: "size"}
        files["config.json"] = b"[]"
        code, text = call(registry, tmp_path / "b", *UNIVERSAL, address, "--model-store", str(tmp_path / "b"))
        assert (code, "config.json" in text) == (33, True), text
        del files[name]
        code, text = call(registry, tmp_path / "c", *UNIVERSAL, address, "--model-store", str(tmp_path / "c"))
        assert (code, "neither checksums.blake3 nor SHA256SUMS" in text) == (22, True), text


def test_a_web_server_that_wants_a_password(registry: Registry, tmp_path: Path) -> None:
    files = {
        "config.json": b"{}",
        "SHA256SUMS": f"{hashlib.sha256(b'{}').hexdigest()}  config.json\n".encode(),
    }
    with ScriptedServer(serve_directory("/m/", files, user="bob:pass-canary")) as server:
        plain_address = server.url("/m").reveal()
        known = plain_address.replace("://", "://bob:pass-canary@")
        code, text = call(registry, tmp_path / "a", *UNIVERSAL, plain_address, "-m", str(tmp_path / "a"))
        assert (code, "user and a password" in text) == (20, True), text
        code, text = call(registry, tmp_path / "a", *UNIVERSAL, known, "-m", str(tmp_path / "a"))
    assert code == 0, text
    assert plain(tmp_path / "a") == files
    written = "".join(path.read_text() for path in (tmp_path / "a/.nimpull").rglob("*.json*"))
    assert "pass-canary" not in text + written


@pytest.mark.parametrize("layout", ["cache", "local-dir"])
def test_f56_a_signed_address_is_asked_with_and_never_shown(
    registry: Registry, tmp_path: Path, layout: str
) -> None:
    files = {
        "config.json": b"{}",
        "SHA256SUMS": f"{hashlib.sha256(b'{}').hexdigest()}  config.json\n".encode(),
    }
    good = serve_directory("/m/", files)

    def signed(seen: Seen, peer: Peer) -> None:
        if seen.target.endswith("?sv=1&sig=sig-canary%3D"):
            good(seen, peer)
        else:
            peer.reply(403)

    store = tmp_path / "pvc"
    with ScriptedServer(signed) as server:
        pull = ("nimpull", "download", "--store", str(store), "--layout", layout)
        address = server.url("/m").reveal()
        code, text = call(registry, store, *pull, f"{address}?sv=1&sig=sig-canary%3D")
        assert code == 0, text
        assert report(store)["source"]["uri"] == address
        code, refused = call(registry, store, *pull, f"{address}?sig=wrong-canary", "--refresh")
        assert code == 26, refused
        asked = len(server.seen)
        code, again = call(registry, store, *pull, f"{address}?sv=1&sig=another-canary")
        assert code == 0 and len(server.seen) == asked, "the same directory, with another key to it"
    names = " ".join(str(path) for path in store.rglob("*"))
    written = "".join(path.read_text() for path in (store / ".nimpull").rglob("*.json*"))
    assert "canary" not in text + refused + again + written + names


@pytest.mark.parametrize("address", ["ftp://u:pass-canary@h/p?sig=canary", "https:///p?sig=canary"])
def test_f56_an_address_that_cannot_be_read_is_shown_without_its_secrets(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        ModelUri.parse(address)
    assert "canary" not in f"{caught.value} {caught.value.hint}"


def test_a_page_that_wants_a_password_is_no_captive_portal(api: HttpApi) -> None:
    """As nginx answers: the refusal has a body in HTML."""
    told = {"WWW-Authenticate": 'Basic realm="models"', "Content-Type": "text/html"}
    with ScriptedServer(lambda seen, peer: peer.reply(401, b"<html>401</html>", told)) as server:
        address = server.url("/m").reveal()
        for source, uri in (
            (WebSource(api), address),
            (MirrorSource(api, override=address), "ngc://nim/meta/tiny:hf-1"),
        ):
            with pytest.raises(AuthError, match="user and a password") as caught:
                source.list(ModelUri.parse(uri), Wanted())
            assert "https://USER:PASSWORD@HOST" in caught.value.hint


# -- NIM_REPOSITORY_OVERRIDE for the Hub --------------------------------------------------------------------


def hub_mirror(model: str, files: dict[str, bytes]) -> Bucket:
    made = Bucket("/nim_bucket/", mirrored({"ngc://nim/meta/tiny:hf-1": FILES}))
    made.page = 10
    uri = ModelUri.parse(model)
    made.objects = {object_key(uri.with_path(path)): content for path, content in listed(files).items()}
    return made


@pytest.mark.parametrize("revision", ["main", "0123456789abcdef0123456789abcdef01234567"])
def test_a_mirror_takes_the_place_of_the_hub(registry: Registry, tmp_path: Path, revision: str) -> None:
    store, written = tmp_path / "pvc", tmp_path / "pvc/model_manifest.json"
    model = f"hf://acme/Tiny-LM:{revision}"
    with ScriptedServer(hub_mirror(model, FILES)) as server:
        address = server.url().reveal().rstrip("/")
        mirror = {**AWS, "AWS_ENDPOINT_URL": address, "NIM_REPOSITORY_OVERRIDE": "s3://nim_bucket/"}
        command = ("download-to-cache", "--model-uri", model, "--manifest-file", str(written))
        code, text = call(registry, store, *command, **mirror)
    assert code == 0, text
    assert registry.log() == [], "the Hub was asked"
    (snapshot,) = (store / "huggingface/hub/hub/models--acme--Tiny-LM/snapshots").iterdir()
    assert {path: (snapshot / path).read_bytes() for path in FILES} == FILES
    assert len(snapshot.name) == 40
    if revision == "main":
        reference = snapshot.parent.parent / "refs/main"
        assert reference.read_text() == snapshot.name
    else:
        assert snapshot.name == revision


def test_huggingface_cli_does_not_know_nims_mirror(registry: Registry, tmp_path: Path) -> None:
    registry.add_hub_repo("acme/Tiny-LM", FILES)
    command = ("huggingface-cli", "download", "acme/Tiny-LM", "--local-dir", str(tmp_path / "pvc"))
    code, text = call(registry, tmp_path, *command, NIM_REPOSITORY_OVERRIDE="s3://nim_bucket/")
    assert code == 0, text
    assert plain(tmp_path / "pvc") == FILES
