"""What docs/architecture.md says of who may do what, read off the syntax trees of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path("nimpull")
#: What a room alone may touch: names and modules of the standard library and of what we depend on.
RULES = {
    "reads the environment": (
        ("settings",),
        {"os.environ", "os.environb", "os.getenv", "os.getenvb"},
    ),
    "opens sockets": (
        ("transport",),
        {"socket", "ssl", "http.client", "urllib.request", "urllib3", "requests", "pycurl"},
    ),
    "renames and syncs": (
        ("store",),
        {f"os.{name}" for name in ("rename", "renames", "replace", "link", "fsync", "fdatasync", "sync")},
    ),
    "prints": (("cli", "__main__"), {"print", "click", "sys.stdout", "sys.stderr", "sys.__stdout__"}),
}
#: (module, what it touches): why.
EXCEPTIONS = {
    ("detect.nvml_probe", "print"): "a process of its own: stdout is how it answers",
}


def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def touched(tree: ast.Module) -> Iterator[str]:
    """Dotted names that are read, through imports under whatever name; imports for types only are none."""
    aliases: dict[str, str] = {}
    typing_only = {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for below in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for name in node.names:
                aliases[name.asname or name.name.partition(".")[0]] = (
                    name.name if name.asname else name.name.partition(".")[0]
                )
                yield name.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for name in node.names:
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"
                yield f"{node.module}.{name.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            first, _, rest = ast.unparse(node).partition(".")
            yield f"{aliases.get(first, first)}.{rest}".rstrip(".")


@pytest.mark.parametrize("rule", RULES)
def test_one_room_alone(rule: str) -> None:
    rooms, forbidden = RULES[rule]
    found = {
        (module, name)
        for module, tree in modules().items()
        if module.partition(".")[0] not in rooms
        for name in touched(tree)
        for banned in forbidden
        if name == banned or name.startswith(f"{banned}.")
    }
    assert found - EXCEPTIONS.keys() == set()


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("reads the environment", "import os\nos.environ.get('A')"),
        ("reads the environment", "from os import getenv as g"),
        ("opens sockets", "def f():\n    import urllib3.util"),
        ("renames and syncs", "import os as system\nsystem.replace(a, b)"),
        ("prints", "import sys\nsys.stderr.write('x')"),
    ],
)
def test_a_breach_is_seen(rule: str, code: str) -> None:
    names = set(touched(ast.parse(code)))
    assert any(name == banned or name.startswith(f"{banned}.") for name in names for banned in RULES[rule][1])


def test_no_exception_is_left_over() -> None:
    names = {(module, name) for module, tree in modules().items() for name in touched(tree)}
    assert EXCEPTIONS.keys() <= names


def test_a_class_name_stands_once_in_the_package() -> None:
    """One meaning for a word: whoever reads a name need not ask which of two it is."""
    where: dict[str, list[str]] = {}
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(module)
    assert {name: found for name, found in where.items() if len(found) > 1} == {}
