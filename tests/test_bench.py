"""``scripts/bench`` in small: it measures, checks what it measured, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from scripts.benchmark import __main__ as bench
from scripts.benchmark import tables
from scripts.benchmark.content import difference, make_repository
from scripts.benchmark.server import find_nginx
from scripts.benchmark.session import ROOT, Failed, Session

needs_nginx = pytest.mark.skipif(not find_nginx(), reason="nginx serves what is measured")


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Sources and targets are in ``tmp_path``, and nowhere else."""
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    places = ["--source", str(tmp_path / "source"), "--target", str(tmp_path / "target")]
    return [sys.executable, "-m", "scripts.benchmark", "--quick", *places]


def left_behind(root: Path) -> list[str]:
    return [str(path) for folder in ("source", "target") for path in (root / folder).rglob("*")]


def holders(root: Path) -> set[str]:
    """Processes that were started with a path below ``root``, or have a file open there."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            names = [(process / "cmdline").read_text().replace("\0", " ")]
            names += [os.readlink(descriptor) for descriptor in (process / "fd").iterdir()]
            if any(str(root) in name for name in names):
                found.add(names[0])
    return found


@needs_nginx
def test_a_quick_run_measures_verifies_and_leaves_nothing(command: list[str], tmp_path: Path) -> None:
    written = tmp_path / "table.md"
    written.write_text("Kept.\n")
    options = ["--cases", "one-https,resume,warm", "--peers", "engine,nimpull,curl"]
    done = subprocess.run(
        [*command, *options, "--markdown", str(written)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = written.read_text()
    assert document.startswith("Kept.\n")
    assert "### one-https: one file of 64 MiB, https (1 round)" in document
    for row in ("| nimpull engine | SHA-256 | ", "| nimpull | SHA-256 | "):
        assert row in document
    # a complete store is answered for without a request
    assert "| 0 / 0 / 0 |" in document
    assert left_behind(tmp_path) == []


@needs_nginx
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_leaves_no_process_and_no_file(
    command: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [*command, "--cases", "one", "--peers", "engine,nimpull", "--rounds", "1000"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr
        for line in running.stderr:
            if line.startswith("one 1/1000: nimpull engine"):
                break
        serving = [name for name in holders(tmp_path) if name.startswith("nginx")]
        assert serving, "nginx is not seen, so its end would not be"
        running.send_signal(number)
        assert running.wait(60) == 128 + number
    assert holders(tmp_path) == set()
    assert left_behind(tmp_path) == []


def test_without_nginx_the_exit_code_says_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "find_nginx", lambda: "")
    monkeypatch.setattr(sys, "argv", ["bench", "--quick"])
    assert bench.main() == bench.SKIPPED
    assert "nginx is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cases", "one,tow"], "there is no tow: choose from"),
        (["--peers", "wget"], "there is no wget: choose from"),
        (["--rounds", "0"], "1 or more"),
        (["--target", "/nowhere"], "/nowhere is not a directory"),
    ],
)
def test_wrong_options_are_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        bench.parse(options)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


def test_a_later_run_replaces_its_section_alone() -> None:
    document = tables.put("# Performance\n", "one", "large", ["old"])
    document = tables.put(document, "repo", "many", ["kept"])
    document = tables.put(document, "one", "large", ["new"])
    assert "old" not in document
    assert document.index("# Performance") < document.index("new") < document.index("kept")
    assert document.count("<!-- bench:one -->") == 1


def test_a_failed_downloader_is_told_with_its_last_line() -> None:
    with Session() as session, pytest.raises(Failed, match="exit code 3: no space"):
        session.measure(["sh", "-c", "echo first; echo no space >&2; exit 3"], {})


def test_one_wrong_byte_is_found(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, (3 << 20, 5000))
    large = repository.folder / repository.files[0].name
    copies = tmp_path / "copies"
    copies.mkdir()
    for file in repository.files:
        (copies / file.name).write_bytes((repository.folder / file.name).read_bytes())
    assert difference(repository, copies) == ""
    with (copies / large.name).open("r+b") as copy:
        copy.seek(2 << 20)
        copy.write(b"~")
    assert difference(repository, copies) == f"{large.name} has other bytes than were served"
    (copies / large.name).unlink()
    assert difference(repository, copies).startswith(f"{large.name} cannot be read")
