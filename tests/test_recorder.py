"""The time line of a run: rates, pauses and phases, bounded however long it runs."""

from __future__ import annotations

import pytest

from nimpull.core.events import Advanced, Event, Phase, Spent, Waiting
from nimpull.core.report.contents import Timeline, seconds_by_phase
from nimpull.progress.recorder import MOST_COLUMNS, MOST_CONNECTIONS, MOST_SAMPLES, TimelineRecorder

MIB = 1 << 20


def recorded(*told: tuple[float, Event], until: float) -> Timeline:
    """A run that begins at 1000 on the clock; ``told``: events with their seconds since."""
    recorder = TimelineRecorder(1000.0)
    for at, event in told:
        recorder.count(event, 1000.0 + at)
    return recorder.timeline(1000.0 + until)


def test_a_sample_a_second_by_host_and_connection() -> None:
    timeline = recorded(
        (0.2, Advanced(MIB, 0, "a")),
        (0.9, Advanced(MIB, 1, "b")),
        (2.5, Advanced(3 * MIB, 1, "b")),
        (2.6, Advanced(-3 * MIB, 1, "b")),
        (2.7, Advanced(1)),
        until=3.5,
    )
    assert (timeline.interval, timeline.rates) == (1, (2 * MIB, 0, 3 * MIB + 1, 0))
    assert [(line.host, line.rates) for line in timeline.hosts] == [
        ("a", (MIB, 0, 0, 0)),
        ("b", (MIB, 0, 3 * MIB, 0)),
    ]
    assert [(line.connection, line.host, line.rates) for line in timeline.connections] == [
        (0, "a", (MIB, 0, 0, 0)),
        (1, "b", (MIB, 0, 3 * MIB, 0)),
    ]


def test_a_long_run_is_kept_with_half_the_resolution_and_no_byte_less() -> None:
    seconds = 5 * MOST_SAMPLES + 7
    timeline = recorded(
        *((float(at), Advanced(1000 + at % 3, at % 40, "h")) for at in range(seconds)), until=seconds
    )
    assert timeline.interval == 8
    assert MOST_SAMPLES / 2 <= len(timeline.rates) <= MOST_SAMPLES
    assert 1000 <= timeline.rates[100] <= 1002
    assert sum(timeline.rates) * timeline.interval == pytest.approx(1001 * seconds, rel=0.01)
    assert len(timeline.connections) == MOST_CONNECTIONS
    assert {len(line.rates) for line in timeline.connections} == {
        -(-len(timeline.rates) // (timeline.connection_interval // timeline.interval))
    }
    assert len(timeline.connections[0].rates) <= MOST_COLUMNS


def test_what_many_connections_meet_at_once_is_one_pause() -> None:
    told = [(1.0 + number / 100, Waiting("HTTP 429 from a", 30.0)) for number in range(16)]
    timeline = recorded(
        *told, (1.2, Waiting("reset", 0.0)), (40.0, Waiting("HTTP 429 from a", 5.0)), until=50
    )
    assert [(round(pause.at, 3), pause.seconds, pause.reason, pause.times) for pause in timeline.pauses] == [
        (1.0, 30.0, "HTTP 429 from a", 16),
        (1.2, 0.0, "reset", 1),
        (40.0, 5.0, "HTTP 429 from a", 1),
    ]
    assert timeline.retries == 18


def test_where_the_time_went() -> None:
    timeline = recorded(
        (1.0, Phase("listing", "one")),
        (1.5, Phase("listing", "two")),
        (3.0, Phase("checking what is there")),
        (4.0, Phase("fetching")),
        (4.5, Advanced(MIB)),
        (5.0, Waiting("HTTP 429", 10.0)),
        (12.0, Advanced(MIB)),
        (15.0, Spent("hash", 1.5)),
        (16.0, Spent("hash", 0.5)),
        (16.0, Spent("sync", 0.25)),
        until=20.0,
    )
    assert seconds_by_phase(timeline) == {
        "preparing": 1.0,
        "list": 2.0,
        "check": 1.0,
        "fetch": 16.0,
        "wait": 9.0,  # ten seconds of pause, in one of which something came
        "hash": 2.0,
        "sync": 0.25,
    }
