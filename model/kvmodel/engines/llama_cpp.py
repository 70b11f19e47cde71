"""llama.cpp's cache: tensors of a fixed number of cells, allocated once when the context is made.

Rules: `llama-context.cpp`, `llama-kv-cache.cpp`, `llama-kv-cache-iswa.cpp`, `llama-memory-recurrent.cpp` and
`llama_model::create_memory` of llama.cpp as in llama-cpp-python 0.3.36; `ggml.c` for the sizes of block types.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmodel.architecture import Architecture
from kvmodel.dtypes import KvDtype
from kvmodel.dtypes import kv_dtype as find_kv_dtype
from kvmodel.engines.cached import (
    CHUNK,
    FULL,
    INDEX,
    STATE,
    WINDOW,
    CachedLayers,
    cached_layers,
    not_planned,
)
from kvmodel.engines.contract import EnginePlan, PlanGroup, optional_whole, round_up, whole
from kvmodel.errors import ModelError, show
from kvmodel.layers import IndexKeys, LatentAttention

_CELL_UNIT = 256
_AUTO_SLOTS = 4
_BLOCK_ELEMENTS = 32
_CACHE_TYPES = frozenset(
    {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"},
)
_WINDOWED = frozenset(
    {
        "afmoe",
        "cohere2",
        "cohere2_moe",
        "exaone4",
        "exaone_moe",
        "gemma2",
        "gemma3_text",
        "gemma3n_text",
        "gemma4_text",
        "gemma4_unified_text",
        "gpt_oss",
        "laguna",
        "lfm2",
        "llama4_text",
        "mimo_v2",
        "mimo_v2_flash",
        "olmo3",
        "plamo3",
        "smallthinker",
        "step3p5",
    }
)
"""Models whose windows llama.cpp knows: it reads the others' windows as full attention (`swa_type` in `models/`)."""
_EXPANDED_LATENT = frozenset({"minicpm3"})
"""MLA models cached with expanded heads: their GGUF has no `attention.key_length_mla`."""
_KINDS = frozenset({FULL, WINDOW, CHUNK, INDEX, STATE})
_INDEX_WITH_VALUES = frozenset({"minimax_m3", "minimax_m3_vl_text"})
"""Where the indexer's cache is an ordinary one of one head, V allocated with K (`llama-kv-cache-msa.cpp`)."""
_STATE_ELEMENT_BYTES = 4
_SOURCES = ("llama.cpp as in llama-cpp-python 0.3.36",)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Elements of one cell's K and V in one layer."""

    k: int
    v: int
    head_k: int
    head_v: int


def plan(
    architecture: Architecture,
    *,
    n_ctx: int | None = None,
    n_parallel: int | None = None,
    unified: bool | None = None,
    n_batch: int = 2048,
    n_ubatch: int = 512,
    swa_full: bool = False,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    flash_attention: bool = True,
    rollback: int = 0,
) -> EnginePlan:
    """The cells and bytes llama.cpp allocates, over all devices (`-ngl` decides how layers spread over them).

    `n_ctx` is the whole context (`-c`, default: what the model was trained on), `n_parallel` the slots (`-np`; None
    is the server's automatic choice: four slots that share one pool), `unified` is `--kv-unified`, `rollback` the
    recurrent states kept per slot to take drafts back. Raises ModelError naming the argument at fault.
    """
    slots = _AUTO_SLOTS if n_parallel is None else whole("n_parallel", n_parallel)
    one_pool = n_parallel is None if unified is None else unified
    per_slot = _context_per_slot(architecture, n_ctx, slots, one_pool)
    ubatch = min(whole("n_batch", n_batch), whole("n_ubatch", n_ubatch))
    kv_k, kv_v = _cache_types(cache_type_k, cache_type_v, flash_attention)
    streams = 1 if one_pool else slots
    layers = cached_layers(architecture, "llama.cpp", _KINDS)
    groups: list[PlanGroup] = []
    warnings: list[str] = []
    rows = [_rows(architecture, cached) for cached in layers]
    # Over every layer of the model, windows and indexers included (`n_embd_v_gqa_max`).
    widest_v = 0 if flash_attention else max((row.v for row in rows), default=0)
    states = slots * (1 + whole("rollback", rollback, 0))
    for cached, row in zip(layers, rows, strict=True):
        if cached.kind == STATE:
            groups.append(_state_group(cached, states, slots))
            continue
        _check_blocks(row, kv_k, kv_v)
        window = _window_of(architecture, cached, warnings)
        cells = per_slot
        if window is not None and not swa_full:
            cells = round_up(min(per_slot, window * (slots if one_pool else 1) + ubatch), _CELL_UNIT)
        v = 0 if row.v == 0 else max(row.v, widest_v)
        cell_bytes = _row_bytes(kv_k, row.k) + _row_bytes(kv_v, v)
        groups.append(
            PlanGroup(
                kind=FULL if window is None and cached.kind != INDEX else cached.kind,
                layers=cached.count,
                block_tokens=1,
                page_bytes=cell_bytes,
                block_bytes=cached.count * cell_bytes,
                num_blocks=cells * streams,
                window_tokens=window,
            )
        )
        if v > row.v:
            warnings.append(f"V rows are padded from {row.v} to {v} elements: flash attention is off")
    has_cells = any(group.block_tokens is not None for group in groups)
    return EnginePlan(
        engine="llama.cpp",
        profile="unified" if one_pool else "per slot",
        block_tokens=1,
        bytes_per_block=None,
        num_blocks=per_slot * streams if has_cells else slots,
        capacity_tokens=per_slot * streams,
        max_concurrency=1.0 if one_pool and has_cells else float(slots),
        max_requests=slots,
        limit="kv" if one_pool and has_cells else "slots",
        kv_bytes_per_token_per_gpu=sum(group.block_bytes for group in groups if group.block_tokens is not None),
        pool_bytes=sum(group.block_bytes * (group.num_blocks or 0) for group in groups),
        groups=tuple(groups),
        warnings=tuple(dict.fromkeys(warnings)),
        sources=_SOURCES,
    )


def _state_group(cached: CachedLayers, states: int, slots: int) -> PlanGroup:
    """Both parts of the state in float32, one for each slot and each draft that may be taken back."""
    page_bytes = cached.state.state_bytes_as(conv_bytes=_STATE_ELEMENT_BYTES, recurrent_bytes=_STATE_ELEMENT_BYTES)
    return PlanGroup(
        kind=STATE,
        layers=cached.count,
        block_tokens=None,
        page_bytes=page_bytes,
        block_bytes=cached.count * page_bytes,
        num_blocks=states,
        blocks_per_request=states // slots,
    )


def _context_per_slot(architecture: Architecture, n_ctx: int | None, slots: int, one_pool: bool) -> int:
    """Cells of one stream: the context, or a slot's share of it, each rounded up to 256."""
    total = optional_whole("n_ctx", n_ctx)
    if total is None:
        total = architecture.max_position_embeddings
        if total is None:
            raise ModelError("n_ctx", "is missing: the model names no length it was trained on")
    total = round_up(total, _CELL_UNIT)
    if one_pool:
        return total
    share = total // slots
    if share == 0:
        raise ModelError("n_ctx", f"{total} cells are less than one for each of {slots} slots")
    return round_up(share, _CELL_UNIT)


def _cache_types(name_k: str, name_v: str, flash_attention: bool) -> tuple[KvDtype, KvDtype]:
    for argument, name in (("cache_type_k", name_k), ("cache_type_v", name_v)):
        if not isinstance(name, str) or name.lower() not in _CACHE_TYPES:
            raise ModelError(argument, f"{show(name)} is not one of {', '.join(sorted(_CACHE_TYPES))}")
    kv_k, kv_v = find_kv_dtype(name_k, "float16"), find_kv_dtype(name_v, "float16")
    if kv_v.group_elements and not flash_attention:
        raise ModelError("cache_type_v", f"{name_v}: a quantized V cache needs flash attention")
    return kv_k, kv_v


def _rows(architecture: Architecture, cached: CachedLayers) -> _Rows:
    layer = cached.layer
    if cached.kind == STATE:
        return _Rows(0, 0, 0, 0)
    if isinstance(layer, IndexKeys):
        v = architecture.head_dim if architecture.model_type in _INDEX_WITH_VALUES else 0
        return _Rows(layer.dim, v, layer.dim, v)
    if isinstance(layer, LatentAttention):
        if architecture.model_type not in _EXPANDED_LATENT:
            width = layer.kv_lora_rank + layer.qk_rope_head_dim
            return _Rows(width, 0, width, 0)
        if architecture.qk_nope_head_dim is None or architecture.v_head_dim is None:
            raise not_planned(architecture, "llama.cpp", "the expanded heads' sizes are not known")
        heads = architecture.num_attention_heads
        dim_k = architecture.qk_nope_head_dim + layer.qk_rope_head_dim
        return _Rows(heads * dim_k, heads * architecture.v_head_dim, dim_k, architecture.v_head_dim)
    heads, dim_k, dim_v = cached.heads.kv_heads, cached.heads.head_dim_k, cached.heads.head_dim_v
    return _Rows(heads * dim_k, heads * dim_v, dim_k, dim_v)


def _check_blocks(row: _Rows, kv_k: KvDtype, kv_v: KvDtype) -> None:
    for argument, kv, head in (("cache_type_k", kv_k, row.head_k), ("cache_type_v", kv_v, row.head_v)):
        if kv.group_elements and head % _BLOCK_ELEMENTS:
            raise ModelError(argument, f"{kv.name}: blocks of {_BLOCK_ELEMENTS} do not divide heads of {head} elements")


def _row_bytes(kv: KvDtype, elements: int) -> int:
    return kv.row_bytes(elements) if elements else 0


def _window_of(architecture: Architecture, cached: CachedLayers, warnings: list[str]) -> int | None:
    if cached.kept_tokens is None:
        return None
    if architecture.model_type not in _WINDOWED:
        warnings.append(f"llama.cpp knows no windows of {architecture.model_type}: its layers keep every token")
        return None
    return cached.kept_tokens
