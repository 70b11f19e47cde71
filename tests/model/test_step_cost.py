"""Step costs: the formula by hand, measured points, and kinds of layers that do not grow."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmodel import ModelError, StepCost, read_architecture, step_cost
from kvmodel.latency import NVLINK, PCIE, VLLM, estimate_latency

from .known import LLAMA_8B, known_config

LLAMA = read_architecture(LLAMA_8B)
PARAMETERS = 8_030_261_248
H100 = {"flop_per_second": 989.4e12, "bytes_per_second": 3.35e12}
A100 = {"flop_per_second": 312e12, "bytes_per_second": 2.039e12}
MAMBA = {
    "model_type": "mamba",
    "num_hidden_layers": 64,
    "hidden_size": 2560,
    "intermediate_size": 5120,
    "state_size": 16,
    "conv_kernel": 4,
    "time_step_rank": 160,
    "expand": 2,
    "vocab_size": 50280,
}
BARE = replace(VLLM, compute_efficiency=1.0, bandwidth_efficiency=1.0, step_seconds=0.0)


def cost(model: Any = LLAMA, **change: Any) -> StepCost:
    arguments: dict[str, Any] = {
        "active_parameters": PARAMETERS,
        "weights_bytes_per_gpu": 2 * PARAMETERS // change.get("tp", 1),
        **H100,
        **change,
    }
    return step_cost(model, **arguments)


def test_the_formula_by_hand() -> None:
    found = cost(stack=replace(BARE, step_seconds=0.002, layer_seconds=1e-5, sequence_seconds=3e-5))
    assert found.fixed_seconds == pytest.approx(0.002 + 32 * 1e-5 + 2 * PARAMETERS / 3.35e12)
    assert found.kv_token_seconds == pytest.approx(131072 / 3.35e12)
    assert found.token_seconds == pytest.approx(2 * PARAMETERS / 989.4e12)
    assert found.pair_seconds == pytest.approx(4 * 32 * 4096 / 989.4e12)
    assert found.sequence_seconds == pytest.approx(3e-5)
    assert found.seconds(100, 10, 50, sequences=4) == pytest.approx(
        found.fixed_seconds
        + 100 * found.kv_token_seconds
        + 10 * found.token_seconds
        + 50 * found.pair_seconds
        + 4 * found.sequence_seconds
    )


def test_a_decode_step_is_the_planners_but_for_attention_arithmetic() -> None:
    same: dict[str, Any] = {"compute_efficiency": 0.52, "bandwidth_efficiency": 0.72, "overhead_seconds": 0.003}
    planned = estimate_latency(
        LLAMA,
        active_parameters=PARAMETERS,
        weights_bytes_per_gpu=2 * PARAMETERS,
        prompt_tokens=1000,
        batch=8,
        flop_per_second=H100["flop_per_second"],
        bytes_per_second=H100["bytes_per_second"],
        **same,
    )
    # Attention of a decode reads far more than it computes; here only the reading counts.
    assert cost(**same).seconds(8000, 8) == pytest.approx(planned.tpot_seconds, rel=0.01)


def test_llama_8b_on_one_h100() -> None:
    """128 tokens in, 128 out under vLLM, measured by llm-d's workload variant autoscaler."""
    found = cost()
    assert 1e3 * found.seconds(192, 1) == pytest.approx(7.0, rel=0.1)
    assert 1e3 * found.seconds(64 * 192, 64) == pytest.approx(8.7, rel=0.1)


def test_llama_8b_on_a100s_that_are_joined_through_the_host() -> None:
    """SageServe's data (MIT): 8.5 ms on two, 7.1 on four; a prefill takes longer on four than on two."""
    two, four = (cost(tp=tp, link=PCIE, **A100) for tp in (2, 4))
    assert 1e3 * two.seconds(576, 1) == pytest.approx(8.47, rel=0.1)
    assert 1e3 * four.seconds(576, 1) == pytest.approx(7.1, rel=0.1)
    for found, milliseconds in ((two, 234), (four, 309)):
        assert 1e3 * found.prefill_seconds(4096) == pytest.approx(milliseconds, rel=0.15)


def test_all_reduces_wait_for_every_rank_and_send_every_token() -> None:
    for link, share in ((NVLINK, 1 / 4), (PCIE, 1.0)):
        alone, four = cost(stack=BARE, link=link), cost(stack=BARE, link=link, tp=4)
        assert four.fixed_seconds == pytest.approx(
            alone.fixed_seconds / 4 + 64 * (link.all_reduce_seconds + 2 * link.hop_seconds)
        )
        assert four.token_seconds == pytest.approx(
            alone.token_seconds / 4 + 64 * 4096 * 2 * 2 * 3 * share / link.bytes_per_second
        )
    assert cost(link=NVLINK) == cost(link=PCIE)


def test_windows_cost_by_the_sequence_and_not_by_the_token() -> None:
    gemma = read_architecture(known_config("google/gemma-2-27b"))
    full = read_architecture(
        {**known_config("google/gemma-2-27b"), "layer_types": ["full_attention"] * gemma.num_layers}
    )
    short, long = (cost(model, stack=BARE) for model in (gemma, full))
    assert short.kv_token_seconds == pytest.approx(long.kv_token_seconds / 2)
    assert short.pair_seconds == pytest.approx(long.pair_seconds / 2)
    assert short.sequence_seconds == pytest.approx(gemma.window_bytes_per_sequence() / 3.35e12)
    assert short.token_seconds > long.token_seconds
    assert long.sequence_seconds == 0
    # At the window's length both models hold the same, and a step reads the same.
    assert short.seconds(4096, 0, sequences=1) == pytest.approx(long.seconds(4096, 0, sequences=1))


def test_state_is_read_and_written_and_never_grows() -> None:
    mamba = read_architecture(MAMBA)
    found = cost(mamba, stack=BARE)
    assert found.kv_token_seconds == found.pair_seconds == 0
    assert found.sequence_seconds == pytest.approx(2 * mamba.state_bytes_per_sequence() / 3.35e12)


def test_a_latent_is_read_whole_on_every_rank() -> None:
    deepseek = read_architecture(known_config("deepseek-ai/DeepSeek-V2-Lite"))
    one, four = (cost(deepseek, stack=BARE, tp=tp) for tp in (1, 4))
    assert one.kv_token_seconds == four.kv_token_seconds == pytest.approx(27 * 576 * 2 / 3.35e12)
    # 16 heads of 128 + 64 for the score and 128 for the sum.
    assert one.pair_seconds == pytest.approx(27 * 2 * 16 * (128 + 64 + 128) / 989.4e12)


@given(st.integers(0, 10**6), st.integers(0, 10**4), st.integers(0, 10**6), st.sampled_from([1, 2, 4, 8]))
def test_more_in_a_step_never_takes_less_time(tokens: int, computed: int, more: int, tp: int) -> None:
    found = cost(tp=tp)
    base = found.seconds(tokens, computed)
    assert base >= found.fixed_seconds > 0
    assert found.seconds(tokens + more, computed) >= base
    assert found.seconds(tokens, computed + more, more, more) >= base


def test_given_shares_replace_the_stacks() -> None:
    given_ones = cost(compute_efficiency=0.3, bandwidth_efficiency=0.4, overhead_seconds=0.005)
    stack = replace(VLLM, compute_efficiency=0.3, bandwidth_efficiency=0.4, step_seconds=0.005)
    assert given_ones == cost(stack=stack)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"active_parameters": 0}, "active_parameters"),
        ({"weights_bytes_per_gpu": -1}, "weights_bytes_per_gpu"),
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
        cost(**change)
    assert caught.value.field == field
