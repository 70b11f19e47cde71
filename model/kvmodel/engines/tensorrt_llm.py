"""TensorRT-LLM's paged pools: a share of what a dry run leaves free, cut into blocks, one pool per attention window.

Rules: `_torch/pyexecutor/resource_manager.py` (`calculate_max_num_blocks`, `calculate_max_num_blocks_for_vswa`),
`kvCacheManager.h` (`kSWAExtraBlock`) and the documentation of `KvCacheConfig`, TensorRT-LLM 1.1 to 1.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvmodel.architecture import Architecture
from kvmodel.dtypes import KvDtype
from kvmodel.dtypes import kv_dtype as find_kv_dtype
from kvmodel.engines.cached import CHUNK, CROSS, FULL, INDEX, STATE, WINDOW, CachedLayers, cached_layers
from kvmodel.engines.contract import EnginePlan, PlanGroup, one_of, optional_whole, share, whole
from kvmodel.errors import ModelError, show
from kvmodel.layers import CrossAttention, HeadsLayer, IndexKeys, Layer, StateLayer

_KV_DTYPES = {"fp8": "fp8", "fp8_e4m3": "fp8", "nvfp4": "nvfp4"}
_EXTRA_WINDOW_BLOCKS = 1
_SOURCES = ("TensorRT-LLM 1.1 to 1.3, PyTorch backend",)


@dataclass(frozen=True, slots=True)
class _Pool:
    """Layers that share one attention window."""

    window: int
    layers: int
    token_bytes: int
    widest_bytes: int
    is_cross: bool = False


def plan(
    architecture: Architecture,
    *,
    free_bytes: int | None = None,
    kv_bytes: int | None = None,
    max_seq_len: int | None = None,
    free_gpu_memory_fraction: float = 0.9,
    tokens_per_block: int = 32,
    max_tokens: int | None = None,
    max_batch_size: int = 2048,
    max_attention_window: Sequence[int] | str | None = None,
    window_shares: str = "equal",
    cross_kv_cache_fraction: float = 0.5,
    kv_dtype: str = "auto",
    tp: int = 1,
    attention_dp: bool = False,
) -> EnginePlan:
    """The pools of one GPU: a fraction of `free_bytes` (free after the dry run), or `kv_bytes` as they are.

    `max_attention_window` is the flag: a pattern repeated over the layers; None keeps every layer whole, whatever the
    model's windows; "model" takes the windows from the config. Several windows share the memory equally (PyTorch
    backend) or, with `window_shares` "size", in proportion to what one full sequence needs (C++). Models of encoder and
    decoder keep `cross_kv_cache_fraction` for the encoder's output. Raises ModelError naming the argument at fault.
    """
    length = optional_whole("max_seq_len", max_seq_len) or architecture.max_position_embeddings
    if length is None:
        raise ModelError("max_seq_len", "is missing: the model names no length")
    block = whole("tokens_per_block", tokens_per_block)
    batch = whole("max_batch_size", max_batch_size)
    one_of("window_shares", window_shares, ("equal", "size"))
    ranks = 1 if attention_dp else whole("tp", tp)
    architecture.check_tp(ranks)
    kv = _cache_type(architecture, kv_dtype)
    found = cached_layers(architecture, "TensorRT-LLM", frozenset({FULL, WINDOW, CHUNK, INDEX, STATE, CROSS}))
    warnings: list[str] = []
    states = [cached for cached in found if cached.kind == STATE]
    state_group = _state_group(architecture, states, batch, ranks, warnings) if states else None
    state_bytes = state_group.block_bytes * batch if state_group else 0
    budget = _budget(free_bytes, kv_bytes, free_gpu_memory_fraction, state_bytes)
    pools = _pools(architecture, found, kv, ranks, length, max_attention_window, warnings)
    cross = [pool for pool in pools if pool.is_cross]
    own = [pool for pool in pools if not pool.is_cross]
    fraction = share("cross_kv_cache_fraction", cross_kv_cache_fraction) if cross else 0.0
    groups = _groups(own, budget * (1 - fraction), block, length, max_tokens, window_shares)
    groups += _groups(cross, budget * fraction, block, length, None, window_shares)
    fits = {group.kind: (group.num_blocks or 0) / (group.blocks_per_request or 1) for group in groups}
    if state_group:
        groups.append(state_group)
        fits[STATE] = float(batch)
    limit = min(fits, key=lambda kind: fits[kind])
    if fits[limit] < 1:
        warnings.append(f"one request of {length} tokens does not fit: the engine shortens its longest length")
    main = next((group for group in groups if group.kind == FULL), groups[0])
    token_bytes = sum(pool.token_bytes for pool in own)
    return EnginePlan(
        engine="tensorrt-llm",
        profile="1.x" if len(own) < 2 else f"1.x, pools per window, {window_shares} shares",
        block_tokens=block,
        bytes_per_block=main.block_bytes if len(groups) == 1 else None,
        num_blocks=main.num_blocks,
        capacity_tokens=main.capacity_tokens or 0,
        max_concurrency=fits[limit],
        max_requests=batch,
        limit="max_requests" if batch < fits[limit] else limit,
        kv_bytes_per_token_per_gpu=token_bytes,
        pool_bytes=sum(group.block_bytes * (group.num_blocks or 0) for group in groups),
        groups=tuple(groups),
        warnings=tuple(warnings),
        sources=_SOURCES,
    )


def _budget(free: int | None, kv: int | None, fraction: float, state_bytes: int) -> float:
    if (free is None) == (kv is None):
        raise ModelError("free_bytes", "give either free_bytes or kv_bytes")
    if kv is not None:
        left: float = whole("kv_bytes", kv) - state_bytes
    else:
        # State is allocated before the pool is sized.
        left = share("free_gpu_memory_fraction", fraction) * (whole("free_bytes", free) - state_bytes)
    if left <= 0:
        raise ModelError("kv_bytes" if free is None else "free_bytes", f"{state_bytes} bytes of state leave no memory")
    return left


def _cache_type(architecture: Architecture, name: str) -> KvDtype:
    if name == "auto":
        declared = architecture.kv_cache_dtype
        if declared is not None and (declared.startswith("fp8") or declared == "nvfp4") and declared != "fp8_ds_mla":
            return find_kv_dtype("nvfp4" if declared == "nvfp4" else "fp8", architecture.dtype)
        return find_kv_dtype("auto", architecture.dtype)
    known = _KV_DTYPES.get(name) if isinstance(name, str) else None
    if known is None:
        raise ModelError("kv_dtype", f"{show(name)} is not one of auto, {', '.join(sorted(_KV_DTYPES))}")
    return find_kv_dtype(known, architecture.dtype)


def _token_bytes(layer: Layer, kv: KvDtype, tp: int) -> int:
    """Heads are shared out rounded up, not replicated by whole multiples only."""
    if isinstance(layer, HeadsLayer):
        return -(-layer.kv_heads // tp) * kv.pair_bytes(layer.head_dim_k, layer.head_dim_v)
    return int(layer.token_bytes(kv, tp))


def _pools(
    architecture: Architecture,
    found: list[CachedLayers],
    kv: KvDtype,
    tp: int,
    length: int,
    pattern: Sequence[int] | str | None,
    warnings: list[str],
) -> list[_Pool]:
    if pattern is None and any(cached.kept_tokens is not None for cached in found):
        warnings.append("max_attention_window is not set: windows are kept at full length")
    windows = _windows(architecture, length, pattern)
    by_window: dict[int, list[int]] = {}
    extra = 0
    index = 0
    for layer in architecture.layers:
        if isinstance(layer, (StateLayer, CrossAttention)):
            continue
        if isinstance(layer, IndexKeys):
            extra += _token_bytes(layer, kv, tp)
            continue
        by_window.setdefault(windows[index % len(windows)], []).append(_token_bytes(layer, kv, tp))
        index += 1
    pools = [
        _Pool(window, len(sizes), sum(sizes) + (extra if window == max(by_window) else 0), max(sizes))
        for window, sizes in sorted(by_window.items())
    ]
    for cached in found:
        if cached.kind == CROSS:
            tokens = architecture.encoder_tokens or length
            size = _token_bytes(cached.layer, kv, tp)
            pools.append(_Pool(tokens, cached.count, cached.count * size, size, is_cross=True))
    return pools


def _windows(architecture: Architecture, length: int, pattern: Sequence[int] | str | None) -> list[int]:
    if pattern is None:
        return [length]
    if isinstance(pattern, str):
        one_of("max_attention_window", pattern, ("model",))
        kept = [
            getattr(layer, "kept_tokens", None) or length
            for layer in architecture.layers
            if not isinstance(layer, (StateLayer, CrossAttention, IndexKeys))
        ]
        return [min(length, window) for window in kept] or [length]
    if not pattern:
        raise ModelError("max_attention_window", "is empty")
    return [min(length, whole("max_attention_window", window)) for window in pattern]


def _groups(
    pools: list[_Pool], budget: float, block: int, length: int, max_tokens: int | None, shares: str
) -> list[PlanGroup]:
    cap = optional_whole("max_tokens", max_tokens)
    needed = [pool.window * pool.token_bytes for pool in pools]
    groups = []
    for pool, need in zip(pools, needed, strict=True):
        part = need / sum(needed) if shares == "size" else 1 / len(pools)
        tokens = budget * part / pool.token_bytes
        # With several windows the flag is ignored.
        if cap is not None and len(pools) == 1:
            tokens = min(tokens, cap)
        inside = pool.window < length and not pool.is_cross
        groups.append(
            PlanGroup(
                kind=CROSS if pool.is_cross else WINDOW if inside else FULL,
                layers=pool.layers,
                block_tokens=block,
                page_bytes=block * pool.widest_bytes,
                block_bytes=block * pool.token_bytes,
                num_blocks=int(tokens // block),
                window_tokens=pool.window if inside else None,
                blocks_per_request=-(-pool.window // block) + (_EXTRA_WINDOW_BLOCKS if inside else 0),
            )
        )
    return groups


def _state_group(
    architecture: Architecture, states: list[CachedLayers], batch: int, tp: int, warnings: list[str]
) -> PlanGroup:
    """A state for each request of the batch; its recurrent part in the model's type unless the config says more."""
    element = find_kv_dtype(architecture.state_dtype or architecture.dtype, architecture.dtype).element_bits // 8
    warnings.append("states are planned as the separate manager keeps them: without snapshots for reuse")
    return PlanGroup(
        kind=STATE,
        layers=sum(cached.count for cached in states),
        block_tokens=None,
        page_bytes=max(cached.state.state_bytes_as(conv_bytes=2, recurrent_bytes=element, tp=tp) for cached in states),
        block_bytes=architecture.state_bytes_as(conv_bytes=2, recurrent_bytes=element, tp=tp),
        num_blocks=batch,
        blocks_per_request=1,
    )
