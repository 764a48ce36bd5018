"""How long a pull takes on a volume, beside writing the same files there: 217 MiB in 204 files.

The other writer does what ``dd conv=fsync`` does: each file in turn, written in blocks of 1 MiB and synced,
its bytes in memory from the start. A pull receives and hashes them too, and its server is on the same
machine: what that costs there, the same pull into memory shows.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

from tests.pulling import noise
from tests.registry import Registry
from tests.running import ended, start

MIB: Final = 1 << 20
GOAL: Final = 1.6  # times the seconds of the other writer
_REPOSITORY: Final = "acme/fast"
_ROUNDS: Final = 3


def content() -> dict[str, bytes]:
    large = {f"model-{number}.safetensors": noise(53 * MIB, number) for number in range(4)}
    return {**large, **{f"small/part-{number:03}.json": noise(25 << 10, 9 + number) for number in range(200)}}


def measure(root: Path) -> str:
    """One line of figures: the medians of the rounds, and all of them."""
    files = content()
    pulls, writes, beside = [], [], []
    with Registry() as registry, tempfile.TemporaryDirectory() as memory:
        registry.add_hub_repo(_REPOSITORY, files)
        for number in range(_ROUNDS):
            pulls.append(_pull(registry, root / f"pulled-{number}"))
            beside.append(_pull(registry, Path(memory, "pulled")))
            writes.append(_write(files, root / f"written-{number}"))
    ratio = median(pulls) / median(writes)
    figures = (
        f"{name} {', '.join(f'{each:.2f}' for each in found)} s"
        for name, found in (("pulls", pulls), ("into memory", beside), ("writes", writes))
    )
    return f"{ratio:.2f} of a write's time, {GOAL} is wanted ({'; '.join(figures)})"


def _pull(registry: Registry, store: Path) -> float:
    arguments = ("download", f"hf://{_REPOSITORY}", "--store", str(store), "--layout", "local-dir")
    began = time.monotonic()
    run = ended(start(registry, store, *arguments), store)
    seconds = time.monotonic() - began
    if run.code:
        raise RuntimeError(run.text)
    shutil.rmtree(store)
    return seconds


def _write(files: dict[str, bytes], directory: Path) -> float:
    began = time.monotonic()
    for name, octets in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        view = memoryview(octets)
        for start_of in range(0, len(view), MIB):
            os.write(file, view[start_of : start_of + MIB])
        os.fsync(file)
        os.close(file)
    seconds = time.monotonic() - began
    shutil.rmtree(directory)
    return seconds
