"""What the image and the examples promise, as far as it can be seen without building or running them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nimpull import errors
from nimpull.core.manifest import parse_manifest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("job*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def containers(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(pod spec, container) of every workload."""
    for document in documents(path):
        if "template" in document["spec"]:
            pod = document["spec"]["template"]["spec"]
            for container in (*pod.get("initContainers", ()), *pod["containers"]):
                yield pod, container


def test_the_image_s_own_manifest_has_no_profiles() -> None:
    text = (ROOT / "image/model_manifest.yaml").read_bytes()
    manifest = parse_manifest(text)
    assert (manifest.schema, manifest.profiles) == ("v2", ())
    # with this in it, the operator would take the file for missing
    assert b"model_manifest.yaml not found" not in text


def test_the_dockerfile_keeps_to_what_buildah_1_28_knows() -> None:
    text = (ROOT / "Dockerfile").read_text()
    for unknown in ("<<", "--link", "--exclude", "--parents", "RUN --network", "# syntax=", "@sha256"):
        assert unknown not in text
    assert [line for line in text.splitlines() if line.startswith("USER")][-1] == "USER 1000:2000"


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


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A stand-in for podman that shows its arguments."""
    path = tmp_path / "engine"
    path.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return path


def test_extract_manifest_starts_nothing_but_a_shell(engine: Path) -> None:
    script = ROOT / "scripts/extract-manifest"
    environment = {"PATH": f"{engine.parent}:/usr/bin:/bin", "ENGINE": "engine"}
    done = subprocess.run(
        [script, "example/nim:1"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[:6] == [
        "run",
        "--rm",
        "--network=none",
        "--entrypoint=sh",
        "example/nim:1",
        "-c",
    ]
    assert subprocess.run([script], env=environment, capture_output=True, check=False).returncode == 2


def test_extract_manifest_without_an_engine_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts/extract-manifest", "example/nim:1"],
        env={"PATH": "/usr/bin:/bin", "ENGINE": "no-such-engine"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "neither podman nor docker" in done.stderr
