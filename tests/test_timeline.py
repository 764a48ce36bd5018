"""The time line of real pulls: by host and connection, with its pauses, in the report and the metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.calls import call
from tests.registry import Fault, Registry, faults
from tests.running import check

COMMIT = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
FILES = {"config.json": b"{}", "weights/model.bin": b"\1" * 9_000_000}


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as started:
        started.add_hub_repo("demo/tiny", FILES, commit=COMMIT)
        yield started


def test_a_pull_tells_where_its_time_went(registry: Registry, tmp_path: Path) -> None:
    registry.faults.append(Fault(faults.status(503), server="cdn"))
    environment = {"HF_ENDPOINT": registry.hub_url, "NIMPULL_RETRY_SECONDS": "30"}
    code, text = call(registry, tmp_path, "nimpull", "download", "hf://demo/tiny", **environment)
    assert code == 0, text
    report = json.loads((tmp_path / ".nimpull/report.json").read_text())
    check(report)
    timeline, size = report["timeline"], sum(map(len, FILES.values()))
    assert sum(timeline["bytesPerSecond"]) * timeline["intervalSeconds"] == pytest.approx(size, rel=0.01)
    by_connection = sum(sum(line["bytesPerSecond"]) for line in timeline["connections"])
    assert by_connection * timeline["connectionIntervalSeconds"] == pytest.approx(size, rel=0.01)
    assert {line["host"] for line in timeline["hosts"]} == {"127.0.0.1"}
    (pause,) = timeline["pauses"]
    assert (pause["times"], "503" in pause["reason"]) == (1, True)
    assert {"preparing", "list", "check", "fetch", "hash", "sync"} <= set(timeline["secondsByPhase"])
    assert timeline["secondsByPhase"]["hash"] > 0
    metrics = (tmp_path / ".nimpull/metrics.prom").read_text()
    assert "nimpull_retries 1.0" in metrics
    assert "nimpull_fetched_bytes 9.000002e+06" in metrics


def test_a_warm_pull_asks_nothing_and_keeps_the_metrics(registry: Registry, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": registry.hub_url}
    assert call(registry, tmp_path, "nimpull", "download", "hf://demo/tiny", **environment)[0] == 0
    before = (tmp_path / ".nimpull/metrics.prom").read_bytes()
    assert call(registry, tmp_path, "nimpull", "download", "hf://demo/tiny", **environment)[0] == 0
    assert (tmp_path / ".nimpull/metrics.prom").read_bytes() == before
    timeline = json.loads((tmp_path / ".nimpull/report.json").read_text())["timeline"]
    assert not any(timeline["bytesPerSecond"])
    assert timeline["connections"] == []


def test_metrics_go_where_they_are_asked_for(registry: Registry, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": registry.hub_url, "NIMPULL_METRICS": str(tmp_path / "env.prom")}
    store = tmp_path / "store"
    assert call(registry, store, "nimpull", "download", "hf://demo/tiny", **environment)[0] == 0
    assert "nimpull_exit_code 0.0" in (tmp_path / "env.prom").read_text()
    assert not (store / ".nimpull/metrics.prom").exists()
    option = ("--metrics", str(tmp_path / "option.prom"))
    assert call(registry, store, "nimpull", "download", "hf://demo/gone", *option, **environment)[0] == 21
    assert 'nimpull_error{reference="not-found"} 1.0' in (tmp_path / "option.prom").read_text()
    assert "nimpull_exit_code 0.0" in (tmp_path / "env.prom").read_text()
