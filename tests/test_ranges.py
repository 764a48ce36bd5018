"""What a response head means for the range that was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimpull.core.ranges import (
    Accept,
    Asked,
    Cause,
    ContentRange,
    Fail,
    Relocate,
    Restart,
    Wait,
    disjoint,
    first_segment,
    gaps,
    judge,
    parse_content_range,
)

NOW = 1_795_000_000.0
SPANS = st.lists(st.tuples(st.integers(-5, 60), st.integers(-5, 60)), max_size=12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 0-9/10", ContentRange(0, 10, 10)),
        ("BYTES 5-5/*", ContentRange(5, 6, None)),
        ("bytes */10", None),
        ("bytes 9-0/10", None),
        ("bytes 0-10/10", None),
        ("bytes 0-9", None),
        ("items 0-9/10", None),
        ("bytes -1-9/10", None),
        ("bytes 0-" + "9" * 40 + "/*", None),
        ("", None),
    ],
)
def test_f06_content_range(text: str, expected: ContentRange | None) -> None:
    assert parse_content_range(text) == expected


@pytest.mark.parametrize(
    ("asked", "status", "headers", "expected"),
    [
        (Asked(0, None, 10), 200, {"content-length": "10", "etag": '"a"'}, Accept(10, True, '"a"', "a")),
        (Asked(0, None, None), 200, {"etag": 'W/"a"'}, Accept(None, False, "", "a")),
        (Asked(0, None, None), 200, {"content-length": "7"}, Accept(7, True, "", "")),
        (Asked(2, 5, 10), 206, {"content-range": "bytes 2-4/10"}, Accept(10, False, "", "")),
        (Asked(2, None, None), 206, {"content-range": "bytes 2-9/10"}, Accept(10, False, "", "")),
        (Asked(2, 5, 10), 200, {}, Restart("HTTP 200 to a range request")),
        (Asked(0, None, 1), 401, {}, Relocate(Cause.UNAUTHORIZED, "HTTP 401")),
        (Asked(0, None, 1), 403, {}, Relocate(Cause.EXPIRED, "HTTP 403")),
        (Asked(0, None, 1), 416, {}, Relocate(Cause.UNSATISFIED, "HTTP 416")),
        (Asked(0, None, 1), 410, {}, Fail(Cause.MISSING, "HTTP 410")),
        (Asked(0, None, 1), 418, {}, Fail(Cause.REFUSED, "HTTP 418")),
        (Asked(0, None, 1), 429, {"retry-after": "7"}, Wait(7.0, "HTTP 429")),
        (Asked(0, None, 1), 500, {}, Wait(None, "HTTP 500")),
    ],
)
def test_a_head_is_judged(asked: Asked, status: int, headers: dict[str, str], expected: object) -> None:
    assert judge(asked, status, headers, NOW) == expected


@pytest.mark.parametrize(
    ("asked", "status", "headers", "cause"),
    [
        (Asked(0, None, 10), 200, {"content-length": "11"}, Cause.MISLED),
        (Asked(2, 5, 10), 206, {}, Cause.MISLED),
        (Asked(2, 5, 10), 206, {"content-range": "bytes 1-4/10"}, Cause.MISLED),
        (Asked(2, 5, 10), 206, {"content-range": "bytes 2-3/10"}, Cause.MISLED),
        (Asked(2, 5, 10), 206, {"content-range": "bytes 2-4/11"}, Cause.MISLED),
        (Asked(2, 5, 10), 206, {"content-range": "bytes 2-4/10", "content-length": "4"}, Cause.MISLED),
        (Asked(0, None, 10), 200, {"content-type": "Text/HTML; charset=x"}, Cause.MARKUP),
        (Asked(0, None, 10, '"a"'), 200, {"etag": '"b"', "content-length": "10"}, Cause.CHANGED),
    ],
)
def test_f06_f08_f13_what_must_not_be_taken(
    asked: Asked, status: int, headers: dict[str, str], cause: Cause
) -> None:
    verdict = judge(asked, status, headers, NOW)
    assert isinstance(verdict, Fail | Relocate)
    assert verdict.cause is cause


def test_a_page_is_taken_where_a_page_is_meant() -> None:
    asked = Asked(0, None, 4, markup=True)
    assert isinstance(judge(asked, 200, {"content-type": "text/html"}, NOW), Accept)


@given(SPANS, st.integers(0, 50))
def test_gaps_and_spans_cover_a_file_once(spans: list[tuple[int, int]], size: int) -> None:
    kept = disjoint(spans, size)
    covered = [byte for start, end in (*kept, *gaps(size, kept)) for byte in range(start, end)]
    assert sorted(covered) == list(range(size))


@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(1, 64))
def test_segments_end_at_multiples_of_their_grain(start: int, length: int, grain: int) -> None:
    first, end = first_segment((start, start + length), grain)
    assert first == start < end <= start + length
    assert end - start <= grain
    assert end == start + length or end % grain == 0
