"""Charts as SVG for a page: drawn by pygal, coloured by the page's own style sheet."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree

import pygal
from markupsafe import Markup
from pygal.style import Style

from nimpull.core.units import show_rate, show_seconds

# pygal leaves an import hook for its maps behind, of a protocol that Python 3.12 no longer has: in 3.11 every
# import that fails afterwards (an optional one of a library) warns because of it
sys.meta_path[:] = [hook for hook in sys.meta_path if not isinstance(hook, pygal.PluginImportFixer)]

_FONT: Final = 13  # units of the drawing; as in the style sheet, so that pygal leaves room for the labels
_STEPS: Final = (1, 2, 5, 10, 15, 30)  # between two labels of the time, in seconds, minutes or hours


@dataclass(frozen=True, slots=True)
class Band:
    """From ``start`` to ``end`` in seconds; ``text`` is shown where a pointer rests on it."""

    kind: str
    start: float
    end: float
    text: str


def rate_chart(
    lines: Mapping[str, Sequence[float]], interval: float, bands: Sequence[Band], *, width: int, height: int
) -> Markup:
    """Rates over time. ``lines``: bytes per second for each ``interval`` (seconds), the first one filled.

    ``width`` and ``height``: units of the drawing, which scales with the page.
    """
    length = max((len(line) for line in lines.values()), default=0) * interval or 1.0
    highest = max((rate for line in lines.values() for rate in line), default=0) or 1.0
    chart = _chart(width, height, length, highest, margin_right=28)  # half of the last label
    chart.x_labels = _times(length, width // 110)
    chart.y_labels = _rates(highest)
    chart.x_value_formatter = lambda at: show_seconds(at) if at else "0"
    chart.value_formatter = show_rate
    for number, (name, line) in enumerate(lines.items()):
        chart.add(name, _points(line, interval), fill=number == 0)
    return _drawn(chart, bands, highest)


def sparkline(line: Sequence[float], interval: float, highest: float) -> Markup:
    """One small line; ``highest``: the rate at its upper edge, the same for all that are compared."""
    chart = _chart(
        300, 34, len(line) * interval or 1.0, highest or 1.0, show_x_labels=False, show_y_labels=False
    )
    chart.add("", _points(line, interval))
    return _drawn(chart, stretched=True)


def _chart(width: int, height: int, length: float, highest: float, **options: float) -> Any:
    return pygal.XY(
        width=width,
        height=height,
        xrange=(0, length),
        range=(0, highest),
        style=Style(label_font_size=_FONT, major_label_font_size=_FONT),
        margin=2,
        fill=True,
        show_dots=False,
        show_legend=False,
        js=[],
        **options,
    )


def _points(line: Sequence[float], interval: float) -> list[tuple[float, float]]:
    """A rate stands in the middle of its interval."""
    return [((number + 0.5) * interval, rate) for number, rate in enumerate(line)]


def _times(length: float, most: int) -> list[float]:
    """Round times from 0 on, at most ``most`` of them."""
    for unit in (1, 60, 3600, 86400):
        for step in _STEPS:
            if length / (unit * step) <= max(2, most):
                return [float(at) for at in range(0, int(length) + 1, unit * step)]
    return [0.0, length]


def _rates(highest: float) -> list[float]:
    """Some four round rates up to the highest: 1, 2 or 5 times a power of ten KiB, MiB or GiB."""
    unit = 1024.0 ** max(0, int(math.log(highest, 1024)))
    power = 10.0 ** math.floor(math.log10(highest / unit))
    # 0.5, where the highest rate is just above a power of ten: else there would be one line only.
    step = next(step for step in (0.5, 1, 2, 5) if highest / (unit * power * step) <= 5) * unit * power
    return [step * number for number in range(int(highest / step) + 1)]


def _drawn(
    chart: Any, bands: Sequence[Band] = (), highest: float = 0.0, *, stretched: bool = False
) -> Markup:
    """Without pygal's own styles, comments and ids: the page's style sheet speaks for all charts.

    ``stretched``: it fills its box, whatever the proportions.
    """

    def finish(root: ElementTree.Element) -> ElementTree.Element:
        root.attrib.pop("id", None)
        if stretched:
            root.set("preserveAspectRatio", "none")
        # pygal gives each chart styles, scripts and ids of its own, which would clash on a page with several.
        for parent in list(root.iter()):
            for child in list(parent):
                if not isinstance(child.tag, str) or child.tag in {"defs", "title", "desc"}:
                    parent.remove(child)
        plot = next(group for group in root.iter("g") if group.get("class") == "plot")
        _add_bands(plot, chart.view, bands, highest)
        return root

    chart.add_xml_filter(finish)
    return Markup(chart.render(is_unicode=True))  # noqa: S704 - its texts are numbers, and escaped by ElementTree


def _add_bands(plot: ElementTree.Element, view: Any, bands: Sequence[Band], highest: float) -> None:
    """Behind the lines, from the bottom of the plot to its top."""
    top, bottom = view.y(highest), view.y(0)
    for number, band in enumerate(bands, start=1):  # 0 is the plot's background
        left = view.x(band.start)
        rect = ElementTree.Element(
            "rect",
            {
                "class": f"band {band.kind}",
                "x": f"{left:.1f}",
                "y": f"{top:.1f}",
                "width": f"{max(2.0, view.x(band.end) - left):.1f}",
                "height": f"{bottom - top:.1f}",
            },
        )
        ElementTree.SubElement(rect, "title").text = band.text
        plot.insert(number, rect)
