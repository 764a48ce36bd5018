"""Run a job for a command: signals, progress on stderr, the report where it was asked for, the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, Final

import click

from nimpull import __version__
from nimpull.cli.output import hand_over, say
from nimpull.cli.signals import stopping
from nimpull.clock import SystemClock
from nimpull.core.mirror_objects import MirrorAction
from nimpull.core.names import display
from nimpull.core.report.contents import Failure, Report, State
from nimpull.core.report.document import to_bytes
from nimpull.core.report.sentences import closing_line
from nimpull.core.request import LayoutKind, Request
from nimpull.core.units import show_bytes, show_count
from nimpull.errors import NimpullError, hint_for
from nimpull.settings import Settings, in_pod, is_dumb_terminal, termination_log

if TYPE_CHECKING:
    from nimpull.progress import Progress
    from nimpull.wiring.edges import Edges

DOWNLOAD_FAILURES: Final = range(20, 44)  # exit codes, see nimpull.errors
IGNORED: Final = " — EXIT 0 ALL THE SAME, WITHOUT THE MODEL: NIM_IGNORE_MODEL_DOWNLOAD_FAIL is set."

Ask = Callable[[], tuple[Request, Settings]]


@dataclass(frozen=True, slots=True)
class Output:
    """How a run is told. ``as_report``: as its report on stdout; ``progress``: see Mode.

    ``closing``: the last line goes to stderr also on success, because stdout has another reader; ``answer``:
    who gets the place of the files of a run that is Ready.
    """

    as_report: bool = False
    progress: str = "auto"
    closing: bool = False
    answer: bool = False


def execute(ask: Ask, output: Output = Output(), *, store: str = "") -> int:
    """Build the request, run the job, print what it came to; returns the exit code.

    ``store``: where the report of a request that cannot be built goes, "" = nowhere.
    """
    try:
        request, settings = ask()
    except NimpullError as error:
        return fail_unasked(error, store)
    from nimpull.job import abandon, run
    from nimpull.wiring.edges import Edges

    cancel = Event()
    settings = replace(settings, drop_in=_is_drop_in())
    shown = progress_of(output, settings)
    edges = Edges(request, settings, cancel=cancel, progress=shown)

    def tell(report: Report) -> int:
        # What is not where an option wants it is a failure (exit 50), but not in place of the run's own.
        code = show(report, request, output)
        unwritten = edges.reporter.unwritten
        return fail(unwritten) if unwritten and not code else code

    def give_up() -> None:
        # From a thread beside the run, which hangs: what it holds is not touched.
        report = abandon(edges)
        shown.close()  # what is still to be shown comes before the closing line
        tell(report)
        edges.reporter.publish(report)

    with stopping(cancel, give_up), shown:
        report = run(request, edges)
    return tell(report)


@contextmanager
def quiet_edges(request: Request, settings: Settings) -> Iterator[Edges]:
    """For a command that asks registries and brings no file: nothing is shown, a signal stops it."""
    from nimpull.progress import Mode, Progress
    from nimpull.wiring.edges import Edges

    cancel = Event()
    with (
        stopping(cancel, lambda: None),
        Progress(Mode.QUIET, sys.stderr, SystemClock()) as shown,
        Edges(request, settings, cancel=cancel, progress=shown) as edges,
    ):
        yield edges


def progress_of(output: Output, settings: Settings) -> Progress:
    from nimpull.progress import Mode, Progress, choose_mode

    if output.progress != "auto":
        mode = Mode(output.progress)
    else:
        mode = Mode.JSON if settings.jsonl_logging else choose_mode(sys.stderr, dumb=is_dumb_terminal())
    return Progress(mode, sys.stderr, SystemClock(), level=settings.log_level)


def show(report: Report, request: Request, output: Output) -> int:
    """The closing line comes last, also where a log has stdout and stderr as one. Returns the exit code."""
    unfinished = report.state is State.IN_PROGRESS  # a dry run ends before it fetches
    asked: Iterator[str] = iter(())
    if output.as_report:
        asked = iter((to_bytes(report).decode(),))
    elif unfinished:
        asked = plan_text(report, request)
    elif output.answer and report.state is State.READY:
        is_cache = request.layout is LayoutKind.CACHE
        asked = iter((os.path.join(request.store, request.hub) if is_cache else request.store,))
    unwritten = hand_over(asked)
    if not unfinished:
        # a source, the network or the volume: not a mistake in what was asked, a bug, or a stop
        forgiven = request.ignore_failure and bool(report.error) and report.exit_code in DOWNLOAD_FAILURES
        line = closing_line(report) + (IGNORED if forgiven else "")
        to_stderr = bool(report.error) or output.closing or output.as_report
        unsaid = say(line, err=to_stderr)
        if report.error:
            return 0 if forgiven else report.error.exit_code
        unwritten = unwritten or (None if to_stderr else unsaid)
    return fail(unwritten) if unwritten else 0


def plan_text(report: Report, request: Request) -> Iterator[str]:
    """The files of a dry run: action, size, path; then the sum and the room."""
    width = max((len(show_bytes(outcome.size)) for outcome in report.artifacts), default=0)
    for outcome in sorted(report.artifacts, key=lambda each: each.artifact.path):
        verb = "fetch" if outcome.action.value == "fetched" else "have "
        yield f"{verb}  {show_bytes(outcome.size):>{width}}  {outcome.artifact.path}\n"
    fetch = sum(o.size for o in report.artifacts if o.action.value == "fetched")
    total = sum(o.size for o in report.artifacts)
    free = report.store.free if report.store else None
    room = f"; {display(request.store, 300)} has {show_bytes(free)} free" if free is not None else ""
    if mirror := report.mirror:  # what it would get: size and key of each object, then the sum
        sending = mirror.of(MirrorAction.SENT)
        yield from (f"send   {show_bytes(one.size)}  {display(one.key, 1024)}\n" for one in sending)
        size = show_bytes(sum(one.size for one in sending))
        there = show_count(len(mirror.of(MirrorAction.SKIPPED)), "file")
        send = f"{show_count(len(sending), 'file')}, {size} to send to {display(mirror.target)}"
        yield f"{send}; {there} there.\n"
    yield (
        f"{show_count(len(report.artifacts), 'file')}, {show_bytes(total)}, "
        f"of which {show_bytes(fetch)} to fetch{room}. "
        "Nothing was fetched (dry run)."
    )


def fail_unasked(error: NimpullError, store: str = "") -> int:
    """The same, with the termination message: the operator's Jobs for the Hub show no log in their status.

    ``store``: has the report too, if it is there: the one of an earlier run would be taken for this one's.
    """
    from nimpull.wiring.metrics import leave_metrics
    from nimpull.wiring.report_writer import leave_message, leave_report

    report = failed(error)
    unwritten, ours = leave_report(store, report)
    for problem in (
        leave_message(termination_log(), report),
        unwritten,
        leave_metrics(store, report) if ours else "",
    ):
        if problem:
            say(f"nimpull: {problem}", err=True)
    say(closing_line(report), err=True)
    return error.exit_code


def fail(error: NimpullError) -> int:
    """Before there is a request there is no report: the line that closes a job's log says it all."""
    say(closing_line(failed(error)), err=True)
    return error.exit_code


def failed(error: NimpullError) -> Report:
    now = SystemClock().time()
    failure = Failure.of(error)
    failure = replace(failure, hint=hint_for(failure.hint, nimcache=in_pod(), options=not _is_drop_in()))
    return Report(State.FAILED, now, now, version=__version__, error=failure)


def _is_drop_in() -> bool:
    """Whether the command is one of the container's own, which does not have nimpull's options."""
    context = click.get_current_context(silent=True)
    return context is not None and context.find_root().info_name != "nimpull"
