"""Model-free and universal NIMs find one pull in two places: plain files and the hub cache."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.calls import FILES, call, plain
from tests.readers import content_requests, reader
from tests.registry import Registry
from tests.running import CLOSED

HOME = "huggingface/hub"  # HF_HOME below the store, as the operator's Jobs and its serving pods have it
SNAPSHOT = """
from huggingface_hub import snapshot_download
print("ANSWER", snapshot_download("default/tiny"))
"""
PULLS = {
    "huggingface-cli": ("huggingface-cli", "download", "default/tiny", "--local-dir", "STORE"),
    "model-free": (
        *("download-to-cache", "--model-uri", "hf://default/tiny"),
        *("--manifest-file", "STORE/model_manifest.json"),
    ),
    "universal": ("create-model-store", "--model-repo", "hf://default/tiny", "--model-store", "STORE"),
    "local-dir": ("nimpull", "download", "hf://default/tiny", "--store", "STORE", "--layout", "local-dir"),
    "nimcache": ("nimpull", "download", "-f", "STORE.yaml", "--store", "STORE"),
}
NIMCACHE = """apiVersion: apps.nvidia.com/v1alpha1
kind: NIMCache
metadata: {name: tiny}
spec:
  source:
    dataStore: {endpoint: "ENDPOINT", modelName: tiny, modelPuller: image, authSecret: s, pullSecret: p}
  storage: {pvc: {create: true, size: 1Gi}}
"""
#: Of the operator's Jobs only those for the Hub set HF_HOME; a NIMCache file needs no variable at all.
WITHOUT_HOME = ("universal", "nimcache")


def pull(registry: Registry, store: Path, kind: str, *more: str, **environment: str) -> tuple[int, str]:
    Path(f"{store}.yaml").write_text(NIMCACHE.replace("ENDPOINT", registry.datastore_url))
    if kind in WITHOUT_HOME:
        environment = {"HF_HOME": "", **environment}
    command = [word.replace("STORE", str(store)) for word in PULLS[kind]]
    return call(registry, store, *command, *more, **environment)


def snapshot(store: Path) -> Path:
    (found,) = (store / HOME).glob("hub/models--default--tiny/snapshots/*")
    return found


@pytest.mark.parametrize("kind", PULLS)
def test_both_readers_find_it_and_the_bytes_are_there_once(
    registry: Registry, tmp_path: Path, kind: str
) -> None:
    store = tmp_path / "pvc"
    code, text = pull(registry, store, kind)
    assert code == 0, text
    assert {path: (store / path).read_bytes() for path in FILES} == FILES
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": CLOSED}
    code, text = reader(registry, store / HOME, sys.executable, "-c", SNAPSHOT, **offline)
    assert code == 0, text
    found = Path(text.partition("ANSWER ")[2].splitlines()[0])
    assert found == snapshot(store)
    for path in FILES:
        assert (found / path).samefile(store / path)
    asked = len(registry.log())
    assert pull(registry, store, kind)[0] == 0
    assert len(registry.log()) == asked


@pytest.mark.parametrize("kind", ["huggingface-cli", "model-free"])
@pytest.mark.parametrize("which", ["plain", "snapshot", "blob"])
def test_a_name_that_is_gone_comes_back_without_its_bytes(
    registry: Registry, tmp_path: Path, kind: str, which: str
) -> None:
    store = tmp_path / "pvc"
    assert pull(registry, store, kind)[0] == 0
    fetched = content_requests(registry)
    link = snapshot(store) / "weights/model.bin"
    gone = {"plain": store / "weights/model.bin", "snapshot": link, "blob": link.resolve()}[which]
    gone.unlink()
    code, text = pull(registry, store, kind)
    assert code == 0, text
    assert (store / "weights/model.bin").samefile(link)
    assert content_requests(registry) == fetched


def test_without_home_in_the_store_there_is_one_place(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "pvc"
    for kind in ("huggingface-cli", "local-dir"):
        of_nobody = {"HF_HOME": str(tmp_path / "home"), "NIM_CACHE_PATH": str(tmp_path / "cache")}
        code, text = pull(registry, store, kind, **of_nobody)
        assert code == 0, text
    assert plain(store) == FILES
    assert not (store / "huggingface").exists()
    assert not (tmp_path / "home").exists()
    assert pull(registry, store, "huggingface-cli")[0] == 0
    assert (snapshot(store) / "config.json").samefile(store / "config.json"), "HF_HOME is in the store now"


def test_what_is_foreign_in_the_second_place_stays(registry: Registry, tmp_path: Path) -> None:
    store, foreign = tmp_path / "pvc", tmp_path / "elsewhere"
    foreign.mkdir()
    repository = store / HOME / "hub/models--default--tiny"
    repository.parent.mkdir(parents=True)
    repository.symlink_to(foreign)
    code, text = pull(registry, store, "huggingface-cli")
    assert code == 0, text
    assert text.count("only in the plain tree") == 1, text
    assert "2 files are only in the plain tree" in text
    assert list(foreign.iterdir()) == []
    assert {path: (store / path).read_bytes() for path in FILES} == FILES
    asked = len(registry.log())
    assert pull(registry, store, "huggingface-cli")[0] == 0
    assert len(registry.log()) == asked, "what cannot be is not tried again and again"


NO_LINKS = """
import errno, os
def link(*_, **__): raise OSError(errno.EPERM, "Operation not permitted")
os.link = link
"""


@pytest.mark.parametrize(("kind", "only"), [("huggingface-cli", "plain tree"), ("model-free", "hub cache")])
def test_a_file_system_without_hard_links_keeps_what_was_asked_for(
    registry: Registry, tmp_path: Path, kind: str, only: str
) -> None:
    store = tmp_path / "pvc"
    (tmp_path / "sitecustomize.py").write_text(NO_LINKS)
    code, text = pull(registry, store, kind, PYTHONPATH=str(tmp_path))
    assert code == 0, text
    assert text.count("this file system has no hard links") == 1, text
    assert f"2 files are only in the {only}" in text
    there = {"plain tree": store, "hub cache": store / HOME / "hub"}[only]
    assert [path.read_bytes() for path in there.rglob("model.bin")] == [FILES["weights/model.bin"]]


def test_a_cache_that_was_pulled_before_gets_its_second_names(registry: Registry, tmp_path: Path) -> None:
    store, written = tmp_path / "pvc", tmp_path / "pvc/model_manifest.json"
    assert call(registry, store, "nimpull", "download", "hf://default/tiny")[0] == 0
    fetched = content_requests(registry)
    for _ in range(2):
        code, text = pull(registry, store, "model-free")
        assert code == 0, text
        assert (store / "config.json").samefile(snapshot(store) / "config.json")
        written.unlink()  # and is written again
    assert content_requests(registry) == fetched
    shutil.rmtree(store / "weights")
    assert pull(registry, store, "model-free")[0] == 0
    assert (store / "weights/model.bin").read_bytes() == FILES["weights/model.bin"]
