"""The caches of Hugging Face transformers: grown by concatenation, preallocated, quantized, or paged.

Rules: `cache_utils.py` and `generation/continuous_batching/cache.py` of transformers 5.19; `DynamicCache` and
`StaticCache` alike in 4.57 and 5.x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvmodel.architecture import Architecture
from kvmodel.dtypes import KvDtype
from kvmodel.dtypes import kv_dtype as find_kv_dtype
from kvmodel.engines.cached import CHUNK, CROSS, FULL, INDEX, STATE, WINDOW, CachedLayers, cached_layers, not_planned
from kvmodel.engines.contract import EnginePlan, PlanGroup, one_of, optional_whole, share, whole
from kvmodel.errors import ModelError, show
from kvmodel.states import LightningState, MatrixState, RwkvState

_KINDS = frozenset({FULL, WINDOW, CHUNK, INDEX, STATE, CROSS})
_CACHES = ("dynamic", "static", "quantized", "paged")
_ALL_HEADS = frozenset({"falcon"})
"""Models that repeat their KV heads for every attention head before caching (the new decoder architecture)."""
_FULL_PRECISION_INPUTS = frozenset({"inkling_text"})
"""Models whose convolutions, and what they keep, stay in float32 (`_keep_in_fp32_modules_strict`)."""
_GROUP_ELEMENTS = 64
_RESIDUAL_TOKENS = 128
_PAGE_TOKENS = 256
_SECTOR_UNIT = 128
_TRASH_SECTORS = 2
_BATCH_TOKENS = 8192
_LOGIT_ROWS = 1024
_INDEX_BYTES = 8
_SOURCES = ("transformers 5.19",)


def plan(
    architecture: Architecture,
    *,
    cache: str = "dynamic",
    length: int | None = None,
    batch: int = 1,
    dtype: str = "auto",
    encoder_tokens: int | None = None,
    nbits: int = 4,
    residual_length: int = _RESIDUAL_TOKENS,
    available_bytes: int | None = None,
    max_memory_percent: float = 0.9,
    page_size: int = _PAGE_TOKENS,
    max_batch_tokens: int = _BATCH_TOKENS,
    max_blocks_per_request: int = 0,
    flash_attention: bool = True,
    slices_logits: bool = True,
    async_batching: bool = True,
    tp: int = 1,
) -> EnginePlan:
    """The cache of `batch` sequences of `length` tokens, or, paged, what `available_bytes` hold.

    `cache`: `dynamic` keeps the real lengths and for a moment the old and the new tensors of a layer; `static`
    allocates `length` tokens (windows: their own); `quantized` keeps `nbits` with scales, and the last tokens as they
    are; `paged` is continuous batching, where `available_bytes` is what the device has free: `max_memory_percent` of
    it is shared out. Raises ModelError naming the argument at fault.
    """
    one_of("cache", cache, _CACHES)
    architecture.check_tp(whole("tp", tp))
    most = optional_whole("length", length) or architecture.max_position_embeddings
    if most is None:
        raise ModelError("length", "is missing: the model names no length")
    kv = find_kv_dtype(dtype, architecture.declared_dtype or architecture.dtype)
    if kv.element_bits < 16:
        raise ModelError("dtype", f"{show(dtype)} is not a type transformers caches in")
    if cache == "paged":
        options = _Paged(
            whole("page_size", page_size, 4),
            whole("max_batch_tokens", max_batch_tokens),
            whole("max_blocks_per_request", max_blocks_per_request, 0),
            flash_attention,
            slices_logits,
            2 if async_batching else 1,
        )
        free = int(whole("available_bytes", available_bytes or 0) * share("max_memory_percent", max_memory_percent))
        return _paged_plan(architecture, kv, options, free, most, tp)
    sequences = whole("batch", batch)
    quantized = _Quantized(nbits, whole("residual_length", residual_length)) if cache == "quantized" else None
    if quantized is not None and nbits not in (1, 2, 3, 4, 8):
        raise ModelError("nbits", f"{show(nbits)} is not one of 1, 2, 3, 4 and 8")
    inputs = optional_whole("encoder_tokens", encoder_tokens) or architecture.encoder_tokens
    if inputs is None and architecture.has_cross_attention:
        raise ModelError("encoder_tokens", "is missing: the model attends to an encoder's output")
    groups = []
    for cached in cached_layers(architecture, "transformers", _KINDS):
        held = _held_bytes(architecture, cached, kv, most, inputs or 0, tp, cache, quantized)
        grown = cache == "dynamic" and cached.kind not in (STATE, CROSS)
        token = _layer_token_bytes(architecture, cached, kv, tp) if grown else None
        groups.append(_group(cached, held, token, sequences))
    largest = max(group.page_bytes * (group.blocks_per_request or 1) for group in groups)
    return EnginePlan(
        engine="transformers",
        profile=cache,
        block_tokens=None,
        bytes_per_block=None,
        num_blocks=None,
        capacity_tokens=sequences * most,
        max_concurrency=float(sequences),
        max_requests=sequences,
        limit="batch",
        kv_bytes_per_token_per_gpu=_token_bytes(architecture, kv, tp),
        pool_bytes=sum(group.block_bytes * (group.num_blocks or 0) for group in groups),
        groups=tuple(groups),
        transient_bytes=0 if cache == "static" else sequences * _transient(largest, kv, quantized),
        warnings=_warnings(cache),
        sources=_SOURCES,
    )


def _group(cached: CachedLayers, held: int, token: int | None, sequences: int) -> PlanGroup:
    """One tensor per layer and sequence, `held` bytes of each; where it grows, by `token` bytes at a time."""
    blocks = 1 if token is None else held // token
    kept = cached.kept_tokens
    return PlanGroup(
        kind=cached.kind,
        layers=cached.count,
        block_tokens=None if token is None else 1,
        page_bytes=held // blocks,
        block_bytes=cached.count * held // blocks,
        num_blocks=sequences * blocks,
        window_tokens=kept if kept is None or token is None else max(kept - 1, 1),
        blocks_per_request=blocks,
    )


@dataclass(frozen=True, slots=True)
class _Quantized:
    bits: int
    residual: int


@dataclass(frozen=True, slots=True)
class _Paged:
    page: int
    batch_tokens: int
    blocks_per_request: int
    flash: bool
    slices_logits: bool
    buffers: int
    """Sets of inputs: two where the next batch is prepared while one runs."""


def _held_bytes(
    architecture: Architecture,
    cached: CachedLayers,
    kv: KvDtype,
    tokens: int,
    encoder_tokens: int,
    tp: int,
    cache: str,
    quantized: _Quantized | None,
) -> int:
    """Bytes of one sequence in one layer."""
    if cached.kind == STATE:
        return _state_bytes(architecture, cached, kv, tp)
    each = _layer_token_bytes(architecture, cached, kv, tp)
    if cached.kind == CROSS:
        return encoder_tokens * each
    kept = cached.kept_tokens
    if kept is not None:
        # A static window is preallocated whole; a grown one drops what the next token will not see.
        tokens = min(tokens, kept if cache == "static" else max(kept - 1, 1))
    if quantized is None or cached.kind == INDEX:
        return tokens * each
    residual = min(tokens, quantized.residual)
    return residual * each + _quantized_bytes(tokens - residual, each, kv, quantized.bits)


def _state_bytes(architecture: Architecture, cached: CachedLayers, kv: KvDtype, tp: int) -> int:
    """As many inputs as the convolution is wide; the recurrent part in float32 but for a few kinds."""
    element = kv.element_bits // 8
    state = cached.state
    if isinstance(state, MatrixState):
        return state.recurrent_elements(tp) * element
    return state.state_bytes_as(
        conv_bytes=4 if architecture.model_type in _FULL_PRECISION_INPUTS else element,
        recurrent_bytes=element if isinstance(state, LightningState) else 4,
        tp=tp,
        more_columns=0 if isinstance(state, RwkvState) else 1,
    )


def _layer_token_bytes(architecture: Architecture, cached: CachedLayers, kv: KvDtype, tp: int) -> int:
    if cached.kind == INDEX:
        # The keys of an indexer lie in the model's type, not packed.
        return int(getattr(cached.layer, "dim", 0)) * kv.element_bits // 8
    each = cached.token_bytes(kv, tp)
    if architecture.model_type in _ALL_HEADS and 1 < architecture.num_kv_heads < architecture.num_attention_heads:
        return each * architecture.num_attention_heads // architecture.num_kv_heads
    return each


def _token_bytes(architecture: Architecture, kv: KvDtype, tp: int) -> int:
    return sum(
        cached.count * _layer_token_bytes(architecture, cached, kv, tp)
        for cached in cached_layers(architecture, "transformers", _KINDS)
        if cached.kind not in (STATE, CROSS)
    )


def _quantized_bytes(tokens: int, each: int, kv: KvDtype, bits: int) -> int:
    """Packed elements, and a scale and a zero point in the model's type for each group of 64."""
    elements = tokens * each * 8 // kv.element_bits
    return -(-elements * bits // 8) + -(-elements // _GROUP_ELEMENTS) * 2 * kv.element_bits // 8


def _transient(largest: int, kv: KvDtype, quantized: _Quantized | None) -> int:
    """The layer being updated lies there twice; a quantized one also in full precision."""
    return largest if quantized is None else largest * kv.element_bits // quantized.bits


def _warnings(cache: str) -> tuple[str, ...]:
    if cache == "quantized":
        return ("each step holds one layer in full precision again",)
    return ("a layer's old and new tensors live together while it grows",) if cache == "dynamic" else ()


def _paged_plan(
    architecture: Architecture, kv: KvDtype, options: _Paged, free: int, length: int, tp: int
) -> EnginePlan:
    """Sectors that full and sliding layers cut into blocks of their own size (`PagedAttentionMemoryHandler`)."""
    found = cached_layers(architecture, "transformers", frozenset({FULL, WINDOW}))
    if any(cached.is_latent for cached in found) or len({cached.token_bytes(kv, tp) for cached in found}) > 1:
        raise not_planned(architecture, "transformers", "paging takes layers of one geometry with K and V alike")
    each = found[0].token_bytes(kv, tp)
    layers = {kind: sum(cached.count for cached in found if cached.kind == kind) for kind in (FULL, WINDOW)}
    layers = {kind: count for kind, count in layers.items() if count}
    blocks = {kind: options.page * each * count for kind, count in layers.items()}
    sector = math.lcm(*blocks.values(), _SECTOR_UNIT)
    sector_tokens = max(sector // size * options.page for size in blocks.values())
    sectors = _sectors(architecture, kv, options, free, (sector, sector_tokens, len(layers), WINDOW in layers), tp)
    window = max((cached.kept_tokens or 0 for cached in found), default=0)
    groups, needed = [], 0
    for kind, count in layers.items():
        tokens = length if kind == FULL else min(length, window)
        held = -(-tokens // options.page)
        per_sector = sector // blocks[kind]
        needed += -(-held // per_sector)
        groups.append(
            PlanGroup(
                kind=kind,
                layers=count,
                block_tokens=options.page,
                page_bytes=options.page * each,
                block_bytes=blocks[kind],
                window_tokens=window if kind == WINDOW else None,
                blocks_per_request=held,
            )
        )
    whole_block = options.page * each * sum(layers.values())
    return EnginePlan(
        engine="transformers",
        profile="paged",
        block_tokens=options.page,
        bytes_per_block=sector,
        num_blocks=sectors,
        capacity_tokens=sectors * sector // whole_block * options.page,
        max_concurrency=sectors / needed,
        limit="kv",
        kv_bytes_per_token_per_gpu=each * sum(layers.values()),
        pool_bytes=(sectors + _TRASH_SECTORS) * sector,
        groups=tuple(groups),
        sources=_SOURCES,
    )


def _sectors(
    architecture: Architecture,
    kv: KvDtype,
    options: _Paged,
    free: int,
    geometry: tuple[int, int, int, bool],
    tp: int,
) -> int:
    """Sectors left once a batch's inputs, its activation peak and the attention masks are paid for."""
    sector, sector_tokens, groups, has_windows = geometry
    element = kv.element_bits // 8
    heads, kv_heads, dim = architecture.num_attention_heads, architecture.num_kv_heads, architecture.head_dim
    peak_heads = 2 * kv_heads if options.flash else 2 * heads + kv_heads
    logits_row = architecture.hidden_size * element + architecture.vocab_size * 4
    peak = element * (architecture.hidden_size + dim * (heads + 2 * kv_heads + peak_heads))
    inputs = 7 * 4 + 4 + groups * (options.blocks_per_request * 4 + 2 * _INDEX_BYTES)
    batch_token = max(0 if options.slices_logits else logits_row, peak) + options.buffers * inputs
    cache_token = peak_heads * dim * element + options.buffers * groups * _INDEX_BYTES
    fixed = _TRASH_SECTORS * sector + (_LOGIT_ROWS * logits_row if options.slices_logits else 0)
    each = sector + sector_tokens * cache_token
    sectors = (free - fixed - options.batch_tokens * batch_token) // each
    masks = 0 if options.flash else 2 if has_windows else 1
    if masks and sectors > 0:
        per_sector = options.buffers * masks * element * options.batch_tokens * sector_tokens
        mask_bytes = per_sector * sectors + options.buffers * masks * element * options.batch_tokens**2
        sectors -= math.ceil(mask_bytes / (each + per_sector))
    if sectors < 1:
        raise ModelError("available_bytes", f"{show(free)} bytes leave no sector of {sector} bytes (tp {tp})")
    return sectors
