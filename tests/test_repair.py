"""``nimpull verify --repair`` puts back what is lost, from where it came from, under all its names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nimpull.core.names import ModelUri
from tests.buckets import AWS, model_bucket
from tests.calls import FILES, call, manifest
from tests.readers import content_requests, hf
from tests.registry import Registry
from tests.running import CLOSED
from tests.servers import ScriptedServer

PULLS = {
    "ngc": ("download-to-cache", "-p", "a" * 64),
    "workspace": ("create-model-store", "-p", "a" * 64, "-m", "STORE"),
    "hub": ("nimpull", "download", "hf://default/tiny"),
    "local-dir": ("huggingface-cli", "download", "default/tiny", "--local-dir", "STORE"),
}


def pull(registry: Registry, store: Path, kind: str) -> int:
    command = [word.replace("STORE", str(store)) for word in PULLS[kind]]
    listed = str(manifest(store.parent / "m.yaml"))
    return call(registry, store, *command, NIM_MANIFEST_PATH=listed)[0]


def verify(registry: Registry, store: Path, *options: str, **environment: str) -> tuple[int, str]:
    return call(registry, store, "nimpull", "verify", "--store", str(store), *options, **environment)


def test_a_store_without_a_file_is_no_success(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert call(registry, store, "nimpull", "download", "hf://default/none", "--store", str(store))[0] != 0
    assert (store / ".nimpull").is_dir()
    code, text = verify(registry, store)
    assert code == 2, text
    assert "holds no file that nimpull downloaded" in text


def weights(store: Path) -> list[Path]:
    """Every name of the large file, links first."""
    found = [path for path in store.rglob("*") if path.is_file() and path.stat().st_size == 3_000_000]
    return sorted(found, key=lambda path: not path.is_symlink())


def spoil(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"\2")


@pytest.mark.parametrize("kind", PULLS)
def test_f36_bit_rot_is_repaired_and_the_store_is_ready_again(
    registry: Registry, tmp_path: Path, kind: str
) -> None:
    store = tmp_path / "store"
    assert pull(registry, store, kind) == 0
    names, report = weights(store), (store / ".nimpull/report.json").read_bytes()
    before, fetched = os.stat(names[-1]).st_mtime_ns, content_requests(registry)
    spoil(names[-1])
    code, text = verify(registry, store)
    assert code == 33, text
    assert "nimpull verify --repair" in text
    code, text = verify(registry, store, "--repair")
    assert code == 0, text
    assert "repaired, all as downloaded" in text
    assert ", 1 file repaired\n" in text
    assert weights(store) == names
    assert {path.read_bytes() for path in names} == {FILES["weights/model.bin"]}
    assert len({path.stat().st_ino for path in names}) == 1, "the bytes are there once"
    assert (names[-1].stat().st_mtime_ns, names[-1].stat().st_mode & 0o777) == (before, 0o444)
    new = [path for server, path in content_requests(registry)[len(fetched) :] if server == "cdn"]
    assert len(set(new)) == 1, "no other file; of this one several ranges may be asked for at a time"
    assert (store / ".nimpull/report.json").read_bytes() == report, "the report is that of the pull"
    asked = len(registry.log())
    code, text = verify(registry, store)
    assert (code, "2 files, 2.9 MiB hashed" in text) == (0, True), text
    assert pull(registry, store, kind) == 0
    assert len(registry.log()) == asked, "the ready marker speaks for it again"


def test_huggingface_hub_takes_a_repaired_file_as_downloaded(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert pull(registry, store, "local-dir") == 0
    spoil(store / "weights/model.bin")
    assert verify(registry, store, "--repair")[0] == 0
    fetched = content_requests(registry)
    environment = ("download", "default/tiny", "--local-dir", str(store))
    code, text = hf(registry, tmp_path / "home", *environment)
    assert code == 0, text
    assert content_requests(registry) == fetched


@pytest.mark.parametrize("kind", ["hub", "local-dir", "ngc"])
def test_a_deleted_name_comes_back_without_a_byte(registry: Registry, tmp_path: Path, kind: str) -> None:
    store = tmp_path / "store"
    assert pull(registry, store, kind) == 0
    fetched = content_requests(registry)
    gone = weights(store)[0]
    target = os.readlink(gone) if gone.is_symlink() else ""
    gone.unlink()
    code, text = verify(registry, store, "--repair")
    assert code == 0, text
    assert gone.read_bytes() == FILES["weights/model.bin"]
    assert not target or os.readlink(gone) == target
    assert content_requests(registry) == fetched
    assert verify(registry, store)[0] == 0


def test_all_that_is_lost_comes_from_where_it_came_from(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for kind in ("ngc", "hub"):
        assert pull(registry, store, kind) == 0
    for path in weights(store):
        if not path.is_symlink():
            path.unlink()
    code, text = verify(registry, store, "--repair", "-o", "json")
    assert code == 0, text
    document = json.loads(text[text.index("{\n") : text.rindex("\n}") + 2])
    assert (document["repaired"], len(document["missing"])) == (True, 4)
    assert verify(registry, store)[0] == 0


def test_what_cannot_be_fetched_is_removed_and_told(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert pull(registry, store, "ngc") == 0
    spoil(weights(store)[-1])
    code, text = verify(registry, store, "--repair", NGC_API_ENDPOINT=CLOSED)
    assert code == 30, text
    assert "Not all is repaired. Run the same nimpull download again" in text
    assert weights(store) == [], "no reader meets the corrupt file"
    assert verify(registry, store, "--repair", NGC_API_KEY="")[0] == 20
    assert pull(registry, store, "ngc") == 0
    assert verify(registry, store)[0] == 0


def test_another_content_at_the_source_is_no_repair(registry: Registry, tmp_path: Path) -> None:
    made = model_bucket(FILES)
    model = str(ModelUri.parse("s3://bucket/models/tiny"))
    with ScriptedServer(made) as server:
        env = {**AWS, "AWS_ENDPOINT_URL": server.url().reveal().rstrip("/")}
        store = tmp_path / "store"
        assert call(registry, store, "nimpull", "download", model, "--layout", "local-dir", **env)[0] == 0
        spoil(store / "weights/model.bin")
        made.objects["models/tiny/weights/model.bin"] = b"\3" * 3_000_000
        code, text = verify(registry, store, "--repair", **env)
        assert code in (23, 33), text
        assert not (store / "weights/model.bin").exists()
        made.objects["models/tiny/weights/model.bin"] = FILES["weights/model.bin"]
        code, text = verify(registry, store, "--repair", **env)
        assert code == 0, text
    assert (store / "weights/model.bin").read_bytes() == FILES["weights/model.bin"]
