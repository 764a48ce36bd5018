"""Progress on a terminal, in a pod's log and as JSON; none of it can hold up a download."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from nimpull.core.artifacts import Action, Artifact, Outcome
from nimpull.core.events import Advanced, Finished, Note, Phase, Planned, Waiting
from nimpull.core.names import ModelUri, SafePath
from nimpull.core.ports import Cancel
from nimpull.progress import MOST_UNSHOWN, Mode, Progress, choose_mode
from nimpull.progress.stream import use_ascii
from nimpull.settings import is_ascii_only

MIB = 1 << 20
ARTIFACT = Artifact(SafePath("model.safetensors"), 10 * MIB, (), ModelUri.parse("hf://acme/tiny"))
OUTCOME = Outcome(ARTIFACT, Action.FETCHED, 10 * MIB, 1, 2.0, "sha256", 10 * MIB)


class HandClock:
    """Moves only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_795_000_000.0

    def wait(self, seconds: float, until: Cancel) -> bool:
        self.now += seconds
        return until.is_set()

    def jitter(self) -> float:
        return 0.0


def a_progress(mode: Mode = Mode.LINES) -> tuple[Progress, io.StringIO, HandClock]:
    stream, clock = io.StringIO(), HandClock()
    return Progress(mode, stream, clock, 10.0), stream, clock


@contextmanager
def a_pipe() -> Iterator[tuple[int, io.TextIOWrapper]]:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    try:
        yield reader, stream
    finally:
        os.close(reader)
        stream.close()


def read_all(descriptor: int) -> str:
    """What a terminal was sent; its other end is closed, which reads as EIO."""
    parts = []
    with contextlib.suppress(OSError):
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    os.close(descriptor)
    return b"".join(parts).decode()


def test_a_pod_log_gets_a_line_per_interval() -> None:
    progress, stream, clock = a_progress()
    progress(Phase("listing", "hf://acme/tiny"))
    progress(Planned(files=5, total=100 * MIB, present=20 * MIB, files_present=1))
    progress(Phase("fetching"))
    for _ in range(20):
        clock.now += 1.0
        progress(Advanced(2 * MIB))
        progress.beat()
    progress(Finished(OUTCOME))
    progress.close()
    assert stream.getvalue().splitlines() == [
        "listing: hf://acme/tiny",
        "plan: 5 files, 100.0 MiB; here already: 1 file, 20.0 MiB",
        "fetching",
        "fetching: 40.0 MiB of 100.0 MiB (40%), 2.0 MiB/s, eta 30s, 1/5 files",
        "fetching: 60.0 MiB of 100.0 MiB (60%), 2.0 MiB/s, eta 20s, 1/5 files",
        "fetching: 60.0 MiB of 100.0 MiB (60%), 2.0 MiB/s, eta 20s, 2/5 files",
    ]


def test_f15_a_stall_shows_in_the_heartbeat() -> None:
    progress, stream, clock = a_progress()
    progress(Planned(1, 100 * MIB, 0))
    clock.now += 1.0
    progress(Advanced(MIB))
    for _ in range(5):
        clock.now += 10.0
        progress.beat()
    assert stream.getvalue().splitlines()[-1] == (
        "progress: 1.0 MiB of 100.0 MiB (1%), 0 B/s, 0/1 files, no bytes for 50s"
    )


def test_the_rate_looks_back_half_a_minute() -> None:
    progress, _, clock = a_progress(Mode.QUIET)
    progress(Planned(2, 1000 * MIB, 100 * MIB, 1))
    for step in range(100):
        clock.now += 1.0
        progress(Advanced((1 if step < 60 else 4) * MIB))
    shown = progress.summary()
    assert (shown.done, shown.total, shown.files, shown.files_total) == (320 * MIB, 1000 * MIB, 1, 2)
    assert shown.rate == pytest.approx(4 * MIB)
    assert shown.eta == pytest.approx(170.0)


def test_a_dropped_chunk_is_taken_back() -> None:
    progress, _, _ = a_progress(Mode.QUIET)
    progress(Planned(1, 100, 0))
    progress(Advanced(60))
    progress(Advanced(-60))
    assert progress.summary().done == 0


def test_files_that_were_present_are_counted_once() -> None:
    progress, _, _ = a_progress(Mode.QUIET)
    progress(Planned(3, 30 * MIB, 10 * MIB, 1))
    progress(Finished(replace(OUTCOME, action=Action.SKIPPED)))
    progress(Finished(OUTCOME))
    assert progress.summary().files == 2


def test_json_lines() -> None:
    progress, stream, clock = a_progress(Mode.JSON)
    progress(Phase("fetching", "a\nb"))
    progress(Planned(1, 10 * MIB, 0))
    clock.now += 10.0
    progress(Advanced(10 * MIB))
    progress(Finished(OUTCOME))
    progress(Waiting("HTTP 429 from hub", 30.0))
    progress(Note("odd", "warning"))
    progress.close()
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [record["event"] for record in records] == [
        "phase", "planned", "finished", "waiting", "note", "progress",
    ]  # fmt: skip
    assert records[0]["detail"] == "a\\nb"
    assert records[-1] == {
        "time": "2026-11-18T11:06:40Z",
        "event": "progress",
        "phase": "fetching",
        "bytesDone": 10 * MIB,
        "bytesTotal": 10 * MIB,
        "bytesPerSecond": MIB,
        "etaSeconds": 0,
        "filesDone": 1,
        "filesTotal": 1,
        "stalledSeconds": 0,
    }


def test_the_thread_writes_by_itself_and_finishes_the_log() -> None:
    with a_pipe() as (reader, stream):
        with Progress(Mode.LINES, stream, HandClock(), 10.0) as progress:
            progress(Note("first"))
            assert os.read(reader, 100) == b"first\n"  # blocks until the thread has written
            progress(Planned(1, 10, 10, 1))
        assert (
            os.read(reader, 1000).decode().splitlines()[-1]
            == "progress: 10 B of 10 B (100%), 0 B/s, 1/1 files"
        )
    assert not [thread for thread in threading.enumerate() if thread.name == "nimpull-progress"]


def test_equal_pauses_of_many_workers_are_one_line() -> None:
    progress, stream, clock = a_progress()
    for _ in range(16):
        progress(Waiting("HTTP 429 from hub", 30.0))
    progress.beat()
    clock.now += 11.0
    progress(Waiting("HTTP 429 from hub", 30.0))
    progress.beat()
    assert stream.getvalue() == "waiting 30s: HTTP 429 from hub\n" * 2


def test_f57_events_cannot_forge_a_line() -> None:
    progress, stream, _ = a_progress()
    progress(Note("a\nReady: all good\x1b[2J\u202e"))
    progress(Phase("listing", "x\r\ny"))
    progress.close()
    assert stream.getvalue() == "a\\nReady: all good\\x1b[2J\\u202e\nlisting: x\\r\\ny\n"


def test_f45_closed_streams_are_ignored() -> None:
    stream = io.StringIO()
    stream.close()
    progress = Progress(Mode.LINES, stream, HandClock(), 10.0)
    progress(Note("nobody hears this"))
    progress.close()
    assert choose_mode(stream) is Mode.QUIET


def test_f45_a_reader_that_went_away_is_ignored() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, Progress(Mode.LINES, stream, HandClock(), 10.0) as progress:
        progress(Note("EPIPE"))
        progress.beat()
        progress(Advanced(MIB))
        assert progress.summary().done == MIB


def test_f45_a_reader_that_does_not_read_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nimpull.progress.stream.CLOSE_PATIENCE", 0.05)
    with a_pipe() as (reader, stream):
        progress = Progress(Mode.LINES, stream, HandClock(), 10.0)
        with progress:
            for number in range(2 * MOST_UNSHOWN):
                progress(Note(f"{number:01000}"))  # 4 MB into a pipe of 64 KiB
            for _ in range(100):
                progress(Advanced(MIB))
            assert progress.summary().done == 100 * MIB
            writing = next(thread for thread in threading.enumerate() if thread.name == "nimpull-progress")
        assert writing.is_alive(), "the pipe is full, so the writer must still be waiting"
        os.set_blocking(reader, False)
        seen = b""
        while writing.is_alive():  # let it go: the thread ends once someone reads
            with contextlib.suppress(BlockingIOError):
                seen += os.read(reader, 1 << 20)
            writing.join(0.001)
        with contextlib.suppress(BlockingIOError):
            seen += os.read(reader, 1 << 20)
    assert len(seen) < 2000 * MOST_UNSHOWN
    assert b"lines not shown: the log is read too slowly" in seen


def test_f45_a_clock_that_jumps_moves_no_deadline() -> None:
    progress, stream, clock = a_progress()
    clock.time = lambda: -1e9  # type: ignore[method-assign]
    progress(Planned(1, 100, 0))
    clock.now += 9.0
    progress.beat()
    assert "progress:" not in stream.getvalue()
    clock.now += 1.0
    progress(Advanced(50))
    progress.beat()
    assert stream.getvalue().splitlines()[-1] == "progress: 50 B of 100 B (50%), 5 B/s, eta 10s, 0/1 files"


def test_a_terminal_gets_a_bar() -> None:
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        assert choose_mode(stream) is Mode.BAR
        clock = HandClock()
        progress = Progress(Mode.BAR, stream, clock, 10.0)
        progress(Planned(2, 100 * MIB, 0))
        progress(Phase("fetching"))
        progress.beat()
        progress(Advanced(50 * MIB))
        progress(Note("a note"))
        progress(Waiting("HTTP 429 from hub", 30.0))
        progress.beat()
        progress.close()
    shown = read_all(controller)
    assert re.search(r"fetching +50%\|.*\| 50\.0 MiB of 100\.0 MiB, ", shown), shown
    assert "plan: 2 files, 100.0 MiB; here already: 0 files, 0 B" in shown
    assert "a note" in shown
    assert "waiting 30s: HTTP 429 from hub" in shown
    assert "0/2 files" in shown


@contextmanager
def a_terminal(columns: int, *, ascii: bool = False) -> Iterator[tuple[int, Progress, HandClock]]:
    """A run at 25 of 100 MiB on a terminal of that width; its controlling side is read with ``seen``."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    with os.fdopen(terminal, "w") as stream:
        clock = HandClock()
        if ascii:
            use_ascii(stream)
        progress = Progress(Mode.BAR, stream, clock, 10.0)
        progress(Planned(2, 100 * MIB, 0))
        progress(Phase("fetching"))
        clock.now += 5
        progress(Advanced(25 * MIB))
        yield controller, progress, clock
    os.close(controller)


def seen(controller: int) -> str:
    """What was written since. The kernel hands it over on a thread of its own, a moment after the write."""
    parts = []
    while select.select([controller], [], [], 0.1)[0]:
        parts.append(os.read(controller, 1 << 16))
    return b"".join(parts).decode()


def test_a_narrower_terminal_gets_a_narrower_bar_in_the_same_line() -> None:
    with a_terminal(120) as (controller, progress, _):
        progress.beat()
        wide = seen(controller)
        termios.tcsetwinsize(controller, (24, 50))
        progress.beat()
        narrow = seen(controller)
    assert "25.0 MiB of 100.0 MiB, 5.0 MiB/s, eta 15s, 0/2 files" in wide
    (line,) = re.findall(r"\r([^\r\n]*)\x1b\[K", narrow)
    assert len(line) < 50
    assert re.fullmatch(r"fetching  25%\|.{5,}\| 25\.0 MiB of 100\.0 MiB", line), line
    assert "\n" not in narrow


def test_what_the_terminal_echoes_behind_the_bar_is_erased() -> None:
    with a_terminal(80) as (controller, progress, _):
        progress.beat()
        bar = seen(controller).rpartition("\r")[2].removesuffix("\x1b[K")
        progress.beat()
        again = seen(controller)
    assert len(bar) + len("^C") < 80
    assert again.startswith("\r")
    assert again.endswith("\x1b[K")


def test_a_plain_terminal_gets_ascii() -> None:
    with a_terminal(80, ascii=True) as (controller, progress, _):
        progress(Note("a — b “c”… \u4e2d"))
        progress.beat()
        progress.close()
        shown = seen(controller)
    assert shown.isascii()
    assert 'a - b "c"... \\u4e2d' in shown
    assert re.search(r"25%\|#+\d? +\|", shown), shown


def test_a_terminal_that_moves_no_cursor_gets_lines() -> None:
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        assert choose_mode(stream, dumb=True) is Mode.LINES
    os.close(controller)


@pytest.mark.parametrize(
    ("environ", "plain"),
    [
        ({}, False),
        ({"LANG": "C"}, True),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "POSIX"}, True),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, True),  # what Python makes of LANG=C
        ({"LC_CTYPE": "C.UTF-8"}, False),
        ({"LANG": "C", "LC_CTYPE": "de_DE.UTF-8"}, False),
        ({"LANG": "C.UTF-8", "TERM": "dumb"}, True),
    ],
)
def test_plain_text_is_for_those_who_ask(environ: dict[str, str], plain: bool) -> None:
    assert is_ascii_only(environ) is plain


def test_counting_is_safe_and_cheap_from_many_threads() -> None:
    progress, _, _ = a_progress(Mode.LINES)
    progress(Planned(1, 1 << 40, 0))

    def work() -> None:
        for _ in range(5000):
            progress(Advanced(3))

    threads = [threading.Thread(target=work) for _ in range(8)]
    began = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.summary().done == 8 * 5000 * 3
    assert (
        time.process_time() - began
    ) / 40_000 < 100e-6  # seconds of CPU for a MiB; hashing it costs 400e-6


UNREAD = """
import sys
from nimpull import progress
from nimpull.clock import SystemClock
from nimpull.core.events import Note
from nimpull.progress import stream
stream.CLOSE_PATIENCE = 0.05
with progress.Progress(progress.Mode.LINES, sys.stdout, SystemClock()) as shown:
    for _ in range(300):
        shown(Note("x" * 1000))
sys.exit(7)
"""


def test_f45_a_process_ends_with_its_own_code_while_nobody_reads_its_log() -> None:
    with a_pipe() as (_, stream):
        run = subprocess.run(
            [sys.executable, "-c", UNREAD], stdout=stream, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (run.returncode, run.stderr) == (7, b"")
