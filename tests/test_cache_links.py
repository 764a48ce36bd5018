"""``create-model-store`` takes from the NIM cache what is there already: linked or copied, never unread."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.calls import FILES, call, manifest, plain
from tests.readers import content_requests
from tests.registry import Registry

PROFILE = ("-p", "a" * 64)
WORKSPACE = {"config.json": FILES["config.json"], "engine/model.bin": FILES["weights/model.bin"]}
KEYLESS = {"NGC_API_KEY": ""}


@pytest.fixture
def cache(registry: Registry, tmp_path: Path) -> Path:
    """A NIM cache that holds the profile."""
    path = tmp_path / "cache"
    code, text = call(registry, path, "download-to-cache", *PROFILE, **listed(tmp_path))
    assert code == 0, text
    return path


def listed(tmp_path: Path) -> dict[str, str]:
    return {"NIM_MANIFEST_PATH": str(manifest(tmp_path / "m.yaml"))}


def blob(cache: Path) -> Path:
    (link,) = (cache / "ngc/hub/models--nim--meta--tiny/snapshots/hf-1/weights").iterdir()
    return link.resolve()


def state(cache: Path) -> dict[str, tuple[int, int]]:
    """Every file of nimpull's own state, with its size and time."""
    return {
        str(path.relative_to(cache)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in (cache / ".nimpull").rglob("*")
        if path.is_file()
    }


def test_a_profile_is_linked_without_network_or_key(registry: Registry, tmp_path: Path, cache: Path) -> None:
    store, before, asked = tmp_path / "store", state(cache), len(registry.log())
    environment = {**listed(tmp_path), **KEYLESS}
    code, text = call(registry, cache, "create-model-store", *PROFILE, "-m", str(store), **environment)
    assert code == 0, text
    assert plain(store) == WORKSPACE
    assert (store / "engine/model.bin").samefile(blob(cache))
    assert f"2 files, 2.9 MiB, are hard links to the NIM cache {cache}" in text
    assert state(cache) == before, "the cache is only read"
    assert len(registry.log()) == asked


def test_a_repository_is_listed_and_linked(registry: Registry, tmp_path: Path, cache: Path) -> None:
    store, fetched = tmp_path / "store", content_requests(registry)
    command = ("create-model-store", "--model-repo", "ngc://nim/meta/tiny:hf-1", "-m", str(store))
    code, text = call(registry, cache, *command)
    assert code == 0, text
    assert (store / "weights/model.bin").samefile(blob(cache))
    assert content_requests(registry) == fetched


def test_what_nim_itself_has_cached_is_read_before_it_is_linked(
    registry: Registry, tmp_path: Path, cache: Path
) -> None:
    shutil.rmtree(cache / ".nimpull")
    store, fetched = tmp_path / "store", content_requests(registry)
    config = cache / "ngc/hub/models--nim--meta--tiny/snapshots/hf-1/config.json"
    config.resolve().chmod(0o644)
    config.write_bytes(b"[]")  # of the right size
    command = ("create-model-store", *PROFILE, "-m", str(store))
    code, text = call(registry, cache, *command, **listed(tmp_path))
    assert code == 0, text
    assert plain(store) == WORKSPACE
    assert (store / "engine/model.bin").samefile(blob(cache))
    assert not (store / "config.json").samefile(config)
    assert config.read_bytes() == b"[]", "what is in the cache is not ours to change"
    new = content_requests(registry)[len(fetched) :]
    assert [path.rpartition("/")[2] for _, path in new] == ["config.json"]
    assert not (cache / ".nimpull").exists()


def test_what_changed_since_it_was_cached_is_fetched(registry: Registry, tmp_path: Path, cache: Path) -> None:
    store = tmp_path / "store"
    blob(cache).chmod(0o644)
    with blob(cache).open("r+b") as file:
        file.write(b"\2")
    command = ("create-model-store", *PROFILE, "-m", str(store))
    code, text = call(registry, cache, *command, **listed(tmp_path))
    assert code == 0, text
    assert plain(store) == WORKSPACE
    assert not (store / "engine/model.bin").samefile(blob(cache))


def test_on_another_file_system_it_is_copied(registry: Registry, tmp_path: Path, cache: Path) -> None:
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    asked = len(registry.log())
    with TemporaryDirectory(dir=shared) as directory:
        store = Path(directory) / "store"
        command = ("create-model-store", *PROFILE, "-m", str(store))
        code, text = call(registry, cache, *command, **listed(tmp_path), **KEYLESS)
        assert code == 0, text
        assert plain(store) == WORKSPACE
        assert "2 files, 2.9 MiB, are in the NIM cache" in text
        assert "and are copied" in text
    assert len(registry.log()) == asked


def test_the_cache_may_be_the_store_itself(registry: Registry, tmp_path: Path, cache: Path) -> None:
    command, asked = ("create-model-store", *PROFILE, "-m", str(cache)), len(registry.log())
    code, text = call(registry, cache, *command, **listed(tmp_path), **KEYLESS)
    assert (code, len(registry.log())) == (0, asked), text
    assert (cache / "engine/model.bin").samefile(blob(cache))
