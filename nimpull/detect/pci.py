"""GPUs as the kernel's files tell them, without a driver: those of the node, not only of this pod.

``/sys/bus/pci/devices`` (Documentation/ABI/testing/sysfs-bus-pci of the kernel) has the ids; where the NVIDIA
kernel module is loaded, ``/proc/driver/nvidia`` has names and UUIDs by bus address; the rest is in the device
table.
"""

from __future__ import annotations

import os
import re
from typing import Final

from nimpull.core.hardware import Gpu, Hardware, Origin
from nimpull.core.names import display
from nimpull.detect.files import entries, read_text
from nimpull.detect.table import Lookup

_NVIDIA: Final = "10de"
_GPU_CLASSES: Final = (
    "0300",
    "0302",
)  # VGA compatible controller; 3D controller. NVSwitch is 0680, audio 0403
_DEVICES: Final = "sys/bus/pci/devices"
_DRIVER: Final = "proc/driver/nvidia"
_HEX: Final = re.compile(r"0x([0-9a-fA-F]{4,8})")
_DRIVER_VERSION: Final = re.compile(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", re.MULTILINE)
_NAME_LIMIT: Final = 96


def read_pci(*, root: str, lookup: Lookup) -> Hardware:
    """The node's NVIDIA GPUs, SR-IOV virtual functions left out. Never raises."""
    slots = [slot for slot in entries(root, _DEVICES) if _is_gpu(root, slot)]
    notes = []
    if slots:
        notes.append(
            "GPUs read from PCI: they are the node's, which may be more than this container is given; "
            "memory is nominal, and MIG and vGPU cannot be seen."
        )
    else:
        slots = list(entries(root, f"{_DRIVER}/gpus"))
        if slots:
            notes.append(
                "GPU names read from /proc/driver/nvidia: they are the node's, without PCI ids or memory."
            )
    gpus = tuple(_gpu(root, index, slot, lookup) for index, slot in enumerate(slots))
    version = _DRIVER_VERSION.search(read_text(root, f"{_DRIVER}/version"))
    return Hardware(
        gpus=gpus,
        driver=version[1] if version else "",
        origin=Origin.PCI if gpus else Origin.NONE,
        notes=tuple(notes),
    )


def _is_gpu(root: str, slot: str) -> bool:
    if _hex(root, slot, "vendor") != _NVIDIA or not _hex(root, slot, "class").startswith(_GPU_CLASSES):
        return False
    # An SR-IOV virtual function is a part of a card that is listed itself.
    return not os.path.lexists(os.path.join(root, _DEVICES, slot, "physfn"))


def _gpu(root: str, index: int, slot: str, lookup: Lookup) -> Gpu:
    device_id = _pair(root, slot, "device", "vendor")
    subsystem_id = _pair(root, slot, "subsystem_device", "subsystem_vendor")
    row = lookup(device_id, subsystem_id) if device_id else None
    told = _told_by_driver(root, slot)
    product = told.get("Model", "")
    uuid = told.get("GPU UUID", "")
    return Gpu(
        index=index,
        uuid="" if "?" in uuid else display(uuid, _NAME_LIMIT),  # the driver writes ?s before it knows
        product=display(product, _NAME_LIMIT) or (row.product if row else ""),
        device_id=device_id,
        subsystem_id=subsystem_id,
        memory_total=row.memory_total if row else None,
        compute_capability=row.compute_capability if row else "",
        problems=() if row or product else ("not in the device table: product and memory are unknown",),
    )


def _told_by_driver(root: str, slot: str) -> dict[str, str]:
    text = read_text(root, f"{_DRIVER}/gpus/{slot}/information")
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _pair(root: str, slot: str, device: str, vendor: str) -> str:
    first, second = _hex(root, slot, device), _hex(root, slot, vendor)
    return f"{first}:{second}" if first and second else ""


def _hex(root: str, slot: str, name: str) -> str:
    found = _HEX.fullmatch(read_text(root, f"{_DEVICES}/{slot}/{name}").strip())
    return found[1].lower() if found else ""
