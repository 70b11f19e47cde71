"""The KV pool vLLM makes of a GPU's memory, as it prints it at start-up, by version."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvmodel.architecture import Architecture
from kvmodel.dtypes import KvDtype
from kvmodel.dtypes import kv_dtype as find_kv_dtype
from kvmodel.engines.contract import EnginePlan, PlanGroup, one_of, optional_whole, whole
from kvmodel.engines.vllm.grouping import gather
from kvmodel.engines.vllm.layout import SKIP_LAYERS, SKIP_WINDOWS, Layout, Terms, layout
from kvmodel.engines.vllm.profiles import Profile, profile_of
from kvmodel.engines.vllm.scheduling import Batches, batches, batches_in_flight
from kvmodel.engines.vllm.specs import CHUNKED, CROSS, SLIDING, SLIDING_LATENT, STATE, UNIFORM, Demand
from kvmodel.engines.vllm.stages import WidestStage, widest_stage
from kvmodel.engines.vllm.tables import Gathered
from kvmodel.errors import ModelError, show
from kvmodel.layers import ChunkedLocalAttention, IndexKeys, LatentAttention, Layer

if TYPE_CHECKING:
    from kvmodel.gpus import Gpu

_STATE_DTYPES = ("auto", "bfloat16", "float16", "float32")
_SKIPS_SINCE = 32
"""Where the rules of skipped layers were read; their alignment is younger than the flag."""
_BOUNDARY_LAYERS = 2
_KINDS = {SLIDING: "window", SLIDING_LATENT: "window", CHUNKED: "chunk", STATE: "state", CROSS: "cross"}


@dataclass(frozen=True, slots=True)
class _Pool:
    """Groups with what one request holds of each."""

    groups: list[Gathered]
    held: list[int]
    widest: WidestStage
    blocks: int
    block_tokens: int


def plan(
    architecture: Architecture,
    *,
    kv_bytes: int | None = None,
    num_blocks: int | None = None,
    block_tokens: int | None = None,
    max_model_len: int | None = None,
    kv_dtype: str = "auto",
    kv_dtype_skip_layers: Collection[str] = (),
    state_dtype: str = "auto",
    tp: int = 1,
    pp: int = 1,
    dcp: int = 1,
    engine_version: str | None = None,
    gpu: Gpu | None = None,
    max_num_batched_tokens: int | None = None,
    in_flight_batches: int | None = None,
    max_in_flight_tokens: int | None = None,
    max_num_seqs: int | None = None,
    hybrid_kv_cache: bool | None = None,
    async_scheduling: bool | None = None,
    prefix_caching: bool | None = None,
    draft: Architecture | None = None,
    draft_layers: int = 0,
    speculative_tokens: int = 0,
    encoder_tokens: int | None = None,
) -> EnginePlan:
    """vLLM's plan for `kv_bytes` per GPU, or for `num_blocks` blocks (`--num-gpu-blocks-override`).

    `max_model_len` defaults to the model's own limit, the other flags to the version's, those of the scheduler to the
    card's. `kv_dtype_skip_layers` are numbers of layers whose cache keeps the model's type, or `sliding_window`;
    `state_dtype` is `--mamba-ssm-cache-dtype`, of linear attention `--mamba-cache-dtype`. `in_flight_batches` replaces
    what the scheduling flags imply, `max_in_flight_tokens` that and the batch. `draft` is a draft model's architecture,
    `draft_layers` how many of the target's own prediction layers are loaded, `speculative_tokens` how many tokens they
    propose. Raises ModelError naming the argument, or `architecture` where vLLM refuses the model.
    """
    profile = profile_of(engine_version)
    length = _length(architecture, max_model_len)
    size = whole("dcp", dcp)
    kv = architecture.cache_dtype(_served_dtype(architecture, profile, kv_dtype, gpu), tp)
    skipped = _skipped_layers(architecture, profile, kv, kv_dtype_skip_layers)
    terms = Terms(
        profile=profile,
        kv=kv,
        tp=tp,
        block_tokens=optional_whole("block_tokens", block_tokens) or _card_block(architecture, gpu),
        max_model_len=length,
        caches_states=_caches_states(architecture, profile, prefix_caching),
        speculative_tokens=whole("speculative_tokens", speculative_tokens, 0),
        state_dtype=None if one_of("state_dtype", state_dtype, _STATE_DTYPES) == "auto" else state_dtype,
        encoder_tokens=optional_whole("encoder_tokens", encoder_tokens) or architecture.encoder_tokens or 0,
        skip_layers=skipped,
        skipped_kv=find_kv_dtype("auto", architecture.dtype) if skipped else None,
    )
    described = layout(architecture, terms, _drafts(architecture, draft, draft_layers))
    groups, warnings = gather(described.specs, profile, _hybrid(architecture, profile, hybrid_kv_cache))
    _check_sinks(architecture, groups)
    if kv.is_packed and profile.minor < _SKIPS_SINCE:
        warnings.append(f"{kv.name}: layers that may keep the model's type are planned for 0.{_SKIPS_SINCE} and later")
    batch = batches(
        profile,
        gpu,
        max_model_len=length,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
    )
    in_flight = optional_whole("max_in_flight_tokens", max_in_flight_tokens) or batch.max_num_batched_tokens * (
        optional_whole("in_flight_batches", in_flight_batches) or batches_in_flight(profile, async_scheduling, pp)
    )
    several = profile.retains_for_drafts and min(draft_layers, speculative_tokens) > 1
    demand = Demand(length, in_flight, speculative_tokens - 1 if several else 0, size)
    if size > 1 and any(group.kind in (SLIDING, CHUNKED) for group in groups):
        raise ModelError("dcp", "vLLM shares no tokens of windows among ranks")
    pool = _pool(groups, demand, described, architecture, profile, pp, kv_bytes, num_blocks)
    if batch.assumed and max_in_flight_tokens is None and _depends_on_batches(pool, demand):
        warnings.append(f"max_num_batched_tokens is not known: {batch.max_num_batched_tokens} assumed")
    return _result(profile, pool, demand, batch, max_num_seqs, warnings)


def _length(architecture: Architecture, max_model_len: int | None) -> int:
    length = architecture.max_position_embeddings if max_model_len is None else max_model_len
    if length is None:
        raise ModelError("max_model_len", "is missing, and the model states no limit of its own")
    return whole("max_model_len", length)


def _served_dtype(architecture: Architecture, profile: Profile, name: str, gpu: Gpu | None) -> str:
    """The cache's type as this version takes a flag: sparse MLA has an fp8 layout of its own."""
    sparse = any(isinstance(group.layer, IndexKeys) for group in architecture.groups) and any(
        isinstance(group.layer, LatentAttention) for group in architecture.groups
    )
    if not sparse:
        return name
    if name in ("bfloat16", "bf16"):
        return "auto" if architecture.kv_cache_dtype is None else name
    if name == "auto" and profile.sparse_fp8 and architecture.kv_cache_dtype is None:
        return "fp8_ds_mla"
    blackwell = gpu is not None and gpu.compute_capability is not None and gpu.compute_capability[0] == 10
    if name.startswith("fp8") and not blackwell:
        return "fp8_ds_mla"
    return name


def _skipped_layers(
    architecture: Architecture, profile: Profile, kv: KvDtype, given: Collection[str]
) -> frozenset[str]:
    """The layers asked for, and those that packed types leave alone at both ends (`get_boundary_skip_layers`)."""
    if not given and not kv.is_packed:
        return frozenset()
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise ModelError(SKIP_LAYERS, f"{show(given)} is not a list of layers")
    layers = architecture.num_layers
    for name in given:
        if name != SKIP_WINDOWS and not (name.isdecimal() and len(name) < 6 and int(name) < layers):
            raise ModelError(SKIP_LAYERS, f"{show(name)} is neither a layer of {layers} nor {SKIP_WINDOWS}")
    if given and profile.minor < _SKIPS_SINCE:
        raise ModelError(SKIP_LAYERS, f"is planned for vLLM 0.{_SKIPS_SINCE} and later")
    sparse = any(isinstance(group.layer, IndexKeys) for group in architecture.groups)
    if given and (sparse or kv.latent_rope_bits):
        raise ModelError(SKIP_LAYERS, "is not planned beside sparse attention")
    hybrid = not all(_attends(group.layer) for group in architecture.groups)
    if given and kv.is_packed and hybrid:
        raise ModelError(SKIP_LAYERS, f"is not planned for {kv.name} beside recurrent states")
    if not kv.is_packed or hybrid or profile.minor < _SKIPS_SINCE:
        return frozenset(given)
    ends = min(_BOUNDARY_LAYERS, layers // 2)
    return frozenset((*given, *map(str, range(ends)), *map(str, range(layers - ends, layers))))


def _card_block(architecture: Architecture, gpu: Gpu | None) -> int | None:
    """The block size the MLA backends of a card ask for; None where any takes the usual one."""
    capability = gpu.compute_capability if gpu is not None else None
    if capability is None or not any(isinstance(group.layer, LatentAttention) for group in architecture.groups):
        return None
    if any(isinstance(group.layer, IndexKeys) for group in architecture.groups):
        return 64
    return 32 if capability[0] == 10 else None


def _caches_states(architecture: Architecture, profile: Profile, prefix_caching: bool | None) -> bool:
    if prefix_caching is not None:
        return prefix_caching
    # Models of states alone do not cache prefixes by default.
    return profile.caches_states and architecture.num_attention_heads > 0


def _hybrid(architecture: Architecture, profile: Profile, flag: bool | None) -> bool:
    """Whether kinds have block tables of their own: off for chunked attention unless asked for."""
    if flag is not None:
        return flag
    return profile.kinds and not any(isinstance(group.layer, ChunkedLocalAttention) for group in architecture.groups)


def _check_sinks(architecture: Architecture, groups: list[Gathered]) -> None:
    """Static sinks lie in blocks of the pool that no request owns, and fill them (`SinkFullAttentionManager`)."""
    sinks = max(getattr(group.layer, "sink_tokens", 0) for group in architecture.groups)
    for member in (member for group in groups for member in group.members if member.spec.is_full):
        if sinks % member.spec.block_tokens:
            raise ModelError("block_tokens", f"{member.spec.block_tokens} does not divide {sinks} sink tokens")


def _drafts(architecture: Architecture, draft: Architecture | None, draft_layers: int) -> list[Layer]:
    """Caches beside the target's: a draft model's, or as many of the target's last full attention as it predicts with.

    A prediction layer is one more decoder layer of the target's own kind, always with attention.
    """
    found: list[Layer] = [] if draft is None else list(draft.layers)
    if whole("draft_layers", draft_layers, 0):
        block = next((b for b in reversed(architecture.blocks) if any(_attends(layer) for layer in b.caches)), None)
        if block is None:
            raise ModelError("draft_layers", f"{architecture.model_type} has no attention to predict with")
        found += [layer for layer in block.caches if _attends(layer)] * draft_layers
    return found


def _attends(layer: Layer) -> bool:
    return type(layer).__module__ != "kvmodel.states"


def _pool(
    groups: list[Gathered],
    demand: Demand,
    described: Layout,
    architecture: Architecture,
    profile: Profile,
    pp: int,
    kv_bytes: int | None,
    num_blocks: int | None,
) -> _Pool:
    widest = widest_stage(groups, described, architecture.num_layers, pp, profile)
    # Groups that keep everything stand first, whatever comes first in the model.
    ordered = sorted(groups, key=lambda group: not group.members[0].spec.is_full)
    held = [group.blocks(demand) for group in ordered]
    blocks = _num_blocks(widest.bytes_per_block, kv_bytes, num_blocks)
    return _Pool(ordered, held, widest, blocks, described.block_tokens)


def _num_blocks(bytes_per_block: int, kv_bytes: int | None, num_blocks: int | None) -> int:
    if (kv_bytes is None) == (num_blocks is None):
        raise ModelError("kv_bytes", "the pool's bytes or its blocks are needed, one of the two")
    if num_blocks is not None:
        return whole("num_blocks", num_blocks)
    blocks = whole("kv_bytes", kv_bytes) // bytes_per_block
    if blocks < 1:
        raise ModelError("kv_bytes", f"{show(kv_bytes)} is less than one block of {bytes_per_block} bytes")
    return blocks


def _depends_on_batches(pool: _Pool, demand: Demand) -> bool:
    """Whether another batch would change what a request holds."""
    other = Demand(demand.max_model_len, 1, demand.retained_tokens, demand.context_ranks)
    return [group.blocks(other) for group in pool.groups] != pool.held


def _result(
    profile: Profile,
    pool: _Pool,
    demand: Demand,
    batch: Batches,
    max_num_seqs: int | None,
    warnings: list[str],
) -> EnginePlan:
    concurrency = _concurrency(profile, pool, demand)
    usable = pool.blocks - 1 if profile.counts_null_block else pool.blocks
    if usable < sum(pool.held):
        warnings.append(f"vLLM does not start: one request of {demand.max_model_len} tokens does not fit")
    return EnginePlan(
        engine="vllm",
        profile=profile.name,
        block_tokens=_block_tokens(pool),
        bytes_per_block=pool.widest.bytes_per_block,
        num_blocks=pool.blocks,
        capacity_tokens=_capacity(profile, pool, concurrency, demand),
        max_concurrency=concurrency,
        kv_bytes_per_token_per_gpu=round(pool.widest.bytes_per_token),
        pool_bytes=pool.blocks * pool.widest.bytes_per_block,
        groups=tuple(_view(group, held, pool) for group, held in zip(pool.groups, pool.held, strict=True)),
        max_requests=max_num_seqs or batch.max_num_seqs,
        limit="max_num_seqs" if batch.max_num_seqs is not None and concurrency > batch.max_num_seqs else "kv",
        warnings=tuple(warnings),
    )


def _concurrency(profile: Profile, pool: _Pool, demand: Demand) -> float:
    """`Maximum concurrency`: requests of the longest length that the blocks hold, the null block not deducted."""
    if not profile.whole_blocks:
        return pool.blocks * pool.block_tokens / demand.max_model_len
    if profile.summed_blocks:
        return pool.blocks / sum(pool.held)
    first = pool.groups[0].page_bytes
    needed = sum(held * group.page_bytes for held, group in zip(pool.held, pool.groups, strict=True))
    return pool.blocks / -(-needed // first)


def _capacity(profile: Profile, pool: _Pool, concurrency: float, demand: Demand) -> int:
    """`GPU KV cache size`, with the engine's own rounding."""
    if profile.tokens_from_concurrency:
        return int(concurrency * demand.max_model_len)
    return pool.blocks // len(pool.groups) * _smallest_block(pool) * demand.context_ranks


def _block_tokens(pool: _Pool) -> int:
    """What `block_size` says: the smallest of the groups that count tokens."""
    sizes = [member.spec.block_tokens for group in pool.groups if group.kind != STATE for member in group.members]
    return min(sizes, default=pool.block_tokens)


def _smallest_block(pool: _Pool) -> int:
    return min(member.spec.block_tokens for group in pool.groups for member in group.members)


def _view(group: Gathered, held: int, pool: _Pool) -> PlanGroup:
    spec = group.members[0].spec
    kind = _KINDS.get(spec.kind if group.kind == UNIFORM else group.kind, "full")
    return PlanGroup(
        kind=kind,
        layers=group.layers,
        block_tokens=None if kind == "state" else spec.block_tokens,
        page_bytes=group.page_bytes,
        block_bytes=pool.widest.bytes_per_block,
        window_tokens=spec.span if kind in {"window", "chunk"} else None,
        blocks_per_request=held,
    )
