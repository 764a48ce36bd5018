"""Fake ``/sys/bus/pci/devices``, ``/proc/driver/nvidia`` and ``/proc/meminfo`` under a directory."""

from __future__ import annotations

from pathlib import Path

DRIVER = "580.105.08"


def add_device(
    root: Path, slot: str, ids: str, kind: str, *, subsystem: str = "0000:0000", physfn: str = ""
) -> None:
    """``ids`` and ``subsystem`` are device:vendor, ``kind`` the class; ``physfn``: whose function it is."""
    real = root / "sys/devices" / f"pci{slot[:7]}" / slot
    real.mkdir(parents=True)
    device, vendor = ids.split(":")
    subsystem_device, subsystem_vendor = subsystem.split(":")
    values = {
        "vendor": vendor,
        "device": device,
        "subsystem_device": subsystem_device,
        "subsystem_vendor": subsystem_vendor,
        "class": kind,
    }
    for name, value in values.items():
        (real / name).write_text(f"0x{value}\n")
    if physfn:
        (real / "physfn").symlink_to(f"../{physfn}")
    link = root / "sys/bus/pci/devices" / slot
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"../../../devices/pci{slot[:7]}/{slot}")


def add_driver(root: Path, gpus: dict[str, str]) -> None:
    """The kernel module's files; ``gpus``: bus address -> model."""
    driver = root / "proc/driver/nvidia"
    driver.mkdir(parents=True, exist_ok=True)
    (driver / "version").write_text(
        f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {DRIVER}  Release Build  (builder@host)\n"
        "GCC version:  gcc version 13.3.0\n"
    )
    for minor, (slot, model) in enumerate(gpus.items()):
        (driver / "gpus" / slot).mkdir(parents=True)
        (driver / "gpus" / slot / "information").write_text(
            f"Model: \t\t {model}\nIRQ:   \t\t 0\nGPU UUID: \t GPU-{minor:08d}-0000-0000-0000-000000000000\n"
            f"Bus Type: \t PCIe\nBus Location: \t {slot}\nDevice Minor: \t {minor}\nGPU Excluded:\t No\n"
        )


def add_memory(root: Path, total_kib: int, available_kib: int) -> None:
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal:       {total_kib} kB\nMemFree:        1234 kB\nMemAvailable:   {available_kib} kB\n"
    )


def h100x8(root: Path) -> None:
    """A DGX: eight GPUs, four NVSwitches (same vendor) and a ConnectX."""
    slots = [f"0000:{0x1A + each:02x}:00.0" for each in range(8)]
    for slot in slots:
        add_device(root, slot, "2330:10de", "030200", subsystem="16c1:10de")
    for each in range(4):
        add_device(root, f"0000:{0x40 + each:02x}:00.0", "22a3:10de", "068000", subsystem="1796:10de")
    add_device(root, "0000:60:00.0", "1021:15b3", "020700")
    add_driver(root, dict.fromkeys(slots, "NVIDIA H100 80GB HBM3"))


def mixed(root: Path) -> None:
    """No driver at all: L40S, T4, RTX 4090 with its HDMI audio, and another maker's accelerator."""
    add_device(root, "0000:00:00.0", "0d57:8086", "060000")
    add_device(root, "0000:03:00.0", "26b9:10de", "030200", subsystem="1851:10de")
    add_device(root, "0000:04:00.0", "1eb8:10de", "030200", subsystem="12a2:10de")
    add_device(root, "0000:05:00.0", "2684:10de", "030000", subsystem="16f3:10de")
    add_device(root, "0000:05:00.1", "22ba:10de", "040300", subsystem="16f3:10de")
    add_device(root, "0000:06:00.0", "74a1:1002", "120000")


def virtual_function(root: Path) -> None:
    """An A100 with one SR-IOV function of itself."""
    add_device(root, "0000:03:00.0", "20f1:10de", "030200", subsystem="145f:10de")
    add_device(root, "0000:03:00.4", "20f1:10de", "030200", subsystem="0000:10de", physfn="0000:03:00.0")
