"""Which source a store is complete for, whose a file is, and what a state file may not do."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimpull.core.names import ModelUri
from nimpull.settings import load
from nimpull.wiring.registries import Registries
from tests.calls import FILES, call
from tests.clocks import StepClock
from tests.readers import content_requests
from tests.registry import Fault, Registry, faults
from tests.running import CONFIG, WEIGHTS

OTHER = {"config.json": b"[1]", "weights/model.bin": b"\7" * 3_000_000}
HUB = ("nimpull", "download", "hf://default/tiny")
LOCAL = ("huggingface-cli", "download", "default/tiny", "--local-dir", "STORE")
STATUS = ("nimpull", "status", "--store", "STORE")
VERIFY = ("nimpull", "verify", "--store", "STORE")
HERE = {"HF_HOME": ""}
FREE = (
    *("download-to-cache", "--model-uri", "hf://default/tiny"),
    *("--manifest-file", "STORE/model_manifest.json"),
)


@pytest.fixture
def other() -> Iterator[Registry]:
    """Another hub that has a model of the same name."""
    with Registry() as started:
        yield started


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def run(registry: Registry, store: Path, command: tuple[str, ...], **environment: str) -> tuple[int, str]:
    return call(registry, store, *(word.replace("STORE", str(store)) for word in command), **environment)


def asks_nobody(registry: Registry, store: Path, command: tuple[str, ...], **environment: str) -> str:
    """The same command in the same environment again, which needs no request; what it says."""
    asked = len(registry.log())
    code, text = run(registry, store, command, **environment)
    assert (code, len(registry.log())) == (0, asked), text
    return text


def files(store: Path, names: tuple[str, ...] = tuple(FILES)) -> dict[str, bytes]:
    return {name: (store / name).read_bytes() for name in names}


def spoil(path: Path, how: str) -> None:
    path.chmod(0o644)
    if how == "truncated":
        os.truncate(path, 100)
    else:
        with path.open("r+b") as file:
            file.write(b"\2")


# -- which source --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [HUB, LOCAL, FREE], ids=["cache", "local-dir", "model-free"])
def test_what_is_complete_for_one_hub_is_not_for_another(
    registry: Registry, other: Registry, store: Path, command: tuple[str, ...]
) -> None:
    other.add_hub_repo("default/tiny", OTHER)
    assert run(registry, store, command)[0] == 0
    code, text = run(other, store, command)
    assert code == 0, text
    assert other.log(), "the other hub was asked"
    if command is not HUB:
        assert files(store) == OTHER
    assert "nothing was asked of the network" in asks_nobody(other, store, command)
    code, text = run(registry, store, STATUS)
    assert other.datastore_url in text


def test_main_leads_to_the_hub_that_the_store_is_ready_for(
    registry: Registry, other: Registry, store: Path
) -> None:
    """An offline reader asks the cache for ``main``: what is Ready is what it gets."""
    other.add_hub_repo("default/tiny", OTHER)
    reference = store / "huggingface/hub/models--default--tiny/refs/main"
    assert run(registry, store, HUB, **HERE)[0] == 0
    mine = reference.read_text()
    assert run(other, store, HUB, **HERE)[0] == 0
    theirs = reference.read_text()
    assert theirs != mine
    asks_nobody(registry, store, (*HUB, "--dry-run"), **HERE)
    assert reference.read_text() == theirs, "a dry run changes nothing"
    asks_nobody(registry, store, HUB, **HERE)
    assert reference.read_text() == mine


def test_a_directory_that_a_link_has_replaced_does_not_hide_the_rest(registry: Registry, store: Path) -> None:
    """``status`` says of it what ``verify`` says: the file is not there."""
    assert run(registry, store, LOCAL)[0] == 0
    (store / "weights").rename(store.parent / "weights")
    (store / "weights").symlink_to(store.parent / "weights")
    code, text = run(registry, store, STATUS)
    assert code == 0, text
    assert "1 file changed or gone" in text


def test_the_same_content_at_another_hub_is_taken_over(
    registry: Registry, other: Registry, store: Path
) -> None:
    other.add_hub_repo("default/tiny", FILES)
    assert run(registry, store, HUB)[0] == 0
    code, text = run(other, store, HUB)
    assert code == 0, text
    assert other.log(), "asked"
    assert not content_requests(other), "and not fetched"


@pytest.mark.parametrize(
    ("uri", "variables", "endpoint"),
    [
        ("hf://a/b", {}, "https://huggingface.co"),
        ("hf://a/b", {"HF_ENDPOINT": "http://user:secret@hub:3000/v1/hf/"}, "http://hub:3000/v1/hf"),
        ("ngc://a/b:1", {"NGC_API_ENDPOINT": "ngc.test"}, "https://ngc.test"),
        ("ngc://a/b:1", {"NIM_REPOSITORY_OVERRIDE": "https://mirror/x?key=secret"}, "https://mirror/x?…"),
        ("hf://a/b", {"NIM_REPOSITORY_OVERRIDE": "https://mirror/x"}, "https://mirror/x"),
        (
            "ngc://a/b:1",
            {"NIM_REPOSITORY_OVERRIDE": "s3://bucket/", "AWS_ENDPOINT_URL": "http://minio:9000"},
            "s3://bucket at http://minio:9000",
        ),
        ("s3://bucket/a", {"AWS_ENDPOINT_URL_S3": "http://minio:9000"}, "http://minio:9000"),
        ("s3://bucket/a", {}, ""),
        ("https://host/a", {"NIM_REPOSITORY_OVERRIDE": "https://mirror/x"}, ""),
    ],
)
def test_the_endpoint_of_a_source_without_its_secrets(
    uri: str, variables: dict[str, str], endpoint: str
) -> None:
    made = Registries(load(variables), StepClock(), lambda: pytest.fail("nobody is asked"))
    assert made.endpoint(ModelUri.parse(uri)) == endpoint


def test_offline_a_store_of_another_hub_is_not_complete(
    registry: Registry, other: Registry, store: Path
) -> None:
    assert run(registry, store, FREE)[0] == 0
    offline = {"NIM_DISABLE_MODEL_DOWNLOAD": "1"}
    assert run(registry, store, FREE, **offline)[0] == 0
    code, text = run(other, store, FREE, **offline)
    assert code == 2, text
    assert f"is not complete for {other.datastore_url}" in text
    assert not other.log()


def test_a_marker_of_the_version_before_is_asked_again_and_goes(registry: Registry, store: Path) -> None:
    assert run(registry, store, HUB)[0] == 0
    (marker,) = (store / ".nimpull/ready").iterdir()
    document = json.loads(marker.read_bytes())
    del document["endpoints"]
    document["selection"] = "0" * 32
    marker.unlink()
    (marker.parent / f"{'0' * 32}.json").write_text(json.dumps(document))
    fetched, asked = content_requests(registry), len(registry.log())
    assert run(registry, store, HUB)[0] == 0
    assert len(registry.log()) > asked
    assert content_requests(registry) == fetched
    (new,) = (store / ".nimpull/ready").iterdir()
    assert json.loads(new.read_bytes())["endpoints"] == [registry.datastore_url]


def test_a_warm_ready_says_what_it_looked_at(registry: Registry, store: Path) -> None:
    assert run(registry, store, HUB)[0] == 0
    _, text = run(registry, store, HUB)
    assert "2 files, size and time as when verified " in text


# -- whose file ----------------------------------------------------------------------------------------


def test_f35_a_file_of_nobody_is_replaced_and_told(registry: Registry, store: Path) -> None:
    store.mkdir()
    (store / "config.json").write_bytes(b"my own")
    told = f"to be replaced, for nimpull did not write it: config.json in {store}"
    code, text = run(registry, store, (*LOCAL, "--dry-run"), **HERE)
    assert (code, text.count(told)) == (0, 1), text
    assert (store / "config.json").read_bytes() == b"my own"
    code, text = run(registry, store, LOCAL, **HERE)
    assert (code, text.count(told)) == (0, 1), text
    assert files(store) == FILES
    code, text = run(registry, store, (*LOCAL, "--force-download"), **HERE)
    assert (code, told in text) == (0, False), text


def test_f35_a_file_of_nobody_that_is_right_stays(registry: Registry, store: Path) -> None:
    (store / "weights").mkdir(parents=True)
    (store / "weights/model.bin").write_bytes(FILES["weights/model.bin"])
    inode = (store / "weights/model.bin").stat().st_ino
    for more in ("--dry-run", "--no-dry-run"):
        code, text = run(registry, store, (*LOCAL, more), **HERE)
        assert (code, "replaced" in text) == (0, False), text
    assert (store / "weights/model.bin").stat().st_ino == inode


@pytest.mark.parametrize("record", ["kept", "lost"])
@pytest.mark.parametrize("more", [(), ("--layout", "local-dir", "--dry-run")], ids=["pull", "dry-run"])
def test_f35_two_models_in_one_directory_are_refused_before_the_first_byte(
    registry: Registry, store: Path, record: str, more: tuple[str, ...]
) -> None:
    registry.add_ngc_model("nim", "meta", "large", "hf-1", OTHER, checksums=False)
    assert run(registry, store, LOCAL, **HERE)[0] == 0
    if record == "lost":
        for path in (store / ".nimpull/record").iterdir():
            path.unlink()
    before, fetched = files(store), content_requests(registry)
    second = ("create-model-store", "--model-repo", "ngc://nim/meta/large:hf-1", "--model-store", "STORE")
    if more:
        second = ("nimpull", "download", "ngc://nim/meta/large:hf-1", "--store", "STORE")
    code, text = run(registry, store, (*second, *more), NIM_CACHE_PATH=f"{store}-none", **HERE)
    assert code == 41, text
    for word in ("hf://default/tiny:", "ngc://nim/meta/large:hf-1", "subPath", "config.json"):
        assert word in text
    assert files(store) == before
    assert content_requests(registry) == fetched
    code, text = run(registry, store, STATUS)
    assert "  ready: hf://default/tiny:" in text, text
    assert run(registry, store, VERIFY)[0] == 0


def test_f35_a_model_free_pull_refuses_the_root_of_another_model(registry: Registry, store: Path) -> None:
    registry.add_hub_repo("default/second", OTHER)
    assert run(registry, store, FREE)[0] == 0
    second = tuple(word.replace("tiny", "second").replace("model_manifest", "m2") for word in FREE)
    code, text = run(registry, store, second)
    assert (code, "hf://default/tiny:" in text, "hf://default/second:" in text) == (41, True, True), text
    assert files(store) == FILES


def test_f35_the_order_of_two_models_does_not_matter(registry: Registry, store: Path) -> None:
    registry.add_ngc_model("nim", "meta", "large", "hf-1", OTHER, checksums=False)
    first = ("create-model-store", "--model-repo", "ngc://nim/meta/large:hf-1", "--model-store", "STORE")
    environment = {"NIM_CACHE_PATH": f"{store}-none", **HERE}
    assert run(registry, store, first, **environment)[0] == 0
    code, text = run(registry, store, LOCAL, **HERE)
    assert (code, "ngc://nim/meta/large:hf-1" in text, "hf://default/tiny:" in text) == (41, True, True), text
    assert files(store) == OTHER
    assert run(registry, store, first, **environment)[0] == 0


def test_f35_versions_of_ngc_are_models_side_by_side_unless_the_latest_is_asked_for(
    registry: Registry, store: Path
) -> None:
    def pull(uri: str, root: Path = store) -> tuple[int, str]:
        options = ("--layout", "local-dir", "--refresh", "--store", str(root))
        return run(registry, root, ("nimpull", "download", uri, *options), **HERE)

    registry.add_ngc_model("nim", "meta", "large", "1", FILES, checksums=False)
    assert pull("ngc://nim/meta/large")[0] == 0
    registry.add_ngc_model("nim", "meta", "large", "2", OTHER, checksums=False)
    code, text = pull("ngc://nim/meta/large")
    assert (code, files(store)) == (0, OTHER), text
    code, text = pull("ngc://nim/meta/large:1")
    assert (code, files(store)) == (41, OTHER), text
    assert pull("ngc://nim/meta/large:1", store.parent / "elsewhere")[0] == 0


@pytest.mark.parametrize("more", [(), ("--include", "*")], ids=["same", "another-selection"])
def test_an_update_of_the_same_model_replaces_its_files(
    registry: Registry, store: Path, more: tuple[str, ...]
) -> None:
    assert run(registry, store, LOCAL, **HERE)[0] == 0
    registry.add_hub_repo("default/tiny", OTHER)
    code, text = run(registry, store, (*LOCAL, "--force-download", *more), **HERE)
    assert code == 0, text
    assert files(store) == OTHER
    for command in ("status", "verify"):
        code, text = run(registry, store, ("nimpull", command, "--store", "STORE"))
        assert (code, "changed" in text) == (0, False), text


def test_what_an_older_nimpull_let_be_replaced_is_told_by_verify_and_status_alike(
    registry: Registry, store: Path
) -> None:
    registry.add_hub_repo("default/second", OTHER)
    assert run(registry, store, LOCAL, **HERE)[0] == 0
    (first,) = (store / ".nimpull/ready").iterdir()
    kept = first.read_bytes()
    for path in (store / ".nimpull/record").iterdir():
        path.unlink()
    first.unlink()
    second = tuple(word.replace("tiny", "second") for word in LOCAL)
    assert run(registry, store, second, **HERE)[0] == 0
    first.write_bytes(kept)
    _, told = run(registry, store, STATUS)
    assert "2 files changed or gone: hf://default/tiny:" in told
    code, text = run(registry, store, (*VERIFY, "--repair"))
    assert (code, text.count("another selection has replaced it")) == (33, 2), text
    assert files(store) == OTHER, "a file that is right for another is not removed"


def test_a_file_that_was_only_touched_is_right_for_verify_and_then_for_status(
    registry: Registry, store: Path
) -> None:
    assert run(registry, store, LOCAL, **HERE)[0] == 0
    os.utime(store / "config.json")
    assert run(registry, store, VERIFY)[0] == 0
    _, text = run(registry, store, STATUS)
    assert "  ready: hf://default/tiny:" in text, text


# -- two places, one file ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["truncated", "flipped"])
@pytest.mark.parametrize("command", [FREE, LOCAL], ids=["model-free", "local-dir"])
def test_f36_damage_of_a_file_with_two_names_is_healed_in_both(
    registry: Registry, store: Path, command: tuple[str, ...], how: str
) -> None:
    assert run(registry, store, command)[0] == 0
    spoil(store / "weights/model.bin", how)
    for told in (True, False):
        code, text = run(registry, store, command)
        assert (code, "only in" in text) == (0, False), text
        changed = "replaced, for it was changed since it was downloaded: weights/model.bin"
        assert (changed in text) == told, text
        assert files(store) == FILES
        (link,) = store.glob("huggingface/hub/hub/models--default--tiny/snapshots/*/weights/model.bin")
        assert link.samefile(store / "weights/model.bin")
    assert run(registry, store, VERIFY)[0] == 0


@pytest.mark.parametrize("command", [FREE, LOCAL], ids=["model-free", "local-dir"])
def test_the_hub_cache_is_where_serving_pods_look_though_home_is_elsewhere(
    registry: Registry, store: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    home = str(tmp_path / "home")
    code, text = run(registry, store, command, HF_HOME=home)
    assert code == 0, text
    (link,) = store.glob("huggingface/hub/hub/models--default--tiny/snapshots/*/config.json")
    assert link.samefile(store / "config.json")
    assert text.count(f"HF_HOME={home} is outside of the store {store}; the hub cache is {store}/") == 1
    elsewhere = {"HF_HOME": home, "NIM_CACHE_PATH": str(tmp_path / "cache")}
    if command is LOCAL:
        code, text = run(registry, tmp_path / "other", command, **elsewhere)
        assert code == 0, text
        assert not (tmp_path / "other/huggingface").exists()
        assert "no hub cache is made beside the plain files" in text


# -- state that anyone may have written ----------------------------------------------------------------


def test_f51_a_record_that_leads_out_of_the_store_is_no_record(
    registry: Registry, store: Path, tmp_path: Path
) -> None:
    assert run(registry, store, LOCAL, **HERE)[0] == 0
    victim = tmp_path / "victim.txt"
    victim.write_bytes(b"keep")
    os.utime(victim, ns=(1, 1))
    line = {
        "size": 4,
        "mtimeNs": 1,
        "digest": f"sha256:{'0' * 64}",
        "identity": "hf://a/b:c?file=d",
        "etag": "",
    }
    paths = ("../victim.txt", str(victim), "weights/../../victim.txt", ".nimpull/report.json", "\ud800")
    planted = "".join(json.dumps({**line, "etag": "", "path": path}) + "\n" for path in paths)
    (store / ".nimpull/record/planted.jsonl").write_text(planted)
    for more in ((), ("--repair",)):
        code, text = run(registry, store, (*VERIFY, *more))
        assert (code, "victim" in text) == (0, False), text
    assert (victim.read_bytes(), victim.stat().st_mtime_ns) == (b"keep", 1)
    assert (store / ".nimpull/report.json").is_file()


HOSTILE = {
    "nested": b"[" * 5_000_000,
    "endless": b'{"path": "x", "size": 1e999, "mtimeNs": 1e999, "time": 1e999, "files": [1]}\n',
    "digits": b"1" * 5000,
    "bytes": b"\xff\xfe",
}
PLACES = ("record/planted.jsonl", "ready/planted.json", "ready", "ingest/0/artifact")


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("places", [PLACES, PLACES[:1]], ids=["everywhere", "beside a good marker"])
def test_f43_a_state_file_that_is_no_state_is_none(
    registry: Registry, store: Path, places: tuple[str, ...], kind: str
) -> None:
    assert run(registry, store, LOCAL, **HERE)[0] == 0
    (marker,) = (store / ".nimpull/ready").iterdir()
    for place in places:
        planted = marker if place == "ready" else store / ".nimpull" / place
        planted.parent.mkdir(parents=True, exist_ok=True)
        planted.write_bytes(HOSTILE[kind])
    for command in (
        STATUS,
        VERIFY,
        LOCAL,
    ):
        code, text = run(registry, store, command, **HERE)
        assert (code, "Traceback" in text) == (0, False), text


def test_f36_a_blob_is_compared_with_its_own_name(registry: Registry, store: Path) -> None:
    assert run(registry, store, HUB)[0] == 0
    (link,) = store.glob("huggingface/hub/hub/models--default--tiny/snapshots/*/weights/model.bin")
    path = link.resolve()
    before = path.stat()
    spoil(path, "flipped")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for state in (*(store / ".nimpull/record").iterdir(), *(store / ".nimpull/ready").iterdir()):
        forged = hashlib.sha256(path.read_bytes()).hexdigest()
        state.write_text(state.read_text().replace(f"sha256:{path.name}", f"sha256:{forged}"))
    code, text = run(registry, store, VERIFY)
    assert (code, f"should be sha256:{path.name}" in text) == (33, True), text
    code, text = run(registry, store, (*VERIFY, "--repair"))
    assert code == 0, text
    assert link.read_bytes() == FILES["weights/model.bin"]


def test_f36_verify_refresh_asks_the_registry(registry: Registry, store: Path) -> None:
    assert run(registry, store, LOCAL, **HERE)[0] == 0
    path = store / "weights/model.bin"
    before = path.stat()
    spoil(path, "flipped")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    right, forged = (
        hashlib.sha256(each).hexdigest() for each in (FILES["weights/model.bin"], path.read_bytes())
    )
    for state in (*(store / ".nimpull/record").iterdir(), *(store / ".nimpull/ready").iterdir()):
        state.write_text(state.read_text().replace(right, forged))
    assert run(registry, store, VERIFY)[0] == 0, "nothing here says it"
    code, text = run(registry, store, (*VERIFY, "--refresh"))
    assert (code, f"should be sha256:{right}" in text) == (33, True), text
    code, text = run(registry, store, (*VERIFY, "--refresh", "--repair"))
    assert code == 0, text
    assert files(store) == FILES


# -- a failure's report --------------------------------------------------------------------------------


def test_f23_the_report_of_a_failure_lists_what_is_finished(registry: Registry, store: Path) -> None:
    content = {"config.json": CONFIG, "a.bin": b"a" * 3_000_000, "z.bin": WEIGHTS}
    registry.add_hub_repo("default/three", content)
    command = tuple(word.replace("tiny", "three") for word in LOCAL)
    registry.faults.append(Fault(faults.status(404), path="z.bin", method="GET", times=None))
    registry.faults.append(Fault(faults.status(404), server="cdn", times=None))
    code, text = run(registry, store, command, **HERE)
    assert code != 0, text
    report = json.loads((store / ".nimpull/report.json").read_bytes())
    assert report["status"]["state"] == "Failed"
    there = {name for name in content if (store / name).is_file()}
    assert there
    assert {each["path"] for each in report["artifacts"]} == there
