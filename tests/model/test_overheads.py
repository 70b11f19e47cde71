"""Predicted memory against measured start-ups, and how it follows its inputs."""

import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmodel import Architecture, MemoryPrediction, ModelError, predict_memory, read_architecture
from kvmodel.resident import resident_extras

from .h100_startups import VLLM_011_016, VLLM_019, Startup
from .known import LLAMA_8B, known_config

GIB = 2**30
H100_BYTES = int(79.19 * GIB)


def predicted(row: Startup, **change: Any) -> MemoryPrediction:
    arguments: dict[str, Any] = {
        "weights_bytes_per_gpu": int(row.file * GIB),
        "gpu_total_bytes": H100_BYTES,
        "gpu_memory_utilization": 0.95,
        "engine_version": "0.19.0",
        "tp": row.tp,
        "max_model_len": 8192,
        "max_num_seqs": 1024,
        "max_num_batched_tokens": 8192,
        **change,
    }
    return predict_memory(read_architecture(row.config), **arguments)


def pool_error(row: Startup, **change: Any) -> float:
    return predicted(row, **change).kv_pool.expected_bytes / (row.pool * GIB) - 1


by_name = pytest.mark.parametrize("row", VLLM_019, ids=lambda row: f"{row.model} on {row.tp}")


@by_name
def test_the_pool_is_within_five_percent_and_its_interval(row: Startup) -> None:
    pool = predicted(row).kv_pool
    assert pool.low_bytes <= row.pool * GIB <= pool.high_bytes
    assert abs(pool_error(row)) < 0.05


def test_the_pools_mean_error_is_below_one_percent() -> None:
    errors = [abs(pool_error(row)) for row in VLLM_019]
    assert statistics.mean(errors) < 0.005
    assert statistics.median(errors) < 0.001


@by_name
def test_the_components_hold_what_was_measured(row: Startup) -> None:
    components = predicted(row).components
    for name, gib in (("weights", row.weights), ("activations", row.activations), ("graphs", row.graphs)):
        # The log rounds to 0.01 GiB.
        assert components[name].low_bytes <= (gib + 0.005) * GIB
        assert (gib - 0.005) * GIB <= components[name].high_bytes


@pytest.mark.parametrize("row", VLLM_011_016, ids=lambda row: f"{row.model} on {row.tp}")
def test_pools_before_0_17(row: Startup) -> None:
    extras = sum(resident_extras(read_architecture(row.config), tp=row.tp).values())
    change = {
        "weights_bytes_per_gpu": int(row.weights * GIB) - extras,
        "gpu_memory_utilization": 0.9,
        "engine_version": "0.15.0",
        "max_model_len": 16000,
    }
    assert abs(pool_error(row, **change)) < 0.01
    activations = predicted(row, **change).components["activations"]
    assert activations.expected_bytes == pytest.approx(row.activations * GIB, rel=0.01)


@pytest.mark.parametrize(("pp", "file_gib", "pool_gib"), [(2, 7.4788, 65.63), (4, 4.23, 68.89)])
def test_the_last_stage_limits_a_pipeline(pp: int, file_gib: float, pool_gib: float) -> None:
    """Llama-3.1-8B over two and four H100: the blocks of the log make these pools."""
    pool = predict(weights_bytes_per_gpu=int(file_gib * GIB), gpu_memory_utilization=0.95, pp=pp).kv_pool
    assert pool.expected_bytes == pytest.approx(pool_gib * GIB, rel=0.005)


def test_float32_logits_cost_two_bytes_more() -> None:
    """Llama-3.1-8B in float32: 2.21 GiB of activations against 1.89."""
    single = predict(dtype="float32").components["activations"]
    assert single.expected_bytes == pytest.approx(2.21 * GIB, rel=0.01)


def test_padded_experts_of_gpt_oss() -> None:
    """vLLM on H100 printed 13.47 GiB of weights for 12.8 in the files."""
    row = next(row for row in VLLM_019 if row.model == "gpt-oss-20b")
    extras = resident_extras(read_architecture(row.config))
    assert sum(extras.values()) == pytest.approx(0.65 * GIB, rel=0.05)


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
    newer: dict[str, Any] = {"engine_version": "0.28.0"}
    huge = predict(gpu_total_bytes=180 * GIB, **newer).components["activations"]
    assert huge == predict(max_num_seqs=1024, max_num_batched_tokens=16384, **newer).components["activations"]
    # Cards of that size had no defaults of their own before.
    assert predict(gpu_total_bytes=180 * GIB).components["activations"] == large


def test_sglangs_chunk_follows_the_card_and_version() -> None:
    def activations(gib: int, **change: Any) -> object:
        return predict(engine="sglang", gpu_total_bytes=gib * GIB, **change).components["activations"]

    assert activations(24, engine_version="0.5.23") == activations(24, max_num_batched_tokens=4096)
    assert activations(24, engine_version="0.5.5") == activations(24, max_num_batched_tokens=2048)


def test_an_a100_takes_the_smaller_defaults() -> None:
    a100 = predict(gpu_total_bytes=80 * GIB, gpu_name="NVIDIA A100-SXM4-80GB")
    assert a100.components["activations"] == predict(gpu_total_bytes=24 * GIB).components["activations"]
    assert not any("A100" in note for note in a100.notes)
    assert any("A100" in note for note in predict(gpu_total_bytes=80 * GIB).notes)


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


def test_a_card_in_use_does_not_start() -> None:
    busy = predict(free_bytes=60 * GIB)
    assert any("would not start" in note for note in busy.notes)
    assert not any("would not start" in note for note in predict(free_bytes=H100_BYTES).notes)
    # vLLM asks for a share of the whole card, whatever is free.
    assert busy.kv_pool == predict().kv_pool


def test_sglang_keeps_a_share_of_what_was_free() -> None:
    whole = predict(engine="sglang")
    half = predict(engine="sglang", free_bytes=H100_BYTES // 2)
    more = whole.kv_pool.expected_bytes - half.kv_pool.expected_bytes
    assert more == pytest.approx(0.9 * (H100_BYTES - H100_BYTES // 2), abs=2)
    # Activations and graphs are paid from the reserve, not from the pool.
    assert predict(engine="sglang", max_num_seqs=16).kv_pool == whole.kv_pool
    tight = predict(engine="sglang", gpu_memory_utilization=0.99)
    assert any("activations and graphs need" in note for note in tight.notes)


def test_tensorrt_llm_takes_a_share_of_what_is_free() -> None:
    nine, eight = (predict(engine="tensorrt_llm", gpu_memory_utilization=share).kv_pool for share in (0.9, 0.8))
    assert nine.expected_bytes / eight.expected_bytes == pytest.approx(9 / 8)
    assert nine.high_bytes - nine.low_bytes > predict().kv_pool.high_bytes - predict().kv_pool.low_bytes


def test_an_attention_backends_workspace_is_a_part() -> None:
    with_workspace = predict(attention_backend="FLASHINFER")
    assert with_workspace.components["workspace"].expected_bytes == 394 * 2**20
    assert predict().kv_pool.expected_bytes - with_workspace.kv_pool.expected_bytes == 394 * 2**20
    assert "workspace" not in predict(attention_backend="FLASH_ATTN").components


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
        ({"engine": "ollama"}, "engine"),
        ({"engine": None}, "engine"),
        ({"pp": 0}, "pp"),
        ({"pp": 33}, "pp"),
        ({"free_bytes": -1}, "free_bytes"),
        ({"free_bytes": H100_BYTES + 1}, "free_bytes"),
        ({"dtype": "int4"}, "dtype"),
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
    st.sampled_from(["vllm", "sglang", "tensorrt_llm"]),
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
    engine: str,
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
        engine=engine,
    )
    for part in (*prediction.components.values(), prediction.total):
        assert 0 <= part.low_bytes <= part.expected_bytes <= part.high_bytes
        assert part.source
