"""The Jobs that the examples and the documentation show: Kubernetes takes them, and they run locked down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from nimpull import errors
from nimpull.core.nimcache import parse_nimcache

ROOT = Path(__file__).parent.parent
NIMCACHES = sorted((ROOT / "examples").rglob("nimcache*.yaml"))
EXAMPLES = sorted(path for path in (ROOT / "examples").rglob("*.yaml") if "nimcache" not in path.name)
RELEASES = ("1.31", "1.34", "1.37")  # podFailurePolicy is stable since 1.31


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def containers(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(pod spec, container) of every workload."""
    for document in documents(path):
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            pod = spec["template"]["spec"]
            for container in (*pod.get("initContainers", ()), *pod["containers"]):
                yield pod, container


def shown() -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of every whole Kubernetes object in the examples and the documentation."""
    for path in EXAMPLES:
        for document in documents(path):
            yield f"{path.name}:{document['kind']}", document
    for path in sorted((ROOT / "docs").glob("*.md")):
        for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL):
            document = yaml.safe_load(block)
            if isinstance(document, dict) and "apiVersion" in document:
                yield f"{path.name}:{document['kind']}", document


SHOWN = list(shown())


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("document", [document for _, document in SHOWN], ids=[where for where, _ in SHOWN])
def test_kubernetes_takes_it(document: dict[str, Any], release: str) -> None:
    kubernetes_validate.validate(document, release, strict=True)


@pytest.mark.parametrize("at", [(), ("spec",), ("spec", "template", "spec"), "container"])
def test_a_misspelt_field_would_be_noticed(at: tuple[str, ...] | str) -> None:
    (job,) = (each for each in documents(ROOT / "examples/job.yaml") if each["kind"] == "Job")
    inner = job["spec"]["template"]["spec"]["containers"][0] if at == "container" else job
    for key in () if at == "container" else at:
        inner = inner[key]
    inner["terminationMessagepolicy"] = "FallbackToLogsOnError"
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationMessagepolicy"):
        kubernetes_validate.validate(job, RELEASES[0], strict=True)


def test_something_was_found_in_every_place() -> None:
    kinds = [where for where, _ in SHOWN]
    assert kinds.count("job.yaml:Job") == kinds.count("job-readonly-share.yaml:Job") == 1
    assert "errors.md:Job" in kinds


@pytest.mark.parametrize("path", NIMCACHES, ids=lambda path: path.stem)
def test_the_operator_takes_the_nimcaches(path: Path) -> None:
    """No note: no unknown field, and nothing that its webhook would refuse."""
    text = path.read_bytes()
    cache = parse_nimcache(text)
    assert cache.notes == ()
    assert b"modelPuller: registry.example.com/" in text
    misspelt = text.replace(b"volumeAccessMode", b"volumeAccessmode")
    assert parse_nimcache(misspelt, lenient=True).notes != ()


def test_the_operator_takes_two_nimcaches_on_one_volume() -> None:
    claim, *caches = documents(ROOT / "examples/two-nimcaches.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    volumes = [cache["spec"]["storage"]["pvc"] for cache in caches]
    assert [volume["name"] for volume in volumes] == [claim["metadata"]["name"]] * 2
    for cache in caches:
        assert parse_nimcache(yaml.safe_dump(cache).encode()).notes == ()


def test_the_pods_of_the_indexed_job_share_a_volume_and_one_is_enough() -> None:
    claim, job = documents(ROOT / "examples/job-indexed.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert spec["successPolicy"]["rules"] == [{"succeededCount": 1}]
    (alone,) = (each for each in documents(ROOT / "examples/job.yaml") if each["kind"] == "Job")
    assert spec["podFailurePolicy"] == alone["spec"]["podFailurePolicy"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_run_locked_down(path: Path) -> None:
    for pod, container in containers(path):
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_readers_of_the_share_mount_it_read_only() -> None:
    found = {
        container["name"]: container["volumeMounts"][0].get("readOnly", False)
        for _, container in containers(ROOT / "examples/job-readonly-share.yaml")
    }
    assert found == {"nimpull": False, "wait-for-model": True, "reader": True}


def test_the_web_server_reads_what_the_job_writes_and_cannot_change_it() -> None:
    found = {
        container["name"]: {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        for _, container in containers(ROOT / "examples/mirror/web-server.yaml")
    }
    written, served = found["nimpull"]["/mirror"], found["nginx"]["/mirror"]
    assert written["subPath"] == served["subPath"]
    assert (written.get("readOnly", False), served["readOnly"]) == (False, True)


def test_the_bucket_is_read_as_it_was_filled() -> None:
    (filling,) = (container for _, container in containers(ROOT / "examples/mirror/fill-bucket.yaml"))
    (cache,) = documents(ROOT / "examples/mirror/nimcache-bucket.yaml")
    override = {each["name"]: each["value"] for each in cache["spec"]["env"]}["NIM_REPOSITORY_OVERRIDE"]
    assert filling["args"][-2:] == ["--to", override.rstrip("/")]
    assert cache["spec"]["source"]["ngc"]["modelPuller"] == filling["image"]


def _tree(of: type[errors.NimpullError]) -> Iterator[type[errors.NimpullError]]:
    for each in of.__subclasses__():
        yield each
        yield from _tree(each)


def test_the_job_gives_up_at_once_on_exactly_what_cannot_heal() -> None:
    hopeless = {
        each.exit_code
        for each in _tree(errors.NimpullError)
        if each.__module__ == errors.__name__  # an edge may narrow a class; the code is the tree's
        and each.exit_code != errors.INTERNAL_ERROR_EXIT_CODE
        and not each.retryable
    }
    (job,) = (each for each in documents(ROOT / "examples/job.yaml") if each["kind"] == "Job")
    fail = job["spec"]["podFailurePolicy"]["rules"][0]
    assert fail["action"] == "FailJob"
    assert set(fail["onExitCodes"]["values"]) == hopeless | {errors.INTERNAL_ERROR_EXIT_CODE}
