"""Text Generation Inference: one paged pool, in which a request reserves its prompt and all it may generate.

Rules: `models/flash_causal_lm.py: warmup`, `models/globals.py` and `backends/v3/src/block_allocator.rs` of TGI 2.2
to 3.3. The project is in maintenance; its source is not on PyPI.
"""

from __future__ import annotations

from kvmodel.architecture import Architecture
from kvmodel.dtypes import kv_dtype as find_kv_dtype
from kvmodel.engines.cached import CHUNK, FULL, WINDOW, CachedLayers, cached_layers, not_planned
from kvmodel.engines.contract import EnginePlan, PlanGroup, one_of, optional_whole, share, whole
from kvmodel.errors import ModelError, show

_BLOCK_TOKENS = {"flashinfer": 1, "flashdecoding": 256, "paged": 16}
_KV_DTYPES = {"fp8_e4m3fn": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
_EXPANDED_LATENT = frozenset({"deepseek_v2", "minicpm3"})
_RESERVED_BLOCKS = 1
"""Block 0 serves health checks."""
_SOURCES = ("TGI 2.2 to 3.3",)


def plan(
    architecture: Architecture,
    *,
    free_bytes: int | None = None,
    kv_bytes: int | None = None,
    total_bytes: int | None = None,
    max_batch_total_tokens: int | None = None,
    max_total_tokens: int | None = None,
    attention: str = "flashinfer",
    memory_fraction: float = 1.0,
    wiggle_room: float = 0.9,
    kv_dtype: str = "auto",
    tp: int = 1,
    speculate: int = 0,
    max_concurrent_requests: int = 128,
) -> EnginePlan:
    """The pool of one GPU and how many worst cases it admits.

    Give `free_bytes` (free at the peak of the warm-up batch, that batch's own cache added back; with `total_bytes`
    where the two fractions are to be taken off the card), or `kv_bytes`, or `max_batch_total_tokens` as the flag has
    it. `max_total_tokens` is prompt and output of the longest request. Raises ModelError naming the argument.
    """
    block = _BLOCK_TOKENS[one_of("attention", attention, _BLOCK_TOKENS)]
    architecture.check_tp(whole("tp", tp))
    length = optional_whole("max_total_tokens", max_total_tokens) or architecture.max_position_embeddings
    if length is None:
        raise ModelError("max_total_tokens", "is missing: the model names no length")
    found = cached_layers(architecture, "TGI", frozenset({FULL, WINDOW, CHUNK}))
    token_bytes, widest = _token_bytes(architecture, found, kv_dtype, tp)
    block_bytes = block * token_bytes
    if max_batch_total_tokens is not None:
        blocks = whole("max_batch_total_tokens", max_batch_total_tokens) // block
    else:
        fractions = share("memory_fraction", memory_fraction) * share("wiggle_room", wiggle_room)
        blocks = _budget(free_bytes, kv_bytes, total_bytes, fractions) // block_bytes
    if blocks <= _RESERVED_BLOCKS:
        raise ModelError("kv_bytes", f"holds {blocks} blocks of {block_bytes} bytes: too few for a request")
    window = _window(found)
    reserved = length + max(0, whole("speculate", speculate, 0) - 1)
    per_request = -(-(reserved if window is None else min(reserved, window)) // block)
    warnings = []
    if window is None and any(cached.kept_tokens is not None for cached in found):
        warnings.append("windows of some layers only are kept at full length")
    group = PlanGroup(
        kind=FULL if window is None else WINDOW,
        layers=sum(cached.count for cached in found),
        block_tokens=block,
        page_bytes=block * widest,
        block_bytes=block_bytes,
        num_blocks=blocks,
        window_tokens=window,
        blocks_per_request=per_request,
    )
    fitting = (blocks - _RESERVED_BLOCKS) / per_request
    cap = whole("max_concurrent_requests", max_concurrent_requests)
    return EnginePlan(
        engine="tgi",
        profile=f"{attention}, reserved",
        block_tokens=block,
        bytes_per_block=block_bytes,
        num_blocks=blocks,
        capacity_tokens=blocks * block,
        max_concurrency=fitting,
        max_requests=cap,
        limit="max_requests" if cap < fitting else "kv",
        kv_bytes_per_token_per_gpu=token_bytes,
        pool_bytes=blocks * block_bytes,
        groups=(group,),
        reserves=True,
        warnings=tuple(warnings),
        sources=_SOURCES,
    )


def reserved_bytes(plan: EnginePlan, *, prompt_tokens: int, max_new_tokens: int) -> int:
    """Bytes a request takes from its admission to its end, whatever it then generates."""
    group = plan.groups[0]
    tokens = whole("prompt_tokens", prompt_tokens, 0) + whole("max_new_tokens", max_new_tokens, 0)
    if group.window_tokens is not None:
        tokens = min(tokens, group.window_tokens)
    return -(-tokens // (group.block_tokens or 1)) * group.block_bytes


def _budget(free: int | None, kv: int | None, total: int | None, fractions: float) -> int:
    if (free is None) == (kv is None):
        raise ModelError("free_bytes", "give one of free_bytes, kv_bytes and max_batch_total_tokens")
    if kv is not None:
        return whole("kv_bytes", kv)
    left = whole("free_bytes", free)
    if total is None:
        return int(left * fractions)
    return max(0, int(left - (1 - fractions) * whole("total_bytes", total)))


def _token_bytes(architecture: Architecture, found: list[CachedLayers], name: str, tp: int) -> tuple[int, int]:
    """(bytes of a token in all layers, in the widest): one geometry for all layers, K and V alike."""
    known = "auto" if name == "auto" else _KV_DTYPES.get(name) if isinstance(name, str) else None
    if known is None:
        raise ModelError("kv_dtype", f"{show(name)} is not one of auto, {', '.join(sorted(_KV_DTYPES))}")
    kv = find_kv_dtype(known, architecture.dtype)
    if architecture.model_type in _EXPANDED_LATENT:
        # Latents are expanded, and K and V padded to one width.
        if architecture.qk_nope_head_dim is None or architecture.v_head_dim is None:
            raise not_planned(architecture, "TGI", "the expanded heads' sizes are not known")
        width = max(architecture.qk_nope_head_dim + (architecture.rotary_dim or 0), architecture.v_head_dim)
        each = architecture.num_attention_heads // tp * 2 * kv.row_bytes(width)
        return each * sum(cached.count for cached in found), each
    sizes = {cached.token_bytes(kv, tp) for cached in found}
    if len(sizes) > 1:
        raise not_planned(architecture, "TGI", "layers of several widths do not fit its one geometry")
    each = sizes.pop()
    return each * sum(cached.count for cached in found), each


def _window(found: list[CachedLayers]) -> int | None:
    """A window only where all layers have the same one."""
    windows = {cached.kept_tokens for cached in found}
    return windows.pop() if len(windows) == 1 else None
