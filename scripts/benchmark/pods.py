"""Pods that fill one volume together, each with a network of its own whose link is the limit.

A pod is a process in a network namespace that a veth pair with a token bucket leads to, and in a process
namespace: as on another node, the others cannot see whether it runs.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from scripts.benchmark.content import MIB, Repository, difference, make_repository, occupied
from scripts.benchmark.measure import Bench, say
from scripts.benchmark.peers import Work
from scripts.benchmark.session import Failed, Session

NAME = "pods"
RATE = 50 * MIB  # bytes per second of a pod's link
COUNTS = (1, 2, 4, 8)
KILLED = (1, 3)  # of four pods, once half of the bytes are on the disk
GOALS = {4: 0.30, 8: 0.17}  # of the time that one pod takes
SERVED = 1.01  # of the model's bytes
_HOSTS = ("198.18.0.1", "198.18.0.2")  # of RFC 2544: for benchmarks, routed nowhere
_BURST = 256 << 10


def title(unit: int) -> str:
    return f"16 x {2 * unit} MiB on one volume, pods whose links bring {RATE // MIB} MiB/s each"


def sizes(unit: int) -> tuple[int, ...]:
    return (2 * unit * MIB,) * 16


def hindrance() -> str:
    """Why it cannot be measured here, or ""."""
    if os.geteuid():
        return "namespaces and their links need root"
    missing = [name for name in ("ip", "tc", "unshare") if not shutil.which(name)]
    return f"{', '.join(missing)} is not in PATH" if missing else ""


OTHERS: Final = 1.15  # two models at one time, of the time that each takes alone


@dataclass(frozen=True, slots=True)
class Round:
    """``seconds`` until the last pod that lived had ended; ``served``: of the model's bytes."""

    seconds: float
    served: float


def section(bench: Bench, session: Session, rounds: int, unit: int, *, judged: bool) -> list[str]:
    """The table: every number of pods in each round. Raises Failed."""
    repository = bench.repository(sizes(unit))
    rows: dict[tuple[int, bool], list[Round]] = {(count, False): [] for count in COUNTS}
    rows[4, True] = []
    models: list[float] = []
    with links(max(COUNTS)) as names:
        for turn in range(rounds):
            for (count, killing), found in rows.items():
                say(f"round {turn + 1}: {count} pods{', two killed at half' if killing else ''}")
                with bench.servers.serve(repository, log=True, hosts=_HOSTS) as server:
                    work = bench.work(repository, server.endpoint)
                    bench.empty(work)
                    seconds = _pull(session, work, names[:count], killing)
                    wrong = difference(repository, work.target)
                    if wrong:
                        raise Failed(wrong)
                    time.sleep(0.2)  # nginx writes what the last connections got
                    found.append(Round(seconds, server.sent / repository.size))
            models.append(_two_models(bench, session, repository, names))
    slower = statistics.median(models)
    told = f"\nTwo pods with different models on one volume: {slower:.2f} of the time that each takes alone."
    missed = [f"\n{OTHERS} is wanted."] if judged and slower > OTHERS else []
    return [*_lines(rows, judged=judged), told, *missed]


def _two_models(bench: Bench, session: Session, first: Repository, names: Sequence[str]) -> float:
    """The time beside each other, of the time alone: of the one that is held up more."""
    second = make_repository(first.www, tuple(file.size - MIB for file in first.files))
    say("two models")
    with bench.servers.serve(first, second, hosts=_HOSTS) as server:
        works = [bench.work(each, server.endpoint) for each in (first, second)]
        alone = []
        for work, name in zip(works, names, strict=False):
            bench.empty(work)
            alone.append(_seconds_of(session, [(work, name)])[0])
        bench.empty(works[0])
        together = _seconds_of(session, list(zip(works, names, strict=False)))
    shutil.rmtree(second.folder)
    shutil.rmtree(second.www / "api" / "models" / second.repo_id)
    return max(beside / by_itself for beside, by_itself in zip(together, alone, strict=True))


def _seconds_of(session: Session, pulls: Sequence[tuple[Work, str]]) -> list[float]:
    """Of pods that start at one time, each in a hub cache: two models share no directory there."""
    began = time.monotonic()
    pods = [_start(session, work, name, 0, layout="cache") for work, name in pulls]
    seconds = dict.fromkeys(range(len(pods)), 0.0)
    try:
        while not all(seconds.values()):
            for number, pod in enumerate(pods):
                if not seconds[number] and pod.poll() is not None:
                    seconds[number] = time.monotonic() - began
            time.sleep(0.02)
        for pod in pods:
            _, said = pod.communicate()
            if pod.returncode:
                raise Failed(f"a pod ended with {pod.returncode}: {said.strip().splitlines()[-1]}")
    finally:
        for pod in pods:
            session.end(pod)
    return list(seconds.values())


def _lines(rows: dict[tuple[int, bool], list[Round]], *, judged: bool) -> list[str]:
    alone = statistics.median(each.seconds for each in rows[1, False])
    lines = ["| pods | seconds | of one pod's | served / model |", "|---|---|---|---|"]
    missed = []
    for (count, killing), found in rows.items():
        seconds = statistics.median(each.seconds for each in found)
        served = max(each.served for each in found)
        label = f"{count}, two killed at half" if killing else str(count)
        lines.append(f"| {label} | {seconds:.1f} | {seconds / alone:.2f} | {served:.3f} |")
        if not killing and count in GOALS and seconds / alone > GOALS[count]:
            missed.append(
                f"{count} pods took {seconds / alone:.2f} of one pod's time: {GOALS[count]} is wanted"
            )
        if not killing and served > SERVED:
            missed.append(f"{count} pods were served {served:.3f} of the model: {SERVED} is wanted")
    return [*lines, *(f"\n{text}." for text in missed if judged)]


def _pull(session: Session, work: Work, names: Sequence[str], killing: bool) -> float:
    repository = work.repository
    began = time.monotonic()
    pods = [_start(session, work, name, index) for index, name in enumerate(names)]
    try:
        if killing:
            while occupied(work.target) < repository.size // 2:
                if any(pod.poll() for pod in pods):
                    break
                time.sleep(0.02)
            for index in KILLED:
                session.end(pods[index])
            pods = [pod for index, pod in enumerate(pods) if index not in KILLED]
        for pod in pods:
            _, said = pod.communicate(timeout=600)
            if pod.returncode:
                raise Failed(f"a pod ended with {pod.returncode}: {said.strip().splitlines()[-1]}")
        return time.monotonic() - began
    finally:
        for pod in pods:
            session.end(pod)


def _start(
    session: Session, work: Work, name: str, index: int, *, layout: str = "local-dir"
) -> subprocess.Popen[str]:
    uri = f"hf://{work.repository.repo_id}"
    options = ("--layout", layout, "--store", str(work.target))
    nimpull = (sys.executable, "-m", "nimpull", "download", uri, *options)
    command = ("ip", "netns", "exec", name, "unshare", "--pid", "--fork", "--kill-child", *nimpull)
    environment = {**work.environment(), "JOB_COMPLETION_INDEX": str(index), "NO_PROXY": "*"}
    return session.start(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@contextmanager
def links(count: int) -> Iterator[list[str]]:
    """Network namespaces with a link each to ``_HOSTS``, which are addresses of this machine meanwhile."""
    with ExitStack() as stack:
        for host in _HOSTS:
            _undone(
                stack,
                ("ip", "address", "add", f"{host}/32", "dev", "lo"),
                ("ip", "address", "del", f"{host}/32", "dev", "lo"),
            )
        names = [f"nimpull-{os.getpid()}-{number}" for number in range(count)]
        for number, name in enumerate(names):
            _link(stack, name, number)
        yield names


def _link(stack: ExitStack, name: str, number: int) -> None:
    here, there = f"npb{os.getpid() % 10000}h{number}", f"npb{os.getpid() % 10000}p{number}"
    gate, pod = f"198.18.{number + 1}.1", f"198.18.{number + 1}.2"
    inside = ("ip", "netns", "exec", name)
    _undone(stack, ("ip", "netns", "add", name), ("ip", "netns", "del", name))  # and with it the pair
    for command in (
        ("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", name),
        ("ip", "address", "add", f"{gate}/30", "dev", here),
        ("ip", "link", "set", here, "up"),
        (
            "tc",
            "qdisc",
            "add",
            "dev",
            here,
            "root",
            "tbf",
            "rate",
            f"{RATE * 8}bit",
            "burst",
            str(_BURST),
            "latency",
            "50ms",
        ),
        (*inside, "ip", "link", "set", "lo", "up"),
        (*inside, "ip", "address", "add", f"{pod}/30", "dev", there),
        (*inside, "ip", "link", "set", there, "up"),
        (*inside, "ip", "route", "add", "default", "via", gate),
    ):
        _run(command)


def _undone(stack: ExitStack, command: Sequence[str], undo: Sequence[str]) -> None:
    _run(command)
    stack.callback(subprocess.run, undo, check=False, capture_output=True)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")
