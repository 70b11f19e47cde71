"""One file of the agent's spool, believed as far as it can be: the schema is docs/spool.md, version 1.

Whoever can write into the folder can write anything. Only known keys are taken, numbers within bounds, words from the
lists or made of plain letters, lists up to a length; what is none of these is left out as if it were not there.
"""

import json
import re
from collections.abc import Mapping, Sequence

from kvgauge.observe.records import (
    AllocatorReading,
    BlockGroupReading,
    CacheReading,
    ProcessReading,
    SchedulerReading,
    SourceError,
)

SCHEMA = 1
_ROLES = frozenset({"scheduler", "worker", "server", "program"})
_ENGINES = frozenset({"vllm", "transformers", "torch"})
_GROUP_KINDS = frozenset({"full", "mla", "sliding_window", "chunked", "state", "cross", "other"})
_CACHE_KINDS = frozenset({"dynamic", "static", "sliding", "quantized", "state", "paged"})
_MEMORY = ("weights", "kv_pool", "activations", "graphs", "non_torch")
_MAX_ITEMS = 64
_MAX_PAIRS = 512
_MAX_TEXT = 256
# No count of tokens, blocks or bytes is larger; a float that is cannot be exact.
_MAX_COUNT = 2**53
_MAX_RANK = 1_000_000
_MAX_SECONDS = 1e12
# A version, a type, or a UUID: older drivers write MIG-GPU-.../1/0.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+/-]{0,63}")

_Object = Mapping[str, object]


def read_file(content: bytes, host: str) -> ProcessReading:
    """The facts of one file; `host` is that in its name.

    Raises SourceError: torn (no JSON), foreign (JSON of another schema, or without what every file has).
    """
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError):
        raise SourceError("torn", "the file is no JSON") from None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise SourceError("foreign", f"the file is not of schema {SCHEMA}")
    pid, instance = _count(raw.get("pid")), _count(raw.get("instance"))
    role, engine = _one_of(raw.get("role"), _ROLES), _one_of(raw.get("engine"), _ENGINES)
    written = _seconds(raw.get("monotonic_seconds"))
    if pid is None or instance is None or role is None or engine is None or written is None:
        raise SourceError("foreign", "the file lacks what every file has")
    scheduler = raw.get("scheduler")
    return ProcessReading(
        pid=pid,
        instance=f"{host}-{instance}",
        role=role,
        engine=engine,
        monotonic_seconds=written,
        engine_version=_word(raw.get("engine_version")),
        model=_text(raw.get("model")),
        dp_rank=_count(raw.get("dp_rank"), _MAX_RANK),
        tp_rank=_count(raw.get("tp_rank"), _MAX_RANK),
        pp_rank=_count(raw.get("pp_rank"), _MAX_RANK),
        dp=_count(raw.get("dp"), _MAX_RANK) or None,
        tp=_count(raw.get("tp"), _MAX_RANK) or None,
        pp=_count(raw.get("pp"), _MAX_RANK) or None,
        sequence=_count(raw.get("sequence")),
        tick_seconds=_seconds(raw.get("tick_seconds")),
        allocators=tuple(map(_allocator, _objects(raw.get("allocators")))),
        memory_bytes=_memory(raw.get("memory")),
        scheduler=_scheduler(scheduler) if isinstance(scheduler, dict) else None,
        caches=tuple(map(_cache, _of_kinds(raw.get("caches"), _CACHE_KINDS))),
        missing=_reasons(raw.get("missing")),
    )


def _allocator(raw: _Object) -> AllocatorReading:
    return AllocatorReading(
        device=_count(raw.get("device"), _MAX_RANK),
        uuid=_word(raw.get("uuid")) or "",
        allocated_bytes=_count(raw.get("allocated_bytes")),
        reserved_bytes=_count(raw.get("reserved_bytes")),
        requested_bytes=_count(raw.get("requested_bytes")),
        active_bytes=_count(raw.get("active_bytes")),
        inactive_split_bytes=_count(raw.get("inactive_split_bytes")),
        alloc_retries=_count(raw.get("alloc_retries")),
        ooms=_count(raw.get("ooms")),
        largest_free_bytes=_count(raw.get("largest_free_bytes")),
        free_bytes=_count(raw.get("free_bytes")),
        snapshot_age_seconds=_seconds(raw.get("snapshot_age_seconds")),
    )


def _scheduler(raw: _Object) -> SchedulerReading:
    # A pool has blocks, a block has slots: nothing is divided by zero later.
    num_blocks = _count(raw.get("num_blocks")) or None
    prefix_caching = raw.get("prefix_caching")

    def blocks(name: str) -> int | None:
        return _count(raw.get(name), _MAX_COUNT if num_blocks is None else num_blocks)

    return SchedulerReading(
        steps=_count(raw.get("steps")),
        running=_count(raw.get("running")),
        waiting=_count(raw.get("waiting")),
        preemptions=_count(raw.get("preemptions")),
        max_num_seqs=_count(raw.get("max_num_seqs")) or None,
        max_num_batched_tokens=_count(raw.get("max_num_batched_tokens")) or None,
        max_model_len=_count(raw.get("max_model_len")) or None,
        kv_dtype=_word(raw.get("kv_dtype")),
        prefix_caching=prefix_caching if isinstance(prefix_caching, bool) else None,
        num_blocks=num_blocks,
        null_blocks=blocks("null_blocks"),
        used_blocks=blocks("used_blocks"),
        cached_blocks=blocks("cached_blocks"),
        free_blocks=blocks("free_blocks"),
        live_tokens=_count(raw.get("live_tokens")),
        tail_tokens=_count(raw.get("tail_tokens")),
        kv_pool_bytes=_count(raw.get("kv_pool_bytes")) or None,
        bytes_per_block=_count(raw.get("bytes_per_block")) or None,
        reading_age_seconds=_seconds(raw.get("reading_age_seconds")),
        groups=tuple(map(_group, _of_kinds(raw.get("groups"), _GROUP_KINDS))),
        running_tokens=_pairs(raw.get("running_tokens")),
    )


def _group(raw: _Object) -> BlockGroupReading:
    return BlockGroupReading(
        kind=str(raw["kind"]),
        block_tokens=_count(raw.get("block_tokens")) or None,
        layers=_count(raw.get("layers")),
        layer_bytes_per_block=_count(raw.get("layer_bytes_per_block")) or None,
        used_blocks=_count(raw.get("used_blocks")),
        live_tokens=_count(raw.get("live_tokens")),
        tail_tokens=_count(raw.get("tail_tokens")),
    )


def _cache(raw: _Object) -> CacheReading:
    return CacheReading(
        kind=str(raw["kind"]),
        layers=_count(raw.get("layers")),
        sequences=_count(raw.get("sequences")),
        allocated_bytes=_count(raw.get("allocated_bytes")),
        live_bytes=_count(raw.get("live_bytes")),
        capacity_tokens=_count(raw.get("capacity_tokens")) or None,
        live_tokens=_count(raw.get("live_tokens")),
        block_tokens=_count(raw.get("block_tokens")) or None,
    )


def _memory(raw: object) -> dict[str, int]:
    if not isinstance(raw, dict):
        return {}
    found = {component: _count(raw.get(f"{component}_bytes")) for component in _MEMORY}
    return {component: size for component, size in found.items() if size is not None}


def _reasons(raw: object) -> dict[str, str]:
    if not isinstance(raw, dict):
        return {}
    pairs = [(_text(name), _text(why)) for name, why in list(raw.items())[:_MAX_ITEMS]]
    return {name: why for name, why in pairs if name is not None and why is not None}


def _pairs(raw: object) -> tuple[tuple[int, int], ...]:
    if not isinstance(raw, list):
        return ()
    pairs = (pair for pair in raw[:_MAX_PAIRS] if type(pair) is list and len(pair) == 2)
    # Written out: with many schedulers this is most of the time that a spool takes.
    return tuple(
        (prompt, held)
        for prompt, held in pairs
        if type(prompt) is int and type(held) is int and 0 <= prompt <= _MAX_COUNT and 0 <= held <= _MAX_COUNT
    )


def _objects(raw: object) -> Sequence[_Object]:
    """All items or none: they are added up, and a part of a sum is a wrong one."""
    if not isinstance(raw, list) or len(raw) > _MAX_ITEMS or not all(isinstance(item, dict) for item in raw):
        return ()
    return raw


def _of_kinds(raw: object, kinds: frozenset[str]) -> Sequence[_Object]:
    found = _objects(raw)
    return found if all(_one_of(item.get("kind"), kinds) is not None for item in found) else ()


def _count(value: object, most: int = _MAX_COUNT) -> int | None:
    return value if type(value) is int and 0 <= value <= most else None


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_SECONDS:
        return None
    return float(value)


def _one_of(value: object, known: frozenset[str]) -> str | None:
    return value if isinstance(value, str) and value in known else None


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def _text(value: object) -> str | None:
    """A line for people and labels, cut; None when it is none, empty, or cannot be shown."""
    if not isinstance(value, str) or not value:
        return None
    cut = value[:_MAX_TEXT]
    return cut if cut.isprintable() else None
