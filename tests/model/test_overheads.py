"""Predicted memory against measured start-ups.

Measured: vLLM 0.19.0 on H100 (79.19 GiB), gpu_memory_utilization 0.95, max_model_len 8192, 1024 sequences, 8192 tokens;
jgchn/llm-d-planner, accuracy/results/v0.19.0 (Apache-2.0). Weights are the sums of the checkpoints' headers.
"""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmodel import Architecture, MemoryPrediction, ModelError, predict_memory, read_architecture

from .known import LLAMA_8B, known_config

GIB = 2**30
H100_BYTES = int(79.19 * GIB)

GRANITE_2B = {
    **LLAMA_8B,
    "model_type": "granite",
    "num_hidden_layers": 40,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "vocab_size": 49155,
}
GEMMA_9B = {
    **known_config("google/gemma-2-27b"),
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "hidden_size": 3584,
    "intermediate_size": 14336,
}
DEEPSEEK_LITE = {**known_config("deepseek-ai/DeepSeek-V2-Lite"), "max_position_embeddings": 163840}


@dataclass(frozen=True, slots=True)
class Measured:
    """One start-up log, in GiB."""

    config: dict[str, Any]
    tp: int
    header: float
    weights: float
    activations: float
    graphs: float
    pool: float


MEASURED = {
    "Llama-3.1-8B": Measured(LLAMA_8B, 1, 14.9575, 14.99, 1.89, 0.91, 58.11),
    "Llama-3.1-8B on two": Measured(LLAMA_8B, 2, 7.4788, 7.51, 1.89, 0.76, 63.76),
    "Llama-3.1-8B on four": Measured(LLAMA_8B, 4, 3.7394, 3.77, 1.89, 0.67, 67.44),
    "Qwen3-8B": Measured(known_config("Qwen/Qwen3-8B"), 1, 15.2564, 15.27, 2.21, 0.96, 57.5),
    "granite-3.1-2b": Measured(GRANITE_2B, 1, 4.7191, 4.74, 0.75, 0.84, 69.28),
    "gemma-2-9b": Measured(GEMMA_9B, 1, 17.214, 17.22, 3.65, 1.09, 54.12),
    "Mixtral-8x7B on two": Measured(known_config("mistralai/Mixtral-8x7B-v0.1"), 2, 43.4954, 43.51, 1.21, 0.93, 28.44),
    "DeepSeek-V2-Lite": Measured(DEEPSEEK_LITE, 1, 29.2556, 29.43, 1.93, 1.57, 43.61),
}


def predicted(row: Measured) -> MemoryPrediction:
    return predict_memory(
        read_architecture(row.config),
        weights_bytes_per_gpu=int(row.header * GIB),
        gpu_total_bytes=H100_BYTES,
        gpu_memory_utilization=0.95,
        engine_version="0.19.0",
        tp=row.tp,
        max_model_len=8192,
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
    )


@pytest.mark.parametrize("row", MEASURED.values(), ids=MEASURED)
def test_the_pool_is_within_one_percent(row: Measured) -> None:
    pool = predicted(row).kv_pool
    assert pool.low_bytes <= row.pool * GIB <= pool.high_bytes
    assert pool.expected_bytes == pytest.approx(row.pool * GIB, rel=0.01)


@pytest.mark.parametrize("row", MEASURED.values(), ids=MEASURED)
def test_the_components_hold_what_was_measured(row: Measured) -> None:
    components = predicted(row).components
    for name, gib in (("weights", row.weights), ("activations", row.activations), ("graphs", row.graphs)):
        # The log rounds to 0.01 GiB.
        assert components[name].low_bytes <= (gib + 0.005) * GIB
        assert (gib - 0.005) * GIB <= components[name].high_bytes


LLAMA = read_architecture(LLAMA_8B)


def predict(architecture: Architecture = LLAMA, **change: Any) -> MemoryPrediction:
    arguments: dict[str, Any] = {
        "weights_bytes_per_gpu": 15 * GIB,
        "gpu_total_bytes": H100_BYTES,
        "gpu_memory_utilization": 0.9,
        "engine_version": "0.19.0",
        **change,
    }
    return predict_memory(architecture, **arguments)


def test_component_names() -> None:
    assert set(predict().components) == {"weights", "kv_pool", "activations", "graphs", "context", "communication"}


def test_defaults_are_those_of_the_card() -> None:
    large = predict(gpu_total_bytes=80 * GIB).components["activations"]
    assert large == predict(max_num_seqs=1024, max_num_batched_tokens=8192).components["activations"]
    small = predict(gpu_total_bytes=24 * GIB).components["activations"]
    assert small == predict(max_num_seqs=256, max_num_batched_tokens=2048).components["activations"]
    huge = predict(gpu_total_bytes=180 * GIB).components["activations"]
    assert huge == predict(max_num_seqs=1024, max_num_batched_tokens=16384).components["activations"]


def test_fewer_sequences_leave_a_larger_pool() -> None:
    assert predict(max_num_seqs=64).kv_pool.expected_bytes > predict(max_num_seqs=1024).kv_pool.expected_bytes


def test_the_sampler_before_0_17_took_more() -> None:
    """Llama-3.1-8B class: 4.76 GiB in 0.11-0.16 against 1.89 in 0.17-0.19."""
    old = predict(engine_version="0.16.0").components["activations"]
    assert old.low_bytes <= 4.76 * GIB <= old.high_bytes
    assert old.expected_bytes > 2 * predict().components["activations"].expected_bytes


def test_graphs_leave_the_pool_since_0_21() -> None:
    old, new = predict(engine_version="0.20.0"), predict(engine_version="0.21.0")
    graphs = old.components["graphs"].expected_bytes
    assert old.kv_pool.expected_bytes - new.kv_pool.expected_bytes == graphs
    assert old.total.expected_bytes - new.total.expected_bytes == graphs


def test_no_graphs_with_eager_execution() -> None:
    eager = predict(enforce_eager=True, engine_version="0.32.0")
    assert eager.components["graphs"].high_bytes == 0
    assert eager.kv_pool.expected_bytes > predict(engine_version="0.32.0").kv_pool.expected_bytes


def test_a_given_pool_is_exact() -> None:
    given_pool = predict(kv_cache_bytes=10 * GIB)
    assert given_pool.kv_pool.low_bytes == given_pool.kv_pool.high_bytes == 10 * GIB
    assert given_pool.total.expected_bytes == sum(part.expected_bytes for part in given_pool.components.values())


def test_what_does_not_fit_says_so() -> None:
    full = predict(weights_bytes_per_gpu=80 * GIB)
    assert full.kv_pool.expected_bytes == 0
    assert any("would not start" in note for note in full.notes)


@pytest.mark.parametrize("version", [None, "0.10.2", "0.32.0", "1.0.0"])
def test_versions_that_were_not_measured_widen_the_interval_and_say_so(version: str | None) -> None:
    def width(prediction: MemoryPrediction) -> float:
        part = prediction.components["activations"]
        return (part.high_bytes - part.low_bytes) / part.expected_bytes

    other = predict(engine_version=version)
    assert width(other) > width(predict())
    assert any("0.19" in note or "unknown" in note for note in other.notes)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"weights_bytes_per_gpu": -1}, "weights_bytes_per_gpu"),
        ({"weights_bytes_per_gpu": 1.5}, "weights_bytes_per_gpu"),
        ({"gpu_total_bytes": 0}, "gpu_total_bytes"),
        ({"gpu_total_bytes": 10**30}, "gpu_total_bytes"),
        ({"gpu_memory_utilization": 0}, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": 1.01}, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": float("nan")}, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": "0.9"}, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": True}, "gpu_memory_utilization"),
        ({"engine_version": "latest"}, "engine_version"),
        ({"engine_version": "0"}, "engine_version"),
        ({"engine_version": "0." + "9" * 5000}, "engine_version"),
        ({"tp": 0}, "tp"),
        ({"tp": 5}, "tp"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_batched_tokens": -1}, "max_num_batched_tokens"),
        ({"max_model_len": "8192"}, "max_model_len"),
        ({"kv_cache_bytes": 0}, "kv_cache_bytes"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        predict(**change)
    assert caught.value.field == field
    assert len(str(caught.value)) < 300


@settings(deadline=None)
@given(
    st.sampled_from(["Qwen/Qwen3-8B", "openai/gpt-oss-20b", "deepseek-ai/DeepSeek-R1", "openai-community/gpt2"]),
    st.integers(0, 2**41),
    st.integers(2**30, 2**40),
    st.floats(0.01, 1),
    st.sampled_from([None, "0.11.0", "0.19.1", "0.32.0"]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 4096),
    st.booleans(),
)
def test_every_interval_is_in_order(
    model_id: str,
    weights: int,
    total: int,
    utilization: float,
    version: str | None,
    tp: int,
    seqs: int,
    eager: bool,
) -> None:
    prediction = predict(
        read_architecture(known_config(model_id)),
        weights_bytes_per_gpu=weights,
        gpu_total_bytes=total,
        gpu_memory_utilization=utilization,
        engine_version=version,
        tp=tp,
        max_num_seqs=seqs,
        enforce_eager=eager,
    )
    for part in (*prediction.components.values(), prediction.total):
        assert 0 <= part.low_bytes <= part.expected_bytes <= part.high_bytes
        assert part.source
