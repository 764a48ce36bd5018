"""When to ask again: what servers ask for, how pauses grow, and where the patience ends."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimpull.core.patience import DEFAULT_PAUSE, MAX_PAUSE, Patience, asked_pause, backoff
from nimpull.transport.network import HostPauses
from tests.clocks import StepClock

NOW = 1_795_000_000.0
MIB = 1 << 20


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "1000000000"}, MAX_PAUSE),
        ({"retry-after": "9" * 20}, MAX_PAUSE),
        ({"retry-after": "9" * 5000}, MAX_PAUSE),
        ({"retry-after": "-" + "9" * 5000}, 0.0),
        ({"retry-after": format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True)}, 90.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, MAX_PAUSE),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"ratelimit": "limit=100, remaining=0, reset=33"}, 33.0),
        ({"ratelimit": '"api";r=0;t=x'}, None),
        ({"retry-after": "3", "ratelimit": '"api";r=0;t=55'}, 3.0),
    ],
)
def test_f17_what_a_server_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_pause(headers, NOW) == seconds


@given(st.text(max_size=40), st.text(max_size=40))
def test_f17_no_header_breaks_the_parser(retry_after: str, ratelimit: str) -> None:
    seconds = asked_pause({"retry-after": retry_after, "ratelimit": ratelimit}, NOW)
    assert seconds is None or 0 <= seconds <= MAX_PAUSE


@given(st.integers(0, 100), st.floats(0, 0.999))
def test_f18_pauses_grow_and_are_bounded(failures: int, jitter: float) -> None:
    assert 0.5 <= backoff(failures, jitter) <= 60
    assert backoff(failures, jitter) <= backoff(failures + 1, jitter)
    assert backoff(failures, jitter, patience=40.0) <= 5


def test_pauses_double_to_a_ceiling_and_are_spread() -> None:
    assert [backoff(failures, 0.0) for failures in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert backoff(50, 0.0) == 30.0
    assert backoff(50, 0.999) > 59.0


def pauses_until_it_gives_up(patience: Patience, *, cause: float = math.inf) -> list[float]:
    """Of attempts that fail at once."""
    now, pauses = patience.since, list[float]()
    while True:
        patience, pause = patience.failed(now, 0.5, patience=cause)
        if pause is None:
            return pauses
        pauses.append(pause)
        now += pause


@given(st.floats(0.01, 900), st.floats(0.01, math.inf))
def test_f18_the_whole_budget_is_used_and_no_more(budget: float, cause: float) -> None:
    """A pause that would outlast it is cut: there is one attempt at its end."""
    pauses = pauses_until_it_gives_up(Patience(budget, 1000.0), cause=cause)
    assert sum(pauses) == pytest.approx(min(budget, cause), abs=0.002)
    assert all(pauses)


def test_without_a_budget_the_first_failure_is_the_last() -> None:
    assert pauses_until_it_gives_up(Patience(0.0, 1000.0)) == []


def test_f01_bytes_that_were_brought_are_progress_however_few() -> None:
    patience, now = Patience(60.0, 0.0), 0.0
    for _ in range(1000):
        now += 50.0
        patience, pause = patience.failed(now, 0.5, brought=10_000)
        assert pause == 0.75, "it neither grows nor ends"
    assert patience.failed(now, 0.5, brought=MIB)[1] == 0.0, "a host that brings much needs no rest"
    patience, pause = patience.failed(now + 59.0, 0.5)
    assert pause == 1.0, "what was left of the budget"
    assert patience.failed(now + 60.0, 0.5)[1] is None


def test_f17_a_host_that_asks_for_more_than_is_left_is_asked_once_more_at_the_end() -> None:
    patience = Patience(100.0, 0.0)
    assert patience.failed(40.0, 0.0, asked=60.0)[1] == 60.0
    patience, pause = patience.failed(40.0, 0.0, asked=3600.0)
    assert pause == 60.0
    assert patience.failed(100.0, 0.0, asked=3600.0)[1] is None


def test_f17_a_host_s_pause_is_kept_by_all_while_there_is_patience() -> None:
    clock = StepClock(jitter=0.5)
    pauses = HostPauses(clock)
    assert pauses.left("a") == 0.0
    pauses.note("a", 503, {"retry-after": "100"})
    assert pauses.left("a") == pytest.approx(105.0), "spread by up to a tenth"
    pauses.note("a", 429, {"retry-after": "1"})
    assert pauses.left("a") == pytest.approx(105.0)
    pauses.note("b", 429, {})
    assert pauses.left("b") == pytest.approx(DEFAULT_PAUSE * 1.05)
    pauses.note("c", 503, {})
    assert pauses.left("c") == 0.0
    for host, left in {"a": 7.0, "b": DEFAULT_PAUSE * 1.05, "c": 0.0}.items():
        pauses.cut(host, 7.0)
        assert pauses.left(host) == pytest.approx(left)
