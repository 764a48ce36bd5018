"""The end of a run as a Kubernetes Event and an annotation, against a scripted API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import trustme

from nimpull.core.report.contents import Failure, Report, State
from nimpull.errors import NoSpaceError
from nimpull.settings import load
from nimpull.transport.cluster import announce
from tests.certificates import served
from tests.reports import a_report

POD = "my-cache-job-x2x7z"
AUTHORITY = trustme.CA()
POD_DOCUMENT = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": POD,
        "uid": "0f0f",
        "ownerReferences": [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": "my-cache-job",
                "uid": "1a1a",
                "controller": True,
            }
        ],
    },
}


@dataclass
class Cluster:
    """An API server. ``refused``: methods that are answered with ``status``; ``asked``: what came."""

    port: int = 0
    account: Path = Path()
    refused: frozenset[str] = frozenset()
    status: int = 403
    asked: list[tuple[str, str, Any]] = field(default_factory=list)

    def told(self, report: Report) -> str:
        return announce(report, POD, host="127.0.0.1", port=str(self.port), account=str(self.account))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    state = Cluster(account=tmp_path)
    (tmp_path / "namespace").write_text("nim-service")
    (tmp_path / "token").write_text("CANARYtoken\n")
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.crt"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            allowed = (
                self.headers["Authorization"] == "Bearer CANARYtoken" and self.command not in state.refused
            )
            state.asked.append((self.command, self.path, body))
            kind = {"GET": POD_DOCUMENT, "POST": {"kind": "Event"} | (body or {})}.get(self.command, {})
            content = json.dumps(kind if allowed else {"kind": "Status", "code": state.status}).encode()
            self.send_response((201 if self.command == "POST" else 200) if allowed else state.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = served(AUTHORITY, "127.0.0.1").wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_pod_gets_an_event_and_its_job_annotations(cluster: Cluster) -> None:
    assert cluster.told(a_report()) == ""
    (got, created, patched) = cluster.asked
    assert got[:2] == ("GET", f"/api/v1/namespaces/nim-service/pods/{POD}")
    assert created[:2] == ("POST", "/api/v1/namespaces/nim-service/events")
    event = created[2]
    assert event["involvedObject"] == {
        "apiVersion": "v1", "kind": "Pod", "name": POD, "namespace": "nim-service", "uid": "0f0f",
    }  # fmt: skip
    assert (event["type"], event["reason"]) == ("Normal", "ModelReady")
    assert event["message"].startswith("nimpull: Ready: 1 profile, 1 file, 3.0 GiB")
    assert event["metadata"]["generateName"] == f"{POD}."
    assert patched[:2] == ("PATCH", "/apis/batch/v1/namespaces/nim-service/jobs/my-cache-job")
    assert patched[2]["metadata"]["annotations"]["nimpull/state"] == "Ready"


def test_a_failure_is_a_warning_that_fits(cluster: Cluster) -> None:
    failed = Report(
        State.FAILED, 1, 2, error=Failure.of(NoSpaceError("\u00e9" * 3000, hint="Enlarge the PVC."))
    )
    assert cluster.told(failed) == ""
    event = cluster.asked[1][2]
    assert (event["type"], event["reason"]) == ("Warning", "ModelFailed")
    assert 900 < len(event["message"].encode()) <= 1024


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_the_service_account_may_not_is_silent(cluster: Cluster, status: int) -> None:
    cluster.refused, cluster.status = frozenset({"GET", "POST", "PATCH"}), status
    assert cluster.told(a_report()) == ""
    assert [method for method, *_ in cluster.asked] == ["GET", "POST"], (
        "without the pod, its job is not known"
    )
    cluster.asked.clear()
    cluster.refused = frozenset({"POST"})
    assert cluster.told(a_report()) == ""
    assert [method for method, *_ in cluster.asked] == ["GET", "POST", "PATCH"]


def test_other_failures_are_told_without_the_token(cluster: Cluster) -> None:
    cluster.refused, cluster.status = frozenset({"POST"}), 500
    assert cluster.told(a_report()).startswith("no Kubernetes Event: ")
    (cluster.account / "ca.crt").write_bytes(trustme.CA().cert_pem.bytes())
    told = cluster.told(a_report())
    assert told.startswith("no Kubernetes Event: ")
    assert "CANARY" not in told
    (cluster.account / "token").unlink()
    assert "service account" in cluster.told(a_report())


def test_no_proxy_stands_between_a_pod_and_its_cluster(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert cluster.told(a_report()) == ""
    assert len(cluster.asked) == 3


def test_only_where_it_was_asked_for_and_there_is_a_cluster() -> None:
    there = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"}
    assert load({"NIMPULL_KUBERNETES_EVENTS": "1", **there}).kubernetes_api == ("10.0.0.1", "6443")
    assert load(there).kubernetes_api is None
    assert load({"NIMPULL_KUBERNETES_EVENTS": "1"}).kubernetes_api is None
