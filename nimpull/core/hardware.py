"""What GPUs there are, as values; and the device table: which GPU a PCI id is, and its names.

A family name is looked up, never searched for as a substring: ``a10`` is not an A100, ``l4`` not an L40S. The
rows of the table come from ``profiles/gpus.csv``, where each names its source.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nimpull.core.names import did_you_mean, display
from nimpull.errors import UsageError

_MIB: Final = 1 << 20
_MAX_OVERRIDE_GPUS: Final = 1024
_VENDOR: Final = "10de"
_BRANDS: Final = ("nvidia", "tesla", "geforce", "quadro")
_DEVICE: Final = re.compile(r"(?:0x)?([0-9a-f]{4})(?::(?:0x)?10de)?", re.IGNORECASE)
_SPOKEN: Final = re.compile(
    r"(?P<name>[^:]+?) ?[xX*] ?(?P<count>\d+)|(?P<before>\d+) ?[xX*] ?(?P<after>[^:]+)", re.ASCII
)


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


@dataclass(frozen=True, slots=True)
class Device:
    """One row. ``device_id`` is ``2330:10de``; ``subsystem_ids`` empty or ``*`` = any; memory in bytes or
    None.

    ``label``: how GPU Feature Discovery writes the product. ``family``: the name a profile's ``gpu`` tag
    would use. ``aliases``: names that profiles use too and that cannot be derived from the product's own.
    """

    device_id: str
    subsystem_ids: tuple[str, ...]
    product: str
    label: str
    family: str
    memory_total: int | None
    compute_capability: str
    aliases: tuple[str, ...] = ()


def normal_name(name: str) -> str:
    """``NVIDIA H100_NVL`` and ``h100-nvl`` become ``h100nvl``: lower case, letters and digits, no brand."""
    # The prefix comes and goes with the driver: GH200 lost and regained its "NVIDIA ".
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word and word not in _BRANDS]
    return "".join(words).removesuffix("generation")


def product_label(product: str) -> str:
    """The node label ``nvidia.com/gpu.product`` that GPU Feature Discovery makes of an NVML name."""
    return "-".join(re.sub(r"[^A-Za-z0-9\-_. ]", "", product).split())


def normal_device_id(text: str) -> str:
    """``2330``, ``0x2330``, ``2330:10DE`` -> ``2330:10de``; "" for anything else."""
    found = _DEVICE.fullmatch(text.strip())
    return f"{found[1].lower()}:{_VENDOR}" if found else ""


class DeviceTable:
    """Look-ups over the rows; see :class:`Device`."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self.devices = tuple(devices)
        self._by_id: dict[str, list[Device]] = {}
        self._families: dict[str, dict[str, None]] = {}
        # The alias first: the first id of a name, in the order of the rows, is the card that is meant where
        # nothing else is said.
        for device in self.devices:
            self._by_id.setdefault(device.device_id, []).append(device)
            for alias in device.aliases:
                self._families.setdefault(alias, {})[device.device_id] = None
        for device in self.devices:
            for name in filter(None, (device.product, device.label, device.family)):
                self._families.setdefault(normal_name(name), {})[device.device_id] = None

    @classmethod
    def parse(cls, csv_text: str) -> DeviceTable:
        """From the text of ``gpus.csv``. Raises ValueError for a row without a device id."""
        devices = []
        for row in csv.DictReader(io.StringIO(csv_text)):
            device_id = normal_device_id(row["gpu_device"])
            if not device_id:
                raise ValueError(f"gpus.csv: not a device id: {row['gpu_device']!r}")
            tag = re.match(r"[A-Za-z0-9_]+", row["nim_gpu_tag"] or "")
            mib = row["nvml_total_mib"]
            # "L40S in …" notes on the L40 say what manifests get wrong, not what the card is
            trusted = tag and "mistake" not in row["nim_gpu_tag"] and " in " not in row["nim_gpu_tag"]
            devices.append(
                Device(
                    device_id=device_id,
                    subsystem_ids=tuple(each for each in row["subsystem_ids"].split() if each != "*"),
                    product=row["nvml_name"],
                    label=row["gfd_product_label"],
                    family=tag[0].lower() if tag and trusted else "",
                    memory_total=int(mib) * _MIB if mib else None,
                    compute_capability=row["compute_capability"],
                    aliases=tuple(row["aliases"].split()),
                )
            )
        return cls(devices)

    @property
    def families(self) -> tuple[str, ...]:
        """Short names that a GPU can be asked for by, as profiles write them."""
        return tuple(dict.fromkeys(device.family.upper() for device in self.devices if device.family))

    def find(self, device_id: str, subsystem_id: str = "") -> Device | None:
        """The row of a card; the subsystem decides where one id is two products (A16 and A2)."""
        rows = self._by_id.get(normal_device_id(device_id), [])
        for row in rows:
            if subsystem_id and subsystem_id.lower() in row.subsystem_ids:
                return row
        # An unknown subsystem is a board of another maker with the same GPU: the reference card stands for
        # it.
        return rows[0] if rows else None

    def telling_subsystem(self, device: Device) -> str:
        """The subsystem id by which :meth:`find` tells this product from its twin; "" where it has none."""
        alone = len(self._by_id[device.device_id]) == 1
        return "" if alone or not device.subsystem_ids else device.subsystem_ids[0]

    def device_of(self, gpu: Gpu) -> Device | None:
        return self.find(gpu.device_id, gpu.subsystem_id)

    def in_family(self, gpu: Gpu, name: str) -> bool:
        """Whether ``name`` (a profile's ``gpu`` tag) is a name of this card."""
        wanted = normal_name(name)
        if not wanted:
            return False
        if normal_device_id(gpu.device_id) in self._families.get(wanted, {}):
            # one id, two products: the name must be this product's own, unless it names neither
            device = self.device_of(gpu)
            twins = {normal_name(row.product) for row in self._by_id[normal_device_id(gpu.device_id)]}
            return device is None or wanted not in twins or wanted == normal_name(device.product)
        return wanted == normal_name(gpu.product)

    def labels(self, gpu: Gpu) -> tuple[str, ...]:
        """How the card may be spelled: the node label first, then the NVML name."""
        device = self.device_of(gpu)
        names = [product_label(gpu.product), device.label if device else "", gpu.product]
        names.append(device.product if device else "")
        return tuple(dict.fromkeys(name for name in names if name))

    def named(self, name: str) -> Device | None:
        """The most usual card of a product, label or family name."""
        ids = self._families.get(normal_name(name))
        if not ids:
            return None
        rows = self._by_id.get(next(iter(ids)), [])
        exact = [row for row in rows if normal_name(row.product) == normal_name(name)]
        return next(iter(exact or rows), None)


def named_hardware(text: str, table: DeviceTable) -> Hardware:
    """``H100:8``, ``2330:10de:2``, ``NVIDIA L40S`` or a comma list of them, as GPUs with nominal memory.

    Raises UsageError for an unknown product or a count that is not 1 to 1024.
    """
    gpus: list[Gpu] = []
    for item in (part.strip() for part in text.split(",")):
        if not item:
            continue
        name, count = _split_count(item, table)
        # a name first: b200 and a100 are hexadecimal numbers too
        device = table.named(name) or table.find(name)
        device_id = normal_device_id(name) if ":" in name else ""
        if device is None and not device_id:
            raise UsageError(
                f"unknown GPU “{display(name, 80)}”",
                hint=f"{did_you_mean(name, table.families)} Name a product (H100, “A100-SXM4-80GB”) or a PCI "
                "id (2330:10de), with a count: H100:8.".lstrip(),
            )
        if len(gpus) + count > _MAX_OVERRIDE_GPUS:
            raise UsageError(
                f"more than {_MAX_OVERRIDE_GPUS} GPUs", hint="A node has 8 or 16; check the count."
            )
        for _ in range(count):
            gpus.append(
                Gpu(
                    index=len(gpus),
                    product=device.product if device else "",
                    device_id=device.device_id if device else device_id,
                    subsystem_id=table.telling_subsystem(device) if device else "",
                    memory_total=device.memory_total if device else None,
                    compute_capability=device.compute_capability if device else "",
                )
            )
    if not gpus:
        raise UsageError(
            "no GPU named", hint="The form is H100:8 or 2330:10de:2, several separated by commas."
        )
    return Hardware(tuple(gpus), origin=Origin.OVERRIDE)


def _split_count(item: str, table: DeviceTable) -> tuple[str, int]:
    """``H100:8``; also ``H100x8`` and ``8xH100``, as people say it, where that is no product's name."""
    spoken = _SPOKEN.fullmatch(item)
    # "RTX PRO 6000 X2" may be a name.
    if spoken and table.named(item) is None:
        item = f"{spoken['name'] or spoken['after']}:{spoken['count'] or spoken['before']}"
    head, separator, tail = item.rpartition(":")
    # ":2330" is half of a PCI id, not two thousand GPUs.
    is_count = separator and tail.strip().isdigit() and not (len(tail) == 4 and not head)
    if not is_count:
        return item, 1
    count = int(tail[:9])
    if not 1 <= count <= _MAX_OVERRIDE_GPUS:
        raise UsageError(
            f"“{display(item, 80)}”: the count must be 1 to {_MAX_OVERRIDE_GPUS}", hint="The form is H100:8."
        )
    return head.strip(), count
