"""Layer layouts of MLA models, of sparse indexers and of DeepSeek-V4's compressed caches."""

from kvmodel.errors import ModelError, show
from kvmodel.fields import Fields
from kvmodel.layers import Block, CompressedLatentAttention, IndexKeys, LatentAttention, Layer, WindowLatent
from kvmodel.layouts import Blocks, blocks_of, full
from kvmodel.shape import MOST_LAYERS, Shape


def latent_layer(shape: Shape) -> LatentAttention:
    """The model's latent. GLM-5-Next has no rotated elements."""
    return LatentAttention(shape.fields.count("kv_lora_rank"), shape.fields.count("qk_rope_head_dim", least=0))


def latent(shape: Shape) -> Blocks:
    """MLA in every layer, or expanded heads where `use_mla` is false."""
    if not shape.fields.flag("use_mla", True):
        return full(shape)
    return blocks_of([latent_layer(shape)] * shape.layers)


def two_latents(shape: Shape) -> Blocks:
    """LongCat: each layer holds two attention blocks, each with a latent of its own."""
    layer = latent_layer(shape)
    return (Block((layer, layer)),) * shape.layers


def indexed_latent(shape: Shape) -> Blocks:
    """MLA and an index-key cache in every layer that owns an indexer (DeepSeek-V3.2, GLM-5)."""
    own = Block((latent_layer(shape), IndexKeys(shape.fields.count("index_head_dim"))))
    shared = Block(own.caches[:1])
    return tuple(own if owns else shared for owns in owns_indexer(shape))


def owns_indexer(shape: Shape) -> list[bool]:
    """Per layer: listed (`indexer_types`), by pattern of F and S, or each `index_topk_freq`-th from an offset on.

    Rule: transformers 5.19 `GlmMoeDsaConfig`, vLLM 0.32 `deepseek_v2.py` alike.
    """
    listed = shape.fields.items("indexer_types")
    key = "indexer_types"
    if listed is None:
        pattern = shape.fields.value("index_topk_pattern")
        if pattern is not None:
            key = "index_topk_pattern"
            listed = list(pattern) if isinstance(pattern, str) else shape.fields.items(key)
    if listed is None:
        period = shape.fields.optional_count("index_topk_freq", MOST_LAYERS, least=0) or 1
        offset = shape.fields.optional_count("index_skip_topk_offset", MOST_LAYERS, least=0)
        first = 2 if offset is None else offset
        return [max(index - first + 1, 0) % period == 0 for index in range(shape.layers)]
    if len(listed) < shape.layers:
        raise ModelError(key, f"has {len(listed)} entries for {shape.layers} layers")
    for index, kind in enumerate(listed):
        if kind not in ("full", "shared", "F", "S"):
            raise ModelError(f"{key}[{index}]", f"{show(kind)} is not full or shared")
    return [kind in ("full", "F") for kind in listed[: shape.layers]]


def indexed_heads(shape: Shape) -> Blocks:
    """MiniMax-M3: plain KV heads, and in sparse layers one index key of 16 bits per element beside them."""
    sparse = Fields(shape.fields.section("sparse_attention_config"), aliases={}, defaults={})
    types = shape.layer_types({"full_attention", "minimax_m3_sparse"})
    if types is not None:
        owns = [kind == "minimax_m3_sparse" for kind in types]
    elif sparse.flag("use_sparse_attention", True) and sparse.value("sparse_attention_freq") is not None:
        flags = sparse.items("sparse_attention_freq") or []
        if len(flags) != shape.layers or any(flag not in (0, 1) for flag in flags):
            raise ModelError(
                "sparse_attention_config.sparse_attention_freq", f"is not 0 or 1 for each of {shape.layers} layers"
            )
        owns = [bool(flag) for flag in flags]
    else:
        owns = [False] * shape.layers
    plain = Block((shape.full(),))
    if not any(owns):
        return (plain,) * shape.layers
    dim = sparse.optional_count("sparse_index_dim") or shape.fields.count("index_head_dim")
    both = Block((*plain.caches, IndexKeys(dim, packed=False)))
    return tuple(both if each else plain for each in owns)


_RATIOS = {
    "sliding_attention": 0,
    "compressed_sparse_attention": 4,
    "heavily_compressed_attention": 128,
}


def compressed(shape: Shape) -> Blocks:
    """DeepSeek-V4: a window in every layer; beside it compressed rows, and at the lower ratio index keys of those."""
    dim = shape.head_dim
    rope = shape.fields.count("qk_rope_head_dim", most=dim, least=0)
    window = WindowLatent(dim, rope, shape.window())
    by_ratio: dict[int, Block] = {0: Block((window,)), 1: Block((window,))}
    sparse, _ = _compress_rates(shape)
    blocks = []
    for ratio in _compress_ratios(shape):
        if ratio not in by_ratio:
            caches: tuple[Layer, ...] = (window, CompressedLatentAttention(dim, rope, ratio))
            if ratio == sparse:
                caches += (IndexKeys(shape.fields.count("index_head_dim"), tokens_per_entry=ratio),)
            by_ratio[ratio] = Block(caches)
        blocks.append(by_ratio[ratio])
    return tuple(blocks)


def _compress_rates(shape: Shape) -> tuple[int, int]:
    rates = Fields(shape.fields.section("compress_rates"), aliases={}, defaults={})
    return (
        rates.optional_count("compressed_sparse_attention", 2**20) or 4,
        rates.optional_count("heavily_compressed_attention", 2**20) or 128,
    )


def _compress_ratios(shape: Shape) -> list[int]:
    """Tokens per row and layer, 0 for a window only; entries beyond the layers are those of draft layers."""
    sparse, heavy = _compress_rates(shape)
    rates = {"sliding_attention": 0, "compressed_sparse_attention": sparse, "heavily_compressed_attention": heavy}
    types = shape.layer_types(set(_RATIOS))
    if types is not None:
        return [rates[kind] for kind in types]
    if shape.fields.value("compress_ratios") is None:
        return [heavy if index < 2 or index % 2 else sparse for index in range(shape.layers)]
    ratios = shape.fields.counts("compress_ratios", most=2**20, least=0)
    if len(ratios) < shape.layers:
        raise ModelError("compress_ratios", f"has {len(ratios)} entries for {shape.layers} layers")
    return ratios[: shape.layers]
