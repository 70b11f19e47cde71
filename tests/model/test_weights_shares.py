"""One GPU's share of a checkpoint: what is cut, what stays whole, what is stored but not loaded."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmodel import ModelError, read_architecture, read_weights, weights_bytes_per_gpu

from .gguf_files import header, tensor, write
from .known import LLAMA_8B, known_config
from .test_weights import write_tensors

TINY: dict[str, Any] = {
    **LLAMA_8B,
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 128,
    "vocab_size": 1000,
}
LAYER = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
NORMS = 2 * 2 * 64
EDGE = 2 * 1000 * 64


def llama(folder: Path, layers: int = 4, output: bool = True) -> Path:
    """A checkpoint of Llama's names and of TINY's shapes."""
    tensors: dict[str, tuple[str, list[int]]] = {"model.embed_tokens.weight": ("BF16", [1000, 64])}
    for index in range(layers):
        name = f"model.layers.{index}."
        tensors |= {
            f"{name}self_attn.q_proj.weight": ("BF16", [64, 64]),
            f"{name}self_attn.k_proj.weight": ("BF16", [32, 64]),
            f"{name}self_attn.v_proj.weight": ("BF16", [32, 64]),
            f"{name}self_attn.o_proj.weight": ("BF16", [64, 64]),
            f"{name}mlp.gate_proj.weight": ("BF16", [128, 64]),
            f"{name}mlp.up_proj.weight": ("BF16", [128, 64]),
            f"{name}mlp.down_proj.weight": ("BF16", [64, 128]),
            f"{name}input_layernorm.weight": ("BF16", [64]),
            f"{name}post_attention_layernorm.weight": ("BF16", [64]),
        }
    tensors["model.norm.weight"] = ("BF16", [64])
    if output:
        tensors["lm_head.weight"] = ("BF16", [1000, 64])
    write_tensors(folder / "model.safetensors", tensors)
    return folder


def share(folder: Path, tp: int = 1, **change: Any) -> int:
    keywords = {key: change.pop(key) for key in ("pp", "stage") if key in change}
    return weights_bytes_per_gpu(read_weights(folder), read_architecture({**TINY, **change}), tp, **keywords)


def test_roles_are_read_from_names(tmp_path: Path) -> None:
    weights = read_weights(llama(tmp_path))
    assert weights.layer_bytes == dict.fromkeys(range(4), LAYER + NORMS)
    assert weights.whole_layer_bytes == dict.fromkeys(range(4), NORMS)
    assert weights.embedding_bytes == weights.output_bytes == EDGE
    assert share(tmp_path) == weights.total_bytes


def test_norms_stay_whole_and_the_vocabulary_is_padded(tmp_path: Path) -> None:
    padded = 2 * 1024 * 64
    assert share(llama(tmp_path), 2) == 4 * LAYER // 2 + 4 * NORMS + 2 * padded // 2 + 2 * 64 // 2


def test_ranks_beyond_the_kv_heads_keep_a_head_each(tmp_path: Path) -> None:
    keys_and_values = 4 * 2 * (2 * 64 * 8) * (1 - 4 / 8)
    even = (4 * LAYER + 2 * 2 * 1024 * 64 + 128) // 8 + 4 * NORMS
    # The element size is the checkpoint's mean, bf16 here.
    assert share(llama(tmp_path), 8) == even + keys_and_values


def test_layers_of_multi_token_prediction_are_not_loaded(tmp_path: Path) -> None:
    """DeepSeek-V3 stores 684.5 billion parameters and serves 671.0."""
    assert read_weights(llama(tmp_path, layers=5)).total_bytes == 5 * (LAYER + NORMS) + 2 * EDGE + 128
    assert share(tmp_path) == 4 * (LAYER + NORMS) + 2 * EDGE + 128


def test_tied_embeddings_stored_twice_are_held_once(tmp_path: Path) -> None:
    llama(tmp_path)
    assert share(tmp_path) - share(tmp_path, tie_word_embeddings=True) == EDGE


def test_stages_of_a_pipeline(tmp_path: Path) -> None:
    llama(tmp_path, output=False)
    first, last = (share(tmp_path, pp=2, stage=stage, tie_word_embeddings=True) for stage in (0, 1))
    # Both ends of the pipeline hold the tied table.
    assert first == last == 2 * (LAYER + NORMS) + EDGE + 128
    uneven = [share(llama(tmp_path), pp=3, stage=stage) for stage in range(3)]
    assert uneven[1] - uneven[0] == LAYER + NORMS - EDGE
    assert share(tmp_path, pp=3) == uneven[2] == LAYER + NORMS + EDGE + 128


def test_a_vision_towers_layers_are_not_the_language_models(tmp_path: Path) -> None:
    write_tensors(
        tmp_path / "model.safetensors",
        {
            "vision_tower.encoder.layers.7.mlp.weight": ("BF16", [100]),
            "language_model.model.layers.0.mlp.up_proj.weight": ("BF16", [10]),
        },
    )
    assert read_weights(tmp_path).layer_bytes == {0: 20}


def test_projections_to_a_latent_stay_whole(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn."
    write_tensors(
        tmp_path / "model.safetensors",
        {
            f"{name}kv_a_proj_with_mqa.weight": ("BF16", [576, 2048]),
            f"{name}q_proj.weight": ("BF16", [3072, 2048]),
            "model.layers.0.mlp.gate.weight": ("BF16", [64, 2048]),
            "model.layers.0.mlp.gate_proj.weight": ("BF16", [64, 2048]),
        },
    )
    architecture = read_architecture(known_config("deepseek-ai/DeepSeek-V2-Lite"))
    assert weights_bytes_per_gpu(read_weights(tmp_path), architecture, 2) == 2 * 2048 * (576 + 3072 // 2 + 64 + 32)


def test_a_gguf_file_counts_its_padding(tmp_path: Path) -> None:
    listed = [
        tensor("token_embd.weight", [64, 10], 8, 0),
        tensor("blk.0.attn_q.weight", [64, 64], 8, 704),
        tensor("blk.0.attn_norm.weight", [3], 0, 704 + 4352),
        tensor("output_norm.weight", [3], 0, 704 + 4352 + 32),
    ]
    weights = read_weights(write(tmp_path / "m.gguf", header([], listed), 704 + 4352 + 64))
    # Q8_0: 34 bytes per 32 elements; each tensor is padded to 32 bytes.
    assert weights.total_bytes == 704 + 4352 + 32 + 32
    assert weights.by_dtype == {"Q8_0": 704 + 4352, "F32": 64}
    assert weights.layer_bytes == {0: 4352 + 32}
    assert weights.whole_layer_bytes == {0: 32}
    assert weights.embedding_bytes == 704
    assert weights.parameters == 640 + 4096 + 6


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pp": 0}, "pp"),
        ({"pp": 5}, "pp"),
        ({"pp": True}, "pp"),
        ({"pp": 2, "stage": 2}, "stage"),
        ({"stage": -1}, "stage"),
        ({"tp": 3}, "tp"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        share(llama(tmp_path), **change)
    assert caught.value.field == field


@settings(deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 4))
def test_all_ranks_together_hold_at_least_the_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tp: int, pp: int
) -> None:
    folder = llama(tmp_path_factory.mktemp("weights"))
    held = sum(tp * share(folder, tp, pp=pp, stage=stage) for stage in range(pp))
    assert held >= read_weights(folder).total_bytes
    assert share(folder, tp, pp=pp) <= share(folder)
