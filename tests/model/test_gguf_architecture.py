"""A GGUF file's metadata describes the same layers as the model's config.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmodel import Architecture, ModelError, load_architecture, read_architecture
from kvmodel.gguf_architecture import read_gguf_architecture
from kvmodel.gguf_layouts import LAYOUTS
from kvmodel.layers import FullAttention, LatentAttention

from .gguf_files import ARRAY, STRING, UINT32, header, pair, tensor, write
from .known import LLAMA_8B, known_config
from .known_caches import known_cache_config


def metadata(name: str, **values: Any) -> dict[str, object]:
    """Keys with `__` for a dot, under the architecture's prefix."""
    written: dict[str, object] = {"general.architecture": name}
    return written | {f"{name}.{key.replace('__', '.')}": value for key, value in values.items()}


LLAMA = metadata(
    "llama",
    block_count=32,
    context_length=131072,
    embedding_length=4096,
    feed_forward_length=14336,
    attention__head_count=32,
    attention__head_count_kv=8,
    rope__dimension_count=128,
    vocab_size=128256,
)


def attention(config: dict[str, Any], name: str, **more: Any) -> dict[str, object]:
    """The usual keys, from a config's fields."""
    return metadata(
        name,
        block_count=config["num_hidden_layers"],
        embedding_length=config["hidden_size"],
        feed_forward_length=config["intermediate_size"],
        attention__head_count=config["num_attention_heads"],
        vocab_size=config["vocab_size"],
        **more,
    )


def heads_where(config: dict[str, Any], kv_heads: int) -> list[int]:
    """KV heads per layer: none where the config's model has no attention."""
    blocks = read_architecture(config).blocks
    return [kv_heads if any(isinstance(layer, FullAttention) for layer in block.caches) else 0 for block in blocks]


def gemma3() -> tuple[dict[str, Any], dict[str, object]]:
    config = known_config("google/gemma-3-27b-it")
    return config, attention(
        config,
        "gemma3",
        attention__head_count_kv=16,
        attention__key_length=128,
        attention__value_length=128,
        attention__sliding_window=1024,
    )


def gemma3n() -> tuple[dict[str, Any], dict[str, object]]:
    config = known_cache_config("google/gemma-3n-E4B-it")
    wide = {"num_attention_heads": 8, "vocab_size": 262400}
    return config, attention(
        {**config, **wide},
        "gemma3n",
        attention__head_count_kv=2,
        attention__key_length=256,
        attention__value_length=256,
        attention__sliding_window=512,
    )


def gpt_oss() -> tuple[dict[str, Any], dict[str, object]]:
    config = known_config("openai/gpt-oss-20b")
    return config, attention(
        config,
        "gpt-oss",
        attention__head_count_kv=8,
        attention__key_length=64,
        attention__value_length=64,
        attention__sliding_window=128,
    )


def deepseek() -> tuple[dict[str, Any], dict[str, object]]:
    config = known_config("deepseek-ai/DeepSeek-R1")
    return config, attention(
        config,
        "deepseek2",
        attention__head_count_kv=1,
        attention__kv_lora_rank=512,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
        attention__value_length_mla=128,
        rope__dimension_count=64,
    )


def qwen3_next() -> tuple[dict[str, Any], dict[str, object]]:
    config = known_cache_config("Qwen/Qwen3-Next-80B-A3B-Instruct")
    return config, attention(
        config,
        "qwen3next",
        attention__head_count_kv=2,
        attention__key_length=256,
        attention__value_length=256,
        ssm__conv_kernel=4,
        ssm__group_count=16,
        ssm__inner_size=4096,
        ssm__state_size=128,
        ssm__time_step_rank=32,
    )


def jamba() -> tuple[dict[str, Any], dict[str, object]]:
    config = known_cache_config("ai21labs/Jamba-v0.1")
    return config, attention(
        config,
        "jamba",
        attention__head_count_kv=heads_where(config, 8),
        ssm__conv_kernel=4,
        ssm__inner_size=8192,
        ssm__state_size=16,
        ssm__time_step_rank=256,
    )


def granite() -> tuple[dict[str, Any], dict[str, object]]:
    config = known_cache_config("ibm-granite/granite-4.0-h-small")
    return config, attention(
        config,
        "granitehybrid",
        attention__head_count_kv=heads_where(config, 8),
        ssm__conv_kernel=4,
        ssm__inner_size=8192,
        ssm__state_size=128,
        ssm__time_step_rank=128,
        ssm__group_count=1,
    )


def nemotron() -> tuple[dict[str, Any], dict[str, object]]:
    config = known_cache_config("nvidia/Nemotron-H-56B-Base-8K")
    pattern = config["hybrid_override_pattern"]
    config = {**config, "num_hidden_layers": len(pattern)}
    widths = [32768 if letter == "-" else 0 for letter in pattern]
    return config, attention(
        {**config, "intermediate_size": widths},
        "nemotron_h",
        attention__head_count_kv=heads_where(config, 8),
        attention__key_length=128,
        attention__value_length=128,
        ssm__conv_kernel=4,
        ssm__inner_size=16384,
        ssm__state_size=256,
        ssm__time_step_rank=256,
        ssm__group_count=8,
    )


def falcon_h1() -> tuple[dict[str, Any], dict[str, object]]:
    config = known_cache_config("tiiuae/Falcon-H1-7B-Base")
    return config, attention(
        config,
        "falcon-h1",
        attention__head_count_kv=2,
        attention__key_length=128,
        attention__value_length=128,
        ssm__conv_kernel=4,
        ssm__inner_size=3072,
        ssm__state_size=256,
        ssm__time_step_rank=24,
        ssm__group_count=1,
    )


def lfm2() -> tuple[dict[str, Any], dict[str, object]]:
    config = known_cache_config("LiquidAI/LFM2-1.2B")
    return config, attention(config, "lfm2", attention__head_count_kv=heads_where(config, 8), shortconv__l_cache=3)


def mamba() -> tuple[dict[str, Any], dict[str, object]]:
    config = known_cache_config("state-spaces/mamba-2.8b-hf")
    return config, metadata(
        "mamba",
        block_count=64,
        embedding_length=2560,
        vocab_size=50280,
        ssm__conv_kernel=4,
        ssm__inner_size=5120,
        ssm__state_size=16,
        ssm__time_step_rank=160,
    )


def t5() -> tuple[dict[str, Any], dict[str, object]]:
    config = known_cache_config("google-t5/t5-base")
    return config, metadata(
        "t5",
        block_count=12,
        decoder_block_count=12,
        embedding_length=768,
        feed_forward_length=3072,
        attention__head_count=12,
        attention__key_length=64,
        attention__value_length=64,
        vocab_size=32128,
    )


@pytest.mark.parametrize(
    "model",
    [gemma3, gemma3n, gpt_oss, deepseek, qwen3_next, jamba, granite, nemotron, falcon_h1, lfm2, mamba, t5],
    ids=lambda model: model.__name__,
)
def test_metadata_and_config_agree(model: Any) -> None:
    config, written = model()
    expected, found = read_architecture(config), read_gguf_architecture(written)
    assert found.blocks == expected.blocks
    assert found.bytes_at(5000) == expected.bytes_at(5000)
    for name in ("num_layers", "hidden_size", "vocab_size", "num_attention_heads", "num_kv_heads", "head_dim"):
        assert getattr(found, name) == getattr(expected, name), name


def test_a_plain_model_and_its_facts() -> None:
    found = read_gguf_architecture(LLAMA)
    assert found.blocks == read_architecture(LLAMA_8B).blocks
    assert (found.dtype, found.quantization, found.model_type) == ("float16", "gguf", "llama")
    assert found.growth_bytes_per_token("q8_0") == 32 * 2 * 8 * 136
    assert found.max_position_embeddings == 131072


def test_older_deepseek_files_cache_expanded_heads() -> None:
    _, written = deepseek()
    for key in ("attention.key_length_mla", "attention.value_length_mla"):
        del written[f"deepseek2.{key}"]
    old = {**written, "deepseek2.attention.key_length": 192, "deepseek2.attention.value_length": 128}
    assert set(read_gguf_architecture(old).layers) == {FullAttention(128, 192, 128)}
    assert set(read_gguf_architecture(written | {"deepseek2.attention.key_length_mla": 192}).layers) == {
        LatentAttention(512, 64)
    }


def test_windows_listed_layer_by_layer_overrule_the_pattern() -> None:
    config, written = gemma3()
    flags = [index % 2 == 0 for index in range(config["num_hidden_layers"])]
    found = read_gguf_architecture({**written, "gemma3.attention.sliding_window_pattern": flags})
    assert [block.caches[0].window_bytes(found.cache_dtype()) > 0 for block in found.blocks] == flags


def test_draft_layers_hold_nothing() -> None:
    found = read_gguf_architecture({**LLAMA, "llama.nextn_predict_layers": 2})
    assert (found.num_layers, found.draft_layers, len(found.blocks)) == (30, 2, 30)


@dataclass
class Named:
    name: str


def test_an_output_of_its_own_unties_the_embeddings() -> None:
    assert read_gguf_architecture(LLAMA, [Named("token_embd.weight")]).tied_embeddings
    assert not read_gguf_architecture(LLAMA, [Named("token_embd.weight"), Named("output.weight")]).tied_embeddings


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"general.architecture": "no_such"}, "general.architecture"),
        ({"general.architecture": 7}, "general.architecture"),
        ({"llama.block_count": None}, "llama.block_count"),
        ({"llama.block_count": 10**6}, "llama.block_count"),
        ({"llama.block_count": "32"}, "llama.block_count"),
        ({"llama.embedding_length": 0}, "llama.embedding_length"),
        ({"llama.attention.head_count": None}, "llama.attention.head_count"),
        ({"llama.attention.head_count": 33}, "llama.attention.key_length"),
        ({"llama.attention.head_count_kv": [8] * 31}, "llama.attention.head_count_kv"),
        ({"llama.attention.head_count_kv": [8] * 31 + [-1]}, "llama.attention.head_count_kv"),
        ({"llama.attention.head_count_kv": 0}, "llama.attention.head_count_kv"),
        ({"llama.vocab_size": None}, "llama.vocab_size"),
        ({"llama.nextn_predict_layers": 32}, "llama.nextn_predict_layers"),
        ({"llama.expert_count": 8}, "llama.expert_used_count"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_gguf_architecture({key: value for key, value in {**LLAMA, **change}.items() if value is not None})
    assert caught.value.field == field


junk = st.none() | st.booleans() | st.integers(-10, 10**14) | st.text(max_size=4) | st.lists(st.integers(-1, 9))
keys = st.sampled_from(
    [
        "block_count",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attention.shared_kv_layers",
        "attention.kv_lora_rank",
        "attention.key_length_mla",
        "ssm.inner_size",
        "ssm.state_size",
        "ssm.conv_kernel",
        "ssm.group_count",
        "ssm.time_step_rank",
        "expert_count",
        "feed_forward_length",
        "nextn_predict_layers",
        "wkv.head_size",
    ]
)


@settings(deadline=1000, max_examples=300)
@given(st.sampled_from(sorted(LAYOUTS)), st.dictionaries(keys, junk, max_size=6))
def test_anything_gives_an_architecture_or_a_named_key(name: str, change: dict[str, Any]) -> None:
    written = {key.replace("llama.", f"{name}."): value for key, value in LLAMA.items()}
    written |= {"general.architecture": name} | {f"{name}.{key}": value for key, value in change.items()}
    outcome: Architecture | ModelError
    try:
        outcome = read_gguf_architecture({key: value for key, value in written.items() if value is not None})
    except ModelError as error:
        outcome = error
    if isinstance(outcome, ModelError):
        assert outcome.field
        assert str(outcome).isprintable()
    else:
        assert len(outcome.blocks) == outcome.num_layers


def test_a_file_is_read_like_a_config(tmp_path: Path) -> None:
    pairs = [pair("general.architecture", STRING, "llama")]
    pairs += [pair(key, UINT32, value) for key, value in LLAMA.items() if isinstance(value, int)]
    pairs.append(pair("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b"])))
    file = write(tmp_path / "model.gguf", header(pairs, [tensor("token_embd.weight", [32], 0, 0)]), 128)
    found = load_architecture(file)
    assert found.blocks == read_architecture(LLAMA_8B).blocks
    assert found.tied_embeddings


def test_a_file_at_fault_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "model.gguf", header([pair("general.architecture", STRING, "no_such")], []), 0)
    with pytest.raises(ModelError) as caught:
        load_architecture(file)
    assert caught.value.field == "general.architecture"
    assert caught.value.file == str(file)
