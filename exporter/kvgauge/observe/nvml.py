"""What the NVIDIA driver says, through NVML: the memory of each GPU, or of each MIG instance.

A fact that a device does not report is `None` with the reason in `missing`; a device that stops answering keeps its
labels and loses its figures. Only when nothing at all can be read is `SourceError` raised.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pynvml

from kvgauge.observe.records import GpuReading, SourceError

_LABEL_LENGTH = 128
_MIG_SLOTS = 64
# The longest wait, in reads, between two attempts to win a lost GPU back while others work: opening NVML touches them.
_LONGEST_GAP = 8

# Named by number: the oldest pynvml that is allowed does not know it.
_GPU_NOT_FOUND = 28

_GONE = ("gpu_lost", "the driver no longer knows this device")
_SLOW = ("timeout", "the driver did not answer in time")
_FAULTS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: ("library_not_found", "libnvidia-ml.so.1 cannot be loaded here"),
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: ("library_too_old", "libnvidia-ml.so.1 lacks a function that is needed"),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: ("driver_not_loaded", "the NVIDIA driver is not loaded or not reachable"),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "driver_mismatch",
        "libnvidia-ml.so.1 and the loaded driver are of different versions: restart the pod",
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: ("no_permission", "the driver refuses this container access"),
    pynvml.NVML_ERROR_OPERATING_SYSTEM: ("no_permission", "the system bars this container from the GPU's device file"),
    pynvml.NVML_ERROR_GPU_IS_LOST: ("gpu_lost", "the GPU fell off the bus or cannot be reached"),
    pynvml.NVML_ERROR_INVALID_ARGUMENT: _GONE,
    pynvml.NVML_ERROR_NOT_FOUND: _GONE,
    pynvml.NVML_ERROR_RESET_REQUIRED: ("reset_required", "the GPU needs a reset"),
    pynvml.NVML_ERROR_UNINITIALIZED: ("uninitialized", "the driver dropped the session; the next read opens a new one"),
    pynvml.NVML_ERROR_TIMEOUT: _SLOW,
    pynvml.NVML_ERROR_NOT_READY: _SLOW,
    _GPU_NOT_FOUND: ("no_device", "the driver finds no GPU"),
}

_TOO_OLD = "the driver is too old to report it"
# What a healthy device answers where it, or this container, simply does not have a fact.
_ABSENT = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: "the driver does not report it for this device",
    pynvml.NVML_ERROR_NO_PERMISSION: "the driver does not permit this container to read it",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: _TOO_OLD,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: _TOO_OLD,
    pynvml.NVML_ERROR_DEPRECATED: "the driver no longer reports it",
    pynvml.NVML_ERROR_NO_DATA: "the driver has no figure for it",
}
_TRY_VERSION_1 = {
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
}
_SKIP_MIG_SLOT = {*_ABSENT, pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_INVALID_ARGUMENT}

_MEMORY_FIELDS = ("total_bytes", "used_bytes", "free_bytes", "reserved_bytes")
_PROFILE = re.compile(r"\bMIG ((?:\d+c\.)?\d+g\.\d+gb\S*)")


@dataclass(slots=True)
class _Unit:
    """One device that is read: a GPU or a MIG instance."""

    handle: object | None
    blank: GpuReading
    """What does not change while NVML is open: a reading with the labels and no figures."""
    fault: int | None = None
    """Why the driver hands out no handle; the labels are then those of an earlier time, or empty."""
    memory_version: int = 2


class NvmlSource:
    """The GPUs that this container sees, at most `max_gpus` of them.

    `gpu` in a reading is NVML's index of the physical GPU as this container sees it; the MIG instances of one GPU
    share it and differ in `uuid` and `mig`. A GPU in MIG mode is reported as its instances, or as itself where no
    instance is visible. GPUs that the driver does not permit to this container are left out.

    Facts that do not change (name, UUID, driver, MIG layout) are read when NVML is opened; each read then asks for
    memory and processes only. `proc` is where this container's process table is mounted.

    Not safe for use from two threads at a time.
    """

    name = "nvml"

    def __init__(self, *, max_gpus: int = 64, proc: Path = Path("/proc")) -> None:
        self._max_gpus = max_gpus
        self._proc = proc
        self._is_open = False
        self._units: list[_Unit] = []
        self._known: dict[int, list[_Unit]] = {}
        self._gap = 1
        self._reads_to_renewal: int | None = None

    def read(self) -> tuple[GpuReading, ...]:
        """One reading per GPU or MIG instance, ordered by `gpu`.

        A device that fails while others answer is kept with its last known labels and no figures, and is left out
        where the driver never told its labels. NVML is then opened anew at the next read, once, and if that does not
        help after 2, 4 and then every 8 reads.

        Raises SourceError when nothing can be read; NVML is then opened anew at every read. Its `reason` is one of
        ``library_not_found``, ``library_too_old``, ``driver_not_loaded``, ``driver_mismatch``, ``no_permission``,
        ``no_device``, ``gpu_lost``, ``reset_required``, ``uninitialized``, ``timeout`` and ``unknown``.
        """
        self._renew_if_due()
        if not self._is_open:
            self._open()
        readings = []
        faults = []
        for unit in self._units:
            try:
                readings.append(self._reading(unit))
            except pynvml.NVMLError as error:
                faults.append(_code(error))
                if unit.blank.uuid:
                    readings.append(_lost(unit.blank, faults[-1]))
        if len(faults) == len(self._units):
            self.close()
            raise _source_error(faults[0])
        if not faults:
            self._gap, self._reads_to_renewal = 1, None
        elif self._reads_to_renewal is None:
            self._reads_to_renewal = self._gap
        return tuple(readings)

    def close(self) -> None:
        """Ends the NVML session, if there is one. A later read opens it again."""
        if self._is_open:
            self._is_open = False
            # A driver that went away has already ended the session.
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
        self._units = []
        self._reads_to_renewal = None

    def _renew_if_due(self) -> None:
        if self._reads_to_renewal is None:
            return
        self._reads_to_renewal -= 1
        if self._reads_to_renewal == 0:
            self._gap = min(2 * self._gap, _LONGEST_GAP)
            self.close()

    def _open(self) -> None:
        try:
            pynvml.nvmlInit()
            self._is_open = True
            count = int(pynvml.nvmlDeviceGetCount())
            self._units = self._enumerate(count)
        except pynvml.NVMLError as error:
            self.close()
            raise _source_error(_code(error)) from error
        if not self._units:
            self.close()
            raise _source_error(pynvml.NVML_ERROR_NO_PERMISSION if count else _GPU_NOT_FOUND)

    def _enumerate(self, count: int) -> list[_Unit]:
        driver, no_driver = _fact(pynvml.nvmlSystemGetDriverVersion)
        nobody = _blank(driver, no_driver)
        units: list[_Unit] = []
        lost: dict[int, int] = {}
        for gpu in range(min(count, self._max_gpus)):
            try:
                found = _discover(replace(nobody, gpu=gpu))
            except pynvml.NVMLError as error:
                if _code(error) != pynvml.NVML_ERROR_NO_PERMISSION:
                    lost[gpu] = _code(error)
                continue
            self._known[gpu] = found
            units += found
        # Indices move when the driver drops a GPU: what is remembered of an index may meanwhile live at another.
        seen = {unit.blank.uuid for unit in units}
        for gpu, fault in lost.items():
            remembered = [unit.blank for unit in self._known.get(gpu, ()) if unit.blank.uuid not in seen]
            units += [_Unit(None, blank, fault) for blank in remembered or [nobody]]
        return sorted(units, key=lambda unit: unit.blank.gpu)

    def _reading(self, unit: _Unit) -> GpuReading:
        if unit.fault is not None:
            raise pynvml.NVMLError(unit.fault)
        missing = dict(unit.blank.missing)
        total, free, reserved = _memory(unit, missing)
        engine_bytes, why = self._engine_bytes(unit.handle)
        _note(missing, engine_bytes=why)
        return replace(
            unit.blank,
            total_bytes=total,
            used_bytes=None if total is None or free is None else total - free,
            free_bytes=free,
            reserved_bytes=reserved,
            engine_bytes=engine_bytes,
            missing=missing,
        )

    def _engine_bytes(self, handle: object) -> tuple[int | None, str | None]:
        """Memory of the compute processes that live in this container's process namespace, or None and why."""
        try:
            processes = _processes(handle)
        except pynvml.NVMLError as error:
            return None, _why(_code(error))
        if not processes:
            return None, "the driver lists no process that this container can see"
        own = [used for pid, used in processes if self._is_visible(pid)]
        if not own:
            return None, "none of the processes that the driver lists is visible to this container"
        stated = [used for used in own if used is not None]
        if len(stated) < len(own):
            return None, "the driver does not state the memory of every process"
        return sum(stated), None

    def _is_visible(self, pid: int) -> bool:
        """Whether `pid` is a process of this container's namespace.

        Thread ids have a folder too, and say nothing: a driver that does not know namespaces lists host numbers, which
        must not match by accident.
        """
        try:
            status = (self._proc / str(pid) / "status").read_bytes()
        except OSError:
            return False
        return b"\nTgid:\t%d\n" % pid in status


def _blank(driver: str, no_driver: str | None) -> GpuReading:
    return GpuReading(
        gpu=0,
        uuid="",
        name="",
        driver=driver,
        mig="",
        total_bytes=None,
        used_bytes=None,
        free_bytes=None,
        reserved_bytes=None,
        engine_bytes=None,
        missing={} if no_driver is None else {"driver": no_driver},
    )


def _discover(blank: GpuReading) -> list[_Unit]:
    device = pynvml.nvmlDeviceGetHandleByIndex(blank.gpu)
    whole = _labelled(blank, device)
    instances = [_Unit(handle, _instance(blank, whole.name, handle, device)) for handle in _mig_handles(device)]
    return instances or [_Unit(device, whole)]


def _labelled(blank: GpuReading, handle: object) -> GpuReading:
    uuid, no_uuid = _fact(pynvml.nvmlDeviceGetUUID, handle)
    name, no_name = _fact(pynvml.nvmlDeviceGetName, handle)
    missing = dict(blank.missing)
    _note(missing, uuid=no_uuid, name=no_name)
    return replace(blank, uuid=uuid, name=name, missing=missing)


def _instance(blank: GpuReading, device_name: str, handle: object, device: object) -> GpuReading:
    instance = _labelled(blank, handle)
    named = _PROFILE.search(instance.name)
    profile, no_profile = (named[1], None) if named else _profile_from_attributes(handle, device)
    missing = dict(instance.missing)
    _note(missing, mig=no_profile)
    return replace(instance, name=instance.name or device_name, mig=profile, missing=missing)


def _mig_handles(device: object) -> Iterator[object]:
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(device)
        slots = pynvml.nvmlDeviceGetMaxMigDeviceCount(device) if current == pynvml.NVML_DEVICE_MIG_ENABLE else 0
    except pynvml.NVMLError as error:
        if _code(error) not in _SKIP_MIG_SLOT:
            raise
        return
    for slot in range(min(slots, _MIG_SLOTS)):
        try:
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, slot)
        except pynvml.NVMLError as error:
            if _code(error) not in _SKIP_MIG_SLOT:
                raise


def _profile_from_attributes(handle: object, device: object) -> tuple[str, str | None]:
    try:
        attributes = pynvml.nvmlDeviceGetAttributes(handle)
    except pynvml.NVMLError as error:
        if _code(error) not in _SKIP_MIG_SLOT:
            raise
        return "", _why(_code(error))
    try:
        device_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(device).total)
    except pynvml.NVMLError:
        # Barred from a container that was given instances only.
        device_bytes = 0
    return mig_profile(
        attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount, attributes.memorySizeMB, device_bytes
    ), None


def mig_profile(gpu_slices: int, compute_slices: int, memory_mib: int, device_bytes: int) -> str:
    """NVIDIA's name for a MIG instance, such as ``1g.10gb``, or ``1c.3g.40gb`` for a part of a GPU instance.

    The size in the name is not the instance's own: it is its share of the device, in eighths rounded up, of the
    device's memory in GiB rounded up (go-nvlib, pkg/nvlib/device/mig_profile.go). Where the device's memory is not
    known (`device_bytes` 0) the name is left without a size, as in ``1g``.
    """
    part = "" if compute_slices == gpu_slices else f"{compute_slices}c."
    if device_bytes == 0:
        return f"{part}{gpu_slices}g"
    eighths = math.ceil(8 * memory_mib * 2**20 / device_bytes)
    gigabytes = math.floor(eighths * math.ceil(device_bytes / 2**30) / 8 + 0.5)
    return f"{part}{gpu_slices}g.{gigabytes}gb"


def _memory(unit: _Unit, missing: dict[str, str]) -> tuple[int | None, int | None, int | None]:
    """Total, free and reserved bytes; what the driver does not state is None and noted in `missing`."""
    try:
        total, free, reserved = _stated_memory(unit)
    except pynvml.NVMLError as error:
        if _code(error) not in _ABSENT:
            raise
        missing.update(dict.fromkeys(_MEMORY_FIELDS, _why(_code(error))))
        return None, None, None
    if not 0 < total >= free:
        missing.update(
            dict.fromkeys(
                _MEMORY_FIELDS, "the driver states impossible figures: a total of 0, or more free than there is"
            )
        )
        return None, None, None
    if reserved is None:
        missing["reserved_bytes"] = "the driver has only version 1 of the memory call, which does not state it"
    elif reserved > total:
        missing["reserved_bytes"] = "the driver states an impossible figure: more than the total"
        reserved = None
    return total, free, reserved


def _stated_memory(unit: _Unit) -> tuple[int, int, int | None]:
    if unit.memory_version == 2:
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(unit.handle, version=pynvml.nvmlMemory_v2)
        except pynvml.NVMLError as error:
            if _code(error) not in _TRY_VERSION_1:
                raise
        else:
            return memory.total, memory.free, memory.reserved
    memory = pynvml.nvmlDeviceGetMemoryInfo(unit.handle)
    unit.memory_version = 1
    return memory.total, memory.free, None


def _processes(handle: object) -> list[tuple[int, int | None]]:
    """Process id and bytes, None where the driver does not state them."""
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    except pynvml.NVMLError as error:
        older = getattr(pynvml, "nvmlDeviceGetComputeRunningProcesses_v2", None)
        if _code(error) != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND or older is None:
            raise
        processes = older(handle)
    return [(int(process.pid), process.usedGpuMemory) for process in processes]


def _lost(blank: GpuReading, fault: int) -> GpuReading:
    why = dict.fromkeys((*_MEMORY_FIELDS, "engine_bytes"), _why(fault))
    return replace(blank, missing={**blank.missing, **why})


def _fact(call: Callable[..., Any], *arguments: object) -> tuple[str, str | None]:
    """A label and None, or an empty label and why there is none."""
    try:
        text = call(*arguments)
    except pynvml.NVMLError as error:
        if _code(error) not in _ABSENT:
            raise
        return "", _why(_code(error))
    except UnicodeDecodeError:
        return "", "the driver's answer is not text"
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return str(text)[:_LABEL_LENGTH], None


def _note(missing: dict[str, str], **reasons: str | None) -> None:
    missing.update({field: why for field, why in reasons.items() if why is not None})


def _code(error: Any) -> int:
    return int(error.value)


def _why(code: int) -> str:
    return _ABSENT.get(code) or _source_error(code).message


def _source_error(code: int) -> SourceError:
    return SourceError(*_FAULTS.get(code, ("unknown", f"the driver answers with NVML error {code}")))
