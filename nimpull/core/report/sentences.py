"""What a run did, or is doing, in one sentence: for conditions, the closing line and the log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nimpull.core.artifacts import Action, Outcome
from nimpull.core.mirror_objects import MirrorAction, MirrorObject
from nimpull.core.names import display
from nimpull.core.redaction import prose
from nimpull.core.report.contents import MirrorSummary, ProgressSummary, Report, State, TransferSummary
from nimpull.core.units import show_bytes, show_count, show_rate, show_seconds

CLOSING_LINE_LIMIT: Final = 1800  # bytes; FallbackToLogsOnError shows the last 2048 bytes of the log


def closing_line(report: Report) -> str:
    """One line that says what happened and what to do, short enough for ``FallbackToLogsOnError``."""
    if report.error:
        error = report.error
        again = "a retry may help" if error.retryable else "a retry does not help"
        parts = [f"Failed ({error.reference}, exit {error.exit_code}, {again}): {_one_line(error.message)}"]
        if error.hint:
            parts.append(_one_line(error.hint))
        line = " — ".join(parts)
    elif report.state is State.READY:
        line = f"Ready: {done(report)}"
    else:
        line = f"InProgress: {moving(report.progress) if report.progress else 'started'}"
    text = f"nimpull: {line}"
    if len(text.encode()) <= CLOSING_LINE_LIMIT:
        return text
    # Cut in bytes, as kubelet does; "…" has three of them.
    return text.encode()[: CLOSING_LINE_LIMIT - 3].decode("utf-8", "ignore") + "…"


def _one_line(text: str) -> str:
    """Indented lines are the items of a list."""
    joined = ""
    for line in filter(str.strip, prose(text).split("\n")):
        between = "; " if line.startswith("  ") and not joined.endswith(":") else " "
        joined += (between if joined else "") + " ".join(line.split())
    return joined


def done(report: Report) -> str:
    """``2 profiles, 14 files, 16.1 GiB in /model-store, verified by blake3; fetched …``."""
    outcomes = report.artifacts
    size = report.store.bytes if report.store and report.store.bytes else sum(item.size for item in outcomes)
    parts = []
    if report.profiles:
        parts.append(show_count(len(report.profiles), "profile"))
    if outcomes:
        parts.append(show_count(len(outcomes), "file"))
    parts.append(show_bytes(size) + (f" in {display(report.store.path)}" if report.store else ""))
    # Each algorithm once: the reader asks whether all was checked, and how.
    checked = sorted({display(outcome.verified, 40) for outcome in outcomes if outcome.verified})
    if checked:
        parts.append("verified by " + " and ".join(checked))
    told = ", ".join(parts) + "; " + _fetched(report.transfer, outcomes)
    return f"{told}; {_mirrored(report.mirror)}" if report.mirror else told


def _mirrored(mirror: MirrorSummary) -> str:
    """``mirrored to s3://models: 14 files, 16.1 GiB, of which 3 files, 1.2 MiB were sent``."""
    sent = mirror.of(MirrorAction.SENT)
    whole = f"{show_count(len(mirror.objects), 'file')}, {_size(mirror.objects)}"
    part = f"{show_count(len(sent), 'file')}, {_size(sent)} sent" if sent else "nothing to send"
    return f"mirrored to {display(mirror.target)}: {whole}, {part}"


def _size(objects: Iterable[MirrorObject]) -> str:
    return show_bytes(sum(one.size for one in objects))


def _fetched(transfer: TransferSummary | None, outcomes: Iterable[Outcome]) -> str:
    count = transfer.bytes if transfer else sum(outcome.fetched for outcome in outcomes)
    if not count:
        return "nothing to fetch"
    text = f"fetched {show_bytes(count)}"
    if transfer and transfer.seconds > 0:
        text += f" in {show_seconds(transfer.seconds)} ({show_rate(transfer.bytes / transfer.seconds)})"
    if transfer and transfer.retries:
        text += f", {transfer.retries} {'retry' if transfer.retries == 1 else 'retries'}"
    repaired = sum(outcome.action is Action.REPAIRED for outcome in outcomes)
    return text + (f", {show_count(repaired, 'file')} repaired" if repaired else "")


def moving(progress: ProgressSummary) -> str:
    """How far a run is, with the step that it is at."""
    return (f"{display(progress.phase, 40)}: " if progress.phase else "") + progress_text(progress)


def progress_text(progress: ProgressSummary, *, percent: bool = True) -> str:
    """``4.2 GiB of 16.1 GiB (26%), 61.3 MiB/s, eta 3m19s, 5/14 files``; what is not known is left out."""
    if progress.total is None:
        return f"{show_bytes(progress.done)}, {show_rate(progress.rate)}"
    parts = [f"{show_bytes(progress.done)} of {show_bytes(progress.total)}", show_rate(progress.rate)]
    if percent:
        share = 100 if progress.total == 0 else min(100, int(100 * progress.done / progress.total))
        parts[0] += f" ({share}%)"
    if progress.eta:  # 0: nothing is missing
        parts.append(f"eta {show_seconds(progress.eta)}")
    if progress.files_total is not None:
        parts.append(f"{progress.files}/{progress.files_total} files")
    return ", ".join(parts)
