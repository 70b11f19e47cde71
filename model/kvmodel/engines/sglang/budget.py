"""What of a card SGLang leaves for the KV cache.

Rules: `server_args.py: __post_init__`, from 0.5.23 on `arg_groups/memory_hook.py`; `model_runner.py:
profile_max_num_token`.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmodel.engines.contract import optional_whole, share, whole
from kvmodel.engines.sglang.profiles import Profile, profile_of

_MIB = 2**20
_GIB_IN_MIB = 1024.0
_BASE_MIB = 512.0
_LEAST_LARGE_CARD_MIB = 10 * _GIB_IN_MIB


@dataclass(frozen=True, slots=True)
class _Card:
    """Defaults that follow the card's size: tokens of a prefill chunk, and the largest decode graph's requests."""

    below_gib: int | None
    chunk_tokens: int
    requests: int
    requests_from_tp4: int


_CARDS_05 = (
    _Card(20, 2048, 8, 8),
    _Card(35, 2048, 24, 80),
    _Card(60, 4096, 32, 160),
    _Card(160, 8192, 256, 512),
    _Card(None, 16384, 512, 512),
)
_CARDS_0523 = (_CARDS_05[0], _Card(35, 4096, 48, 160), *_CARDS_05[2:])

_TABLE = ((16, 0.79), (8, 0.81), (4, 0.85), (2, 0.87), (1, 0.88))


def available_kv_bytes(*, free_bytes: int, free_before_weights_bytes: int, mem_fraction_static: float) -> int:
    """Bytes of the pools: what is free once the weights are loaded, less the share kept for activations and graphs.

    The share is of what was free before the weights came.
    """
    whole("free_bytes", free_bytes)
    whole("free_before_weights_bytes", free_before_weights_bytes)
    kept = free_before_weights_bytes * (1 - share("mem_fraction_static", mem_fraction_static))
    return max(0, int(free_bytes - kept))


def default_mem_fraction_static(
    *,
    gpu_memory_mib: int,
    version: str | None = None,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
    dp_attention: bool = False,
    latent: bool = False,
    chunked_prefill_size: int | None = None,
    decode_graph_requests: int | None = None,
    max_running_requests: int | None = None,
    prefill_graphs: bool | None = None,
    deepep: bool = False,
    draft: str | None = None,
    vision: tuple[int, int] | None = None,
) -> float:
    """`--mem-fraction-static` where no flag gives it.

    `latent`: the model is served with MLA. `draft` is the speculative algorithm. `vision` is the vision tower's layers
    and width; multimodal models get less. Raises ModelError naming the argument at fault.
    """
    profile = profile_of(version)
    for name, value in (("gpu_memory_mib", gpu_memory_mib), ("tp", tp), ("pp", pp), ("dp", dp)):
        whole(name, value)
    if profile.reserve == "table":
        return _by_table(gpu_memory_mib, tp * pp)
    if profile.reserve == "card":
        reserved = _reserved_by_card(gpu_memory_mib, tp * pp)
        reserved += (2 * _GIB_IN_MIB if draft else 0) + (4 * _GIB_IN_MIB if dp_attention else 0)
        return round((gpu_memory_mib - reserved) / gpu_memory_mib, 3)
    card = _card_of(gpu_memory_mib, profile)
    chunk = card.chunk_tokens if chunked_prefill_size is None else whole("chunked_prefill_size", chunked_prefill_size)
    requests = optional_whole("decode_graph_requests", decode_graph_requests)
    if requests is None:
        requests = card.requests if tp < 4 else card.requests_from_tp4
        if profile.later_cards and max_running_requests is not None:
            requests = min(requests, whole("max_running_requests", max_running_requests))
    reserved = _BASE_MIB + 1.5 * max(chunk, 2048) + tp * pp / 8 * _GIB_IN_MIB + 2 * requests
    if dp_attention:
        reserved += requests * dp * (4.5 if requests > 300 else 3)
    if profile.piecewise if prefill_graphs is None else prefill_graphs:
        reserved += 1.5 * _GIB_IN_MIB if latent and profile.piecewise else 8 * _prefill_graphs(chunk)
    if gpu_memory_mib > 60 * _GIB_IN_MIB:
        reserved = max(reserved, _LEAST_LARGE_CARD_MIB)
    if not profile.piecewise and draft is not None and draft.upper() != "NGRAM":
        reserved += (6 if draft.upper() == "STANDALONE" else 2) * _GIB_IN_MIB
    if profile.piecewise and deepep:
        reserved += 2 * _GIB_IN_MIB
    fraction = round((gpu_memory_mib - reserved) / gpu_memory_mib, 3)
    return fraction if vision is None else fraction * _vision_factor(*vision)


def chunked_prefill_tokens(gpu_memory_mib: int, version: str | None = None) -> int:
    """`--chunked-prefill-size` where no flag gives it."""
    profile = profile_of(version)
    if profile.reserve == "table":
        return 2048 if gpu_memory_mib < 25_000 else 8192
    return _card_of(whole("gpu_memory_mib", gpu_memory_mib), profile).chunk_tokens


def _card_of(gpu_memory_mib: int, profile: Profile) -> _Card:
    cards = _CARDS_0523 if profile.later_cards else _CARDS_05
    return next(card for card in cards if card.below_gib is None or gpu_memory_mib < card.below_gib * 1024)


def _by_table(gpu_memory_mib: int, ranks: int) -> float:
    fraction = 0.88
    if gpu_memory_mib <= 81920:
        fraction = next(value for least, value in _TABLE if ranks >= least)
    if gpu_memory_mib > 96 * 1024:
        larger = fraction + 48 * 1024 * (1 - fraction) / gpu_memory_mib
        return min(larger, (gpu_memory_mib - 18 * 1024) / gpu_memory_mib)
    return fraction


def _reserved_by_card(gpu_memory_mib: int, ranks: int) -> float:
    if gpu_memory_mib < 35 * 1024:
        return (2.8 + ranks / 10) * _GIB_IN_MIB
    if gpu_memory_mib < 90 * 1024:
        return (9.5 + ranks / 2) * _GIB_IN_MIB
    if gpu_memory_mib < 160 * 1024:
        return (12 + ranks / 2) * _GIB_IN_MIB
    return 32 * _GIB_IN_MIB


def _prefill_graphs(chunk_tokens: int) -> int:
    """Captured prefill sizes up to the chunk."""
    sizes = [
        *range(4, 33, 4),
        *range(48, 257, 16),
        *range(288, 513, 32),
        *range(576, 1025, 64),
        *range(1280, 4097, 256),
        *range(4608, chunk_tokens + 1, 512),
    ]
    return sum(size <= chunk_tokens for size in sizes)


def _vision_factor(layers: int, hidden_size: int) -> float:
    """0.95 for a tower as large as ViT-L/14, less for a larger one."""
    relative = whole("vision", layers) * whole("vision", hidden_size) ** 2 / (24 * 1024**2)
    return 0.95 * max(0.8, min(1.05, 1.0 - 0.1 * (relative - 1.0)))
