"""A file larger than the memory that a pull may have: what it takes does not grow with what it fetches."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.registry import Registry
from tests.running import Run, ended, start

MIB = 1 << 20
SIZE = 1024 * MIB  # zeros, that take no room where they are served from
#: nimpull, which says at its end how much memory it had at most (proc(5), VmHWM: KiB).
MEASURED = """
import re, sys
from pathlib import Path
from nimpull.__main__ import main
try:
    main()
finally:
    print(re.search("VmHWM.*", Path("/proc/self/status").read_text())[0], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    sparse = tmp_path_factory.mktemp("served") / "zeros"
    with sparse.open("wb") as file:
        file.truncate(SIZE)
    with Registry() as registry:
        registry.add_hub_repo("acme/zeros", {"model.safetensors": sparse})
        yield registry


def pull(registry: Registry, store: Path, under: Sequence[str]) -> Run:
    """One arena for malloc: each thread's own would reserve 64 MiB of addresses, and use next to none."""
    program = (sys.executable, "-c", MEASURED)
    arguments = ("download", "hf://acme/zeros", "--layout", "local-dir")
    process = start(registry, store, *arguments, under=tuple(under), program=program, MALLOC_ARENA_MAX="1")
    return ended(process, store)


def is_whole(run: Run, store: Path) -> int:
    """Returns MiB that the process had at most."""
    assert run.code == 0, run.text
    assert run.report["artifacts"][0]["verifiedBy"] == "sha256"
    assert (store / "model.safetensors").stat().st_size == SIZE
    (store / "model.safetensors").unlink()
    most = re.search(r"VmHWM:\s+(\d+) kB", run.err)
    assert most is not None
    return int(most[1]) >> 10


def test_f42_memory_does_not_grow_with_the_file(zeros: Registry, tmp_path: Path) -> None:
    """Not even its addresses fit."""
    limited = ("prlimit", f"--as={SIZE // 2}", "--")
    most = is_whole(pull(zeros, tmp_path / "s", limited), tmp_path / "s")
    assert most < 240


@contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A control group with this limit of memory, version 1 or 2; skips where none can be made."""
    root = Path("/sys/fs/cgroup")
    version_1 = (root / "memory").is_dir()
    group = (root / "memory" if version_1 else root) / f"nimpull-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"a control group without a memory limit: {error}")
        yield group
    finally:
        group.rmdir()


@pytest.mark.parametrize("limit", [256, 128])
def test_f42_a_pull_works_inside_a_control_group_with_little_memory(
    zeros: Registry, tmp_path: Path, limit: int
) -> None:
    """The page cache of what is written counts there; beyond the limit the kernel kills."""
    with control_group(limit * MIB) as group:
        joining = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        is_whole(pull(zeros, tmp_path / "s", joining), tmp_path / "s")
