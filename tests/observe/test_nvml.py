"""`NvmlSource` against a stub of libnvidia-ml.so.1, through the dynamic loader and pynvml's own ctypes calls."""

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.observe.nvml import mig_profile
from tests.observe.nvml_stub.machine import GIB, MIB, Facts, Machine, compile_stub

MEMORY = ("total_bytes", "used_bytes", "free_bytes", "reserved_bytes")
NO_SUCH_PID = 2**22 + 1
"""Above the highest number that Linux gives to a process."""

ONE_GPU: Facts = {"count": 1}
MIG_GPU: Facts = {
    "count": 1,
    "gpu0.name": "NVIDIA A100-SXM4-80GB",
    "gpu0.mig": 1,
    "gpu0.slots": 7,
    "gpu0.mig0.uuid": "MIG-1111",
    "gpu0.mig0.name": "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
    "gpu0.mig0.total": 9728 * MIB,
    "gpu0.mig0.free": 728 * MIB,
    "gpu0.mig0.reserved": 0,
    "gpu0.mig3.uuid": "MIG-2222",
    "gpu0.mig3.name": "NVIDIA A100-SXM4-80GB MIG 1c.3g.40gb",
    "gpu0.mig3.total": 40192 * MIB,
    "gpu0.mig3.free": 40192 * MIB,
    "gpu0.mig3.reserved": 0,
}


Starter = Callable[..., Machine]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_stub(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def old_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_stub(tmp_path_factory.mktemp("nvml_old"), "-DWITHOUT_MEMORY_V2", "-DWITHOUT_PROCESSES_V3")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A process table: 100 and 200 are processes, 201 is a thread of 200."""
    table = tmp_path / "proc"
    for pid, tgid in ((100, 100), (200, 200), (201, 200)):
        (table / str(pid)).mkdir(parents=True)
        (table / str(pid) / "status").write_text(f"Name:\tpython\nTgid:\t{tgid}\nPid:\t{pid}\n")
    return table


@pytest.fixture
def start(library: Path, tmp_path: Path, proc: Path) -> Iterator[Starter]:
    machines: list[Machine] = []

    def starter(*changes: Facts, library: Path | None = library, proc: Path = proc, max_gpus: int = 64) -> Machine:
        machine = Machine(tmp_path, library, proc, max_gpus)
        machines.append(machine)
        machine.change(*changes)
        return machine

    yield starter
    for machine in machines:
        machine.stop()


def test_two_healthy_gpus(start: Starter) -> None:
    first, second = start().readings()
    assert first == {
        "gpu": 0,
        "uuid": "GPU-aaaa",
        "name": "NVIDIA H100 80GB HBM3",
        "driver": "580.95.05",
        "mig": "",
        "total_bytes": 80 * GIB,
        "used_bytes": 60 * GIB,
        "free_bytes": 20 * GIB,
        "reserved_bytes": 512 * MIB,
        "engine_bytes": None,
        "missing": {"engine_bytes": "the driver lists no process that this container can see"},
    }
    assert (second["gpu"], second["uuid"], second["used_bytes"]) == (1, "GPU-bbbb", GIB)


def test_unchanging_facts_are_asked_for_once(start: Starter) -> None:
    machine = start({"gpu0.procs": "100:4096"})
    before = machine.readings()
    machine.calls()
    assert machine.readings() == before
    assert machine.calls() == {
        "nvmlDeviceGetMemoryInfo_v2": 2,
        # One call for the number of processes, a second for the list where there is any.
        "nvmlDeviceGetComputeRunningProcesses_v3": 3,
    }


def test_figures_follow_the_driver(start: Starter) -> None:
    machine = start(ONE_GPU)
    assert machine.reading()["used_bytes"] == 60 * GIB
    machine.change({"gpu0.free": 0})
    assert machine.reading()["used_bytes"] == 80 * GIB


def test_only_so_many_gpus_are_read(start: Starter) -> None:
    assert [reading["gpu"] for reading in start(max_gpus=1).readings()] == [0]


def test_a_library_without_version_2_of_the_memory_call(start: Starter, old_library: Path) -> None:
    reading = start(ONE_GPU, library=old_library).reading()
    assert (reading["total_bytes"], reading["used_bytes"], reading["free_bytes"]) == (80 * GIB, 60 * GIB, 20 * GIB)
    assert reading["reserved_bytes"] is None
    assert "version 1" in reading["missing"]["reserved_bytes"]


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    ],
)
def test_a_device_that_refuses_version_2_of_the_memory_call(start: Starter, code: int) -> None:
    machine = start(ONE_GPU, {"gpu0.memory_v2": code})
    reading = machine.reading()
    assert reading["used_bytes"] == 60 * GIB
    assert reading["reserved_bytes"] is None
    assert "version 1" in reading["missing"]["reserved_bytes"]
    machine.calls()
    assert machine.reading() == reading
    assert machine.calls()["nvmlDeviceGetMemoryInfo_v2"] == 0


def test_unified_memory_reports_no_memory(start: Starter) -> None:
    not_supported = {
        "gpu0.memory_v1": pynvml.NVML_ERROR_NOT_SUPPORTED,
        "gpu0.memory_v2": pynvml.NVML_ERROR_NOT_SUPPORTED,
    }
    machine = start(ONE_GPU, {"gpu0.name": "NVIDIA GB10", "gpu0.procs": "100:4096"}, not_supported)
    for _ in range(2):
        reading = machine.reading()
        assert reading["name"] == "NVIDIA GB10"
        assert {field: reading[field] for field in MEMORY} == dict.fromkeys(MEMORY)
        assert reading["missing"] == dict.fromkeys(MEMORY, "the driver does not report it for this device")
        assert reading["engine_bytes"] == 4096
    assert machine.calls()["nvmlInitWithFlags"] == 1


@pytest.mark.parametrize("figures", [{"gpu0.total": 0, "gpu0.free": 0}, {"gpu0.total": GIB, "gpu0.free": 2 * GIB}])
def test_impossible_memory_figures_are_not_passed_on(start: Starter, figures: Facts) -> None:
    reading = start(ONE_GPU, figures).reading()
    assert {field: reading[field] for field in MEMORY} == dict.fromkeys(MEMORY)
    assert all("impossible figure" in reading["missing"][field] for field in MEMORY)


def test_an_impossible_reserved_figure_costs_only_itself(start: Starter) -> None:
    reading = start(ONE_GPU, {"gpu0.reserved": 81 * GIB}).reading()
    assert (reading["used_bytes"], reading["reserved_bytes"]) == (60 * GIB, None)
    assert "impossible figure" in reading["missing"]["reserved_bytes"]


def test_mig_instances_and_the_holes_between_them(start: Starter) -> None:
    machine = start(MIG_GPU)
    first, second = machine.readings()
    assert (first["gpu"], first["uuid"], first["mig"]) == (0, "MIG-1111", "1g.10gb")
    assert (first["used_bytes"], first["free_bytes"]) == (9000 * MIB, 728 * MIB)
    assert (second["gpu"], second["uuid"], second["mig"]) == (0, "MIG-2222", "1c.3g.40gb")
    assert second["used_bytes"] == 0
    machine.calls()
    machine.readings()
    assert set(machine.calls()) == {"nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetComputeRunningProcesses_v3"}


def test_mig_instances_beside_a_whole_gpu(start: Starter) -> None:
    readings = start(MIG_GPU, {"count": 2}).readings()
    assert [(reading["gpu"], reading["mig"]) for reading in readings] == [(0, "1g.10gb"), (0, "1c.3g.40gb"), (1, "")]


def test_mig_instances_of_a_gpu_that_is_not_permitted(start: Starter) -> None:
    barred = pynvml.NVML_ERROR_NO_PERMISSION
    machine = start(MIG_GPU, {"gpu0.memory_v1": barred, "gpu0.memory_v2": barred, "gpu0.processes": barred})
    assert [reading["total_bytes"] for reading in machine.readings()] == [9728 * MIB, 40192 * MIB]


@pytest.mark.parametrize(
    ("parent", "profiles"),
    [({"gpu0.memory_v1": 0}, ["1g.10gb", "1c.3g.40gb"]), ({"gpu0.memory_v1": 4}, ["1g", "1c.3g"])],
)
def test_mig_profile_where_the_name_does_not_tell_it(start: Starter, parent: Facts, profiles: list[str]) -> None:
    unnamed = {"gpu0.mig0.name": None, "gpu0.mig3.name": "NVIDIA A100-SXM4-80GB"}
    attributes = {
        "gpu0.mig0.g": 1,
        "gpu0.mig0.c": 1,
        "gpu0.mig0.memory_mib": 9728,
        "gpu0.mig3.g": 3,
        "gpu0.mig3.c": 1,
        "gpu0.mig3.memory_mib": 40192,
    }
    readings = start(MIG_GPU, unnamed, attributes, parent).readings()
    assert [reading["mig"] for reading in readings] == profiles
    assert {reading["name"] for reading in readings} == {"NVIDIA A100-SXM4-80GB"}


def test_mig_instance_without_a_profile(start: Starter) -> None:
    reading, _ = start(MIG_GPU, {"gpu0.mig0.name": "A100", "gpu0.mig0.attributes": 3}).readings()
    assert (reading["uuid"], reading["mig"]) == ("MIG-1111", "")
    assert reading["missing"]["mig"] == "the driver does not report it for this device"


def test_mig_mode_without_a_visible_instance(start: Starter) -> None:
    barred = pynvml.NVML_ERROR_NO_PERMISSION
    no_instance = {"gpu0.mig0.uuid": None, "gpu0.mig3.uuid": None, "gpu0.memory_v1": barred, "gpu0.memory_v2": barred}
    reading = start(MIG_GPU, no_instance).reading()
    assert (reading["uuid"], reading["mig"], reading["total_bytes"]) == ("GPU-aaaa", "", None)
    assert reading["missing"]["total_bytes"] == "the driver does not permit this container to read it"


def test_a_device_that_knows_no_mig(start: Starter) -> None:
    reading = start(ONE_GPU, {"gpu0.mig_code": pynvml.NVML_ERROR_NOT_SUPPORTED}).reading()
    assert (reading["mig"], reading["used_bytes"]) == ("", 60 * GIB)
    assert set(reading["missing"]) == {"engine_bytes"}


def test_mig_instances_that_were_made_anew(start: Starter) -> None:
    machine = start(MIG_GPU)
    machine.readings()
    machine.change({"gpu0.mig0.call": pynvml.NVML_ERROR_INVALID_ARGUMENT})
    gone, other = machine.readings()
    assert (gone["uuid"], gone["total_bytes"]) == ("MIG-1111", None)
    assert other["total_bytes"] == 40192 * MIB
    machine.change({"gpu0.mig0.call": 0, "gpu0.mig0.uuid": None, "gpu0.mig1.uuid": "MIG-3333"})
    assert [reading["uuid"] for reading in machine.readings()] == ["MIG-3333", "MIG-2222"]


@pytest.mark.parametrize(
    ("device_mib", "slices", "memory_mib", "profile"),
    [
        # nvidia-smi mig -lgip of A100-SXM4-40GB, H100 80GB and H200.
        (40536, (1, 1), 4864, "1g.5gb"),
        (81559, (1, 1), 9984, "1g.10gb"),
        (81559, (1, 1), 20096, "1g.20gb"),
        (81559, (3, 3), 40448, "3g.40gb"),
        (81559, (3, 1), 40448, "1c.3g.40gb"),
        (81559, (7, 7), 81152, "7g.80gb"),
        (143771, (1, 1), 16384, "1g.18gb"),
        (143771, (3, 3), 71475, "3g.71gb"),
    ],
)
def test_mig_profile_names(device_mib: int, slices: tuple[int, int], memory_mib: int, profile: str) -> None:
    assert mig_profile(*slices, memory_mib, device_mib * MIB) == profile


@given(st.integers(1, 2**20), st.integers(1, 2**20))
def test_mig_profile_never_promises_more_than_the_device(one: int, other: int) -> None:
    memory_mib, device_mib = sorted((one, other))
    size = int(mig_profile(1, 1, memory_mib, device_mib * MIB).removeprefix("1g.").removesuffix("gb"))
    assert memory_mib / 1024 - 0.5 <= size <= device_mib / 1024 + 1


def test_no_library(start: Starter) -> None:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        machine = start(library=None)
    else:
        pytest.skip("this machine has the real libnvidia-ml.so.1; tests/gpu reads it")
    for _ in range(2):
        assert machine.refusal() == ("library_not_found", "libnvidia-ml.so.1 cannot be loaded here")


def test_a_library_that_is_broken_and_then_repaired(start: Starter, library: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "libnvidia-ml.so.1").write_text("not a library")
    machine = start(library=folder)
    assert machine.refusal()[0] == "library_not_found"
    (folder / "libnvidia-ml.so.1").unlink()
    (folder / "libnvidia-ml.so.1").symlink_to(library / "libnvidia-ml.so.1")
    assert len(machine.readings()) == 2


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "driver_not_loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "driver_mismatch"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "no_permission"),
        (pynvml.NVML_ERROR_OPERATING_SYSTEM, "no_permission"),
        (pynvml.NVML_ERROR_TIMEOUT, "timeout"),
        (28, "no_device"),
        (pynvml.NVML_ERROR_UNKNOWN, "unknown"),
        (12345, "unknown"),
    ],
)
def test_a_driver_that_cannot_be_opened(start: Starter, code: int, reason: str) -> None:
    machine = start({"init": code})
    for _ in range(2):
        stated, message = machine.refusal()
        assert stated == reason
        assert message
        assert "stub" not in message
    machine.change({"init": 0})
    assert len(machine.readings()) == 2


def test_no_gpu_and_then_some(start: Starter) -> None:
    machine = start({"count": 0})
    for _ in range(3):
        assert machine.refusal() == ("no_device", "the driver finds no GPU")
    machine.change({"count": 2})
    assert len(machine.readings()) == 2
    machine.close_source()
    calls = machine.calls()
    assert calls["nvmlInitWithFlags"] == calls["nvmlShutdown"] == 4


def test_gpus_of_other_containers_are_left_out(start: Starter) -> None:
    machine = start({"gpu0.handle": pynvml.NVML_ERROR_NO_PERMISSION})
    for _ in range(3):
        assert [(reading["gpu"], reading["uuid"]) for reading in machine.readings()] == [(1, "GPU-bbbb")]
    assert machine.calls()["nvmlInitWithFlags"] == 1


def test_nothing_but_gpus_of_other_containers(start: Starter) -> None:
    barred = pynvml.NVML_ERROR_NO_PERMISSION
    assert start({"gpu0.handle": barred, "gpu1.handle": barred}).refusal()[0] == "no_permission"


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_UNKNOWN,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    ],
)
def test_one_gpu_fails_midway_and_recovers(start: Starter, code: int) -> None:
    machine = start()
    healthy = machine.readings()
    machine.change({"gpu1.call": code, "gpu1.handle": code})
    for _ in range(3):
        first, second = machine.readings()
        assert first == healthy[0]
        assert {key: second[key] for key in ("gpu", "uuid", "name", "driver", "mig")} == {
            key: healthy[1][key] for key in ("gpu", "uuid", "name", "driver", "mig")
        }
        assert {field: second[field] for field in (*MEMORY, "engine_bytes")} == dict.fromkeys((*MEMORY, "engine_bytes"))
        assert set(second["missing"]) == {*MEMORY, "engine_bytes"}
        assert len(set(second["missing"].values())) == 1
    machine.change({"gpu1.call": 0, "gpu1.handle": 0})
    for _ in range(8):
        recovered = machine.readings()
    assert recovered == healthy


def test_a_failed_gpu_that_answers_again_is_back_at_the_next_read(start: Starter) -> None:
    machine = start()
    healthy = machine.readings()
    machine.change({"gpu1.call": pynvml.NVML_ERROR_GPU_IS_LOST})
    assert machine.readings()[1]["total_bytes"] is None
    machine.change({"gpu1.call": 0})
    assert machine.readings() == healthy


def test_nvml_is_reopened_ever_more_rarely_for_a_gpu_that_stays_lost(start: Starter) -> None:
    machine = start({"gpu1.handle": pynvml.NVML_ERROR_GPU_IS_LOST})
    opened_at = []
    for read in range(32):
        assert [reading["gpu"] for reading in machine.readings()] == [0]
        calls = machine.calls()["nvmlInitWithFlags"]
        assert calls <= 1
        if calls:
            opened_at.append(read)
    assert opened_at == [0, 1, 3, 7, 15, 23, 31]


def test_nvml_is_reopened_at_once_for_a_gpu_that_is_lost_a_second_time(start: Starter) -> None:
    machine = start()
    lost: Facts = {"gpu1.call": pynvml.NVML_ERROR_GPU_IS_LOST}
    found: Facts = {"gpu1.call": 0}
    for change in (lost, lost, lost, found, lost):
        machine.change(change)
        machine.readings()
    machine.calls()
    machine.readings()
    assert machine.calls()["nvmlInitWithFlags"] == 1


def test_a_lost_gpu_that_the_driver_no_longer_counts(start: Starter) -> None:
    machine = start()
    machine.readings()
    machine.change({"gpu0.call": pynvml.NVML_ERROR_GPU_IS_LOST})
    assert [reading["uuid"] for reading in machine.readings()] == ["GPU-aaaa", "GPU-bbbb"]
    machine.change({"count": 1, "gpu0.call": 0, "gpu0.uuid": "GPU-bbbb"})
    assert [(reading["gpu"], reading["uuid"]) for reading in machine.readings()] == [(0, "GPU-bbbb")]


def test_a_remembered_gpu_is_not_reported_twice_when_indices_move(start: Starter) -> None:
    machine = start()
    machine.readings()
    lost = pynvml.NVML_ERROR_GPU_IS_LOST
    machine.change({"gpu0.call": lost, "gpu1.call": 0})
    machine.readings()
    machine.change({"gpu0.call": 0, "gpu0.uuid": "GPU-bbbb", "gpu1.handle": lost, "gpu1.call": lost})
    assert [(reading["gpu"], reading["uuid"]) for reading in machine.readings()] == [(0, "GPU-bbbb")]


def test_the_only_gpu_is_lost_and_comes_back(start: Starter) -> None:
    machine = start(ONE_GPU)
    healthy = machine.reading()
    lost = pynvml.NVML_ERROR_GPU_IS_LOST
    machine.change({"gpu0.call": lost, "gpu0.handle": lost})
    for _ in range(3):
        assert machine.refusal() == ("gpu_lost", "the GPU fell off the bus or cannot be reached")
    machine.change({"gpu0.call": 0, "gpu0.handle": 0})
    assert machine.reading() == healthy


def test_the_driver_is_restarted(start: Starter) -> None:
    machine = start()
    machine.readings()
    machine.change({"generation": 2, "driver": "590.10"})
    assert machine.refusal()[0] == "uninitialized"
    machine.calls()
    assert [reading["driver"] for reading in machine.readings()] == ["590.10", "590.10"]
    assert machine.calls()["nvmlInitWithFlags"] == 1


def test_the_driver_is_restarted_and_stays_away_for_a_while(start: Starter) -> None:
    machine = start()
    machine.readings()
    machine.change({"generation": 2, "init": pynvml.NVML_ERROR_DRIVER_NOT_LOADED})
    assert [machine.refusal()[0] for _ in range(3)] == ["uninitialized", "driver_not_loaded", "driver_not_loaded"]
    machine.change({"init": 0})
    assert len(machine.readings()) == 2


def test_a_closed_source_can_be_read_again(start: Starter) -> None:
    machine = start()
    before = machine.readings()
    machine.close_source()
    machine.close_source()
    calls = machine.calls()
    assert calls["nvmlInitWithFlags"] == calls["nvmlShutdown"] == 1
    assert machine.readings() == before


@pytest.mark.parametrize(
    ("processes", "engine_bytes", "why"),
    [
        ("100:4096,200:8192", 12288, None),
        (f"100:4096,{NO_SUCH_PID}:8192", 4096, None),
        ("100:4096,201:8192", 4096, None),
        ("100:0", 0, None),
        (f"100:4096,{NO_SUCH_PID}:none", 4096, None),
        ("100:4096,200:none", None, "the driver does not state the memory of every process"),
        ("201:8192", None, "none of the processes that the driver lists is visible to this container"),
        ("", None, "the driver lists no process that this container can see"),
    ],
)
def test_memory_of_the_processes_of_this_container(
    start: Starter, processes: str, engine_bytes: int | None, why: str | None
) -> None:
    reading = start(ONE_GPU, {"gpu0.procs": processes}).reading()
    assert reading["engine_bytes"] == engine_bytes
    assert reading["missing"].get("engine_bytes") == why


def test_processes_are_looked_up_in_the_real_process_table(start: Starter) -> None:
    listed = f"{os.getpid()}:4096,{NO_SUCH_PID}:8192"
    assert start(ONE_GPU, {"gpu0.procs": listed}, proc=Path("/proc")).reading()["engine_bytes"] == 4096


def test_processes_of_a_library_without_version_3(start: Starter, old_library: Path) -> None:
    machine = start(ONE_GPU, {"gpu0.procs": "100:4096"}, library=old_library)
    assert machine.reading()["engine_bytes"] == 4096


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_NO_PERMISSION])
def test_a_process_list_that_fails_costs_only_itself(start: Starter, code: int) -> None:
    machine = start(ONE_GPU, {"gpu0.processes": code})
    for _ in range(3):
        reading = machine.reading()
        assert (reading["used_bytes"], reading["engine_bytes"]) == (60 * GIB, None)
        assert reading["missing"]["engine_bytes"]
    assert machine.calls()["nvmlInitWithFlags"] == 1


def test_labels_that_the_driver_does_not_give(start: Starter) -> None:
    not_supported = pynvml.NVML_ERROR_NOT_SUPPORTED
    labels = {"gpu0.uuid_code": not_supported, "gpu0.name": "H\xfc100", "driver_code": not_supported}
    reading = start(ONE_GPU, labels).reading()
    assert (reading["uuid"], reading["name"], reading["driver"]) == ("", "", "")
    assert set(reading["missing"]) == {"uuid", "name", "driver", "engine_bytes"}
    assert reading["missing"]["name"] == "the driver's answer is not text"
    assert reading["used_bytes"] == 60 * GIB
