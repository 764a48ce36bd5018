"""The report while a run goes on, and where it ends: a file, and the termination message of a pod."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Final

from nimpull.core.events import Note
from nimpull.core.ports import Clock, Emit
from nimpull.core.report import termination_message, to_text
from nimpull.core.reported import Report, Snapshot, State
from nimpull.errors import StoreError

if TYPE_CHECKING:
    from nimpull.wiring.volume import Volume

INTERVAL: Final = 5.0  # seconds between two rewrites of an unfinished report
#: What a failure's report may have beyond the draft: sources, notes, the error itself (bytes).
MARGIN: Final = 32 << 10


class Reporter:
    """``path``: where the report was asked for, "" = in the store, ``-`` = not in a file.

    ``termination_log``: the file that Kubernetes made for a pod's last words. ``snapshot``: how far the run
    is. No method raises: a report that cannot be written is told, and hides no outcome.
    """

    def __init__(
        self,
        path: str,
        termination_log: str,
        volume: Volume,
        *,
        clock: Clock,
        emit: Emit,
        snapshot: Callable[[], Snapshot],
    ) -> None:
        self.draft: Report | None = None
        self._path = path
        self._termination_log = termination_log
        self._volume = volume
        self._clock = clock
        self._emit = emit
        self._snapshot = snapshot
        self._done = Event()
        self._unpublished = Lock()
        self._writer: Thread | None = None

    def drafted(self, report: Report) -> Report:
        """Remember how far it is, for the in-progress file and for a failure's report."""
        self.draft = report
        if self._writer is None and not self._volume.only_looked_at:
            self._writer = Thread(target=self._keep_writing, name="nimpull-report", daemon=True)
            self._writer.start()
        return report

    def set_aside(self) -> None:
        """Room in the store for the report of a failure, while the volume still has some."""
        if self.draft and self._is_in_store:
            self._volume.set_aside(len(to_text(self.draft).encode()) + MARGIN)

    @property
    def _is_in_store(self) -> bool:
        return self._path in ("", "-")

    def _keep_writing(self) -> None:
        while not self._done.wait(INTERVAL):
            draft = self.draft
            if draft and self._volume.has_state:
                unfinished = replace(draft, updated=self._clock.time(), progress=self._snapshot())
                self._write(unfinished, last=False)

    def close(self) -> None:
        """Rewrite the unfinished report no more."""
        self._done.set()
        if self._writer:
            self._writer.join()

    def publish(self, report: Report) -> None:
        """The file, and the termination message where Kubernetes reads one; once for a run.

        A run that was given up may come to its end after all: the first word stands.
        """
        if report.state is State.IN_PROGRESS or not self._unpublished.acquire(blocking=False):
            return
        self._write(report, last=True)
        if problem := leave_message(self._termination_log, report):
            self._emit(Note(problem, "warning"))

    def _write(self, report: Report, *, last: bool) -> None:
        from nimpull.store.durable import replace_file

        content = to_text(report).encode()
        try:
            if self._is_in_store:
                self._volume.keep_report(content, last=last)
            else:
                replace_file(self._path, content)
        except (StoreError, OSError) as error:
            self._emit(Note(f"the report could not be written: {error}", "warning"))


def leave_message(path: str, report: Report) -> str:
    """Write the termination message where Kubernetes made a file for it; returns why it could not, or ""."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_TRUNC), "wb") as file:
            file.write(termination_message(report))
    except FileNotFoundError:
        return ""  # not in a pod
    except OSError as error:
        return f"the termination message could not be written: {error}"
    return ""


def leave_report(store: str, report: Report) -> str:
    """Write the last report of a run that had no request; returns why it could not, or "".

    A store that is not there is not made for it.
    """
    if not store or not os.path.isdir(store):
        return ""
    from nimpull.store.report_file import write_report
    from nimpull.store.tree import Tree

    try:
        write_report(Tree(store), to_text(report).encode(), last=True)
    except StoreError as error:
        return f"the report could not be written: {error}"
    return ""
