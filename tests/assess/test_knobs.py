"""What would free memory for the cache: the planner's answer, asked of what runs."""

from dataclasses import asdict
from typing import Any

import pytest

from kvgauge.assess import Assessment, EngineFlags, Memo, assess
from kvmodel.plan import plan
from tests.assess.test_forecasting import judged
from tests.model.known import LLAMA_8B
from tests.support.facts import LLAMA_8B_PARAMETERS, RANK, model, observation


def by_flag(assessment: Assessment) -> dict[str, int]:
    return {knob.change: knob.frees_bytes for knob in assessment.knobs}


def planned(**more: Any) -> dict[str, int]:
    case = {
        "config": LLAMA_8B,
        "weights_bytes_per_gpu": 2 * LLAMA_8B_PARAMETERS,
        "engine_version": "0.19.0",
        "gpu": "h100-80gb",
        "gpu_memory_utilization": 0.95,
        "max_model_len": 8192,
        "block_size": 16,
    }
    advice: Any = plan({**case, **more})["advice"]
    return {entry["change"]: entry["frees_bytes"] for entry in advice}


def test_they_are_the_planners() -> None:
    found, answer = by_flag(judged("vllm")), planned()
    assert found.pop("--kv-cache-dtype fp8") == pytest.approx(answer.pop("--kv-dtype fp8"), rel=0.001)
    assert found.keys() == answer.keys() == {"--max-num-seqs 256", "--max-num-batched-tokens 2048"}
    # The card of the catalogue and the one that the driver tells differ by megabytes.
    assert all(found[flag] == pytest.approx(answer[flag], rel=0.01) for flag in found)


def test_the_most_stands_first_and_says_what_the_pool_then_holds() -> None:
    seen = judged("vllm")
    freed = [knob.frees_bytes for knob in seen.knobs]
    assert freed == sorted(freed, reverse=True)
    now = seen.pools[0].predicted_capacity_tokens
    assert now is not None
    assert seen.knobs[0].capacity_tokens == pytest.approx(2 * now, rel=0.001)
    assert all(knob.capacity_tokens > now for knob in seen.knobs)
    assert [knob.most_requests for knob in seen.knobs if "num-seqs" in knob.change] == [256]


def test_what_is_set_already_is_not_advised() -> None:
    set_already = {"max_num_seqs": 128, "max_num_batched_tokens": 2048, "kv_dtype": "fp8"}
    seen = assess(observation(engine=None), EngineFlags())
    assert seen.missing["knobs"] == "the engine is not read"
    eager = assess(judged("vllm", **set_already).observation, EngineFlags(enforce_eager=True))
    assert (eager.knobs, eager.missing.get("knobs")) == ((), None)


def test_a_dtype_that_is_not_told_is_not_taken_for_16_bits() -> None:
    assert not any("fp8" in flag for flag in by_flag(judged("vllm", kv_dtype=None)))


def test_they_go_by_the_engines_own_names() -> None:
    seen = judged("sglang", version="0.5.23", gpu_memory_utilization=0.87, max_num_seqs=512)
    knob = next(knob for knob in seen.knobs if "fp8" in knob.change)
    assert knob.change == "--kv-cache-dtype fp8_e4m3"
    now = seen.pools[0].predicted_capacity_tokens
    assert now is not None
    assert knob.capacity_tokens == pytest.approx(2 * now, rel=0.001)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kv_cache_bytes": 1 << 34}, "bytes of its pool"),
        ({"num_blocks_override": 1000}, "number of blocks"),
        ({"gpu_memory_utilization": None}, "gpu_memory_utilization"),
        ({"ranks": ()}, "no pool"),
    ],
)
def test_where_they_are_not_known_it_says_why(changes: dict[str, Any], why: str) -> None:
    seen = judged("vllm", **changes)
    assert seen.knobs == ()
    assert why in seen.missing["knobs"]


def test_nothing_is_worked_out_twice() -> None:
    memo = Memo()
    seen = observation(with_model=model())
    first, again = (assess(seen, EngineFlags(), memo) for _ in range(2))
    assert first.knobs is again.knobs
    assert asdict(first.knobs[0])
    other = assess(observation(with_model=model(), running=RANK.running), EngineFlags(), memo)
    assert other.knobs == first.knobs
