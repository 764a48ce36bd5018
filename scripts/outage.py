"""An NFS server that goes away in the middle of a pull: in a guest (:mod:`scripts.guest`), for real.

On a soft mount its calls fail after a while: the pull ends with an exit code that a Job tries again
after. On a hard one they wait for ever, and nothing but SIGTERM ends the pull: its closing line comes all
the same, in time.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from scripts.network_volumes import serve_nfs
from tests.registry import Registry
from tests.running import Run, ended, start

RETRIED: Final = frozenset({40, 42, 43})  # that a volume's failure may end in
_URI: Final = "hf://acme/tiny"
_RATE: Final = 1 << 20  # bytes per second of a connection: the outage comes in the middle
_LONG: Final = 240.0  # seconds of an outage
_GRACE: Final = 8.0  # seconds from SIGTERM to the closing line


def outages(registry: Registry, root: Path, *, soft: bool, moments: int) -> list[str]:
    """Complaints. ``moments``: how many outages, later and later in a pull."""
    registry.rate = _RATE
    found = []
    try:
        for number in range(moments):
            store = root / f"outage-{'soft' if soft else 'hard'}-{number}"
            arguments = ("download", _URI, "--store", str(store), "--layout", "local-dir")
            process = start(registry, store, *arguments, NIMPULL_RETRY_SECONDS="20")
            _await(lambda store=store: list(store.glob(".nimpull/ingest/*/data")), process)  # type: ignore[misc]
            time.sleep(0.3 * number)
            serve_nfs("0")
            run, seconds = _ended_without(process, soft=soft)
            serve_nfs()
            found += [f"outage {number}: {each}" for each in _judge(run, seconds, soft=soft)]
            registry.rate = 0
            again = ended(start(registry, store, *arguments), store)
            registry.rate = _RATE
            if again.code:
                found.append(f"after outage {number}: {again.text[-400:]}")
    finally:
        registry.rate = 0
    return found


def _await(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 30
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


def _ended_without(process: subprocess.Popen[str], *, soft: bool) -> tuple[Run, float]:
    """How it ends while the server is away, and after how many seconds its last line came."""
    began = time.monotonic()
    if not soft:
        time.sleep(2)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
    # a soft mount takes seconds for each call, and a pull needs some to end; on a hard one the kernel keeps a
    # process that has written what the server has not taken, whatever signal it gets
    back = threading.Timer(_LONG if soft else 2 * _GRACE, serve_nfs)
    back.start()
    said, last = [], began
    with process:
        assert process.stderr and process.stdout
        for line in process.stderr:
            said.append(line)
            last = time.monotonic()
        out = process.stdout.read()
    back.cancel()
    return Run(process.returncode, out, "".join(said), {}), last - began


def _judge(run: Run, seconds: float, *, soft: bool) -> list[str]:
    last = (run.text.strip().splitlines() or [""])[-1]
    if soft:
        right = run.code in RETRIED and f"exit {run.code}" in last
    else:
        right = run.code == 143 and "exit 143" in last and seconds < _GRACE
    return [] if right else [f"ended with {run.code} after {seconds:.1f} s: {last[-300:]}"]
