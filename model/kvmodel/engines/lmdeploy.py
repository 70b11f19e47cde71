"""LMDeploy's block pools: a share of what is free after the weights are loaded.

Rules: TurboMind `SequenceManager.cc`, `BlockManager.cc`, `kernels/attention/block.h`; the PyTorch engine's
`engine/executor/base.py` and `engine/cache_engine` (LMDeploy 0.9 to 0.18).
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmodel.architecture import Architecture
from kvmodel.dtypes import kv_dtype as find_kv_dtype
from kvmodel.engines.cached import CHUNK, FULL, INDEX, STATE, WINDOW, CachedLayers, cached_layers, not_planned
from kvmodel.engines.contract import EnginePlan, PlanGroup, one_of, optional_whole, round_up, share, whole
from kvmodel.errors import ModelError, show
from kvmodel.layers import IndexKeys, LatentAttention, heads_per_rank

_QUANT_BITS = {0: 16, 4: 4, 8: 8, 16: 8, 17: 8}
_FP8 = (16, 17)
_SCALE_BYTES = 4
"""Scale and zero point, 16 bits each."""
_ALIGNMENT = 256
_LEAST_BLOCKS = 16
_SPARE_STATES = 2
_LARGE_HEAD = 512
_BLOCK_OF_LARGE_HEADS = 32
_SOURCES = ("LMDeploy 0.9 to 0.18",)


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Elements of K and V of one token in one layer, and its heads."""

    heads: int
    dim_k: int
    dim_v: int


def plan(
    architecture: Architecture,
    *,
    free_bytes: int,
    session_len: int | None = None,
    backend: str = "turbomind",
    cache_max_entry_count: float = 0.8,
    cache_blocks: int | None = None,
    block_tokens: int = 64,
    quant_policy: int = 0,
    max_batch_size: int = 128,
    max_prefill_token_num: int = 8192,
    prefix_caching: bool = False,
    flash_mla: bool = True,
    tp: int = 1,
) -> EnginePlan:
    """The pool of one GPU of which `free_bytes` are free once the weights are loaded.

    `cache_max_entry_count` is a share of these bytes, and `cache_blocks` the count that takes its place.
    `quant_policy` is 0, 4 (int4), 8 (int8), or with the PyTorch engine 16 and 17 (fp8). Raises ModelError naming the
    argument at fault.
    """
    one_of("backend", backend, ("turbomind", "pytorch"))
    architecture.check_tp(whole("tp", tp))
    length = optional_whole("session_len", session_len) or architecture.max_position_embeddings
    if length is None:
        raise ModelError("session_len", "is missing: the model names no length")
    torch_engine = backend == "pytorch"
    if quant_policy not in _QUANT_BITS or isinstance(quant_policy, bool) or (quant_policy in _FP8 and not torch_engine):
        raise ModelError("quant_policy", f"{show(quant_policy)} is not a policy of the {backend} engine")
    batch = whole("max_batch_size", max_batch_size)
    found = cached_layers(architecture, "LMDeploy", frozenset({FULL, WINDOW, CHUNK, INDEX, STATE}))
    block = _block_tokens(found, whole("block_tokens", block_tokens), torch_engine, flash_mla)
    kept = [cached for cached in found if cached.kind != STATE]
    pages = [
        (cached.count, _page_bytes(architecture, cached, block, quant_policy, tp, torch_engine)) for cached in kept
    ]
    block_bytes = sum(count * page for count, page in pages)
    if not block_bytes:
        raise not_planned(architecture, "LMDeploy", "a model without attention has no blocks")
    states = sum(cached.count for cached in found if cached.kind == STATE)
    slots = (batch + _SPARE_STATES if torch_engine else batch) if states else 0
    state_bytes = _state_bytes(architecture, tp) if states else 0
    ratio = share("cache_max_entry_count", cache_max_entry_count)
    free = whole("free_bytes", free_bytes)
    if cache_blocks is not None:
        blocks = whole("cache_blocks", cache_blocks)
    elif torch_engine:
        prefill = whole("max_prefill_token_num", max_prefill_token_num)
        blocks = _torch_blocks(architecture, free - slots * state_bytes, ratio, block_bytes, prefill, batch)
    else:
        blocks = max(0, int(free * ratio) - slots * state_bytes) // block_bytes
    if blocks < 1:
        raise ModelError("free_bytes", f"{show(free_bytes)} holds no block of {block_bytes} bytes")
    attention = PlanGroup(
        kind=FULL,
        layers=sum(cached.count for cached in kept if cached.kind != INDEX),
        block_tokens=block,
        page_bytes=max(page for _, page in pages),
        block_bytes=block_bytes,
        num_blocks=blocks,
        blocks_per_request=-(-length // block),
    )
    state = PlanGroup(STATE, states, None, state_bytes // (states or 1), state_bytes, slots, blocks_per_request=1)
    return _result(backend, attention, state if states else None, batch, _warnings(found, prefix_caching, torch_engine))


def _result(backend: str, attention: PlanGroup, state: PlanGroup | None, batch: int, warnings: list[str]) -> EnginePlan:
    blocks, block = attention.num_blocks or 0, attention.block_tokens or 1
    fitting = blocks / (attention.blocks_per_request or 1)
    groups = (attention,) if state is None else (attention, state)
    return EnginePlan(
        engine="lmdeploy",
        profile=backend,
        block_tokens=block,
        bytes_per_block=attention.block_bytes,
        num_blocks=blocks,
        capacity_tokens=blocks * block,
        max_concurrency=fitting,
        max_requests=batch,
        limit="max_requests" if batch < fitting else "kv",
        kv_bytes_per_token_per_gpu=attention.block_bytes // block,
        pool_bytes=sum(group.block_bytes * (group.num_blocks or 0) for group in groups),
        groups=groups,
        warnings=tuple(warnings),
        sources=_SOURCES,
    )


def _block_tokens(found: list[CachedLayers], block: int, torch_engine: bool, flash_mla: bool) -> int:
    """The PyTorch engine's kernels of large heads take blocks of 32; FlashMLA needs 64."""
    if not torch_engine:
        return block
    latent = any(cached.is_latent for cached in found)
    if latent and flash_mla:
        if block != 64:
            raise ModelError("block_tokens", f"{block}: FlashMLA needs 64")
        return block
    widest = max((_widest(cached) for cached in found), default=0)
    return min(block, _BLOCK_OF_LARGE_HEADS) if widest >= _LARGE_HEAD else block


def _widest(cached: CachedLayers) -> int:
    layer = cached.layer
    if isinstance(layer, LatentAttention):
        return layer.kv_lora_rank + layer.qk_rope_head_dim
    return 0 if cached.kind in (STATE, INDEX) else cached.heads.head_dim_k


def _geometry(cached: CachedLayers, tp: int) -> _Geometry:
    layer = cached.layer
    if isinstance(layer, LatentAttention):
        return _Geometry(1, layer.kv_lora_rank + layer.qk_rope_head_dim, 0)
    return _Geometry(heads_per_rank(cached.heads.kv_heads, tp), cached.heads.head_dim_k, cached.heads.head_dim_v)


def _page_bytes(
    architecture: Architecture, cached: CachedLayers, block: int, policy: int, tp: int, torch_engine: bool
) -> int:
    """Bytes of a block in one layer. The PyTorch engine aligns each of its parts."""
    if isinstance(cached.layer, IndexKeys):
        size = block * int(cached.layer.token_bytes(find_kv_dtype("auto", architecture.dtype)))
        return round_up(size, _ALIGNMENT) if torch_engine else size
    geometry = _geometry(cached, tp)
    sparse = any(isinstance(group.layer, IndexKeys) for group in architecture.groups)
    if cached.is_latent and sparse and policy in _FP8:
        row = find_kv_dtype("fp8_ds_mla", architecture.dtype)
        return round_up(block * int(cached.layer.token_bytes(row)), _ALIGNMENT)
    bits = _QUANT_BITS[policy]
    parts = [geometry.heads * dim * bits // 8 for dim in (geometry.dim_k, geometry.dim_v) if dim]
    if policy in (4, 8):
        parts += [geometry.heads * _SCALE_BYTES for dim in (geometry.dim_k, geometry.dim_v) if dim]
    if torch_engine:
        return sum(round_up(block * part, _ALIGNMENT) for part in parts)
    return block * sum(parts)


def _state_bytes(architecture: Architecture, tp: int) -> int:
    """One request's state: as many inputs as the convolution is wide, the rest in the model's type or the config's."""
    element = find_kv_dtype(architecture.state_dtype or architecture.dtype, architecture.dtype).element_bits // 8
    return architecture.state_bytes_as(conv_bytes=2, recurrent_bytes=element, tp=tp, more_columns=1)


def _torch_blocks(
    architecture: Architecture, free: int, ratio: float, block_bytes: int, prefill: int, batch: int
) -> int:
    """Runtime buffers are set aside first; where they leave less than 16 blocks the prefill is halved."""
    blocks = 0
    while prefill > 0:
        runtime = (prefill + 2 * batch) * architecture.vocab_size * 2
        blocks = max(0, int((free - runtime) * ratio)) // block_bytes
        if blocks >= _LEAST_BLOCKS:
            break
        prefill //= 2
    return blocks


def _warnings(found: list[CachedLayers], prefix_caching: bool, torch_engine: bool) -> list[str]:
    warnings = []
    if any(cached.kept_tokens is not None for cached in found):
        warnings.append("windows are kept at full length in the plan")
    if prefix_caching:
        warnings.append("blocks kept for reuse are counted as used, not as free")
    if torch_engine:
        warnings.append("the PyTorch engine rounds each part of a block up to 256 bytes")
    return warnings
