"""GPUs as NVML tells them: those that this container was given.

The questions are asked by a child process (:mod:`nimpull.detect.nvml_probe`) that is given up after a while.
Meanings of the codes: NVML API reference, ``nvmlReturn_t``.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from nimpull.core.hardware import Gpu, Hardware, Origin
from nimpull.core.names import display
from nimpull.core.ports import Cancel
from nimpull.detect.nvml_probe import UNDECODABLE

_PROBE: Final = str(Path(__file__).with_name("nvml_probe.py"))
_SLICE: Final = 0.2  # seconds between two looks at the cancellation
_LAST_WORDS: Final = 1.0  # seconds that a killed child has to let go of its pipe
_VGPU_GUEST: Final = 2  # NVML_GPU_VIRTUALIZATION_MODE_VGPU
_NAME_LIMIT: Final = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
_MIG_PROFILE: Final = re.compile(r"\bMIG (\S+)$")

_NOT_SUPPORTED: Final = 3
_FUNCTION_NOT_FOUND: Final = 13
#: Absent on purpose: an older driver or a board without the feature. Nothing to tell.
_ABSENT: Final = frozenset({_NOT_SUPPORTED, _FUNCTION_NOT_FOUND})

_WORDS: Final[Mapping[int, str]] = {
    UNDECODABLE: "the driver's answer is not UTF-8",
    1: "NVML is not initialised",
    2: "the driver does not accept the question",
    3: "not supported on this GPU",
    4: "no permission: the container may not use the device",
    6: "not found",
    8: "the GPU's power cables are not attached properly",
    9: "the NVIDIA driver is not loaded",
    10: "the driver did not answer in time",
    11: "the kernel found an interrupt problem with the GPU",
    12: "a library of the driver is missing in the container",
    13: "the driver is too old to answer this",
    14: "the GPU's infoROM is corrupted",
    15: "the GPU is lost (it has fallen off the bus)",
    16: "the GPU needs a reset",
    17: "the operating system blocks the device (cgroup)",
    18: "the driver's kernel module and its library have different versions",
    20: "not enough memory",
    27: "the GPU is not ready",
    28: "the GPU was not found",
    999: "unknown error",
}
_INIT_HINTS: Final[Mapping[int, str]] = {
    4: "Check the runtime class and the device permissions of the pod.",
    9: "Check that the driver is installed on the node and /dev/nvidiactl is in the container.",
    17: "Recreate the pod, so that its device cgroup is set up again.",
    18: "The node's driver was upgraded under running containers: recreate the pod or reboot the node.",
    999: "A container loses its devices when systemd reloads on the node: recreate the pod.",
}
_NO_LIBRARY: Final = (
    "NVML: no libnvidia-ml.so.1 in this container, which is normal for a job that asks for no GPU."
)
_BINDINGS: Final[Mapping[str, str]] = {
    "missing": "NVML: the Python package nvidia-ml-py is not installed.",
    "foreign": "NVML: another package took the place of nvidia-ml-py's pynvml; reinstall that one.",
}


def in_words(code: int) -> str:
    """What an NVML return code means."""
    return _WORDS.get(code, f"NVML error {code}")


def read_nvml(*, timeout: float, cancel: Cancel | None = None) -> Hardware:
    """One snapshot within ``timeout`` seconds. Never raises; what failed is in ``notes`` and ``problems``.

    ``origin`` is NONE if NVML could not be asked at all. A split GPU is represented by its MIG devices, which
    carry its index and PCI ids.
    """
    lines, failure = _ask_child(timeout, cancel)
    notes = [failure] if failure else []
    system: Mapping[str, Any] = lines[0] if lines else {}
    if "count" not in system:
        return Hardware(notes=(*_why_not(system), *notes))
    # What the driver said first, then why it said no more.
    notes = [*_system_notes(system), *notes]
    gpus: list[Gpu] = []
    for index in range(system["count"]):
        gpus.extend(_gpus(index, [line for line in lines[1:] if line.get("index") == index]))
    if any(gpu.virtual for gpu in gpus):
        notes.append("This is a vGPU guest: memory is the slice's, and prebuilt engines may not run on it.")
    return Hardware(
        gpus=tuple(gpus),
        driver=display(system.get("driver") or "", _NAME_LIMIT),
        cuda=_cuda(system.get("cuda")),
        origin=Origin.NVML,
        notes=tuple(notes),
    )


def _ask_child(timeout: float, cancel: Cancel | None) -> tuple[list[dict[str, Any]], str]:
    """(the lines that came, why there are no more of them)."""
    try:
        child = subprocess.Popen(
            # -P: the script's directory is not on sys.path: no module in it may take the place of another's.
            [sys.executable, "-P", _PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        return [], f"NVML: cannot start the process that asks the driver: {error.strerror}."
    try:
        output = _wait(child, timeout, cancel)
    except BaseException:  # a second Ctrl-C, say: the child must not outlive this
        child.kill()
        raise
    if output is None:
        return list(_parse(_give_up(child))), f"NVML: the driver did not answer within {timeout:g} seconds."
    return list(_parse(output)), _exit_note(child.returncode)


def _wait(child: subprocess.Popen[bytes], timeout: float, cancel: Cancel | None) -> bytes | None:
    """All it wrote, or None once the time is over or the run was cancelled."""
    for _ in range(max(1, math.ceil(timeout / _SLICE))):
        try:
            return child.communicate(timeout=_SLICE)[0]
        except subprocess.TimeoutExpired:
            if cancel is not None and cancel.is_set():
                break
    return None


def _give_up(child: subprocess.Popen[bytes]) -> bytes:
    """Kill it and take what it wrote. One stuck in the kernel cannot be waited for: it is left behind."""
    child.kill()
    try:
        return child.communicate(timeout=_LAST_WORDS)[0]
    except subprocess.TimeoutExpired as left:
        if child.stdout is not None:
            child.stdout.close()
        return left.output or b""


def _parse(output: bytes) -> Iterable[dict[str, Any]]:
    for line in output.splitlines():
        try:
            facts = json.loads(line)
        except ValueError:
            continue  # the child died in the middle of this line; its exit is told apart
        if isinstance(facts, dict):
            yield facts


def _exit_note(status: int) -> str:
    if status == 0:
        return ""
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return f"NVML: the process that asks the driver {how}; the driver's library may be damaged."


def _why_not(system: Mapping[str, Any]) -> list[str]:
    if "binding" in system:
        return [_BINDINGS[system["binding"]]]
    code = system.get("init")
    if code is None:
        return []
    if code == 12:
        return [_NO_LIBRARY]
    hint = _INIT_HINTS.get(code, "")
    return [f"NVML: {in_words(code)} (code {code}). {hint}".rstrip()]


def _system_notes(system: Mapping[str, Any]) -> list[str]:
    notes = []
    for what, code in system.get("problems", ()):
        if what == "CUDA version" and code in (12, 13):
            notes.append(
                "CUDA version unknown: libcuda.so.1 is not in this container "
                "(NVIDIA_DRIVER_CAPABILITIES without compute)."
            )
        else:
            notes.append(f"NVML: {what}: {in_words(code)}.")
    if system["count"] == 0:
        notes.append("NVML works and lists no GPU: this container was given none.")
    return notes


def _gpus(index: int, lines: Sequence[Mapping[str, Any]]) -> list[Gpu]:
    if not lines:
        return [Gpu(index=index, problems=("GPU: the driver did not answer for it",))]
    parent = _gpu(index, lines[0])
    # The parent of MIG devices answers as well, though not for its memory; what it is split into counts.
    if not lines[0].get("mig_mode"):
        return [parent]
    parts = [_mig(parent, line) for line in lines[1:]]
    if parts:
        return parts
    # a GPU in MIG mode runs nothing itself: it has no memory to offer
    problem = "MIG is on, but no MIG device is visible here"
    return [replace(parent, memory_total=0, memory_used=0, problems=(problem,))]


def _gpu(index: int, facts: Mapping[str, Any]) -> Gpu:
    capability = facts.get("cc")
    return Gpu(
        index=index,
        uuid=display(facts.get("uuid") or "", _NAME_LIMIT),
        product=display(facts.get("name") or "", _NAME_LIMIT),
        device_id=_pci_id(facts.get("device_id")),
        subsystem_id=_pci_id(facts.get("subsystem_id")),
        memory_total=facts.get("total"),
        memory_used=facts.get("used"),
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else "",
        virtual=facts.get("virtualization") == _VGPU_GUEST,
        problems=_problems(facts),
    )


def _mig(parent: Gpu, facts: Mapping[str, Any]) -> Gpu:
    own = _gpu(parent.index, facts)
    profile = _MIG_PROFILE.search(own.product)
    return replace(
        parent,
        uuid=own.uuid,
        product=parent.product or own.product,
        memory_total=own.memory_total,
        memory_used=own.memory_used,
        mig=profile[1] if profile else "unknown",
        problems=own.problems,
    )


def _problems(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Each cause once: a lost GPU fails every question in the same way."""
    causes: dict[int, list[str]] = {}
    for what, code in facts.get("problems", ()):
        if code not in _ABSENT:
            causes.setdefault(code, []).append(what)
    return tuple(f"{', '.join(what)}: {in_words(code)}" for code, what in causes.items())


def _pci_id(packed: int | None) -> str:
    """NVML packs device << 16 | vendor; 0x233010DE is ``2330:10de``."""
    return f"{packed >> 16:04x}:{packed & 0xFFFF:04x}" if packed else ""


def _cuda(version: int | None) -> str:
    """NVML counts 1000 for a major and 10 for a minor version."""
    return f"{version // 1000}.{version % 1000 // 10}" if version else ""
