"""torch's allocators by GPU, and the engine's own figures on the GPU where its worker is."""

from dataclasses import replace
from typing import Any

import pytest

from kvgauge.assess import AllocatorAssessment, EngineFlags, assess
from kvgauge.assess.allocators import allocators, place_of
from kvgauge.observe.records import GpuReading
from tests.support.facts import ENGINE, GPU, model, observation
from tests.support.spool import ALLOCATOR, process, reading, scheduler, worker

UUID = "4cf0f7e3-2a3a-4a4c-8f2d-3f5f0f9f1b11"
TWO = (replace(GPU, uuid=f"GPU-{UUID}"), replace(GPU, gpu=1, uuid="GPU-2"))


def holding(pid: int, **changes: Any) -> dict[str, Any]:
    return process(pid, allocators=[{**ALLOCATOR, **changes}])


def found(*files: dict[str, Any], gpus: tuple[GpuReading, ...] = (GPU,)) -> tuple[AllocatorAssessment, ...]:
    return allocators(reading(*files, instance=None), gpus)


def test_one_process() -> None:
    (each,) = found(holding(1))
    assert (each.gpu, each.uuid, each.processes) == (0, "GPU-1", 1)
    assert (each.allocated_bytes, each.reserved_bytes, each.inactive_split_bytes, each.requested_bytes) == (
        700, 1000, 120, 650,
    )  # fmt: skip
    assert each.largest_free_bytes == 240
    assert each.fragmentation_ratio == pytest.approx(1 - 240 / 300)


def test_processes_on_one_gpu_are_added_up_but_for_the_largest_piece() -> None:
    (each,) = found(holding(1), holding(2, largest_free_bytes=100, free_bytes=100))
    assert (each.processes, each.allocated_bytes, each.reserved_bytes) == (2, 1400, 2000)
    # A process can use only its own: 60 of the 400 free bytes lie outside the largest pieces.
    assert each.largest_free_bytes == 240
    assert each.fragmentation_ratio == pytest.approx(60 / 400)


def test_a_part_that_is_not_told_makes_no_smaller_sum() -> None:
    (each,) = found(holding(1), holding(2, requested_bytes=None, free_bytes=None))
    assert (each.allocated_bytes, each.requested_bytes) == (1400, None)
    assert (each.largest_free_bytes, each.fragmentation_ratio) == (None, None)


@pytest.mark.parametrize("changes", [{"free_bytes": 0, "largest_free_bytes": 0}, {"snapshot_age_seconds": 200.0},
                                     {"free_bytes": 100}])  # fmt: skip
def test_nothing_free_or_an_old_look_is_no_ratio(changes: dict[str, float]) -> None:
    assert found(holding(1, **changes))[0].fragmentation_ratio is None


@pytest.mark.parametrize("said", [UUID, f"GPU-{UUID}", UUID.upper()])
def test_uuids_with_and_without_a_prefix_are_the_same(said: str) -> None:
    assert place_of(said, TWO) == (0, f"GPU-{UUID}")


def test_a_mig_instance_is_known_by_its_own() -> None:
    assert place_of(f"MIG-{UUID}", (replace(GPU, uuid=f"MIG-{UUID}"),)) == (0, f"MIG-{UUID}")


def test_without_a_uuid_only_a_single_gpu_is_meant() -> None:
    assert place_of("", (GPU,)) == (0, "GPU-1")
    assert place_of("", TWO) == (None, "")
    assert place_of("GPU-other", (GPU,)) == (None, "GPU-other")
    assert place_of("GPU-other", ()) == (None, "GPU-other")


def test_order_is_that_of_the_gpus_and_then_the_unknown() -> None:
    files = [holding(1, uuid="GPU-9"), holding(2, uuid="GPU-2"), holding(3, uuid=UUID), holding(4, uuid="")]
    assert [each.gpu for each in found(*files, gpus=TWO)] == [0, 1, None, None]


def test_every_program_counts_whichever_engine_is_observed() -> None:
    seen = replace(observation(engine=None), agent=reading(holding(1), holding(2, allocated_bytes=1), instance=None))
    assert assess(seen, EngineFlags()).allocators[0].allocated_bytes == 701


def test_a_workers_own_figures_stand_on_its_gpu() -> None:
    other = worker(3, allocators=[{**ALLOCATOR, "uuid": "GPU-2"}], memory={"weights_bytes": 7})
    agent = reading(scheduler(), worker(allocators=[{**ALLOCATOR, "uuid": UUID}]), other)
    stated = replace(ENGINE, memory_bytes={"weights": 1, "graphs": 2})
    seen = replace(observation(engine=stated, gpus=TWO, with_model=model()), agent=agent)
    first, second = assess(seen, EngineFlags(tp=2, max_num_seqs=256)).gpus
    assert first.measured_bytes == {
        "weights": 16_000, "graphs": 2, "kv_pool": 50_000, "activations": 2_000, "non_torch": 500,
    }  # fmt: skip
    assert second.measured_bytes == {"weights": 7, "graphs": 2, "kv_pool": 16_000 * 65_536}
    parts = {part.component: part.actual_bytes for part in first.components}
    assert (parts["weights"], parts["kv_pool"], parts["context"]) == (16_000, 50_000, None)


def test_another_engines_worker_says_nothing_of_this_one() -> None:
    agent = reading(scheduler(), worker(instance=9))
    seen = replace(observation(with_model=model()), agent=agent)
    assert assess(seen, EngineFlags()).gpus[0].measured_bytes == {"kv_pool": 16_000 * 131_072}


def test_flags_go_before_what_the_engine_tells_and_that_before_a_guess() -> None:
    told = replace(ENGINE, tp=2, pp=2, max_num_seqs=64, max_num_batched_tokens=512)
    seen = observation(engine=told, gpus=TWO, with_model=model())
    result = assess(seen, EngineFlags())
    assert (result.tp, result.pp, result.max_num_seqs) == (2, 2, 64)
    assert result.missing["memory"] == "the share of a pipeline stage is not predicted"
    result = assess(seen, EngineFlags(tp=4, pp=1, max_num_seqs=8))
    assert (result.tp, result.pp, result.max_num_seqs) == (4, 1, 8)
