"""Random schedules: pods that start, are killed, sleep and wake, and have wrong clocks, over two models on
one volume.

Each schedule is a store of its own, and two to five pods: processes that cannot see each other's, against
a registry in this one. At its end no file under a final name may hold a wrong byte, every pod that lived
must have ended with 0, and there must be one ready marker for each selection. Nothing may hang.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests import quick_pods
from tests.pulling import noise
from tests.registry import Registry
from tests.running import start

MIB = 1 << 20
MODELS: Mapping[str, Mapping[str, bytes]] = {
    name: {
        **{f"{name}-{n}.safetensors": noise(MIB + n * 99_991, seed + n) for n in range(large)},
        **{f"{name}/part-{n:02}.json": noise(500 + n, seed + 50 + n) for n in range(small)},
    }
    for name, large, small, seed in (("one", 4, 12, 100), ("other", 2, 6, 200))
}
RATE = MIB  # bytes per second of a connection: a pull takes seconds, so that there is something to disturb
MOST = 90.0  # seconds of a schedule; what lasts longer hangs
_SOURCE = Path(quick_pods.__file__).with_name("shifted_clock.c")
DAYS = (0, 0, 0, -400, -1, 30)


@dataclass(slots=True)
class Pod:
    process: subprocess.Popen[str]
    model: str
    killed: bool = False
    log: str = field(default="", repr=False)


class Schedule:
    """One store and its pods. ``wrong``: what must not have been."""

    def __init__(self, registry: Registry, store: Path, library: Path | None, seed: int) -> None:
        self._registry = registry
        self._store = store
        self._library = library
        self._dice = random.Random(seed)
        self._pods: list[Pod] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        try:
            for _ in range(self._dice.randint(2, 5)):
                self._begin()
                time.sleep(self._dice.choice((0.0, 0.0, 0.3, 1.0)))
            for _ in range(self._dice.randint(2, 8)):
                time.sleep(self._dice.uniform(0.1, 1.2))
                self._disturb(self._dice.choice(self._pods))
            self._await_all()
            self._judge()
        finally:
            for pod in self._pods:
                pod.process.kill()
                pod.process.communicate()

    def _begin(self) -> None:
        model = self._dice.choice(("one", "one", "other"))
        number, days = len(self._pods), self._dice.choice(DAYS)
        clock = {"LD_PRELOAD": str(self._library), "CLOCK_AHEAD": str(days * 86400)} if self._library else {}
        process = start(
            self._registry,
            self._store,
            "download",
            f"hf://acme/{model}",
            "--layout",
            "local-dir",
            under=(),
            program=(sys.executable, quick_pods.__file__),
            NODE=f"node-{number}",
            NIMPULL_RETRY_SECONDS="60",
            NIMPULL_CONNECTIONS="2",
            JOB_COMPLETION_INDEX=str(number),
            **clock,
        )
        self._pods.append(Pod(process, model))

    def _disturb(self, pod: Pod) -> None:
        what = self._dice.choice(("kill", "sleep", "sleep", "start"))
        alive = [each for each in self._pods if not each.killed]
        if what == "kill" and len(alive) > 1 and not pod.killed and pod.process.poll() is None:
            pod.killed = True
            pod.process.kill()
        elif what == "sleep" and not pod.killed:
            seconds = self._dice.choice((0.3, 1.0, 2 * quick_pods.EXPIRY))
            pod.process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            pod.process.send_signal(signal.SIGCONT)
        elif what == "start" and len(self._pods) < 7:
            self._begin()

    def _await_all(self) -> None:
        end = time.monotonic() + MOST
        for number, pod in enumerate(self._pods):
            try:
                out, err = pod.process.communicate(timeout=max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.wrong.append(f"pod {number} of {pod.model} hangs")
                continue
            if not pod.killed and pod.process.returncode:
                last = (out + err).strip().splitlines()[-1:]
                self.wrong.append(f"pod {number} of {pod.model} ended with {pod.process.returncode}: {last}")

    def _judge(self) -> None:
        for name, files in MODELS.items():
            lived = any(pod.model == name and not pod.killed for pod in self._pods)
            for path, content in files.items():
                found = self._store / path
                if found.exists() and found.read_bytes() != content:
                    self.wrong.append(f"{path} has wrong bytes")
                if lived and not found.exists():
                    self.wrong.append(f"{path} is not there")
        models = {pod.model for pod in self._pods if not pod.killed}
        markers = len(list((self._store / ".nimpull/ready").glob("*")))
        if not len(models) <= markers <= len({pod.model for pod in self._pods}):
            self.wrong.append(f"{markers} ready markers for {len(models)} models")
        for place in ("claims", "runs"):
            left = [path.name for path in (self._store / ".nimpull" / place).glob("*")]
            if left and not any(pod.killed for pod in self._pods):
                self.wrong.append(f"left in {place}: {left}")


@contextmanager
def shifting(folder: Path) -> Iterator[Path | None]:
    """The library that gives a process another clock; None where there is no C compiler."""
    compiler, library = shutil.which("cc"), folder / "shifted_clock.so"
    if compiler:
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True)
    yield library if compiler else None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schedules", type=int, default=200, metavar="N", help="how many [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the first one [%(default)s]")
    options = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory(prefix="nimpull-pods-") as scratch, Registry() as registry:
        registry.rate = RATE
        for name, files in MODELS.items():
            registry.add_hub_repo(f"acme/{name}", files)
        with shifting(Path(scratch)) as library:
            for seed in range(options.seed, options.seed + options.schedules):
                store = Path(scratch, f"store-{seed}")
                schedule = Schedule(registry, store, library, seed)
                schedule.run()
                for text in schedule.wrong:
                    print(f"schedule {seed}: {text}", flush=True)
                bad += bool(schedule.wrong)
                with suppress(OSError):
                    shutil.rmtree(store)
                if (seed - options.seed + 1) % 10 == 0:
                    print(f"{seed - options.seed + 1} schedules, {bad} of them went wrong", flush=True)
    print(f"pods-test: {options.schedules} schedules, {bad} of them went wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
