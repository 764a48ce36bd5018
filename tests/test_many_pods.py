"""Pods that share a volume, end to end: processes, a registry, and nothing else between them."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import quick_pods
from tests.pulling import noise
from tests.registry import Registry, Request, faults
from tests.registry.faults import Fault
from tests.registry.wire import Answer
from tests.running import HANG, Run, check, ended, start, tree

PROGRAM = (sys.executable, quick_pods.__file__)
COMPILER = shutil.which("cc")
MIB = 1 << 20
LARGE = {f"model-{n:02}.safetensors": noise(MIB + n * 4096, n) for n in range(9)}
FILES = {**LARGE, **{f"extra/part-{n:02}.json": noise(300 + n, 100 + n) for n in range(25)}}
OTHER = {f"other-{n}.bin": noise(MIB + 99 + n, 50 + n) for n in range(2)}
ONE = LARGE["model-08.safetensors"]
BUT_ONE = [content for content in LARGE.values() if content != ONE]
LOCAL = ("--layout", "local-dir")


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as made:
        made.add_hub_repo("acme/shared", FILES)
        made.add_hub_repo("acme/other", OTHER)
        yield made


def pod(
    registry: Registry,
    store: Path,
    node: str,
    *arguments: str,
    repository: str = "shared",
    **environment: str,
) -> subprocess.Popen[str]:
    """A pod on a node of its own: others cannot see its process."""
    return start(
        registry,
        store,
        "download",
        f"hf://acme/{repository}",
        *arguments,
        program=PROGRAM,
        under=(),
        **{"NODE": node, "NIMPULL_RETRY_SECONDS": "30", "NIMPULL_CONNECTIONS": "2", **environment},
    )


def stalled(release: threading.Event, at: int, contents: Iterable[bytes], times: int | None = None) -> Fault:
    """The CDN knows files by their digest."""
    names = "|".join(hashlib.sha256(content).hexdigest() for content in contents)
    return Fault(faults.stall(release, at), server="cdn", path=names, times=times)


def gathering(pods: int) -> Fault:
    """The hub's first answers wait until so many pods have asked, each of which others see by then: on a busy
    machine the first one would have all there is before the last one has begun."""
    gathered = threading.Barrier(pods)

    def wait(_request: Request, answer: Answer) -> Answer:
        gathered.wait(HANG / 4)
        return answer

    return Fault(wait, server="hub", times=pods)


def until(happened: Callable[[], object], seconds: float = HANG / 2) -> None:
    """What another process does, in its own time."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def reports(store: Path) -> list[dict[str, Any]]:
    """Each run's own."""
    found = [json.loads(path.read_text()) for path in sorted((store / ".nimpull/reports").glob("*.json"))]
    for report in found:
        check(report)
    return found


def fetched(runs: list[Run], store: Path) -> int:
    for run in runs:
        assert run.code == 0, run.text
    return sum(report["transfer"]["bytes"] for report in reports(store))


def is_whole(store: Path, files: dict[str, bytes]) -> None:
    assert tree(store) == files
    assert list((store / ".nimpull/claims").iterdir()) == []
    assert list((store / ".nimpull/runs").iterdir()) == []
    assert list((store / ".nimpull/ingest").iterdir()) == []


def begun(store: Path, pods: int) -> Callable[[], bool]:
    """Each of so many pods has claimed something, and some file has come."""

    def check() -> bool:
        owners = set()
        for path in (store / ".nimpull/claims").glob("*"):
            try:
                owners.add(json.loads(path.read_text())["token"])
            except (OSError, ValueError):
                continue
        return len(owners) >= pods and any((store / name).exists() for name in LARGE)

    return check


def test_f46_pods_share_a_model_and_each_file_comes_once(registry: Registry, tmp_path: Path) -> None:
    store, release = tmp_path / "store", threading.Event()
    registry.faults += [gathering(3), stalled(release, MIB // 2, BUT_ONE)]
    pods = [pod(registry, store, f"node-{n}", *LOCAL, JOB_COMPLETION_INDEX=str(n)) for n in range(3)]
    until(begun(store, 3))
    registry.faults.clear()
    release.set()
    runs = [ended(each, store) for each in pods]
    assert fetched(runs, store) == sum(map(len, FILES.values()))
    is_whole(store, FILES)
    assert len(list((store / ".nimpull/ready").iterdir())) == 1
    shares = [report["pods"][0] for report in reports(store)]
    assert len(shares) == 3
    assert all(share["files"] for share in shares), "nobody only waits"
    assert sum(share["bytes"] for share in shares) == sum(map(len, FILES.values()))
    whole = runs[-1].report
    check(whole)
    assert whole["status"]["state"] == "Ready"
    assert {share["name"] for share in whole["pods"]} == {share["name"] for share in shares}
    assert {each["path"] for each in whole["artifacts"]} == set(FILES)
    registry.requests.clear()
    again = ended(pod(registry, store, "node-9", *LOCAL), store)
    assert (again.code, registry.requests) == (0, []), again.text


def test_f46_overlapping_sets_come_once(registry: Registry, tmp_path: Path) -> None:
    registry.rate = 4 * MIB
    store = tmp_path / "store"
    wanted = (("--include", "model-*"), ("--include", "*[02468].*"), ())
    pods = [pod(registry, store, f"node-{n}", *LOCAL, *those) for n, those in enumerate(wanted)]
    runs = [ended(each, store) for each in pods]
    assert fetched(runs, store) == sum(map(len, FILES.values()))
    is_whole(store, FILES)
    assert len(list((store / ".nimpull/ready").iterdir())) == 3


def test_f46_two_layouts_of_one_model_on_one_volume(registry: Registry, tmp_path: Path) -> None:
    registry.rate = 4 * MIB
    store = tmp_path / "store"
    pods = [pod(registry, store, "node-0", *LOCAL), pod(registry, store, "node-1")]
    runs = [ended(each, store) for each in pods]
    assert fetched(runs, store) == sum(map(len, FILES.values()))
    plain = {name: content for name, content in tree(store).items() if not name.startswith("huggingface/")}
    assert plain == FILES
    (snapshot,) = (store / "huggingface").glob("hub/models--*/snapshots/*")
    assert {name: (snapshot / name).read_bytes() for name in FILES} == FILES


def test_f61_two_models_do_not_wait_for_each_other(registry: Registry, tmp_path: Path) -> None:
    store, release = tmp_path / "store", threading.Event()
    registry.faults.append(stalled(release, 1000, LARGE.values()))
    slow = pod(registry, store, "node-0")
    until(lambda: list((store / ".nimpull/claims").glob("*")))
    quick = ended(pod(registry, store, "node-1", repository="other"), store)
    assert quick.code == 0, quick.text
    assert "waiting for" not in quick.text
    assert slow.poll() is None
    registry.faults.clear()
    release.set()
    first = ended(slow, store)
    assert first.code == 0, first.text
    both = reports(store)
    assert [report["status"]["state"] for report in both] == ["Ready", "Ready"]
    assert sorted(len(report["artifacts"]) for report in both) == [len(OTHER), len(FILES)]


@pytest.mark.parametrize("asleep", [False, True])
def test_f62_of_four_pods_two_die_and_one_sleeps(registry: Registry, tmp_path: Path, asleep: bool) -> None:
    store, release = tmp_path / "store", threading.Event()
    registry.faults += [gathering(4), stalled(release, MIB // 2, BUT_ONE)]
    pods = [pod(registry, store, f"node-{n}", *LOCAL, JOB_COMPLETION_INDEX=str(n)) for n in range(4)]
    until(begun(store, 4))
    for each in pods[:2]:
        each.kill()
    if asleep:
        pods[2].send_signal(signal.SIGSTOP)
    registry.faults.clear()
    release.set()
    last = ended(pods[3], store)
    assert last.code == 0, last.text
    assert {name: (store / name).read_bytes() for name in LARGE} == LARGE
    pods[2].send_signal(signal.SIGCONT)
    sleeper = ended(pods[2], store)
    assert sleeper.code == 0, sleeper.text
    for each in pods[:2]:
        ended(each, store)
    assert {name: content for name, content in tree(store).items() if name in FILES} == FILES
    (marker,) = (store / ".nimpull/ready").iterdir()
    for path, size, mtime, _ in json.loads(marker.read_text())["files"]:
        status = (store / path).stat()
        assert (status.st_size, status.st_mtime_ns) == (size, mtime)
    assert list((store / ".nimpull/ingest").iterdir()) == []
    assert list((store / ".nimpull/claims").iterdir()) == []


@pytest.mark.skipif(COMPILER is None, reason="a C compiler makes the library that shifts the clock")
@pytest.mark.parametrize("days", [30, -400])
def test_f60_a_node_with_a_wrong_clock_dies_and_holds_nobody_up(
    registry: Registry, tmp_path: Path, days: int
) -> None:
    library = tmp_path / "shifted_clock.so"
    source = Path(__file__).with_name("shifted_clock.c")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    store, release = tmp_path / "store", threading.Event()
    registry.faults.append(stalled(release, MIB // 2, OTHER.values()))
    shift = {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(days * 86400)}
    wrong = pod(registry, store, "node-0", *LOCAL, repository="other", **shift)
    until(lambda: list((store / ".nimpull/ingest").glob("*/data")))
    wrong.kill()
    ended(wrong, store)
    registry.faults.clear()
    release.set()
    run = ended(pod(registry, store, "node-1", *LOCAL, repository="other"), store)
    assert run.code == 0, run.text  # within the patience of those who wait, or as if the other one went on
    found = {path.name: path.read_bytes() for path in store.glob("other-*")}
    assert found == OTHER
    late = ended(pod(registry, store, "node-2", *LOCAL, repository="other", **shift), store)
    assert late.code == 0, late.text


def test_f48_a_sleeper_that_lost_its_claim_goes_on_and_ends_well(registry: Registry, tmp_path: Path) -> None:
    """That is no cancelled run, and no exit code 143."""
    registry.add_hub_repo("acme/one", {"one.bin": ONE})
    store, release = tmp_path / "store", threading.Event()
    registry.faults.append(stalled(release, MIB // 2, [ONE]))
    sleeper = pod(registry, store, "node-0", *LOCAL, repository="one")
    until(lambda: list((store / ".nimpull/ingest").glob("*/data")))
    sleeper.send_signal(signal.SIGSTOP)
    registry.faults.clear()
    taker = ended(pod(registry, store, "node-1", *LOCAL, repository="one"), store)
    assert taker.code == 0, taker.text
    inode = (store / "one.bin").stat().st_ino
    sleeper.send_signal(signal.SIGCONT)
    release.set()
    woken = ended(sleeper, store)
    assert woken.code == 0, woken.text
    assert (store / "one.bin").stat().st_ino == inode, "it commits nothing that is another's"
    assert woken.report["status"]["state"] == "Ready"


def test_a_pod_that_waits_says_so_and_leaves_the_report_of_the_one_that_works(
    registry: Registry, tmp_path: Path
) -> None:
    registry.add_hub_repo("acme/one", {"one.bin": ONE})
    store, release = tmp_path / "store", threading.Event()
    registry.faults.append(stalled(release, MIB // 2, [ONE]))
    works = pod(registry, store, "node-0", *LOCAL, repository="one")
    until(lambda: list((store / ".nimpull/ingest").glob("*/data")))
    waits = pod(registry, store, "node-1", *LOCAL, repository="one")
    until(lambda: any(report["pods"][0]["waitingFor"] for report in reports(store)))

    def whole() -> dict[str, Any]:
        document: dict[str, Any] = json.loads((store / ".nimpull/report.json").read_text())
        check(document)
        return document

    worker = next(
        report["pods"][0]["name"] for report in reports(store) if not report["pods"][0]["waitingFor"]
    )
    until(lambda: len(whole()["pods"]) == 2)
    assert whole()["pods"][0]["name"] == worker
    waits.send_signal(signal.SIGTERM)
    stopped = ended(waits, store)
    assert stopped.code == 143, stopped.text
    assert f"waiting for {worker}: 1 file" in stopped.text
    assert whole()["pods"][0]["name"] == worker
    assert whole()["status"]["state"] == "InProgress"
    states = {report["pods"][0]["name"]: report["status"]["state"] for report in reports(store)}
    assert sorted(states.values()) == ["Failed", "InProgress"]
    registry.faults.clear()
    release.set()
    run = ended(works, store)
    assert run.code == 0, run.text
    assert run.report["status"]["state"] == "Ready"


def test_f23_files_that_are_gone_are_waited_for_by_no_pod(registry: Registry, tmp_path: Path) -> None:
    """Each pod holds one that it cannot have, and would wait for the other's."""
    gone = "|".join(hashlib.sha256(content).hexdigest() for content in OTHER.values())
    registry.faults.append(Fault(faults.status(404), server="cdn", path=gone, times=None))
    store = tmp_path / "store"
    pods = [pod(registry, store, f"node-{n}", *LOCAL, repository="other") for n in range(2)]
    for run in [ended(each, store) for each in pods]:
        assert run.code == 21, run.text


def test_f61_the_report_is_of_the_run_that_began_to_work_last(registry: Registry, tmp_path: Path) -> None:
    """Two models at one time: neither takes the report away from the other every few seconds."""
    registry.add_hub_repo("acme/one", {"one.bin": ONE})
    store, gates = tmp_path / "store", (threading.Event(), threading.Event())
    registry.faults += [stalled(gates[0], MIB // 2, OTHER.values()), stalled(gates[1], MIB // 2, [ONE])]

    def whole() -> dict[str, Any]:
        path = store / ".nimpull/report.json"
        document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"source": {"uri": ""}}
        return document

    def own(name: str) -> dict[str, Any]:
        return next(report for report in reports(store) if f"acme/{name}" in report["source"]["uri"])

    early = pod(registry, store, "node-0", *LOCAL, repository="other")
    until(lambda: whole().get("pods") and "acme/other" in whole()["source"]["uri"])
    late = pod(registry, store, "node-1", *LOCAL, repository="one")
    until(lambda: whole().get("pods") and "acme/one" in whole()["source"]["uri"])
    for _ in range(3):
        before = own("other")["updatedAt"]
        until(lambda before=before: own("other")["updatedAt"] != before)  # type: ignore[misc]
        assert "acme/one" in whole()["source"]["uri"]
    gates[0].set()
    first = ended(early, store)
    assert first.code == 0, first.text
    assert own("other")["status"]["state"] == "Ready"
    assert "acme/one" in whole()["source"]["uri"] and whole()["status"]["state"] == "InProgress"
    assert b'nimpull_state{state="InProgress"} 1.0' in (store / ".nimpull/metrics.prom").read_bytes()
    gates[1].set()
    second = ended(late, store)
    assert second.code == 0, second.text
    check(second.report)
    assert second.report["status"]["state"] == "Ready"
    assert b'nimpull_state{state="Ready"} 1.0' in (store / ".nimpull/metrics.prom").read_bytes()
