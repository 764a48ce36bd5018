"""How many connections a fetch keeps, and which of them it drops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from nimpull.core.connections import ConnectionCount, Laggards, Reading, SmallCount

MIB = 1 << 20


def play(
    rate: Callable[[int], float], *, start: int = 2, most: int = 16, seconds: float = 10.0, cores: float = 0.1
) -> list[int]:
    """The connections after each change, of a fetch whose total rate is ``rate(connections)`` MiB/s."""
    received = 0.0
    count = ConnectionCount(start, most)
    count.look(Reading(0.0, 1, 0.0), work_for_more=True)
    changes = []
    for tick in range(1, int(seconds * 10) + 1):
        received += rate(count.allowed) * MIB / 10
        if count.look(Reading(tick / 10, int(received), cores * tick / 10), work_for_more=True):
            changes.append(count.allowed)
    return changes


def begun(start: int) -> ConnectionCount:
    """At most 16, and the first byte came at 0.0."""
    count = ConnectionCount(start, 16)
    count.look(Reading(0.0, 1, 0.0), work_for_more=True)
    return count


def test_idle_and_limited_per_connection_it_goes_to_the_most_at_once_and_stays() -> None:
    assert play(lambda connections: 20.0 * connections) == [16]


def test_busy_it_doubles_while_that_pays() -> None:
    assert play(lambda connections: 100.0 * min(connections, 7), cores=1.5) == [4, 8, 16, 8]


def test_busy_it_takes_more_than_a_tenth_to_keep_a_step() -> None:
    assert play(lambda connections: 100.0 + 4 * connections, start=4, seconds=3.0, cores=1.5) == [8, 4]
    assert play(lambda connections: 100.0 + 4 * connections, start=4, seconds=3.0, cores=0.1) == [16]


def test_what_does_not_pay_is_taken_back_and_tried_again_later_and_later() -> None:
    assert play(lambda _: 100.0, start=4, seconds=14.0) == [16, 4]
    assert play(lambda _: 100.0, start=4, seconds=60.0) == [16, 4] * 3


def test_a_link_that_became_wider_is_noticed() -> None:
    received, count = 0.0, begun(4)
    for tick in range(1, 300):
        each = 25.0 if tick > 100 else 100.0 / count.allowed
        received += each * count.allowed * MIB / 10
        count.look(Reading(tick / 10, int(received), 0.0), work_for_more=True)
    assert count.allowed == 16


def test_a_slow_link_is_measured_over_enough_bytes() -> None:
    """One block of a MiB now and then is no rate."""
    count = begun(4)
    assert not count.look(Reading(0.5, 1 * MIB, 0.0), work_for_more=True)
    assert count.look(Reading(6.0, 4 * MIB, 0.0), work_for_more=True)


def test_without_work_for_more_nothing_is_added() -> None:
    count = begun(4)
    assert not count.look(Reading(1.0, 100 * MIB, 0.0), work_for_more=False)
    assert count.allowed == 4


def test_f17_a_refusal_halves_the_connections_for_a_while() -> None:
    count = begun(8)
    count.refused(1.0)
    assert count.allowed == 4
    assert not count.look(Reading(2.0, 200 * MIB, 0.0), work_for_more=True)
    assert count.allowed == 4


@dataclass(eq=False)
class Steady:
    """A connection that receives ``rate`` bytes per second."""

    rate: float
    host: str = "registry"
    busy: float = 0.0  # the share of its time in which it waits for a buffer
    drops: int = 0
    received: int = 0

    def waited(self, now: float) -> float:
        waited = now * (1 - self.busy)
        self.received = int(self.rate * waited)
        return waited


def look(laggards: Laggards, connections: list[Steady], now: float) -> None:
    for each in connections:
        each.waited(now)
    found = laggards.find(connections, now)
    if isinstance(found, Steady):
        found.drops += 1


def watch(connections: list[Steady], seconds: int) -> list[int]:
    laggards = Laggards()
    for now in range(seconds + 1):
        look(laggards, connections, float(now))
    return [each.drops for each in connections]


def test_one_far_slower_than_its_siblings_is_dropped() -> None:
    assert watch([Steady(20e6), Steady(1e6), Steady(25e6)], 6) == [0, 1, 0]


def test_one_that_all_but_stopped_is_dropped_for_its_only_sibling() -> None:
    assert watch([Steady(20e6), Steady(0.5e6)], 6) == [0, 1]


def test_one_that_its_siblings_left_behind_is_dropped_once() -> None:
    last, gone, laggards = Steady(0.5e6), [Steady(20e6), Steady(25e6)], Laggards()
    fast = Steady(20e6)
    for now in range(7):
        look(laggards, [fast, *gone], float(now))
    for now in range(7, 60):
        look(laggards, [last], float(now))
    assert last.drops == 1


def test_one_that_stays_slow_is_dropped_less_and_less_often() -> None:
    assert watch([Steady(20e6), Steady(1e6), Steady(25e6)], 40) == [0, 3, 0]


@pytest.mark.parametrize(
    "siblings",
    [
        pytest.param([Steady(20e6)], id="one sibling says little"),
        pytest.param([Steady(4e6), Steady(4.5e6)], id="slower, but not far"),
        pytest.param([Steady(20e6, host="cdn"), Steady(25e6, host="cdn")], id="another host"),
    ],
)
def test_others_are_left_alone(siblings: list[Steady]) -> None:
    assert watch([Steady(1e6), *siblings], 60)[0] == 0


def test_time_spent_on_disk_and_hash_is_not_the_connections() -> None:
    assert watch([Steady(20e6, busy=0.9), Steady(20e6), Steady(25e6)], 120) == [0, 0, 0]


def test_small_files_get_as_many_as_the_way_is_long() -> None:
    count = SmallCount(48)
    assert count.allowed(100.0) == 4
    count.asked(100.0)
    assert count.allowed(100.0) == 4
    assert count.allowed(100.003) == 24, "nothing came yet: the way is that long at least"
    count.answered(0.00031)
    count.answered(0.5)
    assert count.allowed(200.0) == 6, "the fastest answer tells, the others waited for something else"
    far = SmallCount(48)
    far.asked(0.0)
    far.answered(0.04)
    assert far.allowed(1.0) == 48
    far.refused(1.0)
    assert far.allowed(1.0) == 24
    assert SmallCount(1).allowed(0.0) == 1
