"""The architecture a GGUF file's metadata describes.

Names: https://github.com/ggml-org/ggml, docs/gguf.md, and llama.cpp's `llama-arch.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from kvmodel.architecture import Architecture
from kvmodel.errors import ModelError, show
from kvmodel.experts import Experts
from kvmodel.gguf_layouts import ATTENTION_FREE, LAYOUTS, Facts, Reader, latent_layer
from kvmodel.layers import group_layers
from kvmodel.shape import MOST_LAYERS, cached_head_dim, cached_heads

if TYPE_CHECKING:
    from kvmodel.gguf import GgufFile


class _Tensor(Protocol):
    @property
    def name(self) -> str: ...


def read_gguf_architecture(metadata: Mapping[str, object], tensors: Sequence[_Tensor] = ()) -> Architecture:
    """The architecture a GGUF file describes; `tensors` tell whether the output shares the embeddings.

    `auto` is a cache of float16, llama.cpp's own. MiniCPM3 and DeepSeek files without `key_length_mla` cache expanded
    heads, as llama.cpp does with them. Raises ModelError naming the key: unknown `general.architecture`, a missing or
    impossible value.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelError("general.architecture", "is missing" if name is None else f"{show(name)} is not a name")
    found = LAYOUTS.get(name)
    if found is None:
        raise ModelError("general.architecture", f"{show(name)} is not a known architecture")
    model_type, layout = found
    reader = Reader(name, metadata)
    facts, drafts = _facts(reader)
    blocks = tuple(layout(facts))
    groups = group_layers(layer for block in blocks for layer in block.caches)
    if not groups:
        raise ModelError(f"{name}.attention.head_count_kv", "no layer keeps a cache")
    widths = reader.per_layer("feed_forward_length", facts.layers, default=0)
    latent = latent_layer(facts)
    return Architecture(
        model_type=model_type,
        architectures=(),
        dtype="float16",
        declared_dtype=None,
        num_layers=facts.layers,
        hidden_size=facts.hidden,
        intermediate_size=max(widths),
        vocab_size=_vocabulary(reader),
        num_attention_heads=max(facts.heads),
        num_kv_heads=cached_heads(blocks),
        head_dim=cached_head_dim(blocks),
        max_position_embeddings=reader.optional("context_length"),
        groups=groups,
        tied_embeddings=bool(tensors) and not any(tensor.name == "output.weight" for tensor in tensors),
        experts=_experts(reader, facts.layers),
        quantization="gguf",
        rotary_dim=reader.optional("rope.dimension_count"),
        qk_nope_head_dim=None if latent is None else _nope(reader),
        v_head_dim=None if latent is None else reader.optional("attention.value_length_mla"),
        multimodal=False,
        blocks=blocks,
        draft_layers=drafts,
    )


def gguf_architecture(file: GgufFile) -> Architecture:
    """`read_gguf_architecture` of a file already read."""
    return read_gguf_architecture(file.metadata, file.tensors)


def _facts(reader: Reader) -> tuple[Facts, int]:
    layers = reader.count("block_count")
    if reader.name == "t5":
        layers = reader.optional("decoder_block_count") or layers
    if layers > MOST_LAYERS:
        raise ModelError(f"{reader.name}.block_count", f"{layers} is outside 1..{MOST_LAYERS}")
    drafts = reader.optional("nextn_predict_layers", least=0) or 0
    if drafts >= layers:
        raise ModelError(f"{reader.name}.nextn_predict_layers", f"{drafts} leaves no layer of {layers}")
    layers -= drafts
    hidden = reader.count("embedding_length")
    if reader.name in ATTENTION_FREE:
        return Facts(reader, layers, hidden, [0] * layers, [0] * layers, 0, 0), drafts
    heads = reader.per_layer("attention.head_count", layers)
    kv_heads = (
        reader.per_layer("attention.head_count_kv", layers)
        if reader.value("attention.head_count_kv") is not None
        else heads
    )
    most = max(heads)
    if most == 0:
        raise ModelError(f"{reader.name}.attention.head_count", "is 0 in every layer")
    key = reader.optional("attention.key_length")
    value = reader.optional("attention.value_length")
    if (key is None or value is None) and hidden % most:
        raise ModelError(f"{reader.name}.attention.key_length", f"is missing and {most} heads do not divide {hidden}")
    return Facts(reader, layers, hidden, heads, kv_heads, key or hidden // most, value or hidden // most), drafts


def _nope(reader: Reader) -> int | None:
    whole = reader.optional("attention.key_length_mla")
    rotated = reader.count("rope.dimension_count")
    return None if whole is None or whole <= rotated else whole - rotated


def _vocabulary(reader: Reader) -> int:
    given = reader.optional("vocab_size")
    if given is not None:
        return given
    tokens = reader.metadata.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, (list, tuple)) else getattr(tokens, "count", None)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ModelError(f"{reader.name}.vocab_size", "is missing, and so are the tokens")
    return count


def _experts(reader: Reader, layers: int) -> Experts | None:
    count = reader.optional("expert_count", least=0)
    if not count:
        return None
    used = reader.count("expert_used_count")
    if used > count:
        raise ModelError(f"{reader.name}.expert_used_count", f"{used} is above {count} experts")
    width = reader.optional("expert_feed_forward_length", least=0)
    if not width:
        width = max(reader.per_layer("feed_forward_length", layers))
    dense = min(reader.optional("leading_dense_block_count", least=0) or 0, layers)
    if dense == layers or not width:
        return None
    return Experts(count, used, width, layers - dense)
