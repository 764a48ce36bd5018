"""Bytes, rates, times and Kubernetes quantities, as people and clusters write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

_BINARY: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_QUANTITY: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d{1,2})|([numkMGTPE]|[KMGTPE]i)?)")
_SUFFIX: Final = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}
_MAX_QUANTITY: Final = 2**63 - 1


def show_bytes(count: float) -> str:
    """``16.1 GiB``: three digits at most before the unit, one after the point from KiB on."""
    size = float(count)
    for unit in _BINARY[:-1]:
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
    found = _QUANTITY.fullmatch(text.strip()) if len(text) <= 40 else None
    if found is None:
        raise ValueError("not a quantity such as 50Gi, 1.5Ti or 200G")
    number, exponent, suffix = found.groups()
    amount = Decimal(number + (exponent or "")) * _SUFFIX[suffix or ""]
    if not 0 <= amount <= _MAX_QUANTITY:
        raise ValueError("a size is between 0 and 2^63-1 bytes")
    return int(amount.to_integral_value(rounding="ROUND_CEILING"))


def show_count(number: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
