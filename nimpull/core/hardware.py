"""What GPUs there are, as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Origin(StrEnum):
    """Where a fact about the hardware was read."""

    OVERRIDE = "override"
    NVML = "nvml"
    PCI = "pci"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG device (``mig`` holds its profile name, e.g. ``1g.10gb``).

    ``device_id`` and ``subsystem_id``: ``2330:10de`` (device:vendor, lower case hex). Memory in bytes: None =
    unknown, 0 = none. ``compute_capability``: ``9.0``. ``problems``: what could not be read, in plain words.
    ``shared_memory``: the GPU uses the host's memory (GB10, Orin, Thor). ``virtual``: a vGPU slice.
    """

    index: int
    uuid: str = ""
    product: str = ""
    device_id: str = ""
    subsystem_id: str = ""
    memory_total: int | None = None
    memory_used: int | None = None
    compute_capability: str = ""
    mig: str = ""
    virtual: bool = False
    shared_memory: bool = False
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hardware:
    """One snapshot. ``driver`` and ``cuda``: versions or "". ``notes``: for the reader, in plain words."""

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    cuda: str = ""
    origin: Origin = Origin.NONE
    notes: tuple[str, ...] = ()
