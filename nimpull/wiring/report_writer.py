"""Writes a run's report down: to the store or a file while the run goes on, and what a pod leaves behind."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Final

from nimpull import __version__
from nimpull.core.events import Note
from nimpull.core.names import STATE_DIRECTORY, display
from nimpull.core.ports import Clock
from nimpull.core.report.contents import Report, State
from nimpull.core.report.document import to_bytes
from nimpull.core.report.termination import termination_message
from nimpull.core.request import Request
from nimpull.errors import OutputError, StoreError
from nimpull.settings import Settings
from nimpull.store import report_file
from nimpull.store.durable import replace_file
from nimpull.store.tree import Tree
from nimpull.wiring import shares
from nimpull.wiring.metrics import leave_metrics, metrics_text

if TYPE_CHECKING:
    from nimpull.progress import Progress
    from nimpull.store.sharing import SharedWork

INTERVAL: Final = 5.0  # seconds between two rewrites of an unfinished report
#: What a failure's report may have beyond the draft: sources, notes, the error, the time line (bytes).
MARGIN: Final = 128 << 10


class ReportWriter:
    """``settings``: where report and metrics were asked for, else they are in the store.

    ``progress`` knows how far the run is; ``draft`` is its report so far. No method raises: a report that
    cannot be written is told, and hides no outcome; ``unwritten``: why a file that was asked for has not got
    the last report, or the last metrics.
    """

    def __init__(self, request: Request, settings: Settings, clock: Clock, progress: Progress) -> None:
        now = clock.time()
        self.draft = Report(State.IN_PROGRESS, now, now, version=__version__)
        self.selection = ""  # the key of its marker, once it is known
        self.work: SharedWork | None = None  # once there is any
        self.unwritten: OutputError | None = None
        self._request = request
        self._settings = settings
        self._clock = clock
        self._progress = progress
        self._done = Event()
        self._unpublished = Lock()
        self._worked = False
        self._thread: Thread | None = None

    def drafted(self, report: Report) -> Report:
        """Remember how far it is, for the in-progress file and for a failure's report."""
        self.draft = report
        if self._thread is None and not self._request.dry_run:
            thread = Thread(target=self._keep_writing, name="nimpull-report", daemon=True)
            with suppress(RuntimeError):  # no thread is left (pids.max): then only the last report is written
                thread.start()
                self._thread = thread
        return report

    def set_aside(self) -> None:
        """Room in the store for the report of a failure, while the volume still has some."""
        if not (self._settings.report_path or self._request.dry_run or self._request.repair):
            with suppress(StoreError):  # what is wrong with the volume is about to be told
                size = len(to_bytes(self.draft)) + MARGIN
                report_file.set_aside(Tree(self._request.store), size)

    def _keep_writing(self) -> None:
        while not self._done.wait(INTERVAL):
            # a store without state is one that nothing has been written to: looking at it makes no directory
            if os.path.isdir(os.path.join(self._request.store, STATE_DIRECTORY)):
                unfinished = replace(
                    self.draft,
                    updated=self._clock.time(),
                    progress=self._progress.summary(),
                    timeline=self._progress.timeline(),
                )
                self._write(unfinished, last=False)

    def close(self) -> None:
        """Rewrite the unfinished report no more."""
        self._done.set()
        if self._thread:
            self._thread.join()

    def publish(self, report: Report) -> None:
        """The file, and the termination message where Kubernetes reads one; once for a run.

        A run that was given up may come to its end after all: the first word stands.
        """
        if report.state is State.IN_PROGRESS or not self._unpublished.acquire(blocking=False):
            return
        # the message first: it goes to a file of the pod's, the report to a volume that may hang
        self._tell(leave_message(self._settings.termination_log, report))
        self._write(report, last=True)
        if self._settings.kubernetes_api:
            from nimpull.transport.cluster import announce

            host, port = self._settings.kubernetes_api
            self._tell(announce(report, os.uname().nodename, host=host, port=port))

    def _write(self, report: Report, *, last: bool) -> None:
        unwritten, ours = None, True
        settings = self._settings
        if settings.report_path:
            unwritten = replaced(settings.report_path, "the report", to_bytes(report))
            self._tell(unwritten.message if unwritten else "")
        elif not self._request.repair:  # a repair is not what the store was filled by
            works = self.work is not None and self.work.works
            begins, self._worked = works and not self._worked, works
            problem, ours = leave_report(
                self._request.store,
                report,
                last=last,
                work=self.work,
                selection=self.selection,
                begins=begins,
            )
            self._tell(problem)
        if metrics := settings.metrics_path or settings.metrics:
            # its temporary does not end in .prom: no collector reads it
            unkept = replaced(metrics, "the metrics", metrics_text(report))
            self._tell(unkept.message if unkept else "")
            unwritten = unwritten or (unkept if settings.metrics_path else None)
        elif ours and not self._request.repair:
            self._tell(leave_metrics(self._request.store, report))
        self.unwritten = unwritten

    def _tell(self, problem: str) -> None:
        if problem:
            self._progress(Note(problem, "warning"))


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


def leave_report(store: str, report: Report, *, last: bool = True, **sharing: Any) -> tuple[str, bool]:
    """Write it where a controller looks for it; returns why it could not, or "", and whether it was for this
    run to do. ``last``: none follows; ``sharing``: see :func:`nimpull.wiring.shares.leave`.

    A store that is not there is not made for it.
    """
    if not store or not os.path.isdir(store):
        return "", True
    try:
        return "", shares.leave(Tree(store), report, last=last, **sharing)
    except StoreError as error:
        return f"the report could not be written: {error}", True


def replaced(path: str, what: str, content: bytes) -> OutputError | None:
    """Write a file that was asked for; returns why it could not be written."""
    try:
        replace_file(path, content)
    except OSError as error:
        return OutputError.of(f"{what} {display(path, 300)}", error)
    return None
