"""``nimpull report``: what a pull did, in words or as a page to look at."""

from __future__ import annotations

import json
from typing import Any, Final

import click

from nimpull.cli.options import FILE, STORE, place_option, read_file
from nimpull.cli.program import Command
from nimpull.cli.store_commands import open_store
from nimpull.core.names import display
from nimpull.core.redaction import clean
from nimpull.core.units import show_seconds
from nimpull.errors import OutputError, UsageError

MAX_REPORT_BYTES: Final = 64 << 20  # of some hundred thousand files
_NO_REPORT: Final = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError)


@click.command(
    cls=Command,
    examples=("nimpull report --store ./store --html pull.html", "nimpull report .nimpull/report.json"),
    exits=(2, 41, 42),
)
@click.argument("report", required=False, metavar="[REPORT]", type=FILE)
@STORE
@place_option("--html", help="Write a page of its own, without network or script; - = stdout.")
def report(report: str | None, store: str | None, html: str) -> int:
    """Show what a pull did: a report file, or the last report of a store."""
    if report and store:
        raise UsageError("a report and a store are given", hint="Give one of them.")
    content = _content(report, store)
    try:
        # NaN and Infinity, which Python would take, are no JSON and break every sum.
        document = json.loads(content, parse_constant=_no_number)
        text = load_pictures().report_page(document) if html else in_words(document)
    except _NO_REPORT as error:
        what = display(report, 300) if report else "what the store holds"
        raise UsageError(
            f"{what} is no report of nimpull: {clean(repr(error), 200)}",
            hint="Give the file that --report wrote, or .nimpull/report.json of a store.",
        ) from error
    if html:
        write_page(html, text)
    else:
        click.echo(text)
    return 0


def _content(report: str | None, store: str | None) -> bytes:
    if report:
        return read_file(report, "the report", most=MAX_REPORT_BYTES)
    from nimpull.store.report_file import REPORT

    with open_store(store) as opened:
        content = opened.tree.read(REPORT, MAX_REPORT_BYTES)
        if content is None:
            raise UsageError(
                f"{display(opened.root, 300)} holds no report",
                hint="It is there once a pull has begun; --report wrote it elsewhere, perhaps.",
            )
        return content


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def in_words(document: dict[str, Any]) -> str:
    """State and message, what to do, and where the time went."""
    status = document["status"]
    message = next((each["message"] for each in status["conditions"]), "")
    lines = [f"{clean(status['state'], 20)}: {clean(message, 4000)}"]
    if error := document.get("error"):
        lines.append(f"  {clean(error['hint'], 4000)}")
    seconds = (document.get("timeline") or {}).get("secondsByPhase") or {}
    if seconds:
        spent = (f"{clean(name, 40)} {show_seconds(each)}" for name, each in seconds.items())
        lines.append(f"  seconds by phase: {', '.join(spent)}")
    return "\n".join(lines)


def load_pictures() -> Any:
    """The package that draws. Raises UsageError where its libraries are not installed."""
    try:
        from nimpull import pictures
    except ImportError as error:
        raise UsageError(
            f"--html needs {display(error.name or 'a library', 80)}, which is not installed",
            hint="Install nimpull with its extra: pip install 'nimpull[html]'.",
        ) from error
    return pictures


def write_page(path: str, text: str) -> None:
    """``-`` = stdout. Raises OutputError."""
    if path == "-":
        click.echo(text, nl=False)
        return
    from nimpull.store.durable import replace_file

    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise OutputError.of(f"the page {display(path, 300)}", error) from error
