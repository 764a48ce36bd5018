"""A run as metrics, for the node exporter's textfile collector or a sidecar that serves the file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from nimpull.core.names import STATE_DIRECTORY, display
from nimpull.core.redaction import clean
from nimpull.core.report.contents import Report, State, seconds_by_phase
from nimpull.errors import StoreError
from nimpull.store.tree import Tree

METRICS: Final = f"{STATE_DIRECTORY}/metrics.prom"  # the node exporter reads what ends in .prom
READY: Final = b'nimpull_state{state="Ready"} 1.0'


def metrics_text(report: Report) -> bytes:
    """OpenMetrics. All are gauges, what this one run came to: the Prometheus text format reads the same."""
    from prometheus_client import CollectorRegistry, Gauge
    from prometheus_client.openmetrics.exposition import generate_latest

    registry = CollectorRegistry()  # of its own: the default one adds this process's memory and threads
    for name, what, label, values in _gauges(report):
        if isinstance(values, Mapping):
            metric = Gauge(f"nimpull_{name}", what, [label], registry=registry)
            for value, number in values.items():
                metric.labels(value).set(number)
        elif values is not None:
            Gauge(f"nimpull_{name}", what, registry=registry).set(values)
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text


def _gauges(report: Report) -> Iterator[tuple[str, str, str, Mapping[str, float] | float | None]]:
    """(name, what it says, label, value); values by that of the label; None is not known."""
    done, ended = report.artifacts, report.state is not State.IN_PROGRESS
    verified = [(display(outcome.verified, 40) or "nothing", outcome.size) for outcome in done]
    verified_bytes = Counter[str]()
    for by, size in verified:
        verified_bytes[by] += size
    states = {each.value: float(each is report.state) for each in State}
    listed = {clean(source.uri): source.files for source in report.sources}
    yield "info", "Version of nimpull", "version", {clean(report.version, 80): 1}
    yield "state", "1 for the state that the run is in", "state", states
    yield "started_timestamp_seconds", "When the run began", "", report.started
    written = "When this file was written; at the end, when the run ended"
    yield "updated_timestamp_seconds", written, "", report.updated
    yield "exit_code", "Of the run", "", report.exit_code if ended else None
    if report.error:
        reference = {clean(report.error.reference, 80): 1}
        yield "error", "1 for the reference of what failed", "reference", reference
    yield "source_files", "Listed, by repository at its revision", "uri", listed or None
    if done:
        yield "files", "Files by what was done with them", "action", Counter(o.action.value for o in done)
        yield "verified_files", "Files by what was checked", "by", Counter(by for by, _ in verified)
        yield "verified_bytes", "Bytes of files by what was checked", "by", verified_bytes
    if store := report.store:
        yield "store_bytes", "Bytes that the selection occupies", "", store.bytes
        yield "store_free_bytes", "Bytes free on the volume", "", store.free
    if transfer := report.transfer:
        yield "fetched_bytes", "Bytes that came over the network", "", transfer.bytes
        yield "fetch_seconds", "Wall time of the fetch", "", transfer.seconds
        yield "connections", "Connections, the most at one time", "", transfer.connections
    if progress := report.progress:
        yield "progress_bytes", "Bytes here, of progress_bytes_planned", "", progress.done
        yield "progress_bytes_planned", "Bytes of the selection", "", progress.total
        yield "progress_bytes_per_second", "Rate over the last half minute", "", progress.rate
        stalled = "Since the last byte, while some are missing"
        yield "progress_stalled_seconds", stalled, "", progress.stalled
    if timeline := report.timeline:
        yield "retries", "Retries and pauses", "", timeline.retries
        yield "phase_seconds", "Where the time went", "phase", seconds_by_phase(timeline) or None


def leave_metrics(store: str, report: Report) -> str:
    """Write them beside the report, where there is a store; returns why they could not be written, or ""."""
    if not store or not os.path.isdir(store):
        return ""
    tree = Tree(store)
    try:
        fetched = report.transfer is not None and report.transfer.bytes
        # a run that found all there costs less than the import of the library, and has nothing new to say
        if report.state is State.READY and not fetched and READY in (tree.read(METRICS) or b""):
            return ""
        tree.write(METRICS, metrics_text(report), durable=False)
    except StoreError as error:
        return f"the metrics could not be written: {error}"
    return ""
