"""Pulls, and what the readers of a store make of them: huggingface_hub's own programs, the journal."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nimpull.store.journal import parse_journal
from tests.registry import Fault, Registry, Request
from tests.registry.wire import Answer
from tests.running import CONFIG, Run, check, ended, nimpull, start

LARGE = bytes(range(256)) * (24 << 12)  # 24 MiB: several journal lines
LOCAL = ("--layout", "local-dir")
HELD_AT = 20 << 20  # the byte that the registry keeps back
JOURNALS = ".nimpull/ingest/*/journal"


def content_requests(registry: Registry) -> list[tuple[str, str]]:
    """GETs of file content in their order: at the Hub itself, and at the CDN behind it."""
    return [
        (request.server, request.path)
        for request in registry.log()
        if request.method == "GET" and (request.server == "cdn" or "/resolve" in request.path)
    ]


def reader(registry: Registry, home: Path, *command: str, **environment: str) -> tuple[int, str]:
    """Run a program of the virtual environment, with huggingface_hub pointed at the registry."""
    known = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home),
        "HF_ENDPOINT": registry.hub_url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        command, env={**known, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


def hf(registry: Registry, home: Path, *arguments: str) -> tuple[int, str]:
    return reader(registry, home, str(Path(sys.executable).with_name("hf")), *arguments)


def pull(registry: Registry, store: Path, *arguments: str, **environment: str) -> Run:
    """A download whose report, if it wrote one, keeps to the schema."""
    run = nimpull(registry, store, "download", *arguments, **environment)
    if run.report:
        check(run.report)
    return run


def pulled(registry: Registry, store: Path, *arguments: str) -> Run:
    run = pull(registry, store, *arguments)
    assert run.code == 0, run.text
    return run


def claimed(journal: Path) -> int:
    """Bytes that the journal says are on the disk."""
    return sum(claim.end - claim.start for claim in parse_journal(journal.read_bytes(), len(LARGE)))


@contextmanager
def under_way(
    registry: Registry, store: Path, release: threading.Event, *, under: tuple[str, ...] = ()
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A pull of LARGE whose end does not come, once its journal has a line; and that journal."""
    registry.add_hub_repo("acme/large", {"config.json": CONFIG, "model.safetensors": LARGE})

    def hold(_request: Request, answer: Answer) -> Answer:
        if not answer.start <= HELD_AT < answer.end:
            return answer
        return replace(answer, hold=release, hold_at=HELD_AT - answer.start)

    registry.faults.append(Fault(hold, server="cdn", times=None))
    with start(registry, store, "download", "hf://acme/large", *LOCAL, under=under) as process:
        try:
            deadline = time.monotonic() + 60
            while not (found := [path for path in store.glob(JOURNALS) if claimed(path)]):
                assert time.monotonic() < deadline, "nothing was recorded"
                assert process.poll() is None, ended(process, store).text
                release.wait(0.02)
            yield process, found[0]
        finally:
            process.kill()
            release.set()
            registry.faults.clear()
