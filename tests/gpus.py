"""Hardware for tests of selection: named GPUs on the shipped device table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nimpull.core.hardware import DeviceTable, Hardware, Origin, named_hardware
from nimpull.core.manifest import Manifest, parse_manifest

PROFILES = Path(__file__).parent.parent / "profiles"
TABLE = DeviceTable.parse((PROFILES / "gpus.csv").read_text("utf-8"))


def node(gpus: str, *, used: float = 0.0) -> Hardware:
    """``node("H100:2", used=0.8)``: two H100 with 80 % of their memory in use."""
    found = named_hardware(gpus, TABLE).gpus if gpus else ()
    return Hardware(
        tuple(replace(gpu, memory_used=int((gpu.memory_total or 0) * used)) for gpu in found),
        origin=Origin.OVERRIDE,
    )


def example(name: str) -> Manifest:
    return parse_manifest((PROFILES / f"example-{name}.yaml").read_bytes())
