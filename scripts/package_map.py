"""docs/map.md: every module of the package in one line, from its docstring; scripts.reference writes it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nimpull"
MAP = ROOT / "docs/map.md"
HEAD = """# Map of the package

Each module in one line, made from the docstrings by `python -m scripts.reference`; a package's own line is
below its name. [Architecture](architecture.md) says how they belong together.
"""
#: In the order in which a reader goes through them: the run first, then what it calls.
ORDER = (
    "",
    "cli",
    "wiring",
    "core",
    "detect",
    "sources",
    "transport",
    "fetch",
    "store",
    "progress",
    "pictures",
)


def as_map() -> str:
    parts = [HEAD]
    for package in sorted({path.parent for path in PACKAGE.rglob("*.py")}, key=place):
        parts.append(f"## `{package.relative_to(ROOT)}/`\n")
        if line := first_line(package / "__init__.py"):
            parts.append(f"{line}\n")
        modules = sorted(path for path in package.glob("*.py") if path.name != "__init__.py")
        rows = [f"| `{path.name}` | {first_line(path)} |" for path in modules]
        if rows:
            parts.append("\n".join(["| file | what is in it |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def place(package: Path) -> tuple[int, Path]:
    """Its place in the order; what is not in it comes last."""
    top = (*package.relative_to(PACKAGE).parts, "")[0]
    return (ORDER.index(top) if top in ORDER else len(ORDER), package)


def first_line(path: Path) -> str:
    """The first paragraph of the docstring, "" = there is none. Roles of Sphinx are names here."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    line = " ".join(docstring.partition("\n\n")[0].split())
    for role in (":mod:", ":class:", ":func:", ":meth:", ":data:"):
        line = line.replace(role, "")
    return line.replace("``", "`").replace("|", "\\|")
