"""The process itself: streams closed or unread, threads that fail, no network, a store full of garbage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimpull.store.claims import CLAIMS, Claims
from nimpull.store.presence import EXPIRY
from nimpull.store.ready import Ready
from nimpull.store.record import StoredFile
from nimpull.store.tree import Tree
from tests.clocks import HandClock
from tests.committing import digest_of, open_store
from tests.crashing import LARGE, Case, complaints, serving
from tests.registry import Fault, Registry, faults
from tests.running import check, ended, start
from tests.volume_faults import COMPILER, WITHOUT, VolumeFault, faulty

Served = tuple[Registry, Mapping[str, Case]]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as registry_and_cases:
        yield registry_and_cases


# -- streams -----------------------------------------------------------------------------------------------


@contextmanager
def unread() -> Iterator[int]:
    """The writing end of a pipe that is full and that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(65536))
    os.set_blocking(writer, True)
    try:
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


#: nimpull, which leaves a log that nobody reads behind sooner.
IMPATIENT = """
from nimpull.progress import stream
stream.CLOSE_PATIENCE = 0.1
from nimpull.__main__ import main
main()
"""


def exit_code(registry: Registry, store: Path, shell: str, stream: int | None = None) -> int:
    """Of a pull that a shell starts by ``shell``, with "$@" in it; ``stream``: for its stdout and stderr."""
    environment = {
        "PATH": os.environ["PATH"],
        "HF_ENDPOINT": registry.hub_url,
        "HF_TOKEN": registry.hub.token,
        "NIMPULL_RETRY_SECONDS": "0",
    }
    program = (sys.executable, "-c", IMPATIENT, "download", "hf://acme/tiny", "--store", str(store))
    command = ["sh", "-c", shell, "sh", *program]
    return subprocess.run(
        command, env=environment, stdout=stream, stderr=stream, timeout=60, check=False
    ).returncode


@pytest.mark.parametrize(
    "shell", ['exec "$@" >&- 2>&-', 'exec "$@" <&- >&- 2>&-'], ids=["out and err", "all three"]
)
def test_f45_closed_streams_cost_nothing_and_get_into_no_file(
    served: Served, tmp_path: Path, shell: str
) -> None:
    """The numbers 1 and 2 are those of other files then: a line for the log must not get into one."""
    registry, cases = served
    assert exit_code(registry, tmp_path / "s", shell) == 0
    assert complaints(tmp_path / "s", cases["hub"]) == []
    assert json.loads((tmp_path / "s/.nimpull/report.json").read_text())["status"]["state"] == "Ready"


def test_f45_a_reader_that_goes_away_ends_nothing(served: Served, tmp_path: Path) -> None:
    registry, cases = served
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        code = exit_code(registry, tmp_path / "s", 'exec "$@"', gone.fileno())
    assert code == 0
    assert complaints(tmp_path / "s", cases["hub"]) == []


@pytest.mark.parametrize("fails", [False, True])
def test_f45_a_log_that_nobody_reads_ends_nothing(served: Served, tmp_path: Path, fails: bool) -> None:
    registry, _ = served
    gone = Fault(faults.status(404), server="cdn", times=None)
    registry.faults.extend([gone] if fails else [])
    try:
        with unread() as full:
            code = exit_code(registry, tmp_path / "s", 'exec "$@"', full)
    finally:
        registry.faults.clear()
    assert code == (21 if fails else 0)
    report = json.loads((tmp_path / "s/.nimpull/report.json").read_text())
    assert report["status"]["state"] == ("Failed" if fails else "Ready")


# -- a bug in one worker -----------------------------------------------------------------------------------

BROKEN = """
from nimpull.fetch.ordered import OrderedFile
def write(*arguments): raise ZeroDivisionError("a bug")
OrderedFile.write = write
from nimpull.__main__ import main; main()
"""
#: No thread of the engine can be started but the first ``allowed`` ones of each kind.
FEW_THREADS = """
import threading
begin = threading.Thread.start
def start(thread):
    name, _, number = thread.name.partition("-")
    if name in ("fetch", "locate", "supply") and int(number) >= {allowed}:
        raise RuntimeError("can't start new thread")
    begin(thread)
threading.Thread.start = start
from nimpull.__main__ import main; main()
"""


def test_f44_an_unknown_exception_ends_all_with_a_report(served: Served, tmp_path: Path) -> None:
    registry, _ = served
    program = (sys.executable, "-c", BROKEN)
    store = tmp_path / "s"
    run = ended(start(registry, store, "download", "hf://acme/tiny", program=program, under=()), store)
    assert run.code == 70, run.text
    check(run.report)
    assert run.report["error"]["reference"] == "internal-error"
    assert "Traceback" in run.err
    assert "Report it" in run.err or "report" in run.err.splitlines()[-1]
    assert not list(store.glob(".nimpull/ready/*"))


@pytest.mark.parametrize("allowed", [0, 1])
def test_threads_that_cannot_be_started_are_done_without(
    served: Served, tmp_path: Path, allowed: int
) -> None:
    """As pids.max and ulimit -v have it."""
    registry, cases = served
    program = (sys.executable, "-c", FEW_THREADS.format(allowed=allowed))
    store = tmp_path / "s"
    run = ended(start(registry, store, "download", "hf://acme/tiny", program=program, under=()), store)
    assert run.code == 0, run.text
    assert complaints(store, cases["hub"]) == []


NO_THREADS = """
import threading
def start(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
from nimpull.__main__ import main; main()
"""


def test_a_limit_of_the_process_is_no_bug(served: Served, tmp_path: Path) -> None:
    registry, _ = served
    store = tmp_path / "s"
    program = (sys.executable, "-c", NO_THREADS)
    run = ended(start(registry, store, "download", "hf://acme/tiny", program=program), store)
    assert run.code == 51, run.text
    last = run.err.rstrip().splitlines()[-1]
    assert last.startswith("nimpull: Failed (resource-limit, exit 51")
    assert "Traceback" not in run.text


@pytest.mark.parametrize(("files", "code"), [(20, 51), (48, 0)])
def test_too_few_open_files_are_told_before_the_first_request(
    served: Served, tmp_path: Path, files: int, code: int
) -> None:
    """Later they would look like a name that nobody knows, or a volume that is broken."""
    registry, cases = served
    registry.requests.clear()
    limited = ("sh", "-c", f'ulimit -n {files}; exec "$@"', "sh")
    run = ended(cases["hub"].start(registry, tmp_path / "s", under=limited), tmp_path / "s")
    assert run.code == code, run.text
    if code:
        assert "may have 20 files and sockets open" in run.report["error"]["message"]
        assert registry.requests == []


# -- no network --------------------------------------------------------------------------------------------


def test_f16_without_any_network_it_says_which_host_it_wanted(served: Served, tmp_path: Path) -> None:
    registry, cases = served
    without = ("unshare", "--net")
    if subprocess.run([*without, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare cannot make a network namespace here")
    run = ended(cases["hub"].start(registry, tmp_path / "s", under=without), tmp_path / "s")
    assert run.code == 30, run.text
    check(run.report)
    assert run.report["error"]["reference"] == "network"
    assert registry.hub_url.removeprefix("http://") in run.report["error"]["message"]


# -- garbage in the store ----------------------------------------------------------------------------------

ANYTHING = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
GARBAGE = st.one_of(
    st.binary(max_size=300),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
        max_leaves=9,
    ).map(lambda value: json.dumps(value).encode()),
)
MARKER = Ready("all", "nim-cache", 1.0, (StoredFile("f", 1, 2, digest_of(b"x")),), ("hf://a/b:1",), ("p",))


@ANYTHING
@given(GARBAGE)
def test_f43_no_bytes_make_a_ready_marker(tmp_path: Path, garbage: bytes) -> None:
    with open_store(str(tmp_path)) as store:
        path = Path(tmp_path, store.mark_ready(MARKER))
        path.write_bytes(garbage)
        assert store.ready("all") is None


@ANYTHING
@given(
    st.dictionaries(
        st.sampled_from(["version", "selection", "layout", "time", "files", "revisions"]), GARBAGE
    )
)
def test_f43_no_damaged_field_makes_a_traceback(tmp_path: Path, damage: dict[str, bytes]) -> None:
    with open_store(str(tmp_path)) as store:
        path = Path(tmp_path, store.mark_ready(MARKER))
        document = json.loads(path.read_text())
        for field, garbage in damage.items():
            with suppress(ValueError):
                document[field] = json.loads(garbage)
        path.write_text(json.dumps(document))
        assert store.ready("all") is None, "its file is not there"


@ANYTHING
@given(GARBAGE)
def test_f43_a_claim_that_cannot_be_read_expires_as_any_other(tmp_path: Path, garbage: bytes) -> None:
    unit, clock = "a" * 32, HandClock()
    planted = tmp_path / CLAIMS / f"{unit}.1"
    shutil.rmtree(planted.parent, ignore_errors=True)
    planted.parent.mkdir(parents=True)
    planted.write_bytes(garbage)
    claims = Claims(Tree(str(tmp_path)), owner="a", clock=clock)
    claims.presence.renew()
    assert claims.take(unit) is not None
    old = planted.stat().st_mtime - EXPIRY - 1
    os.utime(planted, (old, old))
    assert claims.take(unit) is None


@ANYTHING
@given(st.lists(GARBAGE, max_size=4))
def test_f43_no_bytes_make_a_record(tmp_path: Path, lines: list[bytes]) -> None:
    record = tmp_path / ".nimpull/record"
    record.mkdir(parents=True, exist_ok=True)
    (record / "garbage.jsonl").write_bytes(b"\n".join(lines))
    with open_store(str(tmp_path)) as store:
        assert store.record.entries == ()


@pytest.mark.skipif(COMPILER is None, reason=WITHOUT)
@pytest.mark.parametrize(
    "content",
    [b"", bytes(4096), b'{"version": 99}\n', b"\xff\xfe\x00garbage"],
    ids=["empty", "zeros", "future", "garbage"],
)
def test_f43_a_run_over_garbage_starts_over_and_ends_well(
    served: Served, tmp_path: Path, content: bytes
) -> None:
    """Everything that a killed run keeps for the next one is replaced."""
    registry, cases = served
    killed = faulty(VolumeFault("kill", ("write",), 14, path="/journal"))
    assert cases["hub"].pull(registry, tmp_path / "s", **killed).code == -9
    state = tmp_path / "s" / ".nimpull"
    for path in state.rglob("*"):
        if path.is_file() and path.name != "data" and "blobs" not in path.parts:
            path.write_bytes(content)
            os.utime(path, (1, 1))  # nobody has written it for a while
    run = cases["hub"].pull(registry, tmp_path / "s")
    assert run.code == 0, run.text
    assert "Traceback" not in run.text
    # small files that were committed before are read again and believed
    assert run.report["transfer"]["bytes"] >= len(LARGE)
    assert complaints(tmp_path / "s", cases["hub"]) == []


# -- content that is none ----------------------------------------------------------------------------------


@pytest.mark.skipif(COMPILER is None, reason=WITHOUT)
@pytest.mark.parametrize("lost", ["a hole", "zeros"])
def test_f34_a_file_of_full_length_without_its_bytes_is_fetched_again(
    served: Served, tmp_path: Path, lost: str
) -> None:
    """As a file system leaves it that kept the length and the journal, but not the content."""
    registry, cases = served
    killed = faulty(VolumeFault("kill", ("fchmod",), path="/data"))
    assert cases["local-dir"].pull(registry, tmp_path / "s", **killed).code == -9
    (data,) = (tmp_path / "s").glob(".nimpull/ingest/*/data")
    assert data.read_bytes() == LARGE
    with data.open("r+b") as file:
        if lost == "a hole":
            file.truncate(0)
            file.truncate(len(LARGE))
        else:
            file.write(bytes(len(LARGE)))
    assert (tmp_path / "s" / ".nimpull").is_dir()
    run = cases["local-dir"].pull(registry, tmp_path / "s")
    assert run.code == 0, run.text
    assert run.report["transfer"]["bytes"] >= len(LARGE)
    assert complaints(tmp_path / "s", cases["local-dir"]) == []


def test_f34_a_committed_file_that_lost_its_bytes_is_found_and_fetched_again(
    served: Served, tmp_path: Path
) -> None:
    registry, cases = served
    case, store = cases["local-dir"], tmp_path / "s"
    assert case.pull(registry, store).code == 0
    weights = store / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(bytes(len(LARGE)))
    run = case.pull(registry, store)
    assert run.code == 0, run.text
    assert run.report["transfer"]["bytes"] == len(LARGE)
    assert complaints(store, case) == []
