"""What users type: mistakes answered with the fix, output that cannot be written, stores out of reach."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nimpull.errors import hint_for
from tests.registry import Registry
from tests.running import FILES, PROGRAM, ended, nimpull, start

V2 = "profiles/example-v2.yaml"
FULL = ("sh", "-c", 'exec "$@" > /dev/full', "sh")
HUB = ("sh", "-c", 'exec "$@" 2>&1', "sh")


@pytest.fixture
def pulled(registry: Registry, tmp_path: Path) -> Path:
    registry.add_hub_repo("acme/tiny", FILES)
    store = tmp_path / "store"
    assert nimpull(registry, store, "download", "hf://acme/tiny").code == 0
    return store


# -- mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("downlod",), "Did you mean “download”?"),
        (("hf://acme/tiny",), "Did you mean “nimpull download hf://acme/tiny”?"),
        (("download", "--stoer", "x"), "Did you mean --store"),
        (("download", "--layout", "locl"), "Did you mean “local-dir”?"),
        (("download", "--token", "hf_x"), "Put the token into HF_TOKEN"),
        (("download", "--revision", "main"), "hf://namespace/name@revision"),
        (("list-profiles", "-o", "jsn"), "Did you mean “json”?"),
        (
            ("download", "hf://acme/tiny", "--report", "/nonexistent/r.json"),
            "/nonexistent is not a directory",
        ),
        (("download", "hf://acme/tiny", "--report", "/dev/null"), "/dev/null is not a file"),
    ],
    ids=lambda each: each if isinstance(each, str) else " ".join(each),
)
def test_a_mistake_is_answered_with_what_was_meant(
    registry: Registry, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = nimpull(registry, tmp_path / "store", *arguments)
    assert (done.code, words in done.err.splitlines()[-1]) == (2, True), done.err
    assert registry.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("download", "hf://acme/tiny", "--store", ""),
        ("download", "--manifest", V2, "--gpu", ""),
        ("download", "hf://acme/tiny", "--include", "*", "--include", ""),
        ("download", "hf://acme/tiny", "--report", ""),
        ("download", ""),
        ("download", "-f", ""),
        ("status", "--store", ""),
        ("verify", "--store", ""),
        ("list-profiles", "--manifest", ""),
        ("gpus", "--gpu", ""),
    ],
    ids=" ".join,
)
def test_an_empty_value_is_not_the_default(
    registry: Registry, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = nimpull(registry, tmp_path / "store", *arguments)
    assert (done.code, "is a variable not set" in done.err) == (2, True), done.err
    assert not (tmp_path / "store").exists()


def test_every_command_ends_its_help_with_examples_and_exit_codes(registry: Registry, tmp_path: Path) -> None:
    for command in ("download", "list-profiles", "verify"):
        text = nimpull(registry, tmp_path, command, "-h").out
        assert text.count(f"\n  nimpull {command} ") == 2, text
        assert "2 bad-usage" in text.partition("Exit codes:")[2]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("acme/tiny", "hf://acme/tiny"),
        ("acme/tiny@v1", "hf://acme/tiny@v1"),
        ("nim/meta/tiny:hf-1", "ngc://nim/meta/tiny:hf-1"),
    ],
)
def test_a_model_without_a_scheme(registry: Registry, tmp_path: Path, text: str, meant: str) -> None:
    done = nimpull(registry, tmp_path / "store", "download", text)
    assert (done.code, f"Did you mean {meant}?" in done.err) == (2, True), done.err


def test_an_empty_repository_is_not_a_matter_of_patterns(registry: Registry, tmp_path: Path) -> None:
    registry.add_hub_repo("acme/void", {})
    registry.add_hub_repo("acme/tiny", FILES)
    void = nimpull(registry, tmp_path / "store", "download", "hf://acme/void")
    assert (void.code, "is empty" in void.err, "--include" in void.err) == (2, True, False), void.err
    none = nimpull(registry, tmp_path / "store", "download", "hf://acme/tiny", "--include", "*.nothing")
    assert (none.code, "(--include, --exclude)" in none.err) == (2, True), none.err


def test_without_a_gpu_there_are_three_ways(registry: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    typed = nimpull(registry, store, "download", "--manifest", V2).err.splitlines()[-1]
    assert "no GPU is visible here" in typed and "for H100, H100_NVL, L40S, A100 and 1 more" in typed
    for way in ("(or --gpu H100:1)", "(or --profile)", "(--engine, --precision, --tp, …)"):
        assert way in typed
    assert "NIMCache" not in typed and len(typed) < 500
    program = (*PROGRAM[:1], "-c", "from nimpull.__main__ import download_to_cache as d; d()")
    pod = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "NIM_MANIFEST_PATH": V2}
    job = ended(start(registry, store, under=(), program=program, **pod), store).err.splitlines()[-1]
    for way in ("NIMPULL_GPUS=H100:1", "NIM_MODEL_PROFILE=tensorrt_llm-h100-fp8-tp1-throughput"):
        assert way in job
    assert "(NIMCache: spec.source.ngc.model)" in job and "--" not in job


# -- output that cannot be written ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("download", "hf://acme/tiny", "-o", "json"),
        ("download", "hf://acme/tiny", "--report", "-"),
        ("download", "hf://acme/tiny", "--refresh", "--dry-run"),
        ("gpus",),
        ("status",),
        ("verify",),
        ("verify", "-o", "json"),
        ("list-profiles", "--manifest", V2),
        ("download", "--help"),
    ],
    ids=" ".join,
)
def test_output_that_cannot_be_written_is_no_success(
    registry: Registry, pulled: Path, arguments: tuple[str, ...]
) -> None:
    done = ended(start(registry, pulled, *arguments, under=FULL), pulled)
    assert done.code == 50, done.err
    last = done.err.splitlines()[-1]
    assert "output-failed" in last and "No space left on device" in last
    assert "Traceback" not in done.err


def test_a_reader_that_went_away_is_no_failure_of_a_pull(registry: Registry, pulled: Path) -> None:
    code = pulled.parent / "code"
    unread = ("bash", "-c", f'("$@"; echo $? > {code}) | :', "bash")
    ended(start(registry, pulled, "download", "hf://acme/tiny", "-o", "json", under=unread), pulled)
    assert code.read_text() == "0\n"


def test_a_report_that_cannot_be_written_at_the_end_is_no_success(registry: Registry, pulled: Path) -> None:
    report = pulled.parent / "report.json"
    report.with_name("report.json.new").mkdir()  # where the new one is written before it takes its name
    done = nimpull(registry, pulled, "download", "hf://acme/tiny", "--report", str(report))
    assert (done.code, "output-failed" in done.err.splitlines()[-1]) == (50, True), done.err


def test_the_closing_line_of_a_job_is_the_last(registry: Registry, tmp_path: Path) -> None:
    """A pod's log has both streams as one."""
    registry.add_hub_repo("acme/tiny", FILES)
    target = tmp_path / "here"
    program = (*PROGRAM[:1], "-c", "from nimpull.__main__ import hugging_face as h; h()")
    arguments = ("download", "acme/tiny", "--local-dir", str(target))
    done = ended(start(registry, target, *arguments, under=HUB, program=program), target)
    assert done.code == 0, done.out
    path, closing = done.out.splitlines()[-2:]
    assert path == str(target)
    assert closing.startswith("nimpull: Ready: ")


# -- out of reach --------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another uid")
@pytest.mark.parametrize("command", ["status", "verify"])
def test_a_store_that_this_uid_cannot_enter(registry: Registry, pulled: Path, command: str) -> None:
    pulled.parent.chmod(0o700)
    other = ("setpriv", "--reuid", "1000", "--regid", "2000", "--clear-groups")
    done = ended(start(registry, pulled, command, under=other), Path("/nonexistent"))
    assert (done.code, "Permission denied" in done.err) == (41, True), done.err
    assert "Traceback" not in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another uid")
def test_a_manifest_that_this_uid_cannot_read(registry: Registry, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    other = ("setpriv", "--reuid", "1000", "--regid", "2000", "--clear-groups")
    place = str(tmp_path / "m.yaml")
    for arguments in (("list-profiles",), ("download",), ("manifest",)):
        done = ended(
            start(registry, tmp_path, *arguments, under=other, NIM_MANIFEST_PATH=place), Path("/nonexistent")
        )
        assert (done.code, "cannot read the manifest" in done.err) == (2, True), done.err


# -- who reads a hint ----------------------------------------------------------------------------------


def test_a_hint_is_for_its_reader() -> None:
    hint = "Set A (NIMCache: spec.b, key C) or give GPUs (nimpull: --gpu H100:8)."
    assert hint_for(hint, nimcache=False, options=True) == "Set A or give GPUs (--gpu H100:8)."
    assert hint_for(hint, nimcache=True, options=False) == "Set A (NIMCache: spec.b, key C) or give GPUs."
