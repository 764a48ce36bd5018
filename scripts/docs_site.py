"""Hooks of mkdocs: pages that are made of other files of the repository, and links that lead out of docs/."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
#: Page -> the file of the repository that it is.
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
SCHEMA = ROOT / "nimpull/report.schema.json"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(
        File.generated(config, "report-schema.md", content=schema_page(json.loads(SCHEMA.read_text())))
    )
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links between files of the repository, as the site has them.

    A file that is there but not in the site is plain text; what is nowhere is left for mkdocs to complain of.
    """
    pages = {ROOT / source: name for name, source in PAGES.items()}
    directory = ROOT if page.file.src_uri in PAGES else ROOT / "docs"

    def rewritten(link: re.Match[str]) -> str:
        text, target = link.groups()
        path, mark, anchor = target.partition("#")
        file = (directory / path).resolve()
        if "://" in target or not path or not file.exists():
            return link[0]
        if file in pages:
            return f"[{text}]({pages[file]}{mark}{anchor})"
        inside = file.is_relative_to(ROOT / "docs") and file.suffix == ".md"
        return f"[{text}]({file.name}{mark}{anchor})" if inside else text

    return re.sub(r"\[([^\]\[]+)\]\(([^()\s]+)\)", rewritten, markdown)


def schema_page(schema: dict[str, Any]) -> str:
    """The fields of the report, from its JSON Schema."""
    lines = [
        "# The report's fields",
        "",
        "Rendered from `nimpull/report.schema.json` (JSON Schema 2020-12); [the report](report.md) explains.",
    ]
    lines += section("the report", schema, 2)
    return "\n".join(lines) + "\n"


def section(name: str, schema: dict[str, Any], depth: int) -> list[str]:
    """A table of one object, then a section for each object below it."""
    required = set(schema.get("required", ()))
    lines = ["", f"{'#' * depth} {name}", ""]
    lines += [schema["description"], ""] if "description" in schema else []
    lines += ["| field | type | always | meaning |", "|---|---|---|---|"]
    below: list[str] = []
    for field, each in schema["properties"].items():
        always = "yes" if field in required else ""
        lines.append(f"| `{field}` | {kind(each)} | {always} | {each.get('description', '')} |")
        for inner in (each, each.get("items", {}), *each.get("oneOf", ()), *items_of(each)):
            if "properties" in inner:
                path = field if depth == 2 else f"{name}.{field}"
                below += section(path + ("[]" if inner is not each else ""), inner, 3)
    return lines + below


def items_of(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [choice.get("items", {}) for choice in schema.get("oneOf", ())]


def kind(schema: dict[str, Any]) -> str:
    """The type in words: ``integer or null``, ``list of string``, ``one of …``."""
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if "oneOf" in schema:
        return " or ".join(kind(each) for each in schema["oneOf"])
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    names = [f"list of {kind(schema['items'])}" if each == "array" else each for each in types]
    if "additionalProperties" in schema and isinstance(schema["additionalProperties"], dict):
        names = [f"map to {kind(schema['additionalProperties'])}"]
    return " or ".join(names)
