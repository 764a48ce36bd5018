"""The engine as others see it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from nimpull.core.artifacts import Artifact, Outcome
from nimpull.core.limits import FetchLimits
from nimpull.core.ports import Cancel, Clock, Connections, Emit, Ingests, Pauses, Supply
from nimpull.fetch.run import FetchRun, Locate


class Batch:
    """Implements :class:`nimpull.core.ports.Supply` where all work is known from the start."""

    def __init__(self, artifacts: Sequence[Artifact]) -> None:
        self._artifacts = tuple(artifacts)

    def take(self) -> tuple[Artifact, ...]:
        artifacts, self._artifacts = self._artifacts, ()
        return artifacts

    def give_up(self, artifact: Artifact) -> None:
        """Nobody else wants it."""


class Fetcher:
    """Fetches artifacts into ``ingests`` and commits them.

    ``locate``: where an artifact is now (True = discard a cached answer); it may block. ``connect``: opens
    what brings the bytes, for the calling thread, which turns it until the run ends.
    """

    def __init__(
        self,
        locate: Locate,
        connect: Callable[[], Connections],
        ingests: Ingests,
        *,
        clock: Clock,
        cancel: Cancel,
        emit: Emit,
        pauses: Pauses,
        limits: FetchLimits | None = None,
    ) -> None:
        self._locate = locate
        self._connect = connect
        self._ingests = ingests
        self._clock = clock
        self._cancel = cancel
        self._emit = emit
        self._pauses = pauses
        self._limits = limits or FetchLimits()

    def run(self, supply: Supply) -> tuple[Outcome, ...]:
        """Outcomes of all that were committed here, in the order they were supplied in.

        A missing file (NotFoundError) is raised after all others are here; any other failure ends the run.
        Raises NimpullError, and what a worker met that is a bug. What is journaled stays.
        """
        run = FetchRun(
            supply,
            self._locate,
            self._connect(),
            self._ingests,
            clock=self._clock,
            emit=self._emit,
            limits=self._limits,
            pauses=self._pauses,
            workers=max(2, len(os.sched_getaffinity(0))),
        )
        return run.turn_until_done(self._cancel)
