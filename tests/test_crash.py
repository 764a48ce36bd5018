"""Whole pulls, each a process of its own, that are killed at a call or meet a volume that refuses one.

``scripts/crash-test`` kills at every call of a pull; this is a short set of them.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crashing import LARGE, PROGRAM, Case, complaints, resume, serving, standing_bytes
from tests.pods import mounted
from tests.registry import Fault, Registry, Request
from tests.registry.wire import Answer
from tests.running import Run, check, ended, start, tree
from tests.volume_faults import COMPILER, WITHOUT, VolumeFault, faulty

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WITHOUT)
Served = tuple[Registry, Mapping[str, Case]]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as registry_and_cases:
        yield registry_and_cases


# -- killed ------------------------------------------------------------------------------------------------

#: Layout, call, which of them, path.
KILLS = [
    "ngc linkat 1 /claims/",
    "hub mkdirat 1 /ingest",
    "local-dir ftruncate64 1 /ingest/",
    "ngc pwrite64 20 /data",
    "hub write 12 /journal",
    "ngc renameat 1 /blobs/",
    "hub renameat 4 /blobs/",
    "ngc symlinkat 3 /snapshots/",
    "local-dir renameat 1 /x/y/deep.json",
    "local-dir write 2 /record/",
    "hub unlinkat 2 /ingest/",
    "ngc renameat 1 /ready/",
    "local-dir renameat 1 /report.json",
]


@pytest.mark.parametrize("kill", KILLS)
def test_f39_a_kill_at_a_call_costs_no_more_than_what_was_in_flight(
    served: Served, tmp_path: Path, kill: str
) -> None:
    registry, cases = served
    name, call, turn, path = kill.split()
    at = VolumeFault("kill", (call,), int(turn), path=path)
    run = cases[name].pull(registry, tmp_path / "s", **faulty(at))
    assert run.code == -9, run.text
    assert resume(cases[name], registry, tmp_path / "s") == []


def test_f39_what_is_written_counts(served: Served, tmp_path: Path) -> None:
    """The bound is one: half a file that is on the disk must not come again."""
    registry, cases = served
    half = VolumeFault("kill", ("pwrite64",), 24, path="/data")
    assert cases["hub"].pull(registry, tmp_path / "s", **faulty(half)).code == -9
    assert len(LARGE) / 2 < standing_bytes(tmp_path / "s") < len(LARGE)


# -- an I/O error ------------------------------------------------------------------------------------------

#: (calls, path, exit code when it comes once)
ERRORS = [
    (("pwrite64",), "/data", 0),
    (("fsync", "fdatasync", "syncfs"), "/ingest/", 0),
    (("renameat",), "/blobs/", 0),
    (("pwrite64",), ".whole", 0),
    (("close",), ".whole", 0),
    (("close",), "/ingest/", 0),
    (("renameat",), "/artifact", 0),
    (("write",), "/journal", 42),
    (("write",), "/record/", 0),
    (("fsync",), "/ready", 42),
]


@pytest.mark.parametrize(
    ("calls", "path", "once"), ERRORS, ids=[f"{calls[0]} {path}" for calls, path, _ in ERRORS]
)
def test_f32_an_io_error_is_never_ignored(
    served: Served, tmp_path: Path, calls: tuple[str, ...], path: str, once: int
) -> None:
    registry, cases = served
    case = cases["hub"]
    for last, code in ((1, once), (1 << 31, 42)):
        store = tmp_path / str(last)
        run = case.pull(registry, store, **faulty(VolumeFault(errno.EIO, calls, last=last, path=path)))
        assert run.code == code, run.text
        assert "Traceback" not in run.text
        check(run.report)
        if code:
            assert run.report["error"]["reference"] == "store-io"
            assert "Input/output error" in run.report["error"]["message"]
            assert resume(case, registry, store) == []
        assert complaints(store, case) == []


def test_f32_a_file_that_stands_and_cannot_be_recorded_is_not_fetched_again(
    served: Served, tmp_path: Path
) -> None:
    registry, cases = served
    unrecorded = faulty(VolumeFault(errno.EIO, ("write",), path="/record/"))
    arguments = ("download", cases["hub"].uri, "--layout", "cache", "--include", "model.*")
    registry.requests.clear()
    for _ in range(2):
        process = start(registry, tmp_path / "s", *arguments, under=(), program=PROGRAM, **unrecorded)
        run = ended(process, tmp_path / "s")
        assert run.code == 42, run.text
        assert run.report["error"]["reference"] == "store-io"
        assert standing_bytes(tmp_path / "s") == len(LARGE)
        begun = [each for each in registry.requests if (each.server, each.range[:8]) == ("cdn", "bytes=0-")]
        assert len(begun) == 1, "by the first run, once"
    assert resume(cases["hub"], registry, tmp_path / "s") == []


@pytest.mark.parametrize("number", [3, 6, 102, 140, *range(150, 600, 75)])
def test_f66_an_error_of_close_is_never_final(served: Served, tmp_path: Path, number: int) -> None:
    """A soft NFS mount whose server is away says so late. 70 and 41 would end a Job for good."""
    registry, cases = served
    case = cases["local-dir"]
    for last in (number, 1 << 31):
        store = tmp_path / str(last)
        fault = VolumeFault(errno.EIO, ("close",), number, last, str(store))
        run = case.pull(registry, store, **faulty(fault))
        assert run.code in (0, 42), run.text
        assert "Traceback" not in run.text
        assert complaints(store, case) == []


# -- no room -----------------------------------------------------------------------------------------------


def is_full(run: Run, words: str) -> None:
    assert run.code == 40, run.text
    assert "no-space" in run.err.splitlines()[-1]
    assert words in run.err.splitlines()[-1]
    assert "Traceback" not in run.text
    assert "the report could not be written" not in run.err, "room was set aside for it"
    check(run.report)
    assert run.report["error"]["reference"] == "no-space"


def test_f30_a_quota_that_is_used_up_is_named(served: Served, tmp_path: Path) -> None:
    registry, cases = served
    refusing = VolumeFault(errno.EDQUOT, ("pwrite64",), 20, path="/data")
    run = cases["ngc"].pull(registry, tmp_path / "s", **faulty(refusing))
    is_full(run, "quota")
    assert standing_bytes(tmp_path / "s") > len(LARGE) / 3
    assert resume(cases["ngc"], registry, tmp_path / "s") == []


@contextmanager
def halfway(registry: Registry, act: Callable[[], None]) -> Iterator[None]:
    """``act`` is called once, when half of the large file has been asked for."""
    begun = threading.Event()

    def meanwhile(_request: Request, answer: Answer) -> Answer:
        if answer.start > len(LARGE) // 2 and not begun.is_set():
            begun.set()
            act()
        return answer

    registry.faults.append(Fault(meanwhile, server="cdn", times=None))
    try:
        yield
    finally:
        registry.faults.clear()
    assert begun.is_set()


def fill(path: Path) -> None:
    """Write there until the volume is full."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))


def test_f30_a_volume_that_another_fills_meanwhile(served: Served, tmp_path: Path) -> None:
    registry, cases = served
    store, filler = tmp_path / "volume" / "s", tmp_path / "volume" / "filler"
    store.parent.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=24m", "tmpfs", str(store.parent)):
        with halfway(registry, lambda: fill(filler)):
            is_full(cases["hub"].pull(registry, store), " B free")
        assert standing_bytes(store) > 0
        filler.unlink()
        assert resume(cases["hub"], registry, store) == []


def test_f30_a_volume_without_a_free_byte_holds_the_report_all_the_same(
    served: Served, tmp_path: Path
) -> None:
    registry, cases = served
    store = tmp_path / "volume" / "s"
    store.parent.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=24m", "tmpfs", str(store.parent)):
        assert cases["hub"].pull(registry, store).report["status"]["state"] == "Ready"
        fill(store.parent / "filler")
        is_full(cases["local-dir"].pull(registry, store), " 0 B free")


def test_f30_a_volume_whose_inodes_another_takes_meanwhile(served: Served, tmp_path: Path) -> None:
    registry, cases = served
    store, taken = tmp_path / "volume" / "s", tmp_path / "volume" / "taken"
    taken.mkdir(parents=True)

    def take() -> None:
        with pytest.raises(OSError, match="No space"):
            for number in range(1 << 20):
                (taken / str(number)).touch()

    with mounted("-t", "tmpfs", "-o", "size=64m,nr_inodes=400", "tmpfs", str(store.parent)):
        taken.mkdir()
        with halfway(registry, take):
            is_full(cases["local-dir"].pull(registry, store), "inodes")
        assert complaints(store, cases["local-dir"]) == []
        assert standing_bytes(store) > 0
        for path in taken.iterdir():
            path.unlink()
        assert resume(cases["local-dir"], registry, store) == []


def test_f29_too_few_inodes_are_told_before_the_first_byte(served: Served, tmp_path: Path) -> None:
    registry, cases = served
    store = tmp_path / "volume" / "s"
    store.parent.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=64m,nr_inodes=12", "tmpfs", str(store.parent)):
        run = cases["local-dir"].pull(registry, store)
        assert (run.code, "needs " in run.err, " inodes, has " in run.err) == (40, True, True), run.text
        assert tree(store) == {}


# -- two file systems --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ngc", "local-dir"])
def test_f33_a_rename_into_another_file_system_is_refused_and_not_a_copy(
    served: Served, tmp_path: Path, name: str
) -> None:
    registry, cases = served
    place = "/blobs/" if name == "ngc" else "/model.safetensors"
    across = VolumeFault(errno.EXDEV, ("rename", "renameat"), path=place)
    run = cases[name].pull(registry, tmp_path / "s", **faulty(across))
    assert run.code == 42, run.text
    assert "another file system" in run.report["error"]["message"]
    assert "one file system" in run.report["error"]["hint"]
    assert not list((tmp_path / "s").rglob("*model.safetensors"))
    assert resume(cases[name], registry, tmp_path / "s") == []
