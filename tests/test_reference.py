"""The option reference and the man pages are those of the commands as they are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from nimpull.cli.program import HelpEpilog
from scripts.package_map import MAP, PACKAGE
from scripts.reference import PAGES, PROGRAMS, context_of, made, walk


@pytest.mark.parametrize("path", made(), ids=lambda path: path.name)
def test_it_is_current(path: Path) -> None:
    assert path.read_text() == made()[path], "run python -m scripts.reference"


def test_the_map_has_a_line_for_every_module() -> None:
    rows = re.findall(r"^\| `(\w+\.py)` \| (.+) \|$", MAP.read_text(), re.MULTILINE)
    modules = sorted(path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert sorted(name for name, _ in rows) == modules
    assert all(line.strip() for _, line in rows)


def test_every_help_ends_with_examples_and_exit_codes() -> None:
    for name, program in PROGRAMS.items():
        for context in walk(context_of(program, name)):
            command = context.command
            assert isinstance(command, HelpEpilog) and command.examples, context.command_path
            assert all(each.startswith(("nimpull ", "source ", name)) for each in command.examples)
            assert command.exits or isinstance(command, click.Group), context.command_path


def test_there_is_no_page_of_a_program_that_is_gone() -> None:
    assert {path.stem for path in PAGES.iterdir()} == set(PROGRAMS)


@pytest.mark.skipif(not shutil.which("man"), reason="needs man")
@pytest.mark.parametrize("name", PROGRAMS)
def test_man_reads_it_without_a_warning(name: str) -> None:
    command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", str(PAGES / f"{name}.1")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert name in done.stdout
