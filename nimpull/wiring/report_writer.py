"""Writes a run's report down: to the store or a file while the run goes on, and what a pod leaves behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Final

from nimpull.core.events import Note
from nimpull.core.names import STATE_DIRECTORY, display
from nimpull.core.ports import Clock
from nimpull.core.report import PodShare, Report, State, termination_message, to_bytes
from nimpull.core.request import Request
from nimpull.errors import OutputError, StoreError

if TYPE_CHECKING:
    from nimpull.progress import Progress
    from nimpull.store.sharing import SharedWork

METRICS: Final = f"{STATE_DIRECTORY}/metrics.prom"  # the node exporter reads what ends in .prom
READY: Final = b'nimpull_state{state="Ready"} 1.0'
INTERVAL: Final = 5.0  # seconds between two rewrites of an unfinished report
#: What a failure's report may have beyond the draft: sources, notes, the error, the time line (bytes).
MARGIN: Final = 128 << 10


class ReportWriter:
    """``path``: where the report was asked for, "" = in the store, ``-`` = not in a file.

    ``termination_log``: the file that Kubernetes made for a pod's last words. ``progress`` knows how far
    the run is. ``metrics_path``: where the metrics were asked for, else ``metrics``, where the environment
    wants them, "" = beside the report in the store; ``announce``: tells others of the end, and returns why it
    could not. No method raises: a report that cannot be written is told, and hides no outcome; ``unwritten``:
    why a file that was asked for has not got the last report, or the last metrics.
    """

    def __init__(
        self,
        path: str,
        termination_log: str,
        request: Request,
        *,
        clock: Clock,
        progress: Progress,
        metrics_path: str = "",
        metrics: str = "",
        announce: Callable[[Report], str] | None = None,
    ) -> None:
        self.draft: Report | None = None
        self.selection = ""  # the key of its marker, once it is known
        self.work: SharedWork | None = None  # once there is any
        self.unwritten: OutputError | None = None
        self._path = "" if path == "-" else path
        self._termination_log = termination_log
        self._request = request
        self._clock = clock
        self._progress = progress
        self._metrics = metrics_path or metrics
        self._metrics_asked = bool(metrics_path)
        self._announce = announce
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
        if self.draft and not (self._path or self._request.dry_run or self._request.repair):
            from nimpull.store import report_file
            from nimpull.store.tree import Tree

            with suppress(StoreError):  # what is wrong with the volume is about to be told
                size = len(to_bytes(self.draft)) + MARGIN
                report_file.set_aside(Tree(self._request.store), size)

    def _keep_writing(self) -> None:
        while not self._done.wait(INTERVAL):
            draft = self.draft
            # a store without state is one that nothing has been written to: looking at it makes no directory
            if draft and os.path.isdir(os.path.join(self._request.store, STATE_DIRECTORY)):
                unfinished = replace(
                    draft,
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
        self._tell(leave_message(self._termination_log, report))
        self._write(report, last=True)
        if self._announce:
            self._tell(self._announce(report))

    def _write(self, report: Report, *, last: bool) -> None:
        unwritten, ours = None, True
        if self._path:
            unwritten = _replaced(self._path, "the report", to_bytes(report))
            self._tell(unwritten.message if unwritten else "")
        elif not self._request.repair:  # a repair is not what the store was filled by
            problem, ours = self._leave_in_store(report, last=last)
            self._tell(problem)
        if self._metrics:
            unkept = leave_metrics(self._metrics, report)
            self._tell(unkept.message if unkept else "")
            unwritten = unwritten or (unkept if self._metrics_asked else None)
        elif ours and not self._request.repair:
            self._tell(leave_metrics_in_store(self._request.store, report))
        self.unwritten = unwritten

    def _leave_in_store(self, report: Report, *, last: bool) -> tuple[str, bool]:
        work, store = self.work, self._request.store
        if work is None:
            return leave_report(store, report, last=last)
        share = PodShare(work.owner, report.state, work.files, work.bytes, work.waiting)
        begins, self._worked = work.works and not self._worked, work.works
        return leave_report(
            store,
            replace(report, pods=(share,)),
            selection=self.selection,
            token=work.token,
            works=work.works,
            begins=begins,
            last=last,
        )

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
    from nimpull.store.tree import Tree
    from nimpull.wiring.shares import leave

    try:
        return "", leave(Tree(store), report, last=last, **sharing)
    except StoreError as error:
        return f"the report could not be written: {error}", True


def leave_metrics(path: str, report: Report) -> OutputError | None:
    """Write them to a file of the caller's; returns why it could not."""
    from nimpull.wiring.metrics import metrics_text

    # its temporary does not end in .prom: no collector reads it
    return _replaced(path, "the metrics", metrics_text(report))


def _replaced(path: str, what: str, content: bytes) -> OutputError | None:
    from nimpull.store.durable import replace_file

    try:
        replace_file(path, content)
    except OSError as error:
        return OutputError.of(f"{what} {display(path, 300)}", error)
    return None


def leave_metrics_in_store(store: str, report: Report) -> str:
    """Likewise, where there is a store."""
    if not store or not os.path.isdir(store):
        return ""
    from nimpull.store.tree import Tree

    tree = Tree(store)
    try:
        fetched = report.transfer is not None and report.transfer.bytes
        # a run that found all there costs less than the import of the library, and has nothing new to say
        if report.state is State.READY and not fetched and READY in (tree.read(METRICS) or b""):
            return ""
        from nimpull.wiring.metrics import metrics_text

        tree.write(METRICS, metrics_text(report), durable=False)
    except StoreError as error:
        return f"the metrics could not be written: {error}"
    return ""
