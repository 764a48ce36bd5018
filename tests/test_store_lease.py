"""One writer at a time, without flock, without trust in a process that slept."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nimpull.core.ports import Cancel
from nimpull.errors import Cancelled, LeaseHeldError
from nimpull.store.lease import LEASES, TIME_TO_LIVE, Lease
from nimpull.store.ready import Ready
from tests.clocks import HandClock
from tests.committing import artifact, commit, open_store

MODEL = "ngc://nim/meta/llama:1"


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def take(root: str, clock: HandClock, owner: str, patience: float = 0.0) -> Lease:
    return open_store(root).lease(MODEL, owner=owner, clock=clock, patience=patience)


def test_f46_the_second_is_told_who_writes(root: str, clock: HandClock) -> None:
    take(root, clock, "pod-a")
    clock.now += 20
    with pytest.raises(LeaseHeldError, match=r"pod-a is writing .* \(renewed 20 s ago\)") as caught:
        take(root, clock, "pod-b")
    assert f"{TIME_TO_LIVE - 20:.0f} s" in caught.value.hint


def test_f46_models_do_not_wait_for_each_other(root: str, clock: HandClock) -> None:
    take(root, clock, "pod-a")
    with open_store(root) as store:
        store.lease("another model", owner="pod-b", clock=clock)


def test_f46_the_second_waits_and_goes_on_when_the_first_is_done(root: str, clock: HandClock) -> None:
    first = take(root, clock, "pod-a")
    clock.meanwhile = first.release
    second = take(root, clock, "pod-b", patience=60)
    assert len(clock.waits) == 1
    assert second.still_mine() and not first.still_mine()


def test_f46_patience_ends(root: str, clock: HandClock) -> None:
    take(root, clock, "pod-a")
    with pytest.raises(LeaseHeldError):
        take(root, clock, "pod-b", patience=10)
    assert sum(clock.waits) == 10


def test_waiting_can_be_cancelled(root: str, clock: HandClock) -> None:
    take(root, clock, "pod-a")
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        open_store(root).lease(MODEL, owner="pod-b", clock=clock, cancel=cancel, patience=60)


def test_f46_of_many_at_once_one_leads(root: str, clock: HandClock) -> None:
    open_store(root).close()
    barrier = threading.Barrier(8)

    def attempt(number: int) -> int:
        barrier.wait()
        try:
            return take(root, clock, f"pod-{number}").generation
        except LeaseHeldError:
            return 0

    for generation in (1, 2):  # a free store, then a stale lease
        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(attempt, range(8))) == [0] * 7 + [generation]
        clock.now += TIME_TO_LIVE


def test_without_hard_links_a_lease_is_one_all_the_same(
    root: str, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", link)
    first = take(root, clock, "pod-a")
    with pytest.raises(LeaseHeldError, match="pod-a"):
        take(root, clock, "pod-b")
    clock.now += TIME_TO_LIVE + 1
    assert take(root, clock, "pod-b").generation == 2
    with pytest.raises(LeaseHeldError):
        first.fence()
    assert os.listdir(os.path.join(root, ".nimpull/new")) == [], "no temporary is left"


def test_f46_a_process_that_was_killed_here_holds_nothing(root: str) -> None:
    program = (
        "import sys\nfrom nimpull.clock import SystemClock\nfrom tests.committing import open_store\n"
        "clock = SystemClock()\n"
        f"lease = open_store({root!r}).lease({MODEL!r}, owner='pod-a', clock=clock)\n"
        "print(clock.time(), flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        clock = HandClock(float(other.stdout.readline()))
        with pytest.raises(LeaseHeldError, match="pod-a"):
            take(root, clock, "pod-b")
        other.kill()
    assert take(root, clock, "pod-b").generation == 2


def test_f46_a_process_of_another_host_holds_its_lease_until_it_runs_out(
    root: str, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("nimpull.store.lease.this_process", lambda: "another-boot:4026531836:1:17")
        take(root, clock, "pod-a")
    with pytest.raises(LeaseHeldError, match="pod-a"):
        take(root, clock, "pod-b")
    assert take(root, clock, "pod-b", patience=TIME_TO_LIVE + 2).generation == 2


def test_f47_no_flock_is_asked(root: str, clock: HandClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", None)
    monkeypatch.setattr(fcntl, "lockf", None)
    lease = take(root, clock, "pod-a")
    lease.renew()
    with pytest.raises(LeaseHeldError):
        take(root, clock, "pod-b")
    lease.release()
    take(root, clock, "pod-b")


def test_f48_a_sleeper_finds_that_it_was_replaced(root: str, clock: HandClock) -> None:
    sleeper = take(root, clock, "pod-a")
    sleeper.check()
    clock.now += TIME_TO_LIVE
    taker = take(root, clock, "pod-b")
    assert taker.generation == sleeper.generation + 1
    assert not sleeper.still_mine()
    with pytest.raises(LeaseHeldError, match="taken over by pod-b"):
        sleeper.check()
    with pytest.raises(LeaseHeldError):
        sleeper.renew()
    sleeper.release()
    taker.check()


def test_f48_a_sleeper_commits_nothing(root: str, clock: HandClock) -> None:
    one, other = artifact("a.bin", b"a"), artifact("b.bin", b"b")
    with open_store(root) as store, open_store(root) as second:
        layout = store.nim_cache()
        store.lease(MODEL, owner="pod-a", clock=clock)
        commit(store, layout, one, b"a")
        clock.now += TIME_TO_LIVE
        commit(store, layout, one, b"a")  # run out, but nobody took it
        second.lease(MODEL, owner="pod-b", clock=clock)
        with pytest.raises(LeaseHeldError, match="pod-b"):
            commit(store, layout, other, b"b")
        with pytest.raises(LeaseHeldError, match="pod-b"):
            store.mark_ready(Ready("s", layout.name, 0.0, ()))
        assert not Path(root, layout.path_of(other)).exists()
        commit(second, second.nim_cache(), other, b"b")


def test_f46_who_waited_takes_what_the_other_committed(root: str, clock: HandClock) -> None:
    one = artifact("a.bin", b"a")
    with open_store(root) as first, open_store(root) as second:
        lease = first.lease(MODEL, owner="pod-a", clock=clock)
        layout = second.nim_cache()

        def work() -> None:
            commit(first, first.nim_cache(), one, b"a")
            lease.release()

        clock.meanwhile = work
        second.lease(MODEL, owner="pod-b", clock=clock, patience=60)
        assert layout.committed(one) is not None


def test_f48_also_when_the_taker_is_long_done(root: str, clock: HandClock) -> None:
    sleeper = take(root, clock, "pod-a")
    clock.now += TIME_TO_LIVE
    taker = take(root, clock, "pod-b")
    taker.release()
    assert not sleeper.still_mine()


def test_a_renewed_lease_does_not_run_out(root: str, clock: HandClock) -> None:
    lease = take(root, clock, "pod-a")
    clock.now += TIME_TO_LIVE - 1
    lease.renew()
    clock.now += TIME_TO_LIVE - 1
    with pytest.raises(LeaseHeldError):
        take(root, clock, "pod-b")


class Ticks(HandClock):
    """Each ``wait`` of the renewing thread lasts until the test lets it end, or the wait is over."""

    def __init__(self) -> None:
        super().__init__()
        self.tick = threading.Semaphore(0)
        self.waiting = threading.Semaphore(0)

    def wait(self, seconds: float, until: Cancel) -> bool:
        self.waiting.release()
        self.tick.acquire()
        self.now += seconds
        return until.is_set()


def test_a_kept_lease_is_renewed_and_then_released(root: str) -> None:
    clock, lost = Ticks(), threading.Event()
    lease = take(root, clock, "pod-a")
    with lease.kept(lost):
        for _ in range(4):
            clock.waiting.acquire()
            clock.tick.release()
        clock.waiting.acquire()
        assert lease.holder.renewed >= 1_000_000 + TIME_TO_LIVE
        with pytest.raises(LeaseHeldError):
            take(root, clock, "pod-b")
        clock.tick.release()
    assert not lost.is_set()
    take(root, clock, "pod-b")


def test_f48_a_kept_lease_that_is_lost_stops_the_run(root: str) -> None:
    clock, lost = Ticks(), threading.Event()
    lease = take(root, clock, "pod-a")
    with lease.kept(lost):
        clock.waiting.acquire()
        clock.now += TIME_TO_LIVE
        taker = take(root, clock, "pod-b")
        clock.tick.release()
        assert lost.wait(10)
    assert taker.still_mine()


def test_an_unreadable_lease_is_taken_over(root: str, clock: HandClock) -> None:
    take(root, clock, "pod-a")
    (name,) = os.listdir(Path(root, LEASES))
    Path(root, LEASES, name).write_bytes(b"{")
    assert take(root, clock, "pod-b").generation == 2
    assert len(os.listdir(Path(root, LEASES))) == 1
