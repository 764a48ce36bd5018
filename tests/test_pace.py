"""How many connections a fetch keeps, and which of them it drops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from nimpull.fetch.laggards import Laggards
from nimpull.fetch.pace import Pace, Reading

MIB = 1 << 20


def play(
    rate: Callable[[int], float], *, start: int = 2, most: int = 16, seconds: float = 10.0, cores: float = 0.1
) -> list[int]:
    """The connections after each change, of a fetch whose total rate is ``rate(connections)`` MiB/s."""
    received = 0.0
    pace = Pace(start, most, Reading(0.0, 0, 0.0))
    changes = []
    for tick in range(1, int(seconds * 10) + 1):
        received += rate(pace.connections) * MIB / 10
        if pace.look(Reading(tick / 10, int(received), cores * tick / 10), work_for_more=True):
            changes.append(pace.connections)
    return changes


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
    received, pace = 0.0, Pace(4, 16, Reading(0.0, 0, 0.0))
    for tick in range(1, 300):
        each = 25.0 if tick > 100 else 100.0 / pace.connections
        received += each * pace.connections * MIB / 10
        pace.look(Reading(tick / 10, int(received), 0.0), work_for_more=True)
    assert pace.connections == 16


def test_a_slow_link_is_measured_over_enough_bytes() -> None:
    """One block of a MiB now and then is no rate."""
    pace = Pace(4, 16, Reading(0.0, 0, 0.0))
    assert not pace.look(Reading(0.5, 1 * MIB, 0.0), work_for_more=True)
    assert pace.look(Reading(6.0, 4 * MIB, 0.0), work_for_more=True)


def test_without_work_for_more_nothing_is_added() -> None:
    pace = Pace(4, 16, Reading(0.0, 0, 0.0))
    assert not pace.look(Reading(1.0, 100 * MIB, 0.0), work_for_more=False)
    assert pace.connections == 4


def test_f17_a_refusal_halves_the_connections_for_a_while() -> None:
    pace = Pace(8, 16, Reading(0.0, 0, 0.0))
    pace.refused(Reading(1.0, 100 * MIB, 0.0))
    assert pace.connections == 4
    assert not pace.look(Reading(2.0, 200 * MIB, 0.0), work_for_more=True)
    assert pace.connections == 4


@dataclass(eq=False)
class Steady:
    """A connection that receives ``rate`` bytes per second."""

    rate: float
    host: str = "registry"
    busy: float = 0.0  # the share of its time that goes to disk and hash
    drops: int = 0

    def flow(self, now: float) -> tuple[int, float]:
        waited = now * (1 - self.busy)
        return int(self.rate * waited), waited

    def drop(self) -> None:
        self.drops += 1


def watch(connections: list[Steady], seconds: int) -> list[int]:
    laggards = Laggards()
    for now in range(seconds + 1):
        laggards.look(connections, float(now))
    return [each.drops for each in connections]


def test_one_far_slower_than_its_siblings_is_dropped() -> None:
    assert watch([Steady(20e6), Steady(1e6), Steady(25e6)], 6) == [0, 1, 0]


def test_one_that_all_but_stopped_is_dropped_for_its_only_sibling() -> None:
    assert watch([Steady(20e6), Steady(0.5e6)], 6) == [0, 1]


def test_one_that_its_siblings_left_behind_is_dropped_once() -> None:
    last, gone, laggards = Steady(0.5e6), [Steady(20e6), Steady(25e6)], Laggards()
    fast = Steady(20e6)
    for now in range(7):
        laggards.look([fast, *gone], float(now))
    for now in range(7, 60):
        laggards.look([last], float(now))
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
