"""Threads that do what blocks, and who hears of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from nimpull.fetch.workers import Answers, Workers


def test_what_a_job_returns_or_raises_is_told_on_the_delivering_thread() -> None:
    rung = threading.Event()
    answers = Answers(rung.set)
    workers = Workers("fetch", 2, answers)
    told: list[tuple[object, bool]] = []

    def hear(answer: object) -> None:
        told.append((answer, threading.current_thread() is threading.main_thread()))

    def fail() -> None:
        raise ZeroDivisionError("a bug")

    workers.ask(lambda: 1, hear, hear)
    workers.ask(fail, hear, hear)
    while workers.pending:
        assert rung.wait(20)
        rung.clear()
        answers.deliver()
    workers.join()
    assert {str(answer) for answer, _ in told} == {"1", "a bug"}
    assert all(here for _, here in told)


@pytest.mark.parametrize("allowed", [0, 1])
def test_where_no_more_threads_can_be_started_the_others_must_do(
    monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    begin: Callable[[threading.Thread], None] = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if int(thread.name.rpartition("-")[2]) >= allowed:
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    rung = threading.Event()
    answers = Answers(rung.set)
    workers = Workers("fetch", 4, answers)
    told: list[int] = []
    for number in range(20):
        workers.ask(lambda number=number: number, told.append, lambda error: None)  # type: ignore[misc]
    while workers.pending:
        assert rung.wait(20)
        rung.clear()
        answers.deliver()
    workers.join()
    workers.ask(lambda: 20, told.append, lambda error: None)
    answers.deliver()
    assert sorted(told) == list(range(21))
