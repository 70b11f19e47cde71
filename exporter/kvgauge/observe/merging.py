"""What the agents know, put into the engine's reading: which of the files are the engine's, and what of them is better.

The engine's page keeps what it states outright: its capacity, its queue, its counters. What it can only count in whole
blocks, or not at all, the scheduler's own books tell exactly. Where there is no page, the books are the reading.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace

from kvgauge.observe import engines
from kvgauge.observe.agent import STALE_SECONDS
from kvgauge.observe.records import AgentReading, EngineReading, ProcessReading, RankReading, SchedulerReading

PAGELESS = tuple(engine.name for engine in engines.PAGELESS)
_STAND_INS = frozenset({*PAGELESS, "torch"})
# What may run inside an engine that is another's wrapper; "torch" is what the agent calls a program it does not know.
_INSIDE: Mapping[str, frozenset[str]] = {
    "dynamo": frozenset({"vllm"}),
    "nim": frozenset({"vllm"}),
    "tgi": frozenset({"transformers"}),
}
_HELD_AT_FULL_LENGTH = ("static",)
_HELD_AS_GROWN = ("dynamic", "quantized")
# Blocks in use are compared over this many ticks: the page and the file are never of the same moment.
_COMPARED_TICKS = 3


def heads(processes: Iterable[ProcessReading]) -> dict[str, ProcessReading]:
    """By data-parallel rank, the process that knows its pool or its caches."""
    found: dict[str, ProcessReading] = {}
    told = [process for process in processes if process.scheduler is not None or process.caches]
    for process in sorted(told, key=lambda each: (each.scheduler is None, each.tp_rank or 0, each.pid)):
        found.setdefault(str(process.dp_rank or 0), process)
    return found


def head_of(rank: str, engine: EngineReading, agent: AgentReading | None) -> ProcessReading | None:
    """The process that knows the pool of one of the engine's ranks. Of one rank and one process the names may differ:
    an engine behind an external balancer may call itself 0."""
    found = heads(agent.engine_processes) if agent is not None else {}
    if len(found) == len(engine.ranks) == 1:
        return next(iter(found.values()))
    return found.get(rank)


def books_of(head: ProcessReading | None) -> SchedulerReading | None:
    """The scheduler's books, unless they are of a step too long ago."""
    books = head.scheduler if head is not None else None
    return None if books is None or (books.reading_age_seconds or 0.0) > STALE_SECONDS else books


def assign(agent: AgentReading, engine: EngineReading | None) -> AgentReading:
    """The reading with the instance that is the engine's; for None, with the one program that stands in for an engine.

    Where several fit alike, none is taken, and `missing["instance"]` says so.
    """
    instances: dict[str, list[ProcessReading]] = {}
    for process in agent.processes:
        instances.setdefault(process.instance, []).append(process)
    evidence = {
        instance: _stands_in(processes) if engine is None else _evidence(processes, engine)
        for instance, processes in instances.items()
    }
    fitting = {instance: score for instance, score in evidence.items() if score is not None}
    best = [instance for instance, score in fitting.items() if score == max(fitting.values())]
    if len(best) == 1:
        return replace(agent, instance=best[0])
    if best:
        why = f"{len(best)} programs with an agent fit alike and cannot be told apart: none is used"
    elif engine is None:
        why = "no program with an agent has caches that could stand in for an engine"
    else:
        why = "none of the agents' processes fits the engine"
    return replace(agent, missing={**agent.missing, "instance": why})


def _evidence(processes: list[ProcessReading], engine: EngineReading) -> tuple[int, int, int] | None:
    """How well the processes fit the engine: by its pool's size, its model and its kind; None where they contradict."""
    kinds = {process.engine for process in processes} - {"torch"}
    if kinds - {engine.engine} - _INSIDE.get(engine.engine, frozenset()):
        return None
    models = {process.model.rstrip("/") for process in processes if process.model}
    served = {name.rstrip("/") for name in (engine.model, engine.model_path) if name}
    same_model = bool(models & served)
    same_pool = 0
    own = AgentReading(tuple(processes), processes[0].instance)
    for rank in engine.ranks:
        books = books_of(head_of(rank.rank, engine, own))
        if books is not None and books.num_blocks is not None and rank.num_blocks is not None:
            if books.num_blocks == rank.num_blocks:
                same_pool = 1
            elif len(engine.ranks) == 1:
                # Of several ranks the page may tell no more than the mean.
                return None
    if models and engine.model_path is not None and not same_model and not same_pool:
        return None
    return same_pool, int(same_model), int(bool(kinds))


def _stands_in(processes: list[ProcessReading]) -> tuple[int, int, int] | None:
    kinds = {process.engine for process in processes}
    return (0, 0, 0) if kinds <= _STAND_INS and heads(processes) else None


def refined(engine: EngineReading, agent: AgentReading) -> EngineReading:
    """The engine's reading with what its own processes know better. Nothing is taken while it sleeps."""
    processes = agent.engine_processes
    if not processes or engine.asleep:
        return engine
    ranks = []
    for rank in engine.ranks:
        books = books_of(head_of(rank.rank, engine, agent))
        ranks.append(rank if books is None else _refined_rank(rank, books))
    return _filled(replace(engine, ranks=tuple(ranks)), _facts(processes))


def standing_in(agent: AgentReading) -> EngineReading | None:
    """The reading of a program without a page, from its processes alone; None where no instance is assigned."""
    found = heads(agent.engine_processes)
    if not found:
        return None
    first = next(iter(found.values()))
    blank = EngineReading(
        engine=first.engine,
        model=first.model or "",
        ranks=tuple(_rank(name, head) for name, head in sorted(found.items(), key=lambda item: int(item[0]))),
        standing_seconds=max(head.standing_seconds for head in found.values()),
    )
    return _filled(blank, _facts(agent.engine_processes))


def _rank(name: str, head: ProcessReading) -> RankReading:
    model, books = head.model or "", books_of(head)
    if books is None:
        return _rank_of_caches(RankReading(name, model), head)
    paged = next((cache for cache in head.caches if cache.kind == "paged"), None)
    one_group = books.groups[0].block_tokens if len(books.groups) == 1 else None
    block_tokens = (paged.block_tokens if paged is not None else None) or one_group
    capacity = paged.capacity_tokens if paged is not None else None
    if capacity is None and books.num_blocks is not None and one_group is not None:
        capacity = books.num_blocks * one_group
    rank = RankReading(
        rank=name,
        model=model,
        capacity_tokens=capacity,
        block_tokens=block_tokens,
        num_blocks=books.num_blocks,
        running=books.running,
        waiting=books.waiting,
        preemptions_total=books.preemptions,
        progress=None if books.steps is None else (books.steps,),
        missing={} if books.preemptions is not None else {"preemptions_total": "the engine does not count them"},
    )
    return _refined_rank(rank, books)


def _rank_of_caches(rank: RankReading, head: ProcessReading) -> RankReading:
    """Caches that a program made for itself: one that grows holds what it is given, one of full size all its slots.

    A cache of several kinds of layers has an entry for each, with the same tokens: those that keep them all tell.
    """
    whole = [cache for cache in head.caches if cache.kind in (*_HELD_AT_FULL_LENGTH, *_HELD_AS_GROWN)]
    counted = whole or [cache for cache in head.caches if cache.kind == "sliding"]
    live = _sum(cache.live_tokens for cache in counted)
    held = _sum(cache.live_tokens if cache.capacity_tokens is None else cache.capacity_tokens for cache in counted)
    full_size = _sum(cache.capacity_tokens for cache in counted)
    missing = {
        "running": "caches made one by one have no queue",
        "waiting": "caches made one by one have no queue",
    }
    if full_size is None:
        missing["capacity_tokens"] = "a cache that grows has no size of its own"
    if live is None:
        missing["live_tokens"] = next(
            (why for name, why in head.missing.items() if name.endswith("live_tokens")), "not told by every cache"
        )
    return replace(
        rank,
        capacity_tokens=full_size,
        active_tokens=held,
        free_tokens=None if full_size is None else 0,
        live_tokens=live,
        reserved_tokens=held,
        missing=missing,
    )


def _refined_rank(rank: RankReading, books: SchedulerReading) -> RankReading:
    missing = dict(rank.missing)
    found: dict[str, int | None] = {"used_blocks": books.used_blocks}
    slots = _slots_per_block(rank, books)
    capacity = rank.capacity_tokens
    if capacity is not None and slots is not None and books.used_blocks is not None:
        active = min(round(books.used_blocks * slots), capacity)
        found["active_tokens"] = active
        found["live_tokens"] = _live_tokens(books, active)
        found["free_tokens"] = capacity - active
        if books.cached_blocks is not None:
            reclaimable = min(round(books.cached_blocks * slots), capacity - active)
            found |= {"reclaimable_tokens": reclaimable, "free_tokens": capacity - active - reclaimable}
    if rank.preemptions_total is None and books.preemptions is not None:
        found["preemptions_total"] = books.preemptions
    known = {name: value for name, value in found.items() if value is not None}
    for name in known:
        missing.pop(name, None)
    if rank.usage_ratio is None and rank.num_blocks and books.used_blocks is not None:
        missing.pop("usage_ratio", None)
    return replace(rank, **known, usage_ratio=_usage(rank, books), missing=missing)  # type: ignore[arg-type]


def _usage(rank: RankReading, books: SchedulerReading) -> float | None:
    usable = (books.num_blocks or 0) - (books.null_blocks or 0)
    if rank.usage_ratio is not None or books.used_blocks is None or usable < 1:
        return rank.usage_ratio
    return min(books.used_blocks / usable, 1.0)


def _slots_per_block(rank: RankReading, books: SchedulerReading) -> float | None:
    """Of the capacity that the engine states: with several groups, a block's share of it."""
    if len(books.groups) == 1 and books.groups[0].block_tokens is not None:
        return books.groups[0].block_tokens
    num_blocks = books.num_blocks or rank.num_blocks
    if num_blocks is None or rank.capacity_tokens is None:
        return None
    return rank.capacity_tokens / num_blocks


def _live_tokens(books: SchedulerReading, active_tokens: int) -> int | None:
    """Of the active slots those that hold a token: with several groups, their share of the bytes held. States and an
    encoder's output fill what they hold."""
    if not books.groups:
        return None if books.live_tokens is None else min(books.live_tokens, active_tokens)
    live = held = 0.0
    for group in books.groups:
        if group.used_blocks is None or group.layer_bytes_per_block is None:
            return None
        size = float(group.used_blocks * group.layer_bytes_per_block)
        held += size
        if group.tail_tokens is not None and group.block_tokens is not None:
            size -= group.tail_tokens * group.layer_bytes_per_block / group.block_tokens
        elif group.kind not in {"state", "cross"}:
            return None
        live += max(size, 0.0)
    return round(active_tokens * live / held) if held else 0


def _facts(processes: Iterable[ProcessReading]) -> dict[str, object]:
    """What does not change while the engine runs: the first of the processes to tell it."""
    facts: dict[str, object] = {}
    for process in processes:
        books = process.scheduler or SchedulerReading()
        told = {
            "version": process.engine_version if process.engine != "torch" else None,
            "model_path": process.model,
            "tp": process.tp,
            "pp": process.pp,
            "max_model_len": books.max_model_len,
            "max_num_seqs": books.max_num_seqs,
            "max_num_batched_tokens": books.max_num_batched_tokens,
            "kv_dtype": books.kv_dtype,
            "prefix_caching": books.prefix_caching,
        }
        facts |= {name: value for name, value in told.items() if value is not None and name not in facts}
    return facts


def _filled(engine: EngineReading, facts: Mapping[str, object]) -> EngineReading:
    """The reading with facts that its page does not tell."""
    names = {each.name for each in fields(EngineReading)}
    new = {name: value for name, value in facts.items() if name in names and getattr(engine, name) is None}
    missing = {name: why for name, why in engine.missing.items() if name not in new}
    return replace(engine, **new, missing=missing)  # type: ignore[arg-type]


def _sum(values: Iterable[int | None]) -> int | None:
    """None where there are none, or where one is not known."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return sum(known) if known and len(known) == len(listed) else None


class Comparison:
    """Whether page and books tell the same occupancy, allowing for what it moves between two ticks."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[int, int]]] = {}

    def notes(self, engine: EngineReading, agent: AgentReading) -> tuple[str, ...]:
        """A note for each rank of which the two have told different numbers of blocks for a few ticks."""
        before, self._seen = self._seen, {}
        found = []
        for rank in engine.ranks:
            books = books_of(head_of(rank.rank, engine, agent))
            if books is None or books.used_blocks is None or rank.used_blocks is None:
                continue
            seen = self._seen[rank.rank] = before.get(rank.rank) or deque(maxlen=_COMPARED_TICKS)
            seen.append((rank.used_blocks, books.used_blocks))
            page, told = [pair[0] for pair in seen], [pair[1] for pair in seen]
            # A fraction of many blocks may be rounded to the block beside.
            apart = min(page) > max(told) + 1 or min(told) > max(page) + 1
            if len(seen) == _COMPARED_TICKS and apart:
                found.append(
                    f"rank {rank.rank}: the engine's page counts {page[-1]} blocks in use, its scheduler {told[-1]}"
                )
        return tuple(found)
