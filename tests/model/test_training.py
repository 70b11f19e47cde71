"""Training memory: the paper's table, the ZeRO paper's figures, LoRA, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmodel.errors import ModelError
from kvmodel.training import TrainingMemory, activation_bytes, lora_parameters, training_memory

SHAPE: dict[str, Any] = {
    "sequence_tokens": 2048,
    "micro_batch": 4,
    "hidden_size": 6144,
    "num_layers": 48,
    "num_attention_heads": 64,
}


def per_layer(**change: Any) -> float:
    """In units of `sbh`, as the paper's table 2 prints it."""
    return activation_bytes(**{**SHAPE, **change}) / (2048 * 4 * 6144 * 48)


def test_the_papers_table() -> None:
    attention = 5 * 64 * 2048 / 6144
    assert per_layer() == pytest.approx(34 + attention)
    assert per_layer(tp=8) == pytest.approx(10 + 24 / 8 + attention / 8)
    assert per_layer(tp=8, sequence_parallel=True) == pytest.approx((34 + attention) / 8)
    assert per_layer(tp=8, recomputation="selective") == pytest.approx(10 + 24 / 8)
    assert per_layer(tp=8, recomputation="selective", sequence_parallel=True) == pytest.approx(34 / 8)
    assert per_layer(tp=8, recomputation="full") == 2


def test_mixed_precision_takes_sixteen_bytes_per_parameter() -> None:
    memory = training_memory(10**9)
    assert (memory.weights_bytes, memory.gradients_bytes, memory.optimizer_bytes) == (2 * 10**9, 2 * 10**9, 12 * 10**9)
    assert training_memory(10**9, precision="float32").total_bytes == 16 * 10**9
    assert training_memory(10**9, precision="bfloat16_pure").total_bytes == 12 * 10**9
    assert training_memory(10**9, optimizer="sgd").optimizer_bytes == 4 * 10**9


def test_the_zero_papers_example() -> None:
    """7.5 billion parameters on 64 GPUs: 120, 31.4, 16.6 and 1.9 GB (arXiv 1910.02054, figure 1)."""
    printed = [120, 31.4, 16.6, 1.9]
    for stage, gigabytes in enumerate(printed):
        memory = training_memory(7_500_000_000, zero_stage=stage, dp=64)
        assert memory.total_bytes / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_lora_trains_a_two_thousandth() -> None:
    adapters = lora_parameters(8, [(5120, 5120), (5120, 5120)], 40)
    assert adapters == 6_553_600
    memory = training_memory(13 * 10**9, trained_parameters=adapters)
    assert memory.weights_bytes == 26 * 10**9 + 2 * adapters
    assert memory.gradients_bytes == 2 * adapters
    assert memory.optimizer_bytes == 12 * adapters


def test_qlora_stores_the_base_in_four_bits() -> None:
    memory = training_memory(65 * 10**9, trained_parameters=10**8, base_bits_per_parameter=4.127)
    assert memory.weights_bytes == pytest.approx(65e9 * 4.127 / 8 + 2e8)
    assert memory.total_bytes < 48 * 2**30


@given(
    st.integers(1, 10**12),
    st.integers(0, 3),
    st.integers(1, 512),
    st.sampled_from(["float32", "bfloat16", "float16", "bfloat16_pure"]),
    st.sampled_from(["adamw", "adamw_8bit", "sgd_momentum", "sgd"]),
)
def test_each_zero_stage_takes_no_more_than_the_one_before(
    parameters: int, stage: int, dp: int, precision: str, optimizer: str
) -> None:
    def memory(zero: int) -> TrainingMemory:
        return training_memory(parameters, zero_stage=zero, dp=dp, precision=precision, optimizer=optimizer)

    assert memory(stage).total_bytes <= memory(max(0, stage - 1)).total_bytes
    # Nothing is lost: all ranks together hold at least one copy.
    assert memory(stage).total_bytes * dp >= memory(0).total_bytes


@given(st.integers(1, 4096), st.integers(1, 8), st.sampled_from([1, 2, 4, 8]), st.booleans(), st.integers(1, 100))
def test_recomputing_never_stores_more(tokens: int, batch: int, tp: int, sequence: bool, layers: int) -> None:
    def stored(recomputation: str) -> int:
        return activation_bytes(
            sequence_tokens=tokens,
            micro_batch=batch,
            hidden_size=1024,
            num_layers=layers,
            num_attention_heads=16,
            recomputation=recomputation,
            tp=tp,
            sequence_parallel=sequence,
        )

    assert stored("full") <= stored("selective") < stored("none")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"parameters": 0}, "parameters"),
        ({"parameters": True}, "parameters"),
        ({"parameters": 1e9}, "parameters"),
        ({"dp": 0}, "dp"),
        ({"tp": -1}, "tp"),
        ({"pp": "2"}, "pp"),
        ({"zero_stage": 4}, "zero_stage"),
        ({"zero_stage": True}, "zero_stage"),
        ({"precision": "fp7"}, "precision"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"activations_bytes": -1}, "activations_bytes"),
        ({"trained_parameters": 0}, "trained_parameters"),
        ({"trained_parameters": 2 * 10**9}, "trained_parameters"),
        ({"base_bits_per_parameter": 4}, "base_bits_per_parameter"),
        ({"trained_parameters": 1, "base_bits_per_parameter": 0}, "base_bits_per_parameter"),
        ({"trained_parameters": 1, "base_bits_per_parameter": float("nan")}, "base_bits_per_parameter"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], field: str) -> None:
    arguments: dict[str, Any] = {"parameters": 10**9, **change}
    with pytest.raises(ModelError) as caught:
        training_memory(**arguments)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sequence_tokens": 0}, "sequence_tokens"),
        ({"micro_batch": 1.5}, "micro_batch"),
        ({"recomputation": "some"}, "recomputation"),
        ({"tp": 7}, "tp"),
    ],
)
def test_bad_shapes_are_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        activation_bytes(**{**SHAPE, **change})
    assert caught.value.field == field


def test_bad_adapters_are_named() -> None:
    with pytest.raises(ModelError, match="rank"):
        lora_parameters(0, [(1, 1)], 1)
    with pytest.raises(ModelError, match="matrices"):
        lora_parameters(8, [(0, 1)], 1)
