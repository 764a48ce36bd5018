"""The child process that talks to NVML and prints what it was told, one JSON object a line.

A driver can hang in the kernel or crash the process that asks it; only a process of its own can be given up.
It is run by its path and imports nothing of nimpull. The first line is about the system, then one line a GPU,
each flushed at once, so that a GPU that hangs costs nothing of what was read before it. Failures are NVML's
return codes; the reader puts them into words.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

NOT_FOUND = 6  # an empty slot between two MIG devices
UNDECODABLE = -1  # not a code of NVML: a name that is not UTF-8
MIG_SLOTS = 16  # beyond what any GPU splits into, where the limit itself is not told


def _say(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201 - the pipe to the parent is this process's whole output


def main() -> None:
    try:
        import pynvml
    except ImportError:
        _say({"binding": "missing"})
        return
    # other distributions on the package index install a module of the same name
    if not hasattr(pynvml, "nvmlInitWithFlags") or not hasattr(pynvml, "nvmlMemory_v2"):
        _say({"binding": "foreign"})
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        _say({"init": error.value})
        return
    try:
        _read(pynvml)
    finally:
        pynvml.nvmlShutdown()


def _read(nvml: Any) -> None:
    system: dict[str, Any] = {"problems": []}
    ask = _asker(nvml, system["problems"])
    system["driver"] = ask("driver version", nvml.nvmlSystemGetDriverVersion)
    system["cuda"] = ask("CUDA version", nvml.nvmlSystemGetCudaDriverVersion_v2)
    count = ask("GPU count", nvml.nvmlDeviceGetCount) or 0
    _say({**system, "count": count})
    for index in range(count):
        for gpu in _gpus(nvml, index):
            _say({"index": index, **gpu})


def _asker(nvml: Any, problems: list[tuple[str, int]]) -> Callable[[str, Callable[[], T]], T | None]:
    """One tolerant question: the answer, or None with its code added to ``problems``."""

    def ask(what: str, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except nvml.NVMLError as error:
            problems.append((what, error.value))
        except UnicodeDecodeError:
            problems.append((what, UNDECODABLE))
        return None

    return ask


def _gpus(nvml: Any, index: int) -> list[dict[str, Any]]:
    """The GPU, followed by its MIG devices if it is split."""
    problems: list[tuple[str, int]] = []
    ask = _asker(nvml, problems)
    handle = ask("GPU", lambda: nvml.nvmlDeviceGetHandleByIndex(index))
    if handle is None:
        return [{"problems": problems}]
    gpu: dict[str, Any] = {"problems": problems, **_identity(nvml, ask, handle)}
    pci = ask("PCI ids", lambda: nvml.nvmlDeviceGetPciInfo(handle))
    if pci is not None:
        gpu["device_id"] = pci.pciDeviceId
        gpu["subsystem_id"] = pci.pciSubSystemId
    gpu["cc"] = ask("compute capability", lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    gpu["virtualization"] = ask("virtualization mode", lambda: nvml.nvmlDeviceGetVirtualizationMode(handle))
    mode = ask("MIG mode", lambda: nvml.nvmlDeviceGetMigMode(handle))
    gpu["mig_mode"] = mode[0] if mode else 0
    return [gpu, *(_mig_devices(nvml, handle) if gpu["mig_mode"] else [])]


def _identity(nvml: Any, ask: Callable[[str, Callable[[], Any]], Any], handle: Any) -> dict[str, Any]:
    facts = {
        "name": ask("name", lambda: nvml.nvmlDeviceGetName(handle)),
        "uuid": ask("UUID", lambda: nvml.nvmlDeviceGetUUID(handle)),
    }
    memory = ask("memory", lambda: _memory(nvml, handle))
    if memory is not None:
        facts |= {"total": memory.total, "used": memory.used}
    return facts


def _memory(nvml: Any, handle: Any) -> Any:
    """Version 2 does not count what the driver reserves as used; drivers before 510 have only version 1."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetMemoryInfo(handle)


def _mig_devices(nvml: Any, parent: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:
        # Slots need not be filled in order: all are asked.
        slots = nvml.nvmlDeviceGetMaxMigDeviceCount(parent)
    except nvml.NVMLError:
        slots = MIG_SLOTS
    for slot in range(slots):
        problems: list[tuple[str, int]] = []
        ask = _asker(nvml, problems)
        handle = ask("MIG device", partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, parent, slot))
        if handle is not None:
            found.append({"mig": True, "problems": problems, **_identity(nvml, ask, handle)})
        elif problems[0][1] != NOT_FOUND:  # a slot may be empty and the next one taken
            found.append({"mig": True, "problems": problems})
    return found


if __name__ == "__main__":
    main()
