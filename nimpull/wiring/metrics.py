"""A run as metrics, for the node exporter's textfile collector or a sidecar that serves the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from nimpull.core.names import display
from nimpull.core.redaction import clean
from nimpull.core.report import Report, State, seconds_by_phase


def metrics_text(report: Report) -> bytes:
    """OpenMetrics. All are gauges, what this one run came to: the Prometheus text format reads the same."""
    from prometheus_client import CollectorRegistry, Gauge
    from prometheus_client.openmetrics.exposition import generate_latest

    registry = CollectorRegistry()  # of its own: the default one adds this process's memory and threads

    def gauge(name: str, what: str, values: Mapping[str, float] | float | None, label: str = "") -> None:
        if values is None or values == {}:
            return
        metric = Gauge(f"nimpull_{name}", what, [label] if label else [], registry=registry)
        if isinstance(values, Mapping):
            for value, number in values.items():
                metric.labels(value).set(number)
        else:
            metric.set(values)

    files, verified = Counter[str](), Counter[str]()
    verified_bytes = Counter[str]()
    for outcome in report.artifacts:
        by = display(outcome.verified, 40) or "nothing"
        files[outcome.action.value] += 1
        verified[by] += 1
        verified_bytes[by] += outcome.size
    gauge("info", "Version of nimpull", {clean(report.version, 80): 1}, "version")
    states = {each.value: float(each is report.state) for each in State}
    gauge("state", "1 for the state that the run is in", states, "state")
    gauge("started_timestamp_seconds", "When the run began", report.started)
    gauge(
        "updated_timestamp_seconds",
        "When this file was written; at the end, when the run ended",
        report.updated,
    )
    if report.state is not State.IN_PROGRESS:
        gauge("exit_code", "Of the run", report.exit_code)
    if report.error:
        gauge(
            "error", "1 for the reference of what failed", {clean(report.error.reference, 80): 1}, "reference"
        )
    listed = {clean(source.uri): source.files for source in report.sources}
    gauge("source_files", "Listed, by repository at its revision", listed, "uri")
    gauge("files", "Files by what was done with them", files, "action")
    gauge("verified_files", "Files by what was checked", verified, "by")
    gauge("verified_bytes", "Bytes of files by what was checked", verified_bytes, "by")
    if report.store:
        gauge("store_bytes", "Bytes that the selection occupies", report.store.bytes)
        gauge("store_free_bytes", "Bytes free on the volume", report.store.free)
    if report.transfer:
        gauge("fetched_bytes", "Bytes that came over the network", report.transfer.bytes)
        gauge("fetch_seconds", "Wall time of the fetch", report.transfer.seconds)
        gauge("connections", "Connections, the most at one time", report.transfer.connections)
    if report.progress:
        gauge("progress_bytes", "Bytes here, of progress_bytes_planned", report.progress.done)
        gauge("progress_bytes_planned", "Bytes of the selection", report.progress.total)
        gauge("progress_bytes_per_second", "Rate over the last half minute", report.progress.rate)
        gauge(
            "progress_stalled_seconds", "Since the last byte, while some are missing", report.progress.stalled
        )
    if report.timeline:
        gauge("retries", "Retries and pauses", report.timeline.retries)
        gauge("phase_seconds", "Where the time went", seconds_by_phase(report.timeline), "phase")
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text
