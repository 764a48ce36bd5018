"""What the image promises, as far as it can be seen without building or running it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nimpull.core.manifest import parse_manifest

ROOT = Path(__file__).parent.parent


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


def test_the_operators_call_is_a_download(tmp_path: Path) -> None:
    """Exit code and environment pass, and nothing is printed beside: the operator reads logs."""
    command = tmp_path / "download-to-cache"
    command.write_text('#!/bin/sh\necho "$# options, $NIM_CACHE_PATH"\nexit 41\n')
    command.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", "from nimlib import nimutils; nimutils.download_models()"],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT / "image/shim"),
            "NIM_CACHE_PATH": "/model-store",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (41, "0 options, /model-store\n", "")


def test_the_shim_is_never_beside_the_real_one() -> None:
    runtime, _, last = (ROOT / "Dockerfile").read_text().partition("\nFROM runtime\n")
    assert "shim" not in runtime and "PYTHONPATH=/opt/nimpull-shim" in last


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
