"""SGLang's pools: one of tokens for all layers, or one for full attention and one for windows; slots of state.

Rules: `model_executor/pool_configurator.py` and `mem_cache/kv_cache_configurator.py` of 0.5.23, `model_runner.py` of
the versions before.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmodel.architecture import Architecture
from kvmodel.dtypes import KvDtype, model_dtype
from kvmodel.dtypes import kv_dtype as find_kv_dtype
from kvmodel.engines.cached import CHUNK, FULL, INDEX, STATE, WINDOW, CachedLayers, cached_layers
from kvmodel.engines.contract import EnginePlan, PlanGroup, optional_whole, round_up, share, whole
from kvmodel.engines.sglang.profiles import Profile, has_two_pools, profile_of
from kvmodel.errors import ModelError, show

_KINDS = frozenset({FULL, WINDOW, CHUNK, INDEX, STATE})
_KV_DTYPES = {
    "fp8_e5m2": "fp8_e5m2",
    "fp8_e4m3": "fp8_e4m3",
    "fp8": "fp8_e4m3",
    "mxfp8": "mxfp8",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "nvfp4": "nvfp4",
    "fp4_mx_block16": "nvfp4",
    "fp4_e2m1": "nvfp4",
}
_SMALL_WINDOW_POOLS = frozenset({"InklingForConditionalGeneration"})
_STATES_PER_REQUEST = 3
_EVICTION_INTERVAL = 128
_POSITION_BYTES = 4
_SPARE_POSITIONS = 4
_SOURCES = ("SGLang 0.4.2 to 0.5.23",)


@dataclass(frozen=True, slots=True)
class _Options:
    """The flags, checked, as one attention worker sees them."""

    kv_bytes: int
    context_tokens: int
    page: int
    ratio: float
    state_ratio: float
    radix: bool
    requests: int | None
    total_tokens: int | None
    chunk: int | None
    overlap: bool
    draft_layers: int
    draft_tokens: int


@dataclass(frozen=True, slots=True)
class _Layers:
    """The model's layers, by pool, with the bytes of a token in all of them."""

    whole: list[CachedLayers]
    windows: list[CachedLayers]
    states: list[CachedLayers]
    full_bytes: int
    window_bytes: int
    state_bytes: int
    state_element: int
    """Bytes of one element of the recurrent part."""

    @property
    def window_tokens(self) -> int:
        return max(layers.kept_tokens or 0 for layers in self.windows)


def plan(
    architecture: Architecture,
    *,
    kv_bytes: int,
    context_tokens: int | None = None,
    version: str | None = None,
    kv_dtype: str = "auto",
    state_dtype: str = "auto",
    tp: int = 1,
    dp: int = 1,
    dp_attention: bool = False,
    page_size: int = 1,
    two_pools: bool | None = None,
    swa_full_tokens_ratio: float | None = None,
    mamba_full_memory_ratio: float = 0.9,
    max_mamba_cache_size: int | None = None,
    states_per_request: int | None = None,
    radix_cache: bool = True,
    max_running_requests: int | None = None,
    max_total_tokens: int | None = None,
    chunked_prefill_size: int | None = None,
    overlap: bool = True,
    draft_layers: int = 0,
    draft_tokens: int = 0,
) -> EnginePlan:
    """The pools SGLang makes of `kv_bytes` (`available_kv_bytes`) on one GPU.

    With `dp_attention` the attention ranks are `tp / dp`, and each of the `dp` workers has such a pool of its own;
    `max_running_requests` is over all of them. `two_pools` overrides which models get a pool for their windows (None:
    as the version does). `state_dtype` is `--mamba-ssm-dtype`. `draft_layers` are layers of an EAGLE or MTP draft,
    `draft_tokens` what it proposes. Raises ModelError naming the argument at fault.
    """
    profile = profile_of(version)
    attention_tp = _attention_ranks(architecture, tp, dp, dp_attention)
    workers = dp if dp_attention else 1
    length = optional_whole("context_tokens", context_tokens) or architecture.max_position_embeddings
    if length is None:
        raise ModelError("context_tokens", "is missing: the model names no length")
    ratio = share("swa_full_tokens_ratio", 0.8 if swa_full_tokens_ratio is None else swa_full_tokens_ratio)
    if swa_full_tokens_ratio is None and _SMALL_WINDOW_POOLS & set(architecture.architectures):
        ratio = 0.1
    requests = optional_whole("max_running_requests", max_running_requests)
    options = _Options(
        kv_bytes=whole("kv_bytes", kv_bytes),
        context_tokens=length,
        page=whole("page_size", page_size),
        ratio=ratio,
        state_ratio=_positive("mamba_full_memory_ratio", mamba_full_memory_ratio),
        radix=radix_cache,
        requests=None if requests is None else max(1, requests // workers),
        total_tokens=optional_whole("max_total_tokens", max_total_tokens),
        chunk=optional_whole("chunked_prefill_size", chunked_prefill_size),
        overlap=overlap,
        draft_layers=whole("draft_layers", draft_layers, 0),
        draft_tokens=whole("draft_tokens", draft_tokens, 0),
    )
    kv = _cache_type(architecture, kv_dtype)
    split = has_two_pools(architecture, profile) if two_pools is None else two_pools
    state_element = _state_element_bytes(architecture, state_dtype)
    layers = _layers_of(architecture, kv, attention_tp, split, options.draft_layers, state_element)
    warnings = _warnings(layers, split, architecture)
    slots, left = 0, float(options.kv_bytes)
    per_request = _STATES_PER_REQUEST if radix_cache else 1
    if states_per_request is not None:
        per_request = whole("states_per_request", states_per_request)
    if layers.states:
        chosen = optional_whole("max_mamba_cache_size", max_mamba_cache_size)
        chosen = None if chosen is None else chosen // workers
        slots, left = _state_slots(layers.state_bytes, options, profile, per_request, chosen)
    full, window = _token_pools(layers, int(left), options, profile)
    return _result(layers, options, profile, kv, attention_tp, (full, window, slots, per_request), warnings)


def _attention_ranks(architecture: Architecture, tp: int, dp: int, dp_attention: bool) -> int:
    whole("tp", tp)
    whole("dp", dp)
    if dp_attention and tp % dp:
        raise ModelError("dp", f"{dp} does not divide {tp} ranks")
    ranks = tp // dp if dp_attention else tp
    architecture.check_tp(ranks)
    return ranks


def _positive(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1000:
        raise ModelError(name, f"{show(value)} is not a number above 0")
    return float(value)


def _cache_type(architecture: Architecture, name: str) -> KvDtype:
    """`auto` is the model's type, or fp8 where the checkpoint's own quantization says so."""
    if name == "auto":
        declared = architecture.kv_cache_dtype
        in_checkpoint = declared is not None and declared.startswith("fp8") and declared != "fp8_ds_mla"
        known: str | None = "fp8_e4m3" if in_checkpoint else architecture.dtype
    else:
        known = _KV_DTYPES.get(name) if isinstance(name, str) else None
    if known is None:
        raise ModelError("kv_dtype", f"{show(name)} is not one of auto, {', '.join(sorted(_KV_DTYPES))}")
    if known.startswith("fp8_e4m3") and _is_sparse_latent(architecture):
        # The scaled rows of FlashMLA's sparse kernels.
        known = "fp8_ds_mla"
    return find_kv_dtype(known, architecture.dtype)


def _is_sparse_latent(architecture: Architecture) -> bool:
    kinds = cached_layers(architecture, "SGLang", _KINDS)
    return any(layers.is_latent for layers in kinds) and any(layers.kind == INDEX for layers in kinds)


def _layers_of(
    architecture: Architecture, kv: KvDtype, tp: int, split: bool, draft_layers: int, state_element: int
) -> _Layers:
    found = cached_layers(architecture, "SGLang", _KINDS)
    windows = [layers for layers in found if split and layers.kind in (WINDOW, CHUNK)]
    states = [layers for layers in found if layers.kind == STATE]
    kept = [layers for layers in found if layers not in windows and layers not in states]
    full_bytes = sum(layers.count * layers.token_bytes(kv, tp) for layers in kept)
    window_bytes = sum(layers.count * layers.token_bytes(kv, tp) for layers in windows)
    if draft_layers:
        attention = sum(layers.count for layers in kept if layers.kind != INDEX)
        if not attention:
            raise ModelError("draft_layers", "the model has no layer of full attention for a draft to be like")
        full_bytes += full_bytes * draft_layers // attention
    state_bytes = architecture.state_bytes_as(conv_bytes=2, recurrent_bytes=state_element, tp=tp)
    return _Layers(kept, windows, states, full_bytes, window_bytes, state_bytes, state_element)


def _state_element_bytes(architecture: Architecture, name: str) -> int:
    """The flag's type, else the config's, else 32 bits."""
    known = architecture.state_dtype if name == "auto" else model_dtype(name, "state_dtype")
    return 4 if known is None else find_kv_dtype(known, "bfloat16").element_bits // 8


def _warnings(layers: _Layers, split: bool, architecture: Architecture) -> list[str]:
    if not split and any(kept.kept_tokens is not None for kept in layers.whole):
        return [f"SGLang gives windows of {architecture.model_type} no pool of their own: they keep every token"]
    return []


def _state_slots(
    per_slot: int, options: _Options, profile: Profile, per_request: int, chosen: int | None
) -> tuple[int, float]:
    """(slots handed out, bytes left for tokens): a share `r / (1 + r)` of the budget, unless a flag says how many."""
    left = float(options.kv_bytes)
    drafts = options.draft_tokens
    if drafts and options.requests is None:
        raise ModelError("max_running_requests", "is missing: drafts of a model with state need it")
    if drafts and profile.name == "0.5.9":
        left -= per_slot * (options.requests or 0) * drafts
    joint = drafts and profile.piecewise
    if chosen is not None:
        slots = chosen
    elif not options.radix and options.requests is not None:
        slots = options.requests
    elif not options.radix and profile.default_state_slots is not None:
        slots = profile.default_state_slots
    else:
        budget = left * options.state_ratio / (1 + options.state_ratio)
        padding = profile.state_padding * per_slot * (1 + drafts)
        each = per_slot * (1 + drafts / per_request) if joint else per_slot
        slots = int((budget - padding) // each)
        if drafts and not profile.two_pools:
            slots //= 1 + drafts
    if slots < 1:
        raise ModelError("kv_bytes", f"{show(options.kv_bytes)} holds no slot of {per_slot} bytes of state")
    if joint:
        capped = min(options.requests or 1, slots // per_request)
        left -= per_slot * (capped + profile.state_padding) * drafts
    taken = (slots + profile.state_padding) * per_slot
    if drafts and not profile.two_pools:
        taken *= 1 + drafts
    return slots, left - taken


def _token_pools(layers: _Layers, available: int, options: _Options, profile: Profile) -> tuple[int, int]:
    """Tokens of the pool for full attention and of the one for windows."""
    page = options.page
    full, windows = layers.full_bytes, layers.window_bytes
    sized = profile.sized_windows and bool(windows) and bool(full) and not options.radix
    if not full and not windows:
        return options.total_tokens or options.context_tokens, 0
    if sized and options.requests is not None and options.chunk is not None:
        window_tokens = round_up(_window_cap(layers.window_tokens, options), page)
        full_tokens = (available - window_tokens * windows) // full
        if options.total_tokens is not None:
            full_tokens = min(full_tokens, options.total_tokens)
            window_tokens = min(window_tokens, options.total_tokens)
    else:
        full_tokens = _tokens(full, windows, available, options, profile)
        window_tokens = int(full_tokens // page * page * options.ratio) if full and windows else 0
        if not full:
            full_tokens, window_tokens = 0, full_tokens
    full_tokens, window_tokens = full_tokens // page * page, window_tokens // page * page
    if max(full_tokens, window_tokens if not full else 0) < 1:
        raise ModelError("kv_bytes", f"{show(options.kv_bytes)} is less than one page of {page} tokens")
    if windows and profile.sized_windows and layers.window_tokens + page >= window_tokens:
        raise ModelError("kv_bytes", f"the windows' pool of {window_tokens} tokens holds no request")
    return full_tokens, window_tokens


def _tokens(full: int, windows: int, available: int, options: _Options, profile: Profile) -> int:
    cell = float(full + options.ratio * windows) if full and windows else full or windows
    if full and windows and profile.split_from_tokens:
        tokens = int(available // (full + windows) * (full + windows) / cell)
    else:
        tokens = int(available // cell)
    return tokens if options.total_tokens is None else min(tokens, options.total_tokens)


def _window_cap(window: int, options: _Options) -> int:
    """The most window tokens that the capped requests, and the prefill chunks in flight, may hold."""
    if options.draft_tokens:
        raise ModelError("draft_tokens", "windows sized by need are not planned with drafts")
    each = window + _EVICTION_INTERVAL + 2 * options.page
    chunks = 2 if options.overlap else 1
    return each * max(1, options.requests or 1) + chunks * (options.chunk or 0) + options.page


def _result(
    layers: _Layers,
    options: _Options,
    profile: Profile,
    kv: KvDtype,
    tp: int,
    sizes: tuple[int, int, int, int],
    warnings: list[str],
) -> EnginePlan:
    full, window, slots, per_request = sizes
    page, length = options.page, options.context_tokens
    groups = _groups(layers, options, kv, tp, (full, window, slots))
    # A request holds one slot of state, and keeps others from use while its prefix is cached.
    fits = {
        "kv" if group.kind == FULL else group.kind: float(slots // per_request)
        if group.kind == STATE
        else (group.num_blocks or 0) / (group.blocks_per_request or 1)
        for group in groups
    }
    capacity = full if layers.full_bytes else window
    requests = _request_cap(capacity, options, profile)
    if layers.states:
        requests = min(requests, slots // per_request)
    limit = min(fits, key=lambda name: fits[name])
    padding = page * (layers.full_bytes + layers.window_bytes)
    table = (requests + profile.state_padding) * (length + _SPARE_POSITIONS + options.draft_tokens) * _POSITION_BYTES
    return EnginePlan(
        engine="sglang",
        profile=profile.name,
        block_tokens=page,
        bytes_per_block=None if layers.windows else page * layers.full_bytes,
        num_blocks=capacity // page,
        capacity_tokens=capacity,
        max_concurrency=fits[limit],
        max_requests=requests,
        limit="max_requests" if requests < fits[limit] else limit,
        kv_bytes_per_token_per_gpu=layers.full_bytes + layers.window_bytes,
        pool_bytes=full * layers.full_bytes
        + window * layers.window_bytes
        + (slots + profile.state_padding) * layers.state_bytes,
        groups=tuple(groups),
        outside_bytes=padding + table,
        warnings=tuple(warnings),
        sources=_SOURCES,
    )


def _groups(layers: _Layers, options: _Options, kv: KvDtype, tp: int, sizes: tuple[int, int, int]) -> list[PlanGroup]:
    full, window, slots = sizes
    page = options.page
    groups = []
    for found, tokens, total in (
        (layers.whole, full, layers.full_bytes),
        (layers.windows, window, layers.window_bytes),
    ):
        if not found:
            continue
        inside = layers.window_tokens if found is layers.windows else None
        held = options.context_tokens if inside is None else min(options.context_tokens, inside + page)
        groups.append(
            PlanGroup(
                kind=FULL if inside is None else found[0].kind,
                layers=sum(cached.count for cached in found),
                block_tokens=page,
                page_bytes=page * max(cached.token_bytes(kv, tp) for cached in found),
                block_bytes=page * total,
                num_blocks=tokens // page,
                window_tokens=inside,
                blocks_per_request=-(-held // page),
            )
        )
    if layers.states:
        groups.append(
            PlanGroup(
                kind=STATE,
                layers=sum(cached.count for cached in layers.states),
                block_tokens=None,
                page_bytes=max(_one_state(cached, layers, tp) for cached in layers.states),
                block_bytes=layers.state_bytes,
                num_blocks=slots,
                blocks_per_request=1,
            )
        )
    return groups


def _one_state(cached: CachedLayers, layers: _Layers, tp: int) -> int:
    if len(layers.states) == 1:
        return layers.state_bytes // cached.count
    return cached.state.state_bytes_as(conv_bytes=2, recurrent_bytes=layers.state_element, tp=tp)


def _request_cap(capacity: int, options: _Options, profile: Profile) -> int:
    """Running requests of one worker, hence rows of the table from request to positions."""
    if options.requests is not None:
        cap = options.requests
    else:
        cap = min(max(int(capacity / options.context_tokens * 512), 2048), 4096)
    return min(cap, capacity // 2) if profile.piecewise else cap
