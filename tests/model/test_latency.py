"""Step times: the roofline's arithmetic, measured points, and how times move with the inputs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmodel import ModelError, read_architecture
from kvmodel.latency import Latency, PhaseTime, estimate_latency, phase_time

from .known import LLAMA_8B, known_config

LLAMA = read_architecture(LLAMA_8B)
PARAMETERS = 8_030_261_248
A100 = {"flop_per_second": 312e12, "bytes_per_second": 2.039e12}


def latency(model: Any = LLAMA, **change: Any) -> Latency:
    arguments: dict[str, Any] = {
        "active_parameters": PARAMETERS,
        "weights_bytes_per_gpu": 2 * PARAMETERS,
        "prompt_tokens": 512,
        **A100,
        **change,
    }
    return estimate_latency(model, **arguments)


def test_the_two_forms_and_the_side_that_binds() -> None:
    step = PhaseTime(compute_seconds=0.046, memory_seconds=0.009, overhead_seconds=0.001)
    assert step.sum_seconds == pytest.approx(0.056)
    assert step.max_seconds == pytest.approx(0.047)
    assert step.bound == "compute"
    assert PhaseTime(0.001, 0.009).bound == "memory"


def test_a_long_prefill_is_bound_by_compute_and_a_decode_by_memory() -> None:
    times = latency(prompt_tokens=8192)
    assert times.prefill.bound == "compute"
    assert times.decode.bound == "memory"


def test_weights_and_cache_are_read_once_a_step() -> None:
    times = latency(batch=16, context_tokens=4096, bandwidth_efficiency=1)
    assert times.decode.memory_seconds == pytest.approx((2 * PARAMETERS + 16 * 4096 * 131072) / 2.039e12)


def test_measured_steps_of_llama_8b_on_two_a100() -> None:
    """512 prompt tokens under vLLM (SageServe's data, MIT): 8.5 ms a token alone, 10.2 in a batch of 8."""
    for batch, milliseconds in ((1, 8.5), (8, 10.2)):
        times = latency(batch=batch, weights_bytes_per_gpu=PARAMETERS, tp=2, context_tokens=576)
        assert times.tpot_seconds * 1e3 == pytest.approx(milliseconds, rel=0.15)
    for tokens, milliseconds in ((4096, 234), (8192, 542)):
        times = latency(prompt_tokens=tokens, weights_bytes_per_gpu=PARAMETERS, tp=2)
        assert times.ttft_seconds * 1e3 == pytest.approx(milliseconds, rel=0.25)


def test_windows_cut_the_traffic_and_the_attention() -> None:
    gemma = read_architecture(known_config("google/gemma-2-27b"))
    full = read_architecture(
        {**known_config("google/gemma-2-27b"), "layer_types": ["full_attention"] * gemma.num_layers}
    )
    short, long = (latency(model, prompt_tokens=65536) for model in (gemma, full))
    assert short.decode.memory_seconds < long.decode.memory_seconds
    assert short.prefill.compute_seconds < long.prefill.compute_seconds
    within = (latency(model, prompt_tokens=4096) for model in (gemma, full))
    assert len({times.decode.memory_seconds for times in within}) == 1


def test_cached_prompts_are_not_computed() -> None:
    fresh, cached = latency(prompt_tokens=8192), latency(prompt_tokens=8192, cached_tokens=8000)
    assert cached.prefill.compute_seconds < fresh.prefill.compute_seconds / 30


def test_latent_attention_reads_the_latent() -> None:
    config = known_config("deepseek-ai/DeepSeek-V2-Lite")
    deepseek = read_architecture(config)
    times = latency(deepseek, weights_bytes_per_gpu=0, context_tokens=1000, bandwidth_efficiency=1)
    assert times.decode.memory_seconds == pytest.approx(1000 * 27 * 576 * 2 / 2.039e12)


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.integers(1, 512), st.integers(1, 512))
def test_more_work_never_takes_less_time(tokens: int, more: int, batch: int, larger: int) -> None:
    base = latency(prompt_tokens=tokens, batch=batch)
    for other in (
        latency(prompt_tokens=tokens + more, batch=batch),
        latency(prompt_tokens=tokens, batch=batch + larger),
    ):
        assert other.ttft_seconds >= base.ttft_seconds
        assert other.tpot_seconds >= base.tpot_seconds
    assert base.decode.max_seconds <= base.decode.sum_seconds


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"active_parameters": 0}, "active_parameters"),
        ({"weights_bytes_per_gpu": -1}, "weights_bytes_per_gpu"),
        ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"context_tokens": 1.5}, "context_tokens"),
        ({"batch": True}, "batch"),
        ({"cached_tokens": 512}, "cached_tokens"),
        ({"cached_tokens": -1}, "cached_tokens"),
        ({"flop_per_second": 0}, "flop_per_second"),
        ({"bytes_per_second": float("nan")}, "bytes_per_second"),
        ({"compute_efficiency": 1.5}, "compute_efficiency"),
        ({"bandwidth_efficiency": 0}, "bandwidth_efficiency"),
        ({"overhead_seconds": -1}, "overhead_seconds"),
        ({"tp": 3}, "tp"),
        ({"kv_dtype": "fp3"}, "kv_dtype"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        latency(**change)
    assert caught.value.field == field


def test_work_of_nothing_takes_no_time() -> None:
    assert phase_time(flop=0, traffic_bytes=0, **A100).sum_seconds == 0
