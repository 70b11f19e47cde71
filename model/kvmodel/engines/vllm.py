"""How vLLM (V1, 0.11 to 0.32) lays out its KV pool, for models whose layers all share one geometry.

Rules: `v1/core/kv_cache_utils.py` and `v1/kv_cache_interface.py` of vLLM 0.32.
"""

from dataclasses import dataclass

from kvmodel.architecture import Architecture
from kvmodel.dtypes import kv_dtype as find_kv_dtype
from kvmodel.errors import ModelError, show
from kvmodel.layers import FullAttention, LatentAttention, SlidingWindowAttention

_EXPANDED_LATENT = frozenset({"minicpm3"})
"""MLA models that vLLM runs, and caches, with expanded heads."""


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """The pool of one GPU, as vLLM prints it. The null block is counted in `num_blocks`, as vLLM counts it."""

    block_tokens: int
    bytes_per_block: int
    num_blocks: int
    blocks_per_request: int
    """Blocks one request of `max_model_len` tokens needs."""
    max_concurrency: float
    """Requests of `max_model_len` tokens the pool holds: `num_blocks / blocks_per_request`."""
    capacity_tokens: int
    """`GPU KV cache size`: `int(max_concurrency * max_model_len)`."""
    kv_bytes_per_token_per_gpu: int
    """Bytes of one token in all layers while it is kept."""


def plan_pool(
    architecture: Architecture,
    *,
    kv_bytes: int | None = None,
    num_blocks: int | None = None,
    block_tokens: int,
    max_model_len: int,
    kv_dtype: str = "auto",
    tp: int = 1,
    max_in_flight_tokens: int | None = None,
) -> PoolPlan:
    """The pool vLLM makes of `kv_bytes` per GPU, or with `num_blocks` blocks (`--num-gpu-blocks-override`).

    Give one of the two. `max_in_flight_tokens` is `max_num_batched_tokens` times the batches in flight (two with
    async scheduling, one without); only models whose layers all slide need it. Raises ModelError: field
    `architecture` for models of several layer geometries, else the argument at fault.
    """
    architecture.check_tp(tp)
    for name, value in (("block_tokens", block_tokens), ("max_model_len", max_model_len)):
        _check_positive(name, value)
    if len(architecture.groups) != 1:
        raise ModelError("architecture", f"{architecture.model_type}: several layer geometries, not planned yet")
    if architecture.model_type in _EXPANDED_LATENT:
        raise ModelError("architecture", f"{architecture.model_type}: vLLM caches expanded heads, not planned yet")
    group = architecture.groups[0]
    token_bytes = group.count * group.layer.token_bytes(find_kv_dtype(kv_dtype, architecture.dtype), tp)
    bytes_per_block = token_bytes * block_tokens
    blocks = _pool_blocks(kv_bytes, num_blocks, bytes_per_block)
    if isinstance(group.layer, (FullAttention, LatentAttention)):
        per_request = -(-max_model_len // block_tokens)
    elif isinstance(group.layer, SlidingWindowAttention):
        per_request = _window_blocks(group.layer.window_tokens, max_in_flight_tokens, max_model_len, block_tokens)
    else:
        raise ModelError("architecture", f"{type(group.layer).__name__} alone is not planned yet")
    return PoolPlan(
        block_tokens=block_tokens,
        bytes_per_block=bytes_per_block,
        num_blocks=blocks,
        blocks_per_request=per_request,
        max_concurrency=blocks / per_request,
        # In whole numbers: the float quotient times the length may end one token short.
        capacity_tokens=blocks * max_model_len // per_request,
        kv_bytes_per_token_per_gpu=token_bytes,
    )


def _pool_blocks(kv_bytes: int | None, num_blocks: int | None, bytes_per_block: int) -> int:
    if (kv_bytes is None) == (num_blocks is None):
        raise ModelError("kv_bytes", "give either kv_bytes or num_blocks")
    if num_blocks is not None:
        _check_positive("num_blocks", num_blocks)
        return num_blocks
    _check_positive("kv_bytes", kv_bytes)
    blocks = (kv_bytes or 0) // bytes_per_block
    if blocks < 1:
        raise ModelError("kv_bytes", f"{show(kv_bytes)} is less than one block of {bytes_per_block} bytes")
    return blocks


def _window_blocks(window: int, in_flight: int | None, max_model_len: int, block_tokens: int) -> int:
    """Blocks reserved per request: the window, the tokens in flight, and one more for a window off the block grid."""
    if in_flight is None:
        raise ModelError("max_in_flight_tokens", "is missing: a model of sliding windows reserves for it")
    _check_positive("max_in_flight_tokens", in_flight)
    return -(-min(window - 1 + in_flight, max_model_len) // block_tokens) + 1


def _check_positive(name: str, value: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(name, f"{show(value)} is not a positive whole number")
