"""Which GPUs there are, and how we know: NVML for this container's, else PCI for the node's.

Detection never raises and never hangs; what it could not find out is told in ``notes`` and ``problems``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from nimpull.core.hardware import DeviceTable, Gpu, Hardware, named_hardware
from nimpull.core.ports import Cancel
from nimpull.detect.files import read_text
from nimpull.detect.nvml import read_nvml
from nimpull.detect.pci import read_pci
from nimpull.detect.table import Lookup, shipped_table

#: Without persistence mode the driver initialises each GPU when it is first asked, 1 to 3 seconds a piece.
NVML_SECONDS: Final = 30.0
#: Parts that have no memory of their own; NVML answers "not supported" or a total of 0.
_INTEGRATED: Final = re.compile(r"\b(GB10|N1X|Orin|Thor)\b")
_UNNAMED: Final = "NVIDIA Graphics Device"  # what a driver calls a card that is newer than itself
_MEMINFO: Final = re.compile(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", re.MULTILINE)
_NONE_FOUND: Final = (
    "No NVIDIA GPU found. Name the GPUs that the model will run on with NIMPULL_GPUS or --gpu, e.g. H100:2."
)


def detect(
    *, lookup: Lookup, root: str = "/", timeout: float = NVML_SECONDS, cancel: Cancel | None = None
) -> Hardware:
    """One snapshot of the GPUs; see :class:`Hardware` for units.

    ``lookup``: the device table's ``find``. ``root``: where ``sys`` and ``proc`` are. ``timeout``: seconds
    for NVML.
    If NVML knows no GPU by name or id, the PCI bus is read instead and NVML's reasons stay among the notes.
    """
    asked = read_nvml(timeout=timeout, cancel=cancel)
    # NVML may list GPUs and know nothing of them: a driver that lost them, or may not be asked.
    if not any(gpu.product or gpu.device_id for gpu in asked.gpus):
        seen = read_pci(root=root, lookup=lookup)
        if seen.gpus:
            asked = replace(
                seen, driver=asked.driver or seen.driver, cuda=asked.cuda, notes=(*asked.notes, *seen.notes)
            )
        elif not asked.gpus:
            driver = asked.driver or seen.driver
            asked = replace(asked, driver=driver, notes=(*asked.notes, _NONE_FOUND))
    gpus = tuple(_with_host_memory(_named(gpu, lookup), root) for gpu in asked.gpus)
    return replace(asked, gpus=gpus, notes=(*asked.notes, *_shared_note(gpus)))


def hardware_of(named: str, table: DeviceTable, *, cancel: Cancel | None = None) -> Hardware:
    """The GPUs that are named, as ``--gpu`` has them, else this machine's. Raises UsageError."""
    return named_hardware(named, table) if named else detect(lookup=table.find, cancel=cancel)


def _named(gpu: Gpu, lookup: Lookup) -> Gpu:
    """The table's product where the driver has no name, or not the card's own."""
    if gpu.product and gpu.product != _UNNAMED:
        return gpu
    row = lookup(gpu.device_id, gpu.subsystem_id) if gpu.device_id else None
    return replace(gpu, product=row.product) if row else gpu


def _with_host_memory(gpu: Gpu, root: str) -> Gpu:
    """Only known integrated parts share the host's memory: a lost GPU's is unknown, a split one's is none."""
    if gpu.memory_total or not _INTEGRATED.search(gpu.product):
        return gpu
    kilobytes = {name: int(value) for name, value in _MEMINFO.findall(read_text(root, "proc/meminfo"))}
    total, available = kilobytes.get("MemTotal"), kilobytes.get("MemAvailable")
    used = (total - available) << 10 if total is not None and available is not None else None
    return replace(
        gpu,
        shared_memory=True,
        memory_total=None if total is None else total << 10,
        memory_used=used,
    )


def _shared_note(gpus: Iterable[Gpu]) -> tuple[str, ...]:
    if not any(gpu.shared_memory for gpu in gpus):
        return ()
    return ("GPU and host share one memory; the figures are the node's (/proc/meminfo).",)


__all__ = ["NVML_SECONDS", "Lookup", "detect", "hardware_of", "shipped_table"]
