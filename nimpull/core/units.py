"""Bytes, rates, times and Kubernetes quantities, as people and clusters write them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

_BINARY: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_QUANTITY: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d{1,2})|([numkMGTPE]|[KMGTPE]i)?)")
_SUFFIX: Final = {
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("n", "u", "m", "", *"kMGTPE"), -3)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}
_MAX_QUANTITY: Final = 2**63 - 1


def show_bytes(count: float) -> str:
    """``16.1 GiB``: three digits at most before the unit, one after the point from KiB on."""
    size = float(count)
    for unit in _BINARY[:-1]:
        # So that 1023.96 is 1.0 of the next unit, not 1024.0 of this one.
        if abs(size) < 1023.95:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_BINARY[-1]}"


def show_rate(bytes_per_second: float) -> str:
    """``61.3 MiB/s``."""
    return f"{show_bytes(bytes_per_second)}/s"


def show_seconds(seconds: float) -> str:
    """``0.4s``, ``42s``, ``3m19s``, ``2h05m``, ``3d04h``: two units are enough to plan by."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02d}h"
    if hours:
        return f"{hours}h{minute:02d}m"
    return f"{minutes}m{second:02d}s" if minutes else f"{second}s"


def show_time(epoch: float) -> str:
    """RFC 3339 in UTC to the second, as ``metav1.Time`` is written."""
    return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity (``50Gi``, ``1.5Ti``, ``2e12``), rounded up as the API server does.

    Raises ValueError. Source of the grammar: k8s.io/apimachinery ``resource.Quantity``.
    """
    # No size has more digits, and Decimal would take its time over a million of them.
    found = _QUANTITY.fullmatch(text.strip()) if len(text) <= 40 else None
    if found is None:
        raise ValueError("not a quantity such as 50Gi, 1.5Ti or 200G")
    number, exponent, suffix = found.groups()
    amount = Decimal(number + (exponent or "")) * _SUFFIX[suffix or ""]
    if not 0 <= amount <= _MAX_QUANTITY:
        raise ValueError("a size is between 0 and 2^63-1 bytes")
    return int(amount.to_integral_value(rounding="ROUND_CEILING"))


def show_counts(names: Iterable[str]) -> str:
    """``2x H100, 1x L4``: each name once, in the order in which they come."""
    return ", ".join(f"{count}x {name}" for name, count in Counter(names).items())


def aligned(rows: Sequence[Sequence[str]], gap: str = "  ") -> list[str]:
    """Rows of as many cells each as lines whose cells stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def show_count(number: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
