"""What the crash tests share: a small repository in three layouts, pulls that end at a chosen system call,
and what must hold of the store afterwards.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import small_steps
from tests.pulling import noise
from tests.registry import Registry
from tests.running import Run, ended, start
from tests.volume_faults import CHANGES, VolumeFault, faulty, read_log

PROGRAM = (sys.executable, small_steps.__file__)
LARGE = noise((1 << 20) + 77)
FILES: Mapping[str, bytes] = {
    "config.json": b'{"architectures": ["Tiny"]}\n',
    "empty": b"",
    "model.safetensors": LARGE,
    "tokenizer/merges.txt": b"a b\n" * 500,
    "tokenizer/vocab.txt": b"a\nb\n",
    "x/y/deep.json": noise(3000, 3),
    "x/y/deeper.json": noise(5000, 4),
    # enough of them for one commit that syncs the whole file system
    **{f"many/part-{number:02}.txt": noise(700, 10 + number) for number in range(14)},
}


@dataclass(frozen=True, slots=True)
class Case:
    """One way to pull FILES. ``files``: what must stand in the end, by path in the repository."""

    uri: str
    layout: str
    files: Mapping[str, bytes]

    def start(
        self, registry: Registry, store: Path, *, under: tuple[str, ...] = (), **environment: str
    ) -> subprocess.Popen[str]:
        arguments = ("download", self.uri, "--layout", self.layout)
        return start(registry, store, *arguments, under=under, program=PROGRAM, **environment)

    def pull(self, registry: Registry, store: Path, **environment: str) -> Run:
        return ended(self.start(registry, store, under=(), **environment), store)


@contextmanager
def serving() -> Iterator[tuple[Registry, Mapping[str, Case]]]:
    """A registry with FILES, and the cases by name."""
    with Registry() as registry:
        model = registry.add_ngc_model("nim", "meta", "tiny", "1", FILES, checksums=True)
        registry.add_hub_repo("acme/tiny", FILES)
        listed = {path: b"".join(blob.blocks(0, blob.size)) for path, blob in model.versions["1"].items()}
        yield (
            registry,
            {
                "ngc": Case("ngc://nim/meta/tiny:1", "cache", listed),
                "hub": Case("hf://acme/tiny", "cache", FILES),
                "local-dir": Case("hf://acme/tiny", "local-dir", FILES),
            },
        )


# -- ending at a call ----------------------------------------------------------------------------------------


def calls_of(case: Case, registry: Registry) -> tuple[str, ...]:
    """Every call that a whole pull changes its store with, in their order: "CALL /PATH" below the store."""
    with tempfile.TemporaryDirectory() as scratch:
        store, log = Path(scratch, "store"), Path(scratch, "log")
        run = case.pull(registry, store, **faulty(log=log))
        if run.code:
            raise RuntimeError(run.text)
        return tuple(
            f"{call.name} {call.path.removeprefix(str(store))}"
            for call in read_log(log)
            if call.name in CHANGES and call.path.startswith(str(store))
        )


def killed(case: Case, registry: Registry, store: Path, number: int) -> Run:
    """A pull that is killed before call ``number`` (from 1) on its store, or ends if it makes fewer."""
    return case.pull(registry, store, **faulty(VolumeFault("kill", first=number, path=str(store))))


# -- what must hold ----------------------------------------------------------------------------------------

_BESIDE = re.compile(r"(^|/)(\.cache/huggingface/.*|refs/[^/]+|trees/[^/]+\.json|CACHEDIR\.TAG|\.gitignore)$")
_NAMED = re.compile(r"(?:.*/)?snapshots/[^/]+/(?P<path>.+)")


def model_files(store: Path) -> Iterator[tuple[str, Path]]:
    """(path in the repository, or "" for a blob; file) of all that stands under a final name."""
    for found in sorted(store.rglob("*")):
        path = found.relative_to(store).as_posix()
        if path.startswith(".nimpull") or _BESIDE.search(path) or (found.is_dir() and not found.is_symlink()):
            continue
        if "/blobs/" in path:
            yield "", found
        else:
            named = _NAMED.fullmatch(path)
            yield (named["path"] if named else path), found


def complaints(store: Path, case: Case) -> list[str]:
    """What no reader may ever meet: a torn file under a final name, a marker before its files."""
    found = []
    contents = set(case.files.values())
    for path, file in model_files(store):
        if not file.exists():
            found.append(f"{file} leads nowhere")
        elif path and file.read_bytes() != case.files.get(path):
            found.append(f"{file} is not what was served ({file.stat().st_size} bytes)")
        elif not path and file.read_bytes() not in contents:
            found.append(f"{file} is a torn blob ({file.stat().st_size} bytes)")
    if list(store.glob(".nimpull/ready/*")):
        here = {path for path, _ in model_files(store)}
        found += [f"ready without {path}" for path in case.files if path not in here]
    return found


def standing_bytes(store: Path) -> int:
    """Bytes of the repository that are on the disk: committed, or in the part of a file that is fetched.

    One file alone comes in parts. What is there of it counts once, though a commit that failed after its
    rename leaves it whole and begun anew.
    """
    committed = {file.read_bytes() for _, file in model_files(store) if file.exists()}
    parts = [] if LARGE in committed else [*map(_written, store.glob(".nimpull/ingest/*/data"))]
    return sum(map(len, committed)) + max(parts, default=0)


def _written(path: Path) -> int:
    """Bytes of a sparse file that are not holes, to the page."""
    found, position, end = 0, 0, path.stat().st_size
    with path.open("rb") as file:
        while position < end:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole to the end
                break
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found += position - start
    return found


def _temporaries(store: Path) -> list[Path]:
    return [*store.glob(".nimpull/new/*"), *store.glob(".nimpull-probe-*")]


@dataclass(frozen=True, slots=True)
class Recovery:
    """A run after a crash. ``wrong``: what must not be; ``again``: bytes fetched that stood on the disk."""

    wrong: tuple[str, ...]
    again: int = 0


def recover(case: Case, registry: Registry, store: Path) -> Recovery:
    """Run again after a crash, and look at the store before and after."""
    wrong = complaints(store, case)
    stood = standing_bytes(store)
    complete = bool(list(store.glob(".nimpull/ready/*.json")))
    for temporary in _temporaries(store):  # a day has passed
        os.utime(temporary, (0, 0), follow_symlinks=False)
    run = case.pull(registry, store)
    if run.code:
        return Recovery((*wrong, f"the next run ends with {run.code}: {run.text[-2000:]}"))
    wrong += complaints(store, case)
    standing = {path for path, _ in model_files(store)}
    wrong += [f"{path} is missing" for path in case.files if path not in standing]
    again = run.report["transfer"]["bytes"] - (sum(map(len, case.files.values())) - stood)
    if again > small_steps.IN_FLIGHT:
        wrong.append(f"{again} bytes that were here were fetched again")
    # a complete store is not written to: its marker answers
    left = [] if complete else [*store.glob(".nimpull/ingest/*"), *_temporaries(store)]
    wrong += [f"{path} is left behind" for path in left]
    if not list(store.glob(".nimpull/ready/*.json")):
        wrong.append("no ready marker")
    return Recovery(tuple(wrong), max(0, again))


def resume(case: Case, registry: Registry, store: Path) -> list[str]:
    """What is wrong with a run after a crash."""
    return list(recover(case, registry, store).wrong)
