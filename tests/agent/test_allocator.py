"""torch's allocator through a fake `torch.cuda` with what torch 2.13 answers on an NVIDIA GPU, shortened."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from kvgauge_agent import log
from kvgauge_agent.allocator import SNAPSHOT_LIMIT_SECONDS, SNAPSHOT_SECONDS_PER_BLOCK, AllocatorPart

UUID = "3e0d9ac8-7a6d-4ad1-8c2f-2f1a3a0f1d55"


class FakeCuda:
    """Two GPUs, of which this process uses the second; counts how often it is asked for a snapshot."""

    def __init__(self, *, initialized: bool = True, blocks: int = 5) -> None:
        self.initialized = initialized
        self.blocks = blocks
        self.snapshots = 0

    def is_initialized(self) -> bool:
        return self.initialized

    def device_count(self) -> int:
        assert self.initialized, "this would be the first to touch the GPU"
        return 2

    def get_allocator_backend(self) -> str:
        return "native"

    def get_device_properties(self, device: int) -> Any:
        assert device == 1, "this would touch a GPU that the process does not use"
        return SimpleNamespace(uuid=UUID)

    def memory_stats_as_nested_dict(self, device: int) -> dict[str, Any]:
        def pools(current: int) -> dict[str, Any]:
            return {"all": {"current": current, "peak": current + 1}, "small_pool": {"current": 0}}

        used = device == 1
        return {
            "allocated_bytes": pools(700 * used),
            "reserved_bytes": pools(1000 * used),
            "requested_bytes": pools(650 * used),
            "active_bytes": pools(750 * used),
            "inactive_split_bytes": pools(200 * used),
            "active": pools(self.blocks),
            "inactive_split": pools(2),
            "segment": pools(1),
            "num_alloc_retries": 3,
            "num_ooms": 1,
        }

    def memory_snapshot(self, mempool_id: Any = None, *, include_traces: bool = True) -> list[dict[str, Any]]:
        assert not include_traces
        self.snapshots += 1
        states = [("active_allocated", 700), ("inactive", 120), ("active_pending_free", 50), ("inactive", 80)]
        blocks = [{"state": state, "size": size} for state, size in states]
        return [{"device": 1, "blocks": blocks}, {"device": 1, "blocks": [{"state": "inactive", "size": 50}]}]


class OldCuda(FakeCuda):
    """Before torch had the backend's name, the requested bytes and a choice about the traces."""

    get_allocator_backend = property()

    def get_device_properties(self, device: int) -> Any:
        return SimpleNamespace()

    def memory_stats_as_nested_dict(self, device: int) -> dict[str, Any]:
        stats = super().memory_stats_as_nested_dict(device)
        del stats["requested_bytes"]
        return stats

    def memory_snapshot(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return super().memory_snapshot(include_traces=False)


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_said", set())


def collected(cuda: object) -> Any:
    return AllocatorPart(lambda: SimpleNamespace(cuda=cuda)).collect()


def test_only_gpus_that_the_process_holds_memory_of() -> None:
    answer = collected(FakeCuda())
    (found,) = answer["allocators"]
    assert found.pop("snapshot_age_seconds") < 1
    assert 0 < found.pop("snapshot_seconds") < 1
    assert found == {
        "device": 1,
        "uuid": f"GPU-{UUID}",
        "backend": "native",
        "allocated_bytes": 700,
        "reserved_bytes": 1000,
        "requested_bytes": 650,
        "active_bytes": 750,
        "inactive_split_bytes": 200,
        "alloc_retries": 3,
        "ooms": 1,
        "largest_free_bytes": 120,
        "free_bytes": 250,
    }
    assert answer["missing"] == {}


def test_a_gpu_is_never_touched_first() -> None:
    assert collected(FakeCuda(initialized=False)) == {"missing": {"allocators": "this process has not started CUDA"}}
    assert AllocatorPart(lambda: None).collect() == {"missing": {"allocators": "torch is not loaded"}}
    half_loaded = AllocatorPart(lambda: SimpleNamespace())
    assert half_loaded.collect() == {"missing": {"allocators": "torch is not loaded"}}


def test_a_slice_of_a_gpu_keeps_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1, MIG-2")
    assert collected(FakeCuda())["allocators"][0]["uuid"] == "MIG-2"


def test_what_an_old_torch_lacks_is_absent() -> None:
    (found,) = collected(OldCuda())["allocators"]
    assert not {"uuid", "backend", "requested_bytes"} & found.keys()
    assert found["largest_free_bytes"] == 120


def test_a_snapshot_is_taken_once_a_minute_at_most() -> None:
    cuda = FakeCuda()
    part = AllocatorPart(lambda: SimpleNamespace(cuda=cuda))
    for _ in range(3):
        assert part.collect()["allocators"]
    assert cuda.snapshots == 1


def test_a_snapshot_that_would_take_long_is_left_out_with_the_reason() -> None:
    blocks = int(2 * SNAPSHOT_LIMIT_SECONDS / SNAPSHOT_SECONDS_PER_BLOCK)
    cuda = FakeCuda(blocks=blocks)
    answer = collected(cuda)
    assert cuda.snapshots == 0
    assert "largest_free_bytes" not in answer["allocators"][0]
    why = answer["missing"]["allocators.largest_free_bytes"]
    assert why == f"a snapshot of {blocks + 3} blocks would take 10 ms"


def test_a_snapshot_that_fails_costs_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(FakeCuda):
        def memory_snapshot(self, *_: object, **__: object) -> list[dict[str, Any]]:
            raise RuntimeError("no snapshots here")

    with caplog.at_level(logging.WARNING):
        answer = collected(Failing())
    assert answer["allocators"][0]["reserved_bytes"] == 1000
    assert "RuntimeError" in answer["missing"]["allocators.largest_free_bytes"]
    assert len(caplog.records) == 1
