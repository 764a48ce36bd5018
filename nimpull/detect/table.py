"""What detection asks of the device table: one row by its PCI ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Row(Protocol):
    """A product; memory in bytes, None where it has none of its own."""

    @property
    def product(self) -> str: ...
    @property
    def memory_total(self) -> int | None: ...
    @property
    def compute_capability(self) -> str: ...


#: (device id ``2330:10de``, subsystem id or "") -> its row, or None for an unknown card.
Lookup = Callable[[str, str], Row | None]
