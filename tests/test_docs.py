"""What the documentation names is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


def named() -> Iterator[tuple[str, str]]:
    """(page, path) of every file that a page names; ``core/ports.py`` is one of the package."""
    for page in (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        text = page.read_text()
        for path in re.findall(
            r"`((?:tests|scripts|docs|examples)/[\w./-]+|nimpull/[\w/]*(?:/|\.\w+))`", text
        ):
            yield page.name, path
        for path in re.findall(r"`([a-z]+/[\w/]+\.py)`", text):
            yield (
                page.name,
                path if path.startswith(("nimpull/", "tests/", "scripts/")) else f"nimpull/{path}",
            )


def test_every_file_that_a_page_names_is_there() -> None:
    paths = set(named())
    assert len(paths) > 40
    assert sorted((page, path) for page, path in paths if not (ROOT / path).exists()) == []


def test_the_glossary_is_short_and_has_each_word_once() -> None:
    text = (ROOT / "docs/architecture.md").read_text().partition("\n## Words\n")[2]
    words = re.findall(r"^\| ([a-z]+) \| .+ \|$", text, re.MULTILINE)
    assert 20 < len(words) <= 40
    assert words[1:] == sorted(set(words[1:]))  # below the heading
