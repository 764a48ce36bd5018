"""Detection with the real NVML binding on a stand-in library, and on trees of kernel files."""

from __future__ import annotations

import configparser
import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from nimpull.cli.gpus import show_gpus
from nimpull.core.hardware import Gpu, Hardware, Origin
from nimpull.detect import detect, shipped_table
from tests.fakenvml import mkpcitree

FAKE = Path(__file__).with_name("fakenvml")
SCENARIOS = sorted(path.stem for path in (FAKE / "scenarios").glob("*.ini"))
MIB, GIB = 1 << 20, 1 << 30

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler makes the stand-in library")


lookup = shipped_table().find


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the compiled stand-in."""
    directory = tmp_path_factory.mktemp("nvml")
    name = "libnvidia-ml.so.1"
    command = ["cc", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{name}", "-o", name, str(FAKE / "fakenvml.c")]
    subprocess.run(command, cwd=directory, check=True)
    return directory


class Stand:
    """Runs detection on a scenario and an (at first empty) root."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, library: Path, root: Path) -> None:
        monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # would hide that a line is flushed
        self.root = root / "root"
        self.root.mkdir()
        self._made = root
        self._set = monkeypatch.setenv
        self._library = library

    def scenario(self, name: str, **options: float) -> Hardware:
        return self.on(FAKE / "scenarios" / f"{name}.ini", **options)

    def text(self, text: str, **options: float) -> Hardware:
        path = self._made / "own.ini"
        path.write_text(text)
        return self.on(path, **options)

    def on(self, path: Path, *, timeout: float = 60) -> Hardware:
        self._set("LD_LIBRARY_PATH", str(self._library))
        self._set("FAKENVML_CONFIG", str(path))
        return detect(lookup=lookup, root=str(self.root), timeout=timeout)

    def without_library(self) -> Hardware:
        self._set("LD_LIBRARY_PATH", str(self.root))
        return detect(lookup=lookup, root=str(self.root), timeout=60)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch, library: Path, tmp_path: Path) -> Stand:
    return Stand(monkeypatch, library, tmp_path)


def _size(text: str) -> int:
    unit = {"K": 1 << 10, "M": MIB, "G": GIB}.get(text[-1], 1)
    return int(text.rstrip("KMG")) * unit


def _packed(text: str) -> str:
    value = int(text, 16)
    return f"{value >> 16:04x}:{value & 0xFFFF:04x}"


PLAIN = [name for name in SCENARIOS if name.startswith(("one_", "mixed_", "h100x", "a1", "vgpu_", "gb200"))]
PLAIN = [name for name in PLAIN if name not in ("one_lost", "one_no_permission", "one_gb10")]


@pytest.mark.parametrize("name", PLAIN)
def test_every_field_of_a_healthy_gpu(stand: Stand, name: str) -> None:
    told = configparser.ConfigParser(comment_prefixes=("#", ";"), strict=False)
    told.read(FAKE / "scenarios" / f"{name}.ini")
    hardware = stand.scenario(name)
    assert hardware.origin is Origin.NVML
    assert (hardware.driver, hardware.cuda) == ("580.105.08", "13.0")
    sections = [told[section] for section in told.sections() if section.startswith("gpu ")]
    assert len(hardware.gpus) == len(sections) > 0
    for index, (gpu, facts) in enumerate(zip(hardware.gpus, sections, strict=True)):
        assert gpu == Gpu(
            index=index,
            uuid=facts["uuid"],
            product=facts["name"],
            device_id=_packed(facts["device_id"]),
            subsystem_id=_packed(facts["subsystem_id"]),
            memory_total=_size(facts["mem_total"]),
            memory_used=_size(facts["mem_used"]),
            compute_capability=facts["cc"],
            virtual=name.startswith("vgpu_"),
        )


def test_the_scenarios_named_here_are_all_there_are() -> None:
    special = {
        *("bad_utf8_name", "graphics_device", "jetson_orin", "lost_midway", "no_libcuda", "old_driver"),
        *("mig_enabled_none", "mig_h100", "mig_h100_privileged", "one_gb10", "one_lost", "one_no_permission"),
        *("uma_zero", "zero_gpus", *(f"init_{name}" for name in INIT)),
    }
    assert set(SCENARIOS) == {*PLAIN, *special}


INIT = {
    "driver_not_loaded": "driver is not loaded",
    "no_permission": "no permission",
    "operating_system": "operating system blocks",
    "unknown": "recreate the pod",
    "version_mismatch": "different versions",
}


@pytest.mark.parametrize("name", INIT)
def test_f58_a_driver_that_does_not_start_is_told_in_words(stand: Stand, name: str) -> None:
    hardware = stand.scenario(f"init_{name}")
    assert (hardware.origin, hardware.gpus) == (Origin.NONE, ())
    assert INIT[name] in hardware.notes[0]
    assert "--gpu" in hardware.notes[-1]


def test_f58_no_library_and_no_gpu(stand: Stand) -> None:
    hardware = stand.without_library()
    assert (hardware.origin, hardware.gpus) == (Origin.NONE, ())
    assert "no libnvidia-ml.so.1" in hardware.notes[0]


def test_f58_a_driver_without_a_gpu(stand: Stand) -> None:
    hardware = stand.scenario("zero_gpus")
    assert (hardware.origin, hardware.gpus, hardware.driver) == (Origin.NVML, (), "580.105.08")
    assert "this container was given none" in hardware.notes[0]


@pytest.mark.parametrize(("name", "words"), [("one_lost", "lost"), ("one_no_permission", "no permission")])
def test_f58_one_gpu_out_of_reach_leaves_the_others(stand: Stand, name: str, words: str) -> None:
    first, second, *rest = stand.scenario(name).gpus
    assert (second.index, second.product, second.memory_total) == (1, "", None)
    assert words in second.problems[0]
    assert [gpu.device_id for gpu in (first, *rest)] == ["2330:10de"] * (1 + len(rest))
    assert all(gpu.memory_total == 81559 * MIB and not gpu.problems for gpu in (first, *rest))


def test_f58_a_gpu_lost_while_it_is_read_tells_its_cause_once(stand: Stand) -> None:
    lost, well = stand.scenario("lost_midway").gpus
    assert lost.problems == ("name, memory, PCI ids: the GPU is lost (it has fallen off the bus)",)
    assert (lost.memory_total, lost.shared_memory, lost.compute_capability) == (None, False, "9.0")
    assert (well.memory_total, well.problems) == (81559 * MIB, ())


@pytest.mark.parametrize("name", ["mig_h100", "mig_h100_privileged"])
def test_f58_mig_devices_stand_in_for_their_gpu_across_an_empty_slot(stand: Stand, name: str) -> None:
    hardware = stand.scenario(name)
    assert [(gpu.mig, gpu.memory_total, gpu.memory_used) for gpu in hardware.gpus] == [
        ("1g.10gb", 9984 * MIB, 16 * MIB),
        ("3g.40gb", 40320 * MIB, 32 * MIB),
    ]
    for gpu in hardware.gpus:
        assert (gpu.index, gpu.product, gpu.device_id) == (0, "NVIDIA H100 80GB HBM3", "2330:10de")
        assert gpu.uuid.startswith("MIG-") and not gpu.problems


def test_f58_a_split_gpu_without_parts_offers_no_memory(stand: Stand) -> None:
    (gpu,) = stand.scenario("mig_enabled_none").gpus
    assert (gpu.memory_total, gpu.device_id) == (0, "2330:10de")
    assert gpu.problems == ("MIG is on, but no MIG device is visible here",)


@pytest.mark.parametrize("name", ["one_gb10", "uma_zero", "jetson_orin"])
def test_f58_integrated_parts_have_the_host_s_memory(stand: Stand, name: str) -> None:
    mkpcitree.add_memory(stand.root, 125_000_000, 100_000_000)
    hardware = stand.scenario(name)
    (gpu,) = hardware.gpus
    assert gpu.shared_memory
    assert (gpu.memory_total, gpu.memory_used) == (125_000_000 << 10, 25_000_000 << 10)
    assert gpu.problems == ()
    assert "/proc/meminfo" in hardware.notes[-1]


def test_f58_integrated_part_without_meminfo_is_unknown_not_zero(stand: Stand) -> None:
    (gpu,) = stand.scenario("uma_zero").gpus
    assert (gpu.memory_total, gpu.memory_used, gpu.shared_memory) == (None, None, True)


def test_f58_a_name_that_is_not_utf8_comes_from_the_table(stand: Stand) -> None:
    (gpu,) = stand.scenario("bad_utf8_name").gpus
    assert (gpu.product, gpu.device_id) == ("NVIDIA L4", "27b8:10de")
    assert gpu.problems == ("name: the driver's answer is not UTF-8",)


def test_a_card_that_neither_driver_nor_table_knows(stand: Stand) -> None:
    (gpu,) = stand.scenario("graphics_device").gpus
    assert (gpu.product, gpu.device_id) == ("NVIDIA Graphics Device", "233f:10de")


def test_a_card_that_only_the_table_knows(stand: Stand) -> None:
    (gpu,) = stand.text("[gpu 0]\nname = NVIDIA Graphics Device\ndevice_id = 0x290110DE\ncc = 10.0\n").gpus
    assert gpu.product == "NVIDIA B200"


def test_an_old_driver_has_memory_and_counts_the_reserved_as_used(stand: Stand) -> None:
    hardware = stand.scenario("old_driver")
    (gpu,) = hardware.gpus
    assert (hardware.driver, hardware.cuda) == ("470.256.02", "11.4")
    assert (gpu.memory_total, gpu.memory_used, gpu.problems) == (40960 * MIB, 500 * MIB, ())


def test_without_libcuda_only_its_version_is_missing(stand: Stand) -> None:
    hardware = stand.scenario("no_libcuda")
    assert (hardware.cuda, hardware.gpus[0].product) == ("", "NVIDIA L4")
    assert "libcuda.so.1 is not in this container" in hardware.notes[0]


def test_a_vgpu_guest_is_told(stand: Stand) -> None:
    hardware = stand.scenario("vgpu_a100")
    assert hardware.gpus[0].virtual
    assert "vGPU guest" in hardware.notes[0]


H100 = "name = NVIDIA H100 80GB HBM3\ndevice_id = 0x233010DE\nmem_total = 81559M\n"


def test_f58_a_driver_that_hangs_is_given_up_and_what_it_said_is_kept(stand: Stand) -> None:
    started = time.monotonic()
    hardware = stand.text(
        f"[gpu 0]\n{H100}[gpu 1]\n{H100}error.nvmlDeviceGetHandleByIndex_v2 = -1\n", timeout=3
    )
    assert time.monotonic() - started < 60
    first, second = hardware.gpus
    assert (first.device_id, first.problems) == ("2330:10de", ())
    assert second.problems == ("GPU: the driver did not answer for it",)
    assert "did not answer within 3 seconds" in hardware.notes[0]


def test_f58_a_driver_that_hangs_at_once_leaves_the_bus(stand: Stand) -> None:
    mkpcitree.mixed(stand.root)
    hardware = stand.text("[system]\nerror.nvmlInit = -1\n", timeout=0.4)
    assert hardware.origin is Origin.PCI
    assert len(hardware.gpus) == 3
    assert "did not answer" in hardware.notes[0]


def test_f58_cancellation_does_not_wait_for_a_hanging_driver(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, library: Path, tmp_path: Path
) -> None:
    config = tmp_path / "hang.ini"
    config.write_text("[system]\nerror.nvmlInit = -1\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("FAKENVML_CONFIG", str(config))
    cancel = threading.Event()
    cancel.set()
    started = time.monotonic()
    assert detect(lookup=lookup, root=str(stand.root), timeout=600, cancel=cancel).gpus == ()
    assert time.monotonic() - started < 60


def test_f58_a_library_that_crashes_is_told(stand: Stand) -> None:
    hardware = stand.text(f"[gpu 0]\n{H100}error.nvmlDeviceGetUUID = -2\n")
    assert "killed by signal 6" in " ".join(hardware.notes)
    assert hardware.gpus[0].problems == ("GPU: the driver did not answer for it",)


@pytest.mark.parametrize(
    ("content", "words"), [("", "another package"), ("raise ImportError\n", "not installed")]
)
def test_f58_the_binding_is_missing_or_foreign(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "pynvml.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert words in stand.without_library().notes[0]


# -- without NVML: the kernel's files -----------------------------------------------------------------


def test_the_bus_and_the_driver_s_files_give_everything_but_use(stand: Stand) -> None:
    mkpcitree.h100x8(stand.root)
    hardware = stand.without_library()
    assert (hardware.origin, hardware.driver, len(hardware.gpus)) == (Origin.PCI, "580.105.08", 8)
    assert hardware.gpus[7] == Gpu(
        index=7,
        uuid="GPU-00000007-0000-0000-0000-000000000000",
        product="NVIDIA H100 80GB HBM3",
        device_id="2330:10de",
        subsystem_id="16c1:10de",
        memory_total=81559 * MIB,
        compute_capability="9.0",
    )
    assert "they are the node's" in hardware.notes[1]


def test_the_bus_alone_takes_names_from_the_table_and_only_gpus(stand: Stand) -> None:
    mkpcitree.mixed(stand.root)
    assert [gpu.product for gpu in stand.without_library().gpus] == [
        "NVIDIA L40S",
        "Tesla T4",
        "NVIDIA GeForce RTX 4090",
    ]


def test_a_driver_without_a_gpu_for_this_container_gives_the_node_s(stand: Stand) -> None:
    mkpcitree.mixed(stand.root)
    hardware = stand.scenario("zero_gpus")
    assert (hardware.origin, hardware.driver, len(hardware.gpus)) == (Origin.PCI, "580.105.08", 3)


def test_virtual_functions_are_not_gpus(stand: Stand) -> None:
    mkpcitree.virtual_function(stand.root)
    assert [gpu.subsystem_id for gpu in stand.without_library().gpus] == ["145f:10de"]


@pytest.mark.parametrize(("subsystem", "product"), [("14a9:10de", "NVIDIA A16"), ("157e:10de", "NVIDIA A2")])
def test_the_subsystem_tells_two_products_of_one_id(stand: Stand, subsystem: str, product: str) -> None:
    mkpcitree.add_device(stand.root, "0000:03:00.0", "25b6:10de", "030200", subsystem=subsystem)
    assert stand.without_library().gpus[0].product == product


def test_the_driver_s_files_alone_give_names(stand: Stand) -> None:
    mkpcitree.add_driver(stand.root, {"0000:1a:00.0": "NVIDIA H100 80GB HBM3"})
    hardware = stand.without_library()
    (gpu,) = hardware.gpus
    assert (gpu.product, gpu.device_id, gpu.memory_total) == ("NVIDIA H100 80GB HBM3", "", None)
    assert "without PCI ids" in hardware.notes[1]


def test_an_unknown_card_and_broken_files_do_not_stop_the_rest(stand: Stand) -> None:
    mkpcitree.add_device(stand.root, "0000:03:00.0", "ffff:10de", "030200")
    mkpcitree.add_device(stand.root, "0000:04:00.0", "2330:10de", "030200", subsystem="16c1:10de")
    broken = stand.root / "sys/devices/pci0000:04/0000:04:00.0"
    (broken / "subsystem_device").write_bytes(b"\xff\xfe garbage")
    (broken / "subsystem_vendor").unlink()
    unknown, known = stand.without_library().gpus
    assert "not in the device table" in unknown.problems[0]
    assert (known.product, known.subsystem_id) == ("NVIDIA H100 80GB HBM3", "")


def test_names_from_the_driver_s_files_cannot_steer_a_terminal(stand: Stand) -> None:
    mkpcitree.add_driver(stand.root, {"0000:1a:00.0": "NVIDIA \x1b[31mH100"})
    assert stand.without_library().gpus[0].product == "NVIDIA \\x1b[31mH100"


# -- the command -----------------------------------------------------------------------------------


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(show_gpus, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_tells_products_memory_problems_and_origin(
    monkeypatch: pytest.MonkeyPatch, library: Path
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("FAKENVML_CONFIG", str(FAKE / "scenarios/one_lost.ini"))
    monkeypatch.delenv("NIMPULL_GPUS", raising=False)
    lines = _run().splitlines()
    assert lines[0] == "3 GPUs, from NVML (driver 580.105.08, CUDA 13.0)"
    assert lines[1].split("  ")[1:3] == ["0", "NVIDIA H100 80GB HBM3"]
    assert "79.6 GiB, 0 B used" in lines[1] and "2330:10de" in lines[1] and "compute 9.0" in lines[1]
    assert lines[2:4] == ["  1  unknown", "       GPU: the GPU is lost (it has fallen off the bus)"]


def test_the_command_s_json_is_the_report_s(monkeypatch: pytest.MonkeyPatch, library: Path) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("FAKENVML_CONFIG", str(FAKE / "scenarios/mig_h100.ini"))
    monkeypatch.delenv("NIMPULL_GPUS", raising=False)
    told = json.loads(_run("-o", "json"))
    assert told["origin"] == "nvml"
    assert [gpu["mig"] for gpu in told["gpus"]] == ["1g.10gb", "3g.40gb"]


def test_gpus_that_are_named_need_no_machine_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIMPULL_GPUS", "L40S:2")
    assert _run().splitlines()[0] == "2 GPUs, as named"
    assert "NVIDIA L40S" in _run()
    told = json.loads(_run("-o", "json", "--gpu", "H100:8"))
    assert (told["origin"], len(told["gpus"]), told["gpus"][7]["product"]) == (
        "override",
        8,
        "NVIDIA H100 80GB HBM3",
    )


def test_a_gpu_that_is_not_one_is_a_usage_error() -> None:
    done = CliRunner().invoke(show_gpus, ["--gpu", "H1000:2"])
    assert done.exit_code == 2
    assert "unknown GPU" in done.stderr and "H100:8" in done.stderr
