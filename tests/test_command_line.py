"""What users type: mistakes answered with the fix, output that cannot be written, stores out of reach."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
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
        (("pull", "hf://acme/tiny"), "Did you mean “download”?"),
        (("ls",), "Did you mean “list-profiles”?"),
        (("download", "./model"), "A directory is file:///path"),
        (
            ("download", "nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.4"),
            "Is it a container image? nimpull fits",
        ),
        (("hf://acme/tiny",), "Did you mean “nimpull download hf://acme/tiny”?"),
        (("download", "--stoer", "x"), "Did you mean --store"),
        (("download", "--layout", "locl"), "Did you mean “local-dir”?"),
        (("download", "--token", "hf_x"), "Put the token into HF_TOKEN"),
        (("download", "--revision", "main"), "hf://namespace/name@revision"),
        (("list-profiles", "-o", "jsn"), "Did you mean “json”?"),
        (
            ("download", "hf://acme/tiny", "--report", "/proc/nowhere/r.json"),
            "/proc/nowhere is not a directory",
        ),
        (("download", "hf://acme/tiny", "--report", "/dev/null"), "/dev/null is not a file"),
        (("download", "hf://acme/tiny", "--metrics", "/dev/null"), "/dev/null is not a file"),
        (("list-profiles", "--manifest", V2, "--html", "/dev/null"), "/dev/null is not a file"),
        (("report", "--html", "/proc/nowhere/page.html"), "/proc/nowhere is not a directory"),
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


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("gpus", "--gpu", "H1000"), 2, "Did you mean “H100” or “H200”?"),
        (("list-profiles", "--manifest", V2, "--precision", "fp99"), 11, "the manifest has bf16, fp8, nvfp4"),
        (("list-profiles", "--manifest", V2, "--precision", "fp08"), 11, "Did you mean “fp8”?"),
        (("list-profiles", "--manifest", V2, "--engine", "vlm"), 11, "Did you mean “vllm”?"),
        (("list-profiles", "--manifest", V2, "--tp", "4", "--lora"), 11, "nearest: "),
        (("download", "--manifest", V2, "--engine", "vlm"), 11, "Did you mean “vllm”?"),
        (
            ("download", "--manifest", V2, "--qos", "fast"),
            11,
            "the manifest has latency, long-context, throughput",
        ),
        (("download", "--manifest", "/dev/null"), 10, "the manifest /dev/null is empty"),
        (("download", "hf://acme/tiny", "-q", "-v"), 2, "-q and -v do not go together"),
        (("help", "downlod"), 2, "Did you mean “download”?"),
        (("completion",), 2, "Missing argument '{bash|zsh|fish}'. Choose from: bash, zsh, fish"),
        (("completion", "tcsh"), 2, "is none of bash, zsh, fish"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_a_value_that_is_not_there_is_answered_with_those_that_are(
    registry: Registry, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = nimpull(registry, tmp_path / "store", *arguments)
    assert (done.code, words in done.err.splitlines()[-1]) == (code, True), done.err


@pytest.mark.parametrize("text", ["H100:2", "H100x2", "2xH100", "H100 X 2"])
def test_a_count_of_gpus_as_people_write_it(registry: Registry, tmp_path: Path, text: str) -> None:
    done = nimpull(registry, tmp_path, "gpus", "--gpu", text)
    assert done.out.startswith("2 GPUs, as named\n"), done.text


def test_quiet_and_verbose(registry: Registry, tmp_path: Path) -> None:
    registry.add_hub_repo("acme/tiny", FILES)
    quiet = nimpull(registry, tmp_path / "a", "download", "hf://acme/tiny", "-q")
    assert quiet.err == "" and quiet.out.startswith("nimpull: Ready: ")
    verbose = nimpull(registry, tmp_path / "b", "download", "hf://acme/tiny", "-v")
    assert "fetched model.safetensors: 4.9 MiB" in verbose.err


def test_help_of_a_command(registry: Registry, tmp_path: Path) -> None:
    asked = nimpull(registry, tmp_path, "help", "download")
    assert (asked.code, asked.out) == (0, nimpull(registry, tmp_path, "download", "--help").out)
    assert nimpull(registry, tmp_path, "help").out == nimpull(registry, tmp_path, "--help").out


# -- completion ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(registry: Registry, tmp_path: Path, shell: str) -> None:
    done = nimpull(registry, tmp_path, "completion", shell)
    assert done.code == 0 and f"_NIMPULL_COMPLETE={shell}_complete" in done.out
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.out)
        subprocess.run([shell, "-n", str(script)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("nimpull downl", {"download"}),
        ("nimpull download --layout l", {"local-dir"}),
        ("nimpull gpus --gpu h20", {"H200", "H200_NVL"}),
        (f"nimpull download --manifest {V2} --profile vllm-fp", {"vllm-fp8-tp1"}),
        (f"nimpull list-profiles --manifest {V2} --precision f", {"fp8"}),
        ("nimpull download --manifest /nonexistent --profile v", set()),
        ("nimpull status --store s", {"store"}),
    ],
)
def test_what_is_completed(registry: Registry, pulled: Path, words: str, offered: set[str]) -> None:
    asking = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path.cwd()),
        "_NIMPULL_COMPLETE": "bash_complete",
        "COMP_WORDS": words.replace(V2, str(Path(V2).absolute())),
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(PROGRAM, env=asking, cwd=pulled.parent, capture_output=True, text=True, check=False)
    assert {line.partition(",")[2] for line in done.stdout.split()} == offered, done.stderr
    assert done.stderr == ""


# -- mistakes, further ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize("plain", [{"LC_ALL": "C"}, {"LANG": "POSIX"}, {"TERM": "dumb"}])
def test_who_asks_for_ascii_gets_it_and_json_stays_json(
    registry: Registry, tmp_path: Path, plain: dict[str, str]
) -> None:
    manifest = tmp_path / "m.yaml"
    text = Path(V2).read_text().replace("llm_engine: vllm", "llm_engine: vllm\n    note: 'é…😀'")
    manifest.write_text(text)
    arguments = ("list-profiles", "--manifest", str(manifest), "--gpu", "H100")
    table = nimpull(registry, tmp_path, *arguments, "--explain", **plain)
    wrong = nimpull(registry, tmp_path, "gpus", "--gpu", "H1000", **plain)
    helped = nimpull(registry, tmp_path, "download", "--help", **plain)
    as_json = nimpull(registry, tmp_path, *arguments, "-o", "json", **plain)
    for done in (table, wrong, helped, as_json):
        assert done.text.isascii()
    assert 'unknown GPU "H1000"' in wrong.err and "sglang, ..." in helped.out
    notes = {each["tags"].get("note") for each in json.loads(as_json.out)["profiles"]}
    assert "é...😀" in notes


# -- output that cannot be written ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("download", "hf://acme/tiny"),
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


def test_metrics_that_an_option_asks_for_and_cannot_be_written_are_no_success(
    registry: Registry, pulled: Path
) -> None:
    metrics = pulled.parent / "own.prom"
    metrics.with_name("own.prom.new").mkdir()  # where the new one is written before it takes its name
    download = ("download", "hf://acme/tiny")
    done = nimpull(registry, pulled, *download, "--metrics", str(metrics))
    assert (done.code, "output-failed" in done.err.splitlines()[-1]) == (50, True), done.err
    failed = nimpull(registry, pulled, "download", "hf://acme/gone", "--metrics", str(metrics))
    assert failed.code == 21, "what the run came to stands before it"
    done = nimpull(registry, pulled, *download, NIMPULL_METRICS=str(metrics))
    assert (done.code, "own.prom could not be written" in done.err) == (0, True), done.err


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


def test_a_path_that_is_no_text(registry: Registry, tmp_path: Path) -> None:
    """A script that reads the path of huggingface-cli gets it back, people get it escaped."""
    registry.add_hub_repo("acme/tiny", FILES)
    target = os.fsencode(tmp_path) + b"/a\xffb\nc"
    out = tmp_path / "out"
    into = ("sh", "-c", f'exec "$@" > {out}', "sh")
    hub = (*PROGRAM[:1], "-c", "from nimpull.__main__ import hugging_face as h; h()")
    pull = ("download", "acme/tiny", "--local-dir", os.fsdecode(target), "-q")
    assert ended(start(registry, tmp_path, *pull, under=into, program=hub), tmp_path).code == 0
    assert out.read_bytes() == target + b"\n"
    for command in ("status", "verify", "prune"):
        look = start(registry, tmp_path, command, "--store", os.fsdecode(target), under=into)
        assert ended(look, tmp_path).code == 0
        assert rb"/a\udcffb\nc: " in out.read_bytes()


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
