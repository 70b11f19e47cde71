"""KV bytes that are taken and hold nothing, or a copy of what another GPU holds.

The kinds do not overlap, and each is in bytes on each GPU of a rank, so that they may be added up. `stranded` is of
the whole pool; the others are of what live sequences hold: a held block is padding, slots without a token, and slots
with one, of which some may be copies. Blocks that are free, or hold reusable prefixes, are not waste.

A kind that cannot be known is left out, with a reason in `missing`. It is 0 where the engine's design has none of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kvgauge.assess.records import Waste
from kvgauge.observe.records import (
    BlockGroupReading,
    CacheReading,
    EngineReading,
    ProcessReading,
    RankReading,
    SchedulerReading,
)
from kvmodel import Architecture, EnginePlan, ModelError
from kvmodel.layers import (
    ChunkedLocalAttention,
    CrossAttention,
    FullAttention,
    HeadsLayer,
    LatentAttention,
    SlidingWindowAttention,
    heads_per_rank,
)

MEASURED, ESTIMATED = "measured", "estimated"

# Their schedulers take blocks or pages as tokens come, and set none aside for later.
_NEVER_RESERVE = frozenset({"vllm", "sglang", "transformers", "lmdeploy", "max"})
_TOKEN_LAYERS: Mapping[str, type[HeadsLayer]] = {
    "full": FullAttention,
    "sliding_window": SlidingWindowAttention,
    "chunked": ChunkedLocalAttention,
    "cross": CrossAttention,
}


@dataclass(frozen=True, slots=True)
class WasteKind:
    """One kind, for docs/metrics.md."""

    meaning: str
    zero: str
    """Where it is 0 by design."""
    paper: str
    """What the PagedAttention paper calls it."""


KINDS: Mapping[str, WasteKind] = {
    "block_tail": WasteKind(
        "Slots behind the last token of a sequence in the last block or page that it holds, in each group of layers. "
        "Of caches that grow by concatenation: what their tensors keep beyond what is in use. Estimated: half a block "
        "less half a slot for each running request, where all layers are alike.",
        "never for paged engines, except by chance",
        "internal fragmentation, of which paging leaves at most one block for each sequence",
    ),
    "reservation": WasteKind(
        "Slots set aside for tokens that may still come: the rest of a static cache, of a request's slot (llama.cpp), "
        "of its longest possible length (TGI). Includes the tail of its last block.",
        "vLLM, SGLang, LMDeploy, MAX and Transformers' paged pool: they take blocks as tokens come",
        "reserved slots, and internal fragmentation: which of the two only the end of the request tells",
    ),
    "group_padding": WasteKind(
        "Bytes of held blocks that no layer of their group uses: pages brought to one size, and places of layers that "
        "a group lacks. Estimated: by the engine's plan, for requests of the mean length half way through.",
        "models whose layers are all alike: every layer uses its part of every block",
        "not there: it came with models of several kinds of layers",
    ),
    "head_replication": WasteKind(
        "Of the bytes that hold tokens, those that another GPU of the tensor-parallel group holds too: KV heads where "
        "there are more GPUs than heads, and MLA's latent on all of them. Recurrent state counts as divided, and "
        "decode context parallelism, which avoids copies, is not seen.",
        "one GPU, or no more GPUs than KV heads",
        "not there: it is a matter of tensor parallelism",
    ),
    "stranded": WasteKind(
        "Of what was set aside for the pool, the bytes that can never hold a token: the null block, whatever does not "
        "make a whole block, and what the engine keeps beside its blocks. Estimated: the null block of vLLM's V1 "
        "engine, and the rest of `--kv-cache-memory-bytes`.",
        "never",
        "external fragmentation, of which paging leaves no more than this",
    ),
}


@dataclass(frozen=True, slots=True)
class Pool:
    """What the waste of one rank is worked out from. Bytes are bytes on each GPU."""

    engine: EngineReading
    rank: RankReading
    head: ProcessReading | None
    """The process that knows the pool or the caches, where it has an agent."""
    books: SchedulerReading | None
    architecture: Architecture | None
    kv_dtype: str
    tp: int | None
    token_bytes: int | None
    """Bytes that one more token of a sequence adds."""
    plan: EnginePlan | None
    live_tokens: int | None
    live_method: str | None

    @property
    def is_uniform(self) -> bool:
        """All layers alike, and nothing but rows of tokens."""
        return self.architecture is not None and self.architecture.is_uniform_full_attention

    @property
    def caches(self) -> tuple[CacheReading, ...]:
        """Caches outside a paged pool."""
        return tuple(cache for cache in self.head.caches if cache.kind != "paged") if self.head is not None else ()


def wastes(pool: Pool, missing: dict[str, str]) -> tuple[Waste, ...]:
    """All kinds that can be known; `missing` gets a reason for each other one, under ``waste.<kind>``."""
    found = {
        "block_tail": _block_tail(pool),
        "reservation": _reservation(pool),
        "group_padding": _group_padding(pool),
        "head_replication": _head_replication(pool),
        "stranded": _stranded(pool),
    }
    known = []
    for kind, waste in found.items():
        if isinstance(waste, str):
            missing[f"waste.{kind}"] = waste
        else:
            size, method = waste
            known.append(Waste(kind, method, max(round(size), 0)))
    return tuple(known)


_Found = tuple[float, str] | str
"""Bytes and method, or the reason why they are not known."""


def _block_tail(pool: Pool) -> _Found:
    grown = [cache for cache in pool.caches if cache.capacity_tokens is None]
    if pool.books is None and pool.caches:
        return _unused(grown)
    if pool.books is not None and pool.books.groups:
        tail = _sum(map(_tail_bytes, pool.books.groups))
        if tail is not None:
            return tail, MEASURED
    if pool.rank.reserved_tokens is not None:
        return "part of the reservation"
    if pool.live_tokens is None or pool.live_method is None or pool.rank.active_tokens is None:
        return "the live tokens are not known"
    if pool.token_bytes is None or not pool.is_uniform:
        return "the bytes of a slot are not known" if pool.token_bytes is None else "slots of several sizes"
    return (pool.rank.active_tokens - pool.live_tokens) * pool.token_bytes, pool.live_method


def _reservation(pool: Pool) -> _Found:
    if pool.caches:
        return _unused([cache for cache in pool.caches if cache.capacity_tokens is not None])
    if pool.rank.reserved_tokens is not None:
        if pool.live_tokens is None or pool.live_method is None or pool.token_bytes is None:
            return "the live tokens or the bytes of a slot are not known"
        return (pool.rank.reserved_tokens - pool.live_tokens) * pool.token_bytes, pool.live_method
    if pool.engine.engine in _NEVER_RESERVE:
        return 0, MEASURED
    return "whether the engine reserves ahead is not known"


def _unused(caches: Iterable[CacheReading]) -> _Found:
    unused = 0
    for cache in caches:
        if cache.allocated_bytes is None or cache.live_bytes is None:
            return f"a {cache.kind} cache does not tell what of it is in use"
        unused += max(cache.allocated_bytes - cache.live_bytes, 0)
    return unused, MEASURED


def _group_padding(pool: Pool) -> _Found:
    books = pool.books
    if books is not None and books.groups and books.bytes_per_block is not None and books.used_blocks is not None:
        return _measured_padding(books, pool.head)
    if pool.is_uniform:
        return 0, MEASURED
    plan, used = pool.plan, pool.rank.used_blocks
    if plan is None or plan.bytes_per_block is None or used is None:
        return "the groups of layers are not known"
    if len(plan.groups) == 1:
        return 0, MEASURED
    tokens = usual_tokens(pool.rank)
    own = [group.layers * group.page_bytes for group in plan.groups]
    if any(group.kind == "state" for group in plan.groups):
        return "the agent tells it; how far states are padded is not in the plan"
    if tokens is None or any(size > group.block_bytes for size, group in zip(own, plan.groups, strict=True)):
        return "no request has finished yet" if tokens is None else "groups of layers of several sizes"
    held = [group.held_bytes(tokens) for group in plan.groups]
    padding = sum(
        size * (1 - mine / group.block_bytes) for size, mine, group in zip(held, own, plan.groups, strict=True)
    )
    return used * plan.bytes_per_block * padding / sum(held), ESTIMATED


def _measured_padding(books: SchedulerReading, head: ProcessReading | None) -> _Found:
    block_bytes, used = books.bytes_per_block or 0, books.used_blocks or 0
    by_group = [group.used_blocks for group in books.groups if group.used_blocks is not None]
    # Groups may divide a block of the pool into blocks of their own; then theirs do not add up to the pool's.
    if len(by_group) < len(books.groups) or abs(sum(by_group) - used) > max(len(by_group), used // 100):
        return "the groups have blocks of their own sizes"
    padding = _sum(_padding_bytes(group, block_bytes) for group in books.groups)
    if padding is None:
        return "the groups do not tell their layers' bytes"
    split = head is not None and "scheduler.groups.used_blocks" in head.missing
    return padding, ESTIMATED if split else MEASURED


def _head_replication(pool: Pool) -> _Found:
    if pool.tp is None:
        return "the tensor parallelism is not known"
    if pool.tp == 1:
        return 0, MEASURED
    groups = pool.books.groups if pool.books is not None else ()
    if groups:
        copied = 0.0
        for group in groups:
            share, live = _copied_share(group.kind, pool), _live_bytes(group)
            if share is None or live is None:
                return f"how the layers of kind {group.kind} are divided, or what they hold, is not known"
            copied += share * live
        return copied, MEASURED
    if pool.architecture is None or not pool.is_uniform:
        return "the model's architecture is not known, or has several kinds of layers"
    kind = "mla" if isinstance(pool.architecture.groups[0].layer, LatentAttention) else "full"
    share = _copied_share(kind, pool)
    if share is None or pool.live_tokens is None or pool.live_method is None or pool.token_bytes is None:
        return "the live tokens or the bytes of a slot are not known"
    return share * pool.live_tokens * pool.token_bytes, pool.live_method


def _copied_share(kind: str, pool: Pool) -> float | None:
    """Share of a kind's bytes that other GPUs hold too: 1 - (KV heads) / (GPUs x heads on each)."""
    tp = pool.tp or 1
    if kind == "mla":
        return 1 - 1 / tp
    if kind == "state":
        return 0.0
    layer_type = _TOKEN_LAYERS.get(kind)
    if layer_type is None or pool.architecture is None:
        return None
    rows = [(group.count, group.layer) for group in pool.architecture.groups if isinstance(group.layer, HeadsLayer)]
    # An engine may keep windows whole, as if they were full attention.
    rows = [(count, layer) for count, layer in rows if isinstance(layer, layer_type)] or rows
    try:
        kv = pool.architecture.cache_dtype(pool.kv_dtype, tp)
        sizes = [
            (count * layer.token_bytes(kv, tp), layer.kv_heads / (tp * heads_per_rank(layer.kv_heads, tp)))
            for count, layer in rows
        ]
    except ModelError:
        return None
    total = sum(size for size, _ in sizes)
    return 1 - sum(size * distinct for size, distinct in sizes) / total if total else None


def _stranded(pool: Pool) -> _Found:
    books, engine = pool.books, pool.engine
    if books is not None and books.num_blocks is not None and books.bytes_per_block is not None:
        block_bytes, blocks, null_blocks, method = books.bytes_per_block, books.num_blocks, books.null_blocks, MEASURED
        pool_bytes = books.kv_pool_bytes or blocks * block_bytes
    elif engine.engine == "vllm" and pool.plan is not None and pool.rank.num_blocks is not None:
        block_bytes, blocks, method = pool.plan.bytes_per_block or 0, pool.rank.num_blocks, ESTIMATED
        # V0 had none.
        null_blocks = 0 if pool.plan.profile == "vllm-v0" else 1
        pool_bytes = blocks * block_bytes
    else:
        return "the bytes of a block are not known"
    if engine.kv_cache_bytes is not None and engine.num_blocks_override is None:
        pool_bytes = max(pool_bytes, engine.kv_cache_bytes)
    return pool_bytes - (blocks - (null_blocks or 0)) * block_bytes, method


def _tail_bytes(group: BlockGroupReading) -> float | None:
    """Bytes of a group's slots without a token. States and an encoder's output fill what they hold."""
    if group.kind in {"state", "cross"}:
        return 0
    if group.tail_tokens is None or group.block_tokens is None or group.layer_bytes_per_block is None:
        return None
    return group.tail_tokens * group.layer_bytes_per_block / group.block_tokens


def _padding_bytes(group: BlockGroupReading, block_bytes: int) -> float | None:
    if group.used_blocks is None or group.layer_bytes_per_block is None:
        return None
    return group.used_blocks * max(block_bytes - group.layer_bytes_per_block, 0)


def _live_bytes(group: BlockGroupReading) -> float | None:
    tail = _tail_bytes(group)
    if tail is None or group.used_blocks is None or group.layer_bytes_per_block is None:
        return None
    return max(group.used_blocks * group.layer_bytes_per_block - tail, 0)


def _sum(values: Iterable[float | None]) -> float | None:
    """None where one is not known: a sum without it would be a smaller number, not an unknown one."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return sum(known) if len(known) == len(listed) else None


def usual_tokens(rank: RankReading) -> int | None:
    """Tokens of a request half way through its output, by the means of those that have finished."""
    prompt, output = rank.prompt_lengths, rank.output_lengths
    if prompt is None or output is None or not prompt.count or not output.count:
        return None
    return max(round(prompt.total / prompt.count + output.total / output.count / 2), 1)
