"""torch's caching allocator on each GPU that this process already uses; never the first to touch one."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from kvgauge_agent.log import reason, say_once

SNAPSHOT_EVERY_SECONDS = 60.0
# A snapshot holds the allocator's lock and the GIL; left out where it would take longer than this.
SNAPSHOT_LIMIT_SECONDS = 0.005
# Assumed of a block until the first snapshot has been timed.
SNAPSHOT_SECONDS_PER_BLOCK = 3e-6

_BYTES = ("allocated", "reserved", "requested", "active", "inactive_split")
_COUNTS = {"alloc_retries": "num_alloc_retries", "ooms": "num_ooms"}


class AllocatorPart:
    """The `allocators` of the file; absent while torch is not loaded or has not started CUDA in this process."""

    name = "allocators"

    def __init__(self, find_torch: Callable[[], object] = lambda: sys.modules.get("torch")) -> None:
        self._find_torch = find_torch
        self._devices = 0
        self._uuids: dict[int, str | None] = {}
        self._snapshots = Snapshots()

    def collect(self) -> Mapping[str, object]:
        # `torch.cuda` itself may still be loading in another thread.
        cuda: Any = getattr(self._find_torch(), "cuda", None)
        if cuda is None or not hasattr(cuda, "is_initialized"):
            return {"missing": {"allocators": "torch is not loaded"}}
        if not cuda.is_initialized():
            return {"missing": {"allocators": "this process has not started CUDA"}}
        self._devices = self._devices or cuda.device_count()
        stats = {device: cuda.memory_stats_as_nested_dict(device) for device in range(self._devices)}
        held = {device: stat for device, stat in stats.items() if _bytes(stat, "reserved")}
        self._snapshots.refresh(cuda, sum(_blocks(stat) for stat in held.values()))
        allocators = [self._allocator(cuda, device, stat) for device, stat in held.items()]
        return {"allocators": allocators, "missing": self._snapshots.missing}

    def _allocator(self, cuda: Any, device: int, stat: Mapping[str, Any]) -> dict[str, object]:
        if device not in self._uuids:
            self._uuids[device] = _uuid(cuda, device)
        found: dict[str, object] = {"device": device, "uuid": self._uuids[device]}
        if hasattr(cuda, "get_allocator_backend"):
            found["backend"] = str(cuda.get_allocator_backend())
        found.update({f"{name}_bytes": _bytes(stat, name) for name in _BYTES})
        found.update({name: stat.get(key) for name, key in _COUNTS.items()})
        found.update(self._snapshots.facts(device))
        return {key: value for key, value in found.items() if value is not None}


class Snapshots:
    """The largest free piece of each GPU's memory, from a walk over all blocks, seldom and only where it is cheap."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self._due = 0.0
        self._seconds_per_block = SNAPSHOT_SECONDS_PER_BLOCK
        self._taken_at = 0.0
        self._seconds = 0.0
        self._free: dict[int, list[int]] = {}

    def refresh(self, cuda: Any, blocks: int) -> None:
        """Takes a snapshot where one is due and the time for that many blocks is within the limit."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + SNAPSHOT_EVERY_SECONDS
        predicted = blocks * self._seconds_per_block
        if predicted > SNAPSHOT_LIMIT_SECONDS:
            self._leave_out(f"a snapshot of {blocks} blocks would take {predicted * 1e3:.0f} ms")
            return
        try:
            self._take(cuda, max(blocks, 1))
        except Exception as error:
            self._due = float("inf")
            self._leave_out(reason(error))
            say_once(f"snapshots of the allocator are off: {reason(error)}")

    def facts(self, device: int) -> dict[str, object]:
        """What the last snapshot said of one GPU; nothing where there was none."""
        if not self._taken_at or self.missing:
            return {}
        free = self._free.get(device, [])
        return {
            "largest_free_bytes": max(free, default=0),
            "free_bytes": sum(free),
            "snapshot_age_seconds": round(time.monotonic() - self._taken_at, 3),
            "snapshot_seconds": round(self._seconds, 6),
        }

    def _take(self, cuda: Any, blocks: int) -> None:
        # Without the history of allocations, where somebody records it.
        known = inspect.signature(cuda.memory_snapshot).parameters
        arguments = {"include_traces": False} if "include_traces" in known else {}
        began = time.perf_counter()
        free: dict[int, list[int]] = {}
        for segment in cuda.memory_snapshot(**arguments):
            sizes = [block["size"] for block in segment["blocks"] if block["state"] == "inactive"]
            free.setdefault(segment["device"], []).extend(sizes)
        self._free, self._taken_at, self.missing = free, time.monotonic(), {}
        self._seconds = time.perf_counter() - began
        # Never below a tenth of the first guess: one quick look at few blocks says little of many.
        self._seconds_per_block = max(self._seconds / blocks, SNAPSHOT_SECONDS_PER_BLOCK / 10)

    def _leave_out(self, why: str) -> None:
        self.missing = {"allocators.largest_free_bytes": why}


def _bytes(stat: Mapping[str, Any], name: str) -> int | None:
    """A current figure in bytes, of all pools; None where this torch or this backend does not keep it."""
    try:
        return int(stat[f"{name}_bytes"]["all"]["current"])
    except KeyError:
        return None


def _blocks(stat: Mapping[str, Any]) -> int:
    return sum(int(stat[name]["all"]["current"]) for name in ("active", "inactive_split", "segment") if name in stat)


def _uuid(cuda: Any, device: int) -> str | None:
    """The GPU as NVML names it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if device < len(visible) and visible[device].strip().startswith("MIG-"):
        return visible[device].strip()
    found = str(getattr(cuda.get_device_properties(device), "uuid", ""))
    if not found:
        return None
    return found if found.startswith(("GPU-", "MIG-")) else f"GPU-{found}"
