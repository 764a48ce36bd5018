"""The pages themselves: what the templates are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from jinja2 import Environment, PackageLoader, TemplateError
from markupsafe import Markup

from nimpull import __version__
from nimpull.core.names import display
from nimpull.core.units import show_bytes, show_count, show_rate, show_seconds
from nimpull.pictures.charts import Band, rate_chart, sparkline
from nimpull.pictures.matrix import SIGNS, Matrix, matrix_of_report

MOST_FILES: Final = 200  # with a bar of their own, the largest
MOST_SAMPLES: Final = 1200  # of a line; nimpull writes half as many
MOST_LINES: Final = 64
_WORK: Final = ("hash", "sync")  # beside the network, by all workers together
_COLOURS: Final = ("list", "check", "fetch", "wait", "preparing")  # phases that have their own


def report_page(document: Mapping[str, Any]) -> str:
    """A report (JSON as ``nimpull/report.schema.json`` has it) as HTML.

    Raises LookupError, TypeError, ValueError, ArithmeticError or AttributeError for what is no report.
    """
    try:
        return _report_page(document)
    except TemplateError as error:
        raise ValueError(str(error)) from error


def _report_page(document: Mapping[str, Any]) -> str:
    timeline = document.get("timeline") or {}
    artifacts = document.get("artifacts") or []
    seconds = {str(name): float(each) for name, each in timeline.get("secondsByPhase", {}).items()}
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            version=document.get("version", ""),
            report=document,
            state=document["status"]["state"],
            message=next((each["message"] for each in document["status"]["conditions"]), ""),
            sources=(document.get("source") or {}).get("repositories", []),
            artifacts=artifacts,
            rates=_rate_charts(timeline),
            phases=_shares({name: each for name, each in seconds.items() if name not in _WORK}),
            work=_shares({name: each for name, each in seconds.items() if name in _WORK}),
            connections=_connections(timeline),
            pauses=timeline.get("pauses", [])[:MOST_SAMPLES],
            verified=_verified(artifacts),
            matrix=matrix_of_report(document),
        )
    )


def matrix_page(matrix: Matrix, title: str, notes: Sequence[str] = ()) -> str:
    """What runs on which hardware, alone. ``notes``: for the reader."""
    template = _environment().get_template("matrix.html.j2")
    return template.render(version=__version__, matrix=matrix, title=title, notes=notes)


@cache
def _environment() -> Environment:
    def shown(value: object) -> object:
        """Every text from elsewhere: without controls and bidi marks, which no escaping takes out."""
        return display(value, 4096) if isinstance(value, str) and not isinstance(value, Markup) else value

    # autoescape and finalize together: markup is escaped by the one, what no escaping shows by the other.
    environment = Environment(
        loader=PackageLoader("nimpull.pictures"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    environment.filters |= {
        "bytes": show_bytes,
        "rate": show_rate,
        "seconds": show_seconds,
        "count": show_count,
        "percent": _percent,
    }
    environment.globals |= {"most_files": MOST_FILES, "signs": SIGNS}
    return environment


def _percent(part: float, whole: float) -> float:
    return round(100 * part / (whole or 1), 2)


# -- parts of a report ---------------------------------------------------------------------------------


def _shares(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """``wait`` is a part of ``fetch``: it is shown beside the rest of that."""
    parts = dict(seconds)
    if "wait" in parts and "fetch" in parts:
        # "wait" is counted in whole intervals, and may come out larger than the whole.
        parts["fetch"] = max(0.0, parts["fetch"] - parts["wait"])
    return [
        {
            "name": name,
            "colour": name if name in (*_COLOURS, *_WORK) else "other",
            "seconds": each,
            "percent": _percent(each, sum(parts.values())),
        }
        for name, each in parts.items()
        if each >= 0.0005
    ]


def _line(rates: Sequence[Any]) -> list[float]:
    return [max(0.0, float(rate)) for rate in rates[:MOST_SAMPLES]]


def _rate_charts(timeline: Mapping[str, Any]) -> list[Any]:
    """The same twice: for a wide page and for a narrow one. None where nothing came over the network."""
    rates = _line(timeline.get("bytesPerSecond", []))
    if not any(rates):
        return []
    interval = float(timeline["intervalSeconds"])
    lines = {"all": rates}
    hosts = timeline["hosts"][:MOST_LINES]
    if len(hosts) > 1:
        lines |= {str(host["host"]): _line(host["bytesPerSecond"]) for host in hosts}
    bands = _bands(timeline, len(rates) * interval)
    return [
        rate_chart(lines, interval, bands, width=width, height=height)
        for width, height in ((1100, 260), (420, 240))
    ]


def _bands(timeline: Mapping[str, Any], length: float) -> list[Band]:
    return [
        Band(
            "pause" if pause["seconds"] else "retry",
            float(pause["atSeconds"]),
            min(length, float(pause["atSeconds"]) + float(pause["seconds"])),
            f"{_paused(pause)}: {display(pause['reason'])}",
        )
        for pause in timeline["pauses"][:MOST_SAMPLES]
        if 0 <= pause["atSeconds"] <= length
    ]


def _paused(pause: Mapping[str, Any]) -> str:
    what = f"pause of {show_seconds(pause['seconds'])}" if pause["seconds"] else "tried again"
    times = f", {pause['times']} times" if pause["times"] > 1 else ""
    return f"at {show_seconds(pause['atSeconds'])} {what}{times}"


def _connections(timeline: Mapping[str, Any]) -> list[dict[str, Any]]:
    connections = timeline.get("connections", [])[:MOST_LINES]
    if not connections:
        return []
    interval = float(timeline["connectionIntervalSeconds"])
    lines = [_line(each["bytesPerSecond"]) for each in connections]
    hosts = [str(host["host"]) for host in timeline["hosts"]]
    many = len(hosts) > 1
    highest = max((rate for line in lines for rate in line), default=0.0)
    return [
        {
            "name": str(each["connection"]),
            "host": str(each["host"]) if many else "",
            "line": hosts.index(each["host"]) + 1 if many and each["host"] in hosts else 0,
            "chart": sparkline(line, interval, highest),
            "bytes": sum(line) * interval,
            "highest": max(line, default=0.0),
        }
        for each, line in zip(connections, lines, strict=True)
    ]


def _verified(artifacts: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """(by what, how many files and bytes); the most bytes first."""
    files, size = Counter[str](), Counter[str]()
    for each in artifacts:
        by = str(each["verifiedBy"]) or "not yet"
        files[by] += 1
        size[by] += each["size"]
    return [(by, files[by], total) for by, total in size.most_common()]
