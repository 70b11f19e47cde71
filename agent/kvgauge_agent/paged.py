"""The paged pool of Transformers' continuous batching, read from the manager's own books.

Two layouts are known. Until 5.5 and a little beyond, the groups of layers take blocks of one size from one pool; later
the pool deals out sectors, which each group divides into blocks of its own size. Everything is counted from Python
numbers and the lengths of lists: no tensor is looked into, no token read.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

MAX_RUNNING = 512
"""Requests whose lengths are listed; docs/spool.md promises no more."""
_ATTEMPTS = 4


class Group(NamedTuple):
    """Layers that share a block table."""

    kind: str
    layers: int
    block_tokens: int
    bytes_per_block: int
    used_blocks: int
    live_tokens: int

    @property
    def tail_tokens(self) -> int:
        return max(self.used_blocks * self.block_tokens - self.live_tokens, 0)


class Pool(NamedTuple):
    """One pool at one moment. `settled` is false where it was caught between two entries of the same booking."""

    groups: tuple[Group, ...]
    num_blocks: int
    free_blocks: int
    cached_blocks: int
    bytes_per_block: int
    capacity_tokens: int
    allocated_bytes: int
    settled: bool

    @property
    def used_blocks(self) -> int:
        return max(self.num_blocks - self.free_blocks - self.cached_blocks, 0)

    @property
    def live_bytes(self) -> int:
        return sum(group.live_tokens * group.bytes_per_block // group.block_tokens for group in self.groups)


def facts(manager: Any) -> tuple[dict[str, object], dict[str, object]] | None:
    """The file's `scheduler`, and the pool's entry in `caches`; None while the manager has no pool.

    Raises AttributeError and its like where a version has laid its books out in another way.
    """
    processor = getattr(manager, "batch_processor", None)
    if processor is None:
        return None
    cache, scheduler = processor.cache, processor.scheduler
    pool, requests = _pool(cache, scheduler)
    running = len(requests)
    waiting = len(scheduler.waiting_requests) + manager.input_queue.qsize()
    one_group = pool.groups[0] if len(pool.groups) == 1 else None
    entry: dict[str, object] = {
        "kind": "paged",
        "layers": sum(group.layers for group in pool.groups),
        "sequences": running,
        "allocated_bytes": pool.allocated_bytes,
        "live_bytes": pool.live_bytes,
        "capacity_tokens": pool.capacity_tokens,
        "live_tokens": max(group.live_tokens for group in pool.groups),
        **({"block_tokens": one_group.block_tokens} if one_group else {}),
        "num_blocks": pool.num_blocks,
        "used_blocks": pool.used_blocks,
        "running": running,
        "waiting": waiting,
    }
    view: dict[str, object] = {
        "steps": getattr(manager, "current_batch", None),
        "running": running,
        "waiting": waiting,
        "max_num_seqs": getattr(scheduler, "max_requests_per_batch", None),
        "max_num_batched_tokens": getattr(cache, "max_batch_tokens", None),
        "kv_dtype": str(cache.dtype).rpartition(".")[2],
        "prefix_caching": bool(getattr(cache, "use_prefix_sharing", False)),
        "num_blocks": pool.num_blocks,
        "null_blocks": 0,
        "used_blocks": pool.used_blocks,
        "cached_blocks": pool.cached_blocks,
        "free_blocks": pool.free_blocks,
        "live_tokens": sum(group.live_tokens for group in pool.groups),
        "tail_tokens": sum(group.tail_tokens for group in pool.groups),
        "kv_pool_bytes": pool.allocated_bytes,
        "bytes_per_block": pool.bytes_per_block,
        "groups": [
            {
                "kind": group.kind,
                "block_tokens": group.block_tokens,
                "layers": group.layers,
                "layer_bytes_per_block": group.bytes_per_block,
                "used_blocks": group.used_blocks,
                "live_tokens": group.live_tokens,
                "tail_tokens": group.tail_tokens,
            }
            for group in pool.groups
        ],
        "running_tokens": [[_prompt_tokens(state), state.position_offset] for state in requests[:MAX_RUNNING]],
    }
    return {key: value for key, value in view.items() if value is not None}, entry


def _pool(cache: Any, scheduler: Any) -> tuple[Pool, list[Any]]:
    """The pool and the requests that hold blocks of it, read again where they were caught in the middle of a step.

    Giving up the GIL for a moment leaves this thread its next turn in full, longer than one reading takes.
    """
    read = _read_sectors if hasattr(cache, "cache_allocators") else _read_blocks
    for attempt in range(_ATTEMPTS):
        time.sleep(0.0002 * attempt)
        # A copy made in one piece, while the engine's thread can't add to it.
        active = list(scheduler.active_requests.items())
        pool = read(cache, {name: int(state.position_offset) for name, state in active})
        if pool.settled:
            break
    return pool, [state for _, state in active]


def _read_sectors(cache: Any, held: dict[str, int]) -> Pool:
    pool = cache.pool
    free_sectors, sector_bytes = len(pool.free_sectors), cache.bytes_per_sector
    groups, dealt_bytes, settled = [], 0, True
    free = cached = 0
    for allocator in cache.cache_allocators.values():
        shared = sum(list(allocator.ledger.shared_ref_counts.values())) - len(allocator.ledger.shared_ref_counts)
        group, whole = _group(
            allocator, allocator.block_table, held, shared, allocator.tokens_per_page, allocator.bytes_per_block
        )
        spare, kept = pool.count_free_blocks(allocator.index), len(allocator.ledger.cached_blocks)
        dealt_bytes += (group.used_blocks + spare + kept) * allocator.bytes_per_block
        free += spare + free_sectors * allocator.blocks_per_sector
        cached += kept
        groups.append(group)
        settled = settled and whole
    num_blocks, block_bytes = cache.num_sectors, sector_bytes
    if len(groups) == 1:
        block_bytes = groups[0].bytes_per_block
        num_blocks = cache.num_sectors * sector_bytes // block_bytes
    else:
        # Blocks of several sizes add up to nothing, sectors do; one whose blocks are all free counts as free.
        free, cached = free_sectors + sum(map(_whole_sectors, pool._free_blocks)), 0
    return Pool(
        groups=tuple(groups),
        num_blocks=num_blocks,
        free_blocks=free,
        cached_blocks=cached,
        bytes_per_block=block_bytes,
        capacity_tokens=cache.num_blocks * groups[0].block_tokens,
        allocated_bytes=_size(cache.cache_tensor),
        settled=settled and dealt_bytes == (cache.num_sectors - free_sectors) * sector_bytes,
    )


def _whole_sectors(free: Any) -> int:
    return sum(len(leaves) == free.elems_per_tree for leaves in list(free.trees.values()))


def _read_blocks(cache: Any, held: dict[str, int]) -> Pool:
    managers, books = cache.group_cache_managers, getattr(cache, "_block_manager", None)
    cached = len(getattr(books, "_init_block_ids", ()))
    free = cache.get_num_free_blocks() - cached
    used = cache.num_blocks - free - cached
    tables = [getattr(manager, "block_table", None) or getattr(manager, "_block_table", {}) for manager in managers]
    listed = sum(len(blocks) for table in tables for blocks in list(table.values()))
    tensors = [*cache.key_cache, *cache.value_cache]
    block_bytes = sum(_size(tensor) // tensor.shape[0] for tensor in tensors) * cache.block_size
    # Blocks are shared only where all layers are one group: then the lists name them more than once.
    shared = listed - used if len(managers) == 1 else 0
    read = [
        _group(manager, tables[index], held, shared, cache.block_size, block_bytes, layers=len(cache.key_cache))
        for index, manager in enumerate(managers)
    ]
    return Pool(
        groups=tuple(group for group, _ in read),
        num_blocks=cache.num_blocks,
        free_blocks=free,
        cached_blocks=cached,
        bytes_per_block=block_bytes,
        capacity_tokens=cache.num_blocks * cache.block_size // len(managers),
        allocated_bytes=sum(map(_size, tensors)),
        settled=shared >= 0 and (len(managers) == 1 or listed == used) and all(whole for _, whole in read),
    )


def _group(
    books: Any,
    table: dict[str, list[int]],
    held: dict[str, int],
    shared: int,
    block_tokens: int,
    bytes_per_block: int,
    layers: int = 0,
) -> tuple[Group, bool]:
    """One group, and whether its requests hold the tokens that their blocks are for.

    `shared` is how many times blocks are listed again for another request; those are full of tokens.
    """
    window = getattr(books, "sliding_window", 0)
    lists = {name: len(blocks) for name, blocks in list(table.items())}
    tokens = {name: min(held.get(name, 0), window) if window else held.get(name, 0) for name in lists}
    group = Group(
        kind="sliding_window" if window else "full",
        layers=layers or len(books.layer_indices),
        block_tokens=block_tokens,
        bytes_per_block=bytes_per_block,
        used_blocks=sum(lists.values()) - shared,
        live_tokens=max(sum(tokens.values()) - shared * block_tokens, 0),
    )
    # 4.57 takes a block ahead of its need.
    whole = all(0 <= lists[name] * block_tokens - tokens[name] <= 2 * block_tokens for name in lists)
    return group, whole


def _prompt_tokens(state: Any) -> int:
    """Tokens of the prompt; a request that was set back has its output so far appended to it."""
    first = getattr(state, "_true_initial_tokens", 0)
    if first:
        return int(first)
    prompt = getattr(state, "initial_tokens", None)
    return len(state.full_prompt_ids or ()) if prompt is None else len(prompt)


def _size(tensor: Any) -> int:
    return int(tensor.nbytes)
