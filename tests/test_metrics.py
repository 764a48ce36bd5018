"""Metrics of a run: what they say, in both formats, and where they are written."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from nimpull.core.report.contents import Failure, ProgressSummary, Report, State
from nimpull.errors import NoSpaceError
from nimpull.wiring.metrics import METRICS, leave_metrics, metrics_text
from nimpull.wiring.report_writer import replaced
from tests.reports import a_report

Samples = dict[tuple[str, str], float]


def samples(content: bytes) -> Samples:
    """By name and value of the only label, "" = none; read as OpenMetrics and as Prometheus text."""
    text = content.decode()
    strict = {
        (sample.name, *sample.labels.values(), "")[:2]: sample.value
        for family in openmetrics(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }
    loose = {
        (sample.name, *sample.labels.values(), "")[:2]: sample.value
        for family in prometheus(text)
        for sample in family.samples
    }
    assert strict == loose, "a collector of either format reads the same"
    return strict


def test_a_finished_run() -> None:
    found = samples(metrics_text(a_report()))
    assert found["nimpull_state", "Ready"] == 1
    assert found["nimpull_state", "Failed"] == 0
    assert found["nimpull_exit_code", ""] == 0
    assert found["nimpull_fetched_bytes", ""] == 3 << 30
    assert found["nimpull_files", "fetched"] == 1
    assert found["nimpull_verified_bytes", "blake3"] == 3 << 30
    assert found["nimpull_phase_seconds", "list"] == 0.5
    assert found["nimpull_updated_timestamp_seconds", ""] == 1_795_000_061.9
    assert ("nimpull_progress_bytes", "") not in found


def test_a_run_under_way_and_a_failed_one() -> None:
    moving = ProgressSummary("fetching", 10, None, 2.5, None, 1, 4, 20.0)
    found = samples(metrics_text(Report(State.IN_PROGRESS, 1, 2, progress=moving)))
    assert found["nimpull_progress_bytes", ""] == 10
    assert ("nimpull_progress_bytes_planned", "") not in found, "unknown is not 0"
    assert ("nimpull_exit_code", "") not in found
    failed = Report(State.FAILED, 1, 2, error=Failure.of(NoSpaceError("full")))
    found = samples(metrics_text(failed))
    assert (found["nimpull_error", "no-space"], found["nimpull_exit_code", ""]) == (1, 40)


def test_f57_a_label_cannot_forge_a_line() -> None:
    evil = 'x"} 1\nnimpull_exit_code 7\n# \u202e'
    found = samples(metrics_text(a_report(version=evil)))
    assert found["nimpull_exit_code", ""] == 0


def test_they_are_replaced_whole_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "nimpull.prom"
    path.write_text("old")
    assert replaced(str(path), "the metrics", metrics_text(a_report())) is None
    assert samples(path.read_bytes())["nimpull_state", "Ready"] == 1
    assert path.stat().st_mode & 0o444 == 0o444
    assert list(tmp_path.iterdir()) == [path]
    problem = replaced(str(tmp_path / "no/x.prom"), "the metrics", b"")
    assert problem and "no/x.prom could not be written: No such file" in problem.message


def test_in_the_store_the_last_run_that_has_something_to_say(tmp_path: Path) -> None:
    def state() -> Samples:
        return samples((tmp_path / METRICS).read_bytes())

    failed = Report(State.FAILED, 1, 2, error=Failure.of(NoSpaceError("full")))
    assert leave_metrics(str(tmp_path), failed) == ""
    warm = Report(State.READY, 5, 6)
    assert leave_metrics(str(tmp_path), warm) == ""
    assert state()["nimpull_state", "Ready"] == 1, "a failure does not stay"
    assert leave_metrics(str(tmp_path), Report(State.READY, 7, 8)) == ""
    assert state()["nimpull_started_timestamp_seconds", ""] == 5, "nothing new to say"
    assert leave_metrics(str(tmp_path), a_report()) == ""
    assert state()["nimpull_fetched_bytes", ""] == 3 << 30
    assert leave_metrics(str(tmp_path / "no"), warm) == ""
    assert not (tmp_path / "no").exists()


def test_every_metric_is_documented() -> None:
    table = (Path(__file__).parent.parent / "docs/report.md").read_text()
    moving = ProgressSummary("fetching", 10, 20, 2.5, 1.0, 1, 4, 20.0)
    failed = Report(State.FAILED, 1, 2, error=Failure.of(NoSpaceError("full")), progress=moving)
    names = {name for name, _ in (samples(metrics_text(a_report())) | samples(metrics_text(failed)))}
    assert len(names) > 15
    assert {name for name in names if f"`{name}`" not in table} == set()
    assert set(re.findall(r"`(nimpull_\w+)`", table)) == names
