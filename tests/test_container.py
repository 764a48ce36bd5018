"""What the environment alone changes: a mirror, a start without a command, the flags of NIM."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from nimpull.settings import load
from tests.buckets import Bucket, mirrored
from tests.calls import FILES, call, plain
from tests.registry import Registry
from tests.servers import ScriptedServer

MODEL = "ngc://nim/meta/tiny:hf-1"
PROFILE = ("download-to-cache", "--profiles", "a" * 64)


def report(store: Path) -> dict[str, dict[str, str]]:
    document: dict[str, dict[str, str]] = json.loads((store / ".nimpull/report.json").read_text())
    return document


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_a_mirror_takes_the_place_of_ngc(
    registry: Registry, tmp_path: Path, listed: str, scheme: str
) -> None:
    store = tmp_path / "store"
    with ScriptedServer(Bucket("/nim_bucket/", mirrored({MODEL: FILES}))) as server:
        address = server.url().reveal().rstrip("/")
        override = f"{address}/nim_bucket/" if scheme == "http" else "s3://nim_bucket/"
        code, text = call(
            registry,
            store,
            *PROFILE,
            NIM_MANIFEST_PATH=listed,
            NIM_REPOSITORY_OVERRIDE=override,
            AWS_ENDPOINT_URL=address,
            AWS_REGION="us-east-1",
            AWS_ACCESS_KEY_ID="id",
            AWS_SECRET_ACCESS_KEY="canary-77",
        )
    assert code == 0, text
    (snapshot,) = (store / "ngc/hub").glob("models--nim--meta--tiny/snapshots/hf-1")
    assert {path: (snapshot / path).read_bytes() for path in FILES} == FILES
    assert registry.log() == [], "the registry was asked"
    assert "canary-77" not in text + (store / ".nimpull/report.json").read_text()


@pytest.mark.parametrize("path", ["/", "/artifactory/api/nimmodel/models"])
def test_artifactory_is_asked_as_ngc_is(registry: Registry, tmp_path: Path, listed: str, path: str) -> None:
    """Nothing but the override says where; what went elsewhere would end at a proxy that is not there."""
    place = registry.ngc_url.removeprefix("http://")
    alone = {"NGC_API_ENDPOINT": "", "NGC_AUTH_ENDPOINT": "", "NGC_API_SCHEME": "http"}
    guard = {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}
    override = {"NIM_MANIFEST_PATH": listed, "NIM_REPOSITORY_OVERRIDE": f"jfrog://{place}{path}"}
    code, text = call(registry, tmp_path / "store", *PROFILE, **override, **alone, **guard)
    asked = [request.target for request in registry.log("ngc")]
    assert asked
    assert all(target.startswith(path) for target in asked)
    # this registry is at the root of its host, so it answers there only
    assert code == (0 if path == "/" else 21), text


def test_artifactory_where_the_ngc_endpoint_is_said(registry: Registry, tmp_path: Path, listed: str) -> None:
    override = {"NIM_MANIFEST_PATH": listed, "NIM_REPOSITORY_OVERRIDE": "jfrog://<server-name>:<port>/"}
    code, text = call(registry, tmp_path / "store", *PROFILE, **override)
    assert code == 0, text


@pytest.mark.parametrize("override", ["jfrog://", "jfrog://user:canary-77@host/", "gs://bucket", "nonsense"])
def test_an_override_that_is_no_place_is_told_by_its_name(
    registry: Registry, tmp_path: Path, listed: str, override: str
) -> None:
    environment = {"NIM_MANIFEST_PATH": listed, "NIM_REPOSITORY_OVERRIDE": override, "NGC_API_ENDPOINT": ""}
    code, text = call(registry, tmp_path / "store", *PROFILE, **environment)
    assert code == 2, text
    assert "NIM_REPOSITORY_OVERRIDE" in text.splitlines()[-1]
    assert "canary-77" not in text


def test_a_bare_start_downloads_a_plain_tree(registry: Registry, tmp_path: Path, listed: str) -> None:
    path = tmp_path / "model/retriever"
    native = {"NIM_ENGINE_MODEL_DOWNLOAD_ONLY": "1", "NIM_MANIFEST_PATH": listed, "NIMPULL_GPUS": "H100:1"}
    code, text = call(registry, tmp_path, "nimpull", **native)
    assert (code, "NIM_ENGINE_MODEL_PATH" in text) == (2, True), text
    code, text = call(registry, tmp_path, "nimpull", NIM_ENGINE_MODEL_PATH=str(path), **native)
    assert code == 0, text
    assert plain(path) == {"config.json": b"{}", "engine/model.bin": FILES["weights/model.bin"]}


def test_without_the_variable_a_bare_start_is_the_help(registry: Registry, tmp_path: Path) -> None:
    code, text = call(registry, tmp_path, "nimpull")
    assert code == 2
    assert text.startswith("Usage:")


def test_the_manifest_is_printed_bare(registry: Registry, tmp_path: Path, listed: str) -> None:
    code, text = call(registry, tmp_path, "nimpull", "manifest", NIM_MANIFEST_PATH=listed)
    assert (code, text) == (0, Path(listed).read_text())


def test_the_cache_is_there_and_writable(registry: Registry, tmp_path: Path) -> None:
    code, text = call(registry, tmp_path, "check-cache-env")
    assert (code, str(tmp_path) in text) == (0, True), text
    code, text = call(registry, tmp_path / "absent", "check-cache-env")
    assert code == 41
    assert "NIM_CACHE_PATH" in text
    assert not (tmp_path / "absent").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written(registry: Registry, tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    sealed.mkdir(mode=0o555)
    code, text = call(registry, sealed, "check-cache-env")
    assert code == 41, text
    assert "not-writable" in text


def test_an_ignored_failure_exits_0_and_says_so(registry: Registry, tmp_path: Path, listed: str) -> None:
    store = tmp_path / "store"
    flags = {"NIM_MANIFEST_PATH": listed, "NIM_IGNORE_MODEL_DOWNLOAD_FAIL": "1"}
    code, text = call(registry, store, *PROFILE, NGC_API_KEY="nvapi-wrong", **flags)
    assert code == 0, text
    assert "Failed (unauthorized" in text
    assert "WITHOUT THE MODEL" in text.splitlines()[-1]
    assert report(store)["status"]["state"] == "Failed"
    code, text = call(registry, store, "download-to-cache", "-p", "f" * 64, **flags)
    assert code == 11, "a mistake is no download failure"


def test_a_disabled_download_takes_only_a_complete_store(
    registry: Registry, tmp_path: Path, listed: str
) -> None:
    store = tmp_path / "store"
    flags = {"NIM_MANIFEST_PATH": listed, "NIM_DISABLE_MODEL_DOWNLOAD": "true"}
    code, text = call(registry, store, *PROFILE, **flags)
    assert (code, registry.log()) == (2, []), text
    assert "NIM_DISABLE_MODEL_DOWNLOAD" in text.splitlines()[-1]
    assert call(registry, store, *PROFILE, NIM_MANIFEST_PATH=listed)[0] == 0
    asked = len(registry.log())
    assert call(registry, store, *PROFILE, **flags)[0] == 0
    assert len(registry.log()) == asked
    shutil.rmtree(store / "ngc")
    assert call(registry, store, *PROFILE, **flags)[0] == 2


@pytest.mark.parametrize(
    ("count", "interval", "seconds"),
    [("", "", 120.0), ("0", "", 0.0), ("8", "500", 120.0), ("300", "", 300.0)],
)
def test_retries_of_the_sdk_as_time_without_progress(count: str, interval: str, seconds: float) -> None:
    environ = {"NIM_SDK_DOWNLOAD_MAX_RETRY_COUNT": count, "NIM_SDK_DOWNLOAD_BACKOFF_INTERVAL_MS": interval}
    assert load(environ).retry_seconds == seconds
    assert load({**environ, "NIMPULL_RETRY_SECONDS": "7"}).retry_seconds == 7.0
