"""The blocks and slots of each of vLLM's KV cache groups, from the block tables of the requests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Class of a layer's KVCacheSpec -> what docs/spool.md calls it; the most derived that is named here decides.
_KINDS = {
    "FullAttentionSpec": "full",
    "MLAAttentionSpec": "mla",
    "SlidingWindowSpec": "sliding_window",
    "RSWASpec": "sliding_window",
    "ChunkedLocalAttentionSpec": "chunked",
    "MambaSpec": "state",
    "CrossAttentionSpec": "cross",
    "HiddenStateCacheSpec": "other",
    "CircularBufferSpec": "other",
}
_TOKEN_KINDS = ("full", "mla", "sliding_window", "chunked")
# Blocks looked at to find what is shared: about 0.3 ms of the GIL.
_MAX_WALK = 4096


class Groups:
    """Counts by group. A table is a request's list of blocks, null where it was given back early.

    The last block of a table is never shared, so the slots without a token follow from lengths alone; which blocks two
    requests share does not, and matters only where there is more than one group.
    """

    def __init__(self, scheduler: Any) -> None:
        manager = scheduler.kv_cache_manager
        config = scheduler.kv_cache_config
        # Groups that lie in the host's memory have a pool of their own.
        pairs = [
            (group, single)
            for group, single in zip(config.kv_cache_groups, manager.coordinator.single_type_managers)
            if getattr(single, "block_pool", manager.block_pool) is manager.block_pool
        ]
        self._managers = [single for _, single in pairs]
        self._kinds = [_kind(group.kv_cache_spec) for group, _ in pairs]
        self._first_held: list[dict[str, int]] = [{} for _ in pairs]
        self._fixed = [
            {
                "kind": kind,
                "block_tokens": int(single.block_size),
                "layers": len(group.layer_names),
                "layer_bytes_per_block": _layer_bytes(group),
            }
            for kind, (group, single) in zip(self._kinds, pairs)
        ]

    def facts(self, requests: Mapping[str, Any], used_blocks: int) -> tuple[dict[str, object], str]:
        """`groups`, `live_tokens` and `tail_tokens`, and the reason where blocks could not be told apart by group."""
        tables = [single.req_to_blocks for single in self._managers]
        held = [self._held(index, table) for index, table in enumerate(tables)]
        used, why = self._distinct(tables, held, used_blocks)
        # Only of those that hold blocks: any number of others may wait.
        holders = set().union(*tables)
        stored = {name: requests[name].num_computed_tokens for name in holders if name in requests}
        groups: list[dict[str, object]] = []
        live_tokens = tail_tokens = 0
        for index, table in enumerate(tables):
            group = {**self._fixed[index], "used_blocks": used[index]}
            if self._kinds[index] in _TOKEN_KINDS:
                block_tokens = self._managers[index].block_size
                # A table may outlive its request, while another machine still reads from it.
                known = (
                    table if table.keys() <= stored.keys() else {name: table[name] for name in table if name in stored}
                )
                tail = block_tokens * sum(map(len, known.values())) - sum(map(stored.__getitem__, known))
                live = max(used[index] * block_tokens - tail, 0)
                group.update(live_tokens=live, tail_tokens=tail)
                live_tokens += live
                tail_tokens += tail
            groups.append(group)
        return {"live_tokens": live_tokens, "tail_tokens": tail_tokens, "groups": groups}, why

    def _held(self, index: int, table: Mapping[str, list[Any]]) -> int:
        """Blocks in the tables of one group, a shared one once for each table."""
        kind = self._kinds[index]
        if kind in ("full", "mla"):
            return sum(map(len, table.values()))
        before, first_held, held = self._first_held[index], {}, 0
        for name, blocks in table.items():
            # Nulls come first, and are looked for from where they ended the last time.
            first, count = before.get(name, 0), len(blocks)
            if first > count or (first and not blocks[first - 1].is_null):
                first = 0
            while first < count and blocks[first].is_null:
                first += 1
            first_held[name] = first
            # Behind the first one only states have gaps.
            held += sum([not block.is_null for block in blocks[first:]]) if kind == "state" else count - first
        self._first_held[index] = first_held
        return held

    def _distinct(
        self, tables: list[Mapping[str, list[Any]]], held: list[int], used_blocks: int
    ) -> tuple[list[int], str]:
        """Blocks in use by group, a shared one once; and why they are not exact, where they are not."""
        shared = sum(held) - used_blocks
        if shared == 0:
            return held, ""
        if shared < 0:
            return held, f"{-shared} blocks are held outside the tables of the requests"
        if len(held) == 1:
            return [used_blocks], ""
        walk = _Walk(_MAX_WALK)
        more = [walk.more_holders(table, first_held) for table, first_held in zip(tables, self._first_held)]
        if sum(more) == shared:
            return [count - extra for count, extra in zip(held, more)], ""
        return [round(count * used_blocks / sum(held)) for count in held], "shared blocks are split in proportion"


class _Walk:
    """Looks for blocks with more than one holder, at the start of the tables, at no more than `limit` blocks."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def more_holders(self, table: Mapping[str, list[Any]], first_held: Mapping[str, int]) -> int:
        """Holders beyond the first, summed over the blocks of one group; too few where the limit was met."""
        holders: dict[int, int] = {}
        # Where the last run of shared blocks that began with this block ended: most tables share the same prefix.
        ends: dict[int, int] = {}
        last: list[Any] = []
        for name, blocks in table.items():
            first = index = first_held.get(name, 0)
            if first < len(blocks):
                end = ends.get(id(blocks[first]), 0)
                if first < end <= min(len(blocks), len(last)) and blocks[end - 1] is last[end - 1]:
                    index = end
            while index < len(blocks) and blocks[index].ref_cnt > 1 and self._left > 0:
                holders[id(blocks[index])] = blocks[index].ref_cnt
                index += 1
                self._left -= 1
            if index > first:
                ends[id(blocks[first])] = index
                last = blocks
        return sum(holders.values()) - len(holders)


def _kind(spec: Any) -> str:
    # Layers of one type but of several shapes are one group with a spec for each.
    inner = getattr(spec, "kv_cache_specs", None)
    if inner:
        spec = next(iter(inner.values()))
    kind = next((_KINDS[cls.__name__] for cls in type(spec).__mro__ if cls.__name__ in _KINDS), "other")
    # Until 0.10 an attribute told MLA from full attention.
    return "mla" if kind == "full" and getattr(spec, "use_mla", False) else kind


def _layer_bytes(group: Any) -> int:
    """Bytes that the layers of a group use of one block, without what pads them to the size of another group's."""
    inner = getattr(group.kv_cache_spec, "kv_cache_specs", None)
    specs = inner.values() if inner else [group.kv_cache_spec] * len(group.layer_names)
    return sum(_page_bytes(spec) for spec in specs)


def _page_bytes(spec: Any) -> int:
    if hasattr(spec, "real_page_size_bytes"):
        return int(spec.real_page_size_bytes)
    if hasattr(spec, "shapes") and hasattr(spec, "dtypes"):
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in zip(spec.shapes, spec.dtypes))
    return int(spec.page_size_bytes)
