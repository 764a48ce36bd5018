"""The device table that detection completes its facts from."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from nimpull.core.hardware import Device, DeviceTable

#: (device id ``2330:10de``, subsystem id or "") -> its row, or None for an unknown card.
Lookup = Callable[[str, str], Device | None]


def shipped_table() -> DeviceTable:
    """The table of this installation, ``profiles/gpus.csv``."""
    shipped = resources.files("nimpull").joinpath("profiles/gpus.csv")
    # In a wheel the directory is part of the package (pyproject.toml, force-include).
    if shipped.is_file():
        return DeviceTable.parse(shipped.read_text("utf-8"))
    # an editable install has it beside the package, as the repository does
    beside = Path(__file__).parents[2] / "profiles/gpus.csv"
    return DeviceTable.parse(beside.read_text("utf-8"))
