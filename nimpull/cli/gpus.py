"""``nimpull gpus``: what hardware nimpull sees, and where it read that."""

from __future__ import annotations

import json
from typing import Final

import click

from nimpull.cli.options import OUTPUT, gpus_option
from nimpull.cli.output import wrapped_for_terminal
from nimpull.cli.program import Command
from nimpull.core.hardware import Gpu, Hardware, Origin
from nimpull.core.report.document import hardware_json
from nimpull.core.units import show_bytes
from nimpull.settings import from_process

_ORIGIN: Final = {
    Origin.NVML: "from NVML",
    Origin.PCI: "from PCI",
    Origin.OVERRIDE: "as named",
    Origin.NONE: "nothing to read them from",
}


@click.command(
    "gpus", cls=Command, exits=(2,), examples=("nimpull gpus", "nimpull gpus --gpu H100:8 -o json")
)
@gpus_option("GPUs to show in place of this machine's: product or PCI id, with a count [NIMPULL_GPUS].")
@OUTPUT
def show_gpus(gpus: str, output: str) -> None:
    """Show the GPUs that profiles are chosen for, and where they were read."""
    from nimpull.detect import hardware_of, shipped_table

    hardware = hardware_of(gpus or from_process().gpus, shipped_table())
    if output == "json":
        click.echo(json.dumps(hardware_json(hardware), indent=2, ensure_ascii=False))
    else:
        click.echo(wrapped_for_terminal("\n".join(_lines(hardware))))


def _lines(hardware: Hardware) -> list[str]:
    count = len(hardware.gpus)
    versions = [f"driver {hardware.driver}"] if hardware.driver else []
    versions += [f"CUDA {hardware.cuda}"] if hardware.cuda else []
    known = f" ({', '.join(versions)})" if versions else ""
    lines = [f"{count or 'No'} GPU{'' if count == 1 else 's'}, {_ORIGIN[hardware.origin]}{known}"]
    width = max((len(_product(gpu)) for gpu in hardware.gpus), default=0)
    for gpu in hardware.gpus:
        lines.append(f"{gpu.index:>3}  {_product(gpu):<{width}}  {'  '.join(_facts(gpu))}".rstrip())
        lines.extend(f"       {problem}" for problem in gpu.problems)
    lines.extend(f"Note: {note}" for note in hardware.notes)
    return lines


def _product(gpu: Gpu) -> str:
    return f"{gpu.product or 'unknown'}{f' MIG {gpu.mig}' if gpu.mig else ''}"


def _facts(gpu: Gpu) -> list[str]:
    facts = [gpu.device_id] if gpu.device_id else []
    if gpu.memory_total is not None:
        used = "" if gpu.memory_used is None else f", {show_bytes(gpu.memory_used)} used"
        shared = " shared with the host" if gpu.shared_memory else ""
        facts.append(f"{show_bytes(gpu.memory_total)}{shared}{used}")
    if gpu.compute_capability:
        facts.append(f"compute {gpu.compute_capability}")
    return [*facts, *(["vGPU"] if gpu.virtual else []), *([gpu.uuid] if gpu.uuid else [])]
