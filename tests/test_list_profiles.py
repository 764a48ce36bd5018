"""The commands that list profiles, from the command line to the text."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from nimpull.cli.list_profiles import list_model_profiles, list_profiles
from nimpull.cli.main import cli
from nimpull.core.hardware import Hardware
from nimpull.core.manifest import Profile
from nimpull.errors import ManifestError, NoProfileError, UsageError
from tests.gpus import PROFILES, example

V2 = str(PROFILES / "example-v2.yaml")
Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """``nimpull list-profiles ARGUMENTS`` on a machine without GPU and without a manifest of its own."""
    for name in ("NIM_MANIFEST_PATH", "NIMPULL_GPUS"):
        monkeypatch.delenv(name, raising=False)

    def no_gpu(**_: object) -> Hardware:
        return Hardware(notes=("No NVIDIA GPU found.",))

    monkeypatch.setattr("nimpull.detect.detect", no_gpu)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(list_profiles, arguments)

    return invoke


def kept(result: Result) -> list[Profile]:
    assert result.exit_code == 0, result.output
    ids = [each["id"] for each in json.loads(result.stdout)["profiles"]]
    return [profile for profile in example("v2").profiles if profile.id in ids]


def test_table_for_hardware_that_is_not_here(run: Run) -> None:
    result = run("--manifest", V2, "--gpu", "H100:2", "--explain")
    assert result.exit_code == 0
    assert result.stdout.startswith("Hardware: 2x NVIDIA H100 80GB HBM3")
    assert " * tensorrt_llm-h100-fp8-tp2-latency" in result.stdout


def test_environment_names_manifest_and_gpus(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIM_MANIFEST_PATH", V2)
    monkeypatch.setenv("NIMPULL_GPUS", "L40S")
    assert "1x NVIDIA L40S" in run().stdout


def test_a_machine_without_gpu_still_lists(run: Run) -> None:
    result = run("--manifest", V2)
    assert result.exit_code == 0
    assert "Hardware: no GPU found\nNote: No NVIDIA GPU found.\n" in result.stdout
    assert "For other hardware:" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 19),
        (["--engine", "tensorrt_llm"], 12),
        (["--engine", "vllm", "--precision", "FP8"], 1),
        (["--tp", "2"], 5),
        (["--qos", "latency"], 3),
        (["--lora"], 2),
        (["--no-lora"], 17),
        (["--buildable"], 2),
        (["--no-buildable", "--engine", "tensorrt_llm"], 10),
        (["-p", "vllm-bf16-tp4", "-p", "vllm-bf16-tp8"], 2),
        (["--precision", "fp4"], 0),
    ],
)
def test_filters(run: Run, arguments: list[str], count: int) -> None:
    assert len(kept(run("--manifest", V2, "--gpu", "H100", "-o", "json", *arguments))) == count


def test_ids_for_a_shell_loop(run: Run) -> None:
    result = run("--manifest", V2, "--gpu", "H100", "-o", "ids", "--engine", "vllm", "--tp", "1")
    assert len(result.stdout.splitlines()) == 4
    assert all(len(line) == 64 for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--manifest", "/nonexistent"], UsageError, "/nonexistent"),
        (["--manifest", str(PROFILES / "gpus.csv")], ManifestError, "line 1"),
        (["--manifest", V2, "--gpu", "X9"], UsageError, "unknown GPU"),
        (["--manifest", V2, "-p", "default"], NoProfileError, "no profile “default”"),
    ],
)
def test_failures_have_their_exit_code(
    run: Run, arguments: list[str], error: type[NoProfileError], message: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == error.exit_code
    assert message in result.stderr
    assert result.stdout == ""


def test_drop_in_prints_the_containers_form_and_exits_0(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    del run  # for its environment
    result = CliRunner().invoke(list_model_profiles, ["-m", V2])
    assert result.exit_code == 0
    assert result.stdout.startswith("SYSTEM INFO\n- Free GPUs: <None>\nMODEL PROFILES\n")
    monkeypatch.setenv("NIMPULL_GPUS", "H100")
    monkeypatch.setenv("NIM_MANIFEST_PATH", V2)
    assert "[2330:10de] (0) NVIDIA H100 80GB HBM3" in CliRunner().invoke(list_model_profiles, []).stdout
    failed = CliRunner().invoke(list_model_profiles, ["-m", "/nonexistent"])
    assert failed.exit_code == UsageError.exit_code


def test_the_group_knows_the_command() -> None:
    result = CliRunner().invoke(cli, ["list-profiles", "--help"])
    assert result.exit_code == 0
    assert "--explain" in result.stdout
