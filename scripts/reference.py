"""docs/options.md and the man pages, from the commands themselves; docs/map.md, from docstrings.

``python -m scripts.reference`` writes them; tests/test_reference.py tells when they are not current.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from nimpull.cli.hub_download import hugging_face
from nimpull.cli.list_profiles import list_model_profiles
from nimpull.cli.main import cli
from nimpull.cli.nim import check_cache_env, create_model_store, download_to_cache
from nimpull.cli.program import HelpEpilog
from nimpull.errors import EXIT_CODES
from scripts.package_map import MAP, as_map

ROOT = Path(__file__).parent.parent
OPTIONS = ROOT / "docs/options.md"
PAGES = ROOT / "man"
#: Console scripts, each with a page of its own.
PROGRAMS: Mapping[str, click.Command] = {
    "nimpull": cli,
    "download-to-cache": download_to_cache,
    "create-model-store": create_model_store,
    "huggingface-cli": hugging_face,
    "list-model-profiles": list_model_profiles,
    "check-cache-env": check_cache_env,
}
HEAD = """# Commands and options

Made from the program itself by `python -m scripts.reference`: what `--help` says, in one place. Variables
stand in brackets behind the option that goes before them; [environment](environment.md) has all of them.
"""


def walk(context: click.Context) -> Iterator[click.Context]:
    """A command, then what is below it, in the order of its help."""
    yield context
    command = context.command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(context_of(below, name, context))


def context_of(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return click.Context(command, info_name=name, parent=parent, help_option_names=["-h", "--help"])


def usage(context: click.Context) -> str:
    return " ".join([context.command_path, *context.command.collect_usage_pieces(context)])


def text_of(command: click.Command) -> list[str]:
    """The paragraphs of its help."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return [" ".join(paragraph.split()) for paragraph in paragraphs]


def options_of(context: click.Context) -> list[tuple[str, str]]:
    params = context.command.get_params(context)
    records = (param.get_help_record(context) for param in params if isinstance(param, click.Option))
    return [record for record in records if record]


def ending(command: click.Command) -> tuple[tuple[str, ...], list[str]]:
    """Examples and exit codes."""
    if not isinstance(command, HelpEpilog):
        return (), []
    codes = [f"{code} {EXIT_CODES[code]}" for code in command.exits]
    return command.examples, ["0 done", *codes] if codes else []


def as_markdown() -> str:
    parts = [HEAD]
    for name, program in PROGRAMS.items():
        for context in walk(context_of(program, name)):
            parts.append(f"{'##' if context.parent is None else '###'} {context.command_path}\n")
            parts.append("\n\n".join(text_of(context.command)) + "\n")
            examples, codes = ending(context.command)
            parts.append("\n".join(["```", usage(context), *examples, "```", ""]))
            rows = [f"| `{cell(left)}` | {cell(right)} |" for left, right in options_of(context)]
            parts.append("\n".join(["| option | meaning |", "|---|---|", *rows, ""]))
            if codes:
                parts.append(f"Exit codes: {', '.join(codes)}.\n")
    return "\n".join(parts)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def as_man(name: str, program: click.Command) -> str:
    """In the macros of man(7)."""
    first = text_of(program)[0]
    lines = [f'.TH "{name.upper()}" 1', ".SH NAME", f"{name} \\- {roff(first)}"]
    for context in walk(context_of(program, name)):
        lines += [".SH SYNOPSIS" if context.parent is None else f".SH {roff(context.command_path.upper())}"]
        lines += [f".B {roff(usage(context))}"]
        for paragraph in text_of(context.command):
            lines += [".PP", roff(paragraph)]
        for left, right in options_of(context):
            lines += [".TP", f".B {roff(left)}", roff(right) or "."]
        examples, codes = ending(context.command)
        if examples:
            lines += [".PP", "Examples:", ".nf", *(f"    {roff(example)}" for example in examples), ".fi"]
        if codes:
            lines += [".PP", f"Exit codes: {roff(', '.join(codes))}."]
    return "\n".join(lines) + "\n"


def roff(text: str) -> str:
    escaped = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...").replace("“", '"').replace("”", '"')
    )
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def made() -> dict[Path, str]:
    pages = {PAGES / f"{name}.1": as_man(name, program) for name, program in PROGRAMS.items()}
    return {OPTIONS: as_markdown(), MAP: as_map(), **pages}


if __name__ == "__main__":
    for path, text in made().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
