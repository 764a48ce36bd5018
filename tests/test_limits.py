"""What a fetch may use follows the limit of the control group."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

import pytest

from nimpull.detect.process_limits import cpu_limit, memory_limit, open_files, processors
from nimpull.fetch import FetchLimits
from nimpull.fetch.buffers import BufferPool

MIB = 1 << 20


def tree(root: Path, files: dict[str, str]) -> str:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return str(root)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"sys/fs/cgroup/memory.max": "536870912\n"}, 512 * MIB),
        ({"sys/fs/cgroup/memory.max": "max\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/pod/main\n",
                "sys/fs/cgroup/pod/main/memory.max": "max\n",
                "sys/fs/cgroup/pod/memory.max": "268435456\n",
            },
            256 * MIB,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/other\n4:memory:/pod\n0::/\n",
                "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "134217728\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            128 * MIB,
        ),
        ({"proc/self/cgroup": "nonsense\n", "sys/fs/cgroup/memory.max": "\u00e9\n"}, None),
    ],
)
def test_the_smallest_limit_on_the_way_up_counts(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    assert memory_limit(root=tree(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/pod/main\n",
                "sys/fs/cgroup/pod/main/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "50000 100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/pod\n0::/\n",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        ({"sys/fs/cgroup/cpu.max": "nonsense\n"}, None),
    ],
)
def test_the_smallest_share_of_cpu_on_the_way_up_counts(
    tmp_path: Path, files: dict[str, str], expected: float | None
) -> None:
    root = tree(tmp_path, files)
    assert cpu_limit(root=root) == expected
    allowed = len(os.sched_getaffinity(0))
    assert processors(root=root) == (allowed if expected is None else min(allowed, math.ceil(expected)))


def test_f42_a_small_limit_takes_pool_and_connections_down() -> None:
    usual = FetchLimits()
    assert usual.within(None) == usual
    assert usual.within(4096 * MIB) == usual
    small = usual.within(256 * MIB)
    assert (small.pool, small.connections, small.start) == (32 * MIB, 16, 4)
    assert small.small_connections == 32
    tiny = usual.within(64 * MIB)
    assert (tiny.pool, tiny.connections, tiny.start, tiny.batch_bytes) == (8 * MIB, 4, 4, 8 * MIB)
    assert tiny.small_connections == 8
    assert usual.within(1).connections == 4


def test_every_connection_finds_buffers_and_few_get_large_ones() -> None:
    usual = FetchLimits()
    sizes = [usual.buffer(connections) // MIB for connections in (1, 4, 8, 16, 24, 96)]
    assert sizes == [4, 4, 2, 1, 1, 1]
    assert usual.within(64 * MIB).buffer(4) == MIB


def test_the_pool_never_hands_out_more_than_it_has() -> None:
    pool = BufferPool(8 * MIB, 4 * MIB)
    first, second = pool.take(0), pool.take(4 * MIB)
    pool.resize(MIB)
    assert pool.free == 0
    pool.give(first)
    assert pool.free == 4
    small = [pool.take(start * MIB) for start in range(4)]
    assert {len(each.memory) for each in small} == {MIB}
    pool.give(second)
    assert pool.free == 4
    for each in small:
        pool.give(each)
    assert pool.free == 8
    assert pool.take(0) is small[-1]  # its pages are the ones that the CPU's cache has


def test_few_open_files_take_connections_down() -> None:
    usual = FetchLimits()
    assert usual.with_files(None) == usual
    assert usual.with_files(1024) == usual
    few = usual.with_files(256)
    assert (few.connections, few.start, few.small_connections) == (16, 4, 32)
    least = usual.with_files(64)
    assert (least.connections, least.start, least.small_connections) == (1, 1, 1)


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 200), before[1]))
        assert open_files() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_cap_is_one_for_files_of_all_sizes() -> None:
    for most, start in ((3, 3), (99, 4)):
        limits = FetchLimits().with_most(most)
        assert (limits.connections, limits.start, limits.small_connections) == (most, start, most)
