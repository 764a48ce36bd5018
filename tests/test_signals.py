"""SIGTERM as a pod gets it: by the first process of a container, at any moment, also when something hangs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.calls import COMMANDS
from tests.crashing import Case, resume, serving
from tests.readers import LARGE, LOCAL, claimed, pulled, under_way
from tests.registry import Registry
from tests.running import CONFIG, Run, check, ended, start, tree
from tests.volume_faults import COMPILER, WITHOUT, VolumeFault, faulty, read_log

#: nimpull with this many seconds to stop in order, and time for the last words where a machine is busy.
WITH_GRACE = """
import nimpull.cli.signals as signals
signals.GRACE, signals.LAST_WORDS = {}, 4.0
from nimpull.__main__ import main
main()
"""
SOON, NEVER = 0.1, 600.0


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as started:
        yield started


@pytest.fixture(scope="module")
def first() -> tuple[str, ...]:
    """A command that makes another one the first process of a pid namespace, as a container does."""
    command = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    done = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"unshare cannot make a pid namespace here: {done.stderr.strip()}")
    return command


def await_that(condition: Callable[[], object], process: subprocess.Popen[str], store: Path) -> None:
    pause, deadline = threading.Event(), time.monotonic() + 60
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"it did not come to that: {ended(process, store).text}")
        pause.wait(0.01)


def child_of(process: subprocess.Popen[str]) -> int:
    """The one child of ``process``, by its number out here."""
    (number,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(number)


# -- as the first process ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_f41_sigterm_is_heard_before_the_first_import(
    first: tuple[str, ...], tmp_path: Path, command: str
) -> None:
    """The kernel drops a signal that the first process has no handler for, and nobody sends it twice."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    module, function = COMMANDS[command].split(":")
    done = subprocess.run(
        [*first, sys.executable, "-c", f"from {module} import {function} as run; run()"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (143, "nimpull: stopped by SIGTERM: cancelled, exit 143\n")


def test_f41_sigterm_as_the_first_process_stops_in_order(
    first: tuple[str, ...], registry: Registry, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with under_way(registry, store, threading.Event(), under=first) as (process, journal):
        began = time.monotonic()
        os.kill(child_of(process), signal.SIGTERM)
        run = ended(process, store)
        assert time.monotonic() - began < 30
        kept = claimed(journal)
    assert run.code == 143, run.text
    check(run.report)
    assert run.report["error"]["reference"] == "cancelled"
    config = 0 if (store / "config.json").exists() else len(CONFIG)
    again = pulled(registry, store, "hf://acme/large", *LOCAL)
    assert again.report["transfer"]["bytes"] == len(LARGE) - kept + config
    assert tree(store) == {"config.json": CONFIG, "model.safetensors": LARGE}


# -- what does not let go ----------------------------------------------------------------------------------


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that drops every attempt to connect: its queue of connections is full."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


def connecting(port: int, process: subprocess.Popen[str]) -> bool:
    """Whether ``process`` has sent a SYN to ``port`` that nobody answered (proc(5), /proc/net/tcp)."""
    waiting = {
        fields[9]
        for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
        if fields[2].endswith(f":{port:04X}") and fields[3] == "02"
    }
    links = (link for link in Path(f"/proc/{process.pid}/fd").iterdir())
    return any(target[8:-1] in waiting for target in map(_target, links) if target.startswith("socket:"))


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def hanging_in_connect(registry: Registry, store: Path, port: int, grace: float) -> subprocess.Popen[str]:
    process = start(
        registry,
        store,
        "download",
        "hf://acme/large",
        program=(sys.executable, "-c", WITH_GRACE.format(grace)),
        under=(),
        HF_ENDPOINT=f"http://127.0.0.1:{port}",
    )
    await_that(lambda: connecting(port, process), process, store)
    return process


def is_overdue(run: Run) -> None:
    assert run.code == 143, run.text
    check(run.report)
    assert run.report["error"]["reference"] == "cancelled"
    assert "did not let go" in run.report["error"]["message"]
    assert "did not let go" in run.err.splitlines()[-1]


def test_f41_a_connect_that_nobody_answers_does_not_hold_up_the_end(
    registry: Registry, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with black_hole() as port:
        process = hanging_in_connect(registry, store, port, NEVER)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        run = ended(process, store)
        assert time.monotonic() - began < 12, "the connect timeout is 15 s"
    assert run.code == 143, run.text
    check(run.report)
    assert run.report["error"]["reference"] == "cancelled"


def test_f41_a_second_sigterm_ends_at_once(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with black_hole() as port:
        process = hanging_in_connect(registry, store, port, NEVER)
        process.send_signal(signal.SIGTERM)
        await_that(lambda: not pending(process, signal.SIGTERM), process, store)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        run = ended(process, store)
        assert time.monotonic() - began < 12
    assert run.code == 143, run.text


def pending(process: subprocess.Popen[str], number: int) -> bool:
    """Whether the signal was sent and is not delivered yet."""
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    shared = next(line for line in status if line.startswith("ShdPnd"))
    return bool(int(shared.split()[1], 16) >> (number - 1) & 1)


def stopped_while_it_hangs(
    registry: Registry, case: Case, store: Path, *faults: VolumeFault, **environment: str
) -> Run:
    """A pull that gets SIGTERM once its first fsync on the path of the first fault hangs."""
    log = store.with_name("calls.log")
    process = start(
        registry,
        store,
        "download",
        case.uri,
        program=(sys.executable, "-c", WITH_GRACE.format(SOON)),
        under=(),
        **faulty(*faults, log=log),
        **environment,
    )
    await_that(
        lambda: any(call.name == "fsync" and faults[0].path in call.path for call in read_log(log)),
        process,
        store,
    )
    process.send_signal(signal.SIGTERM)
    return ended(process, store)


@pytest.mark.skipif(COMPILER is None, reason=WITHOUT)
@pytest.mark.parametrize("path", ["/.nimpull/ingest/", "/.nimpull/new/"], ids=["a worker", "the main thread"])
def test_f41_a_volume_that_hangs_does_not_hold_up_the_end(tmp_path: Path, path: str) -> None:
    store = tmp_path / "store"
    with serving() as (registry, cases):
        is_overdue(
            stopped_while_it_hangs(registry, cases["hub"], store, VolumeFault("hang", ("fsync",), path=path))
        )
        assert resume(cases["hub"], registry, store) == []


@pytest.mark.skipif(COMPILER is None, reason=WITHOUT)
def test_f41_f66_the_last_words_do_not_wait_for_a_volume_that_hangs(tmp_path: Path) -> None:
    """Every write hangs, that of the report too: the closing line and the termination message come first."""
    store, words = tmp_path / "store", tmp_path / "termination-log"
    words.touch()
    with serving() as (registry, cases):
        content = VolumeFault("hang", ("fsync",), path="/.nimpull/ingest/")
        report = VolumeFault("hang", ("rename", "renameat"), path="/report.json")
        run = stopped_while_it_hangs(
            registry, cases["hub"], store, content, report, NIMPULL_TERMINATION_LOG=str(words)
        )
    assert run.code == 143, run.text
    assert "did not let go" in run.text.splitlines()[-1]
    assert json.loads(words.read_bytes())["error"]["exitCode"] == 143
    assert run.report.get("error") is None, "it could not be written"


# -- in the middle of a commit -----------------------------------------------------------------------------

COMMITS = {
    # 0: all others were committed in the same moment
    "before a file gets its name": (("renameat",), "/blobs/", {143, 0}),
    "before a link": (("symlinkat",), "/snapshots/", {143, 0}),
    "before content is dropped": (("unlink",), "/ingest/", {143, 0}),
    "before the ready marker": (("renameat",), "/ready/", {0}),  # too late to stop
}


@pytest.mark.skipif(COMPILER is None, reason=WITHOUT)
@pytest.mark.parametrize("when", COMMITS)
def test_f41_sigterm_during_a_commit_leaves_whole_files(tmp_path: Path, when: str) -> None:
    store = tmp_path / "store"
    calls, path, codes = COMMITS[when]
    with serving() as (registry, cases):
        case: Case = cases["hub"]
        run = case.pull(registry, store, **faulty(VolumeFault("term", calls, last=1, path=path)))
        assert run.code in codes, run.text
        check(run.report)
        assert resume(case, registry, store) == []
