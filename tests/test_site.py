"""The documentation as a site: it builds, every link leads somewhere, nothing is asked of other hosts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not find_spec("material"), reason="needs the extra docs")


def built(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=root,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def names(schema: dict[str, Any]) -> set[str]:
    """Of all fields of a schema."""
    inner = [*schema.get("properties", {}).values(), *schema.get("oneOf", ()), schema.get("items", {})]
    return set(schema.get("properties", {})).union(*map(names, filter(None, inner)))


def test_it_builds_and_shows_every_field_of_the_report(tmp_path: Path) -> None:
    done = built(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report-schema.html").read_text()
    fields = names(json.loads((ROOT / "nimpull/report.schema.json").read_text()))
    assert len(fields) > 50
    assert {field for field in fields if f"<code>{field}</code>" not in page} == set()
    assert "nimpull gets a NIM model" in (tmp_path / "index.html").read_text()
    for html in tmp_path.glob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]*"', html.read_text())
        assert loaded == [], html.name


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    for name in ("docs", "scripts", "nimpull/report.schema.json", "mkdocs.yml", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, tmp_path / name)
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / name).write_text("# Title\n\n[gone](docs/gone.md), [no such part](docs/errors.md#gone)\n")
    done = built(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert "'docs/gone.md'" in done.stderr
    assert "anchor '#gone'" in done.stderr
