"""`NvmlSource` against a real driver, compared with what nvidia-smi says of the same machine."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kvgauge.observe.nvml import NvmlSource
from kvgauge.observe.records import GpuReading

pytestmark = pytest.mark.gpu

MIB = 2**20
HELD_MIB = 512
# Two looks at a machine on which other programs may start and stop, and nvidia-smi rounds to MiB.
TOLERANCE_BYTES = 64 * MIB

HOLD_MEMORY = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    if code:
        sys.exit(f"{name} failed with CUDA error {code}")
device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_ulonglong()
call("cuInit", 0)
call("cuDeviceGet", ctypes.byref(device), 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
call("cuCtxSetCurrent", context)
call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(int(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


def nvidia_smi(*arguments: str) -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        pytest.fail("these tests compare with nvidia-smi, which is not on the PATH")
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def queried(*fields: str) -> dict[str, list[str]]:
    """The named fields of every GPU, by UUID."""
    rows = nvidia_smi(f"--query-gpu=uuid,{','.join(fields)}", "--format=csv,noheader,nounits").splitlines()
    cells = [[cell.strip() for cell in row.split(",")] for row in rows]
    return {row[0]: row[1:] for row in cells}


@contextlib.contextmanager
def held_memory(size_bytes: int) -> Iterator[None]:
    """Another process that holds `size_bytes` of the first CUDA device."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_MEMORY, str(size_bytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.stdin.close()


@pytest.fixture
def source() -> Iterator[NvmlSource]:
    source = NvmlSource()
    yield source
    source.close()


def whole_gpus(readings: tuple[GpuReading, ...]) -> list[GpuReading]:
    return [reading for reading in readings if not reading.mig]


def test_labels(source: NvmlSource) -> None:
    readings = source.read()
    stated = queried("index", "name", "driver_version")
    assert {reading.gpu for reading in readings} == {int(index) for index, _, _ in stated.values()}
    for reading in whole_gpus(readings):
        assert [str(reading.gpu), reading.name, reading.driver] == stated[reading.uuid]


def test_mig_instances_are_those_of_nvidia_smi(source: NvmlSource) -> None:
    lines = [line.split() for line in nvidia_smi("-L").splitlines() if line.strip().startswith("MIG ")]
    stated = {words[-1].rstrip(")"): words[1] for words in lines}
    assert {reading.uuid: reading.mig for reading in source.read() if reading.mig} == stated


def test_memory(source: NvmlSource) -> None:
    stated = queried("memory.total", "memory.free", "memory.reserved")
    for reading in whole_gpus(source.read()):
        figures = zip(
            (reading.total_bytes, reading.free_bytes, reading.reserved_bytes), stated[reading.uuid], strict=True
        )
        for figure, cell in figures:
            if cell.isdigit():
                assert figure is not None, reading.missing
                assert abs(figure - int(cell) * MIB) <= TOLERANCE_BYTES
            else:
                assert figure is None
        if reading.total_bytes is None or reading.free_bytes is None:
            assert reading.used_bytes is None
        else:
            assert reading.used_bytes == reading.total_bytes - reading.free_bytes


def test_memory_that_another_process_takes(source: NvmlSource) -> None:
    before = source.read()
    with held_memory(HELD_MIB * MIB):
        after = source.read()
    assert [reading.uuid for reading in after] == [reading.uuid for reading in before]
    grown = [
        new.used_bytes - old.used_bytes
        for old, new in zip(before, after, strict=True)
        if new.used_bytes is not None and old.used_bytes is not None
    ]
    assert max(grown, default=HELD_MIB * MIB) >= HELD_MIB * MIB - TOLERANCE_BYTES
    # Whether the process is listed, and with a figure, depends on the driver and on PID namespaces.
    attributed = [reading.engine_bytes for reading in after if reading.engine_bytes is not None]
    assert max(attributed, default=HELD_MIB * MIB) >= HELD_MIB * MIB
    assert all((reading.engine_bytes is None) == ("engine_bytes" in reading.missing) for reading in after)


def test_a_closed_source_reads_the_same_devices_again(source: NvmlSource) -> None:
    before = [(reading.gpu, reading.uuid, reading.name, reading.mig) for reading in source.read()]
    source.close()
    assert [(reading.gpu, reading.uuid, reading.name, reading.mig) for reading in source.read()] == before


def test_every_figure_is_there_or_explained(source: NvmlSource) -> None:
    for reading in source.read():
        for field in ("total_bytes", "used_bytes", "free_bytes", "reserved_bytes", "engine_bytes"):
            assert (getattr(reading, field) is None) == (field in reading.missing)
