"""Runs inside the engine, as a vLLM plugin of its own: what the agent should have read, counted anew at every step.

Everything is counted the slow and plain way, over all blocks and all requests, at the moment at which the engine makes
the figures of its own page; one JSON line a step, in a file for each process. Nothing here knows the agent, but for
`KVGAUGE_TEST_TICK_SECONDS`, by which its thread is made to look more often than once a second.
"""

import functools
import importlib
import json
import os
from pathlib import Path
from typing import Any

ENTRY_POINT = "vllm_recorder:register"


def register() -> None:
    if tick := os.environ.get("KVGAUGE_TEST_TICK_SECONDS"):
        daemon = importlib.import_module("kvgauge_agent.daemon")
        daemon.TICK_SECONDS = float(tick)  # type: ignore[attr-defined]
        daemon.RETRY_SECONDS = 0.5  # type: ignore[attr-defined]
    scheduler_class = importlib.import_module("vllm.v1.core.sched.scheduler").Scheduler
    make_stats = scheduler_class.make_stats
    if hasattr(make_stats, "__wrapped__"):
        return
    file = (Path(os.environ["KVGAUGE_TEST_RECORD"]) / f"{os.getpid()}.jsonl").open("a", encoding="utf-8")
    steps = 0

    @functools.wraps(make_stats)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        stats = make_stats(self, *args, **kwargs)
        steps += 1
        file.write(json.dumps({"steps": steps, **_count(self, stats)}) + "\n")
        file.flush()
        return stats

    scheduler_class.make_stats = recorded


def _count(scheduler: Any, stats: Any) -> dict[str, object]:
    pool = scheduler.kv_cache_manager.block_pool
    groups = [_group(manager, scheduler.requests) for manager in _managers(scheduler)]
    return {
        "used_blocks": round(stats.kv_cache_usage * (pool.num_gpu_blocks - 1)),
        "cached_blocks": sum(block.ref_cnt == 0 and block.block_hash is not None for block in pool.blocks),
        "running": stats.num_running_reqs,
        "waiting": stats.num_waiting_reqs + stats.num_skipped_waiting_reqs,
        "running_tokens": sorted([request.num_prompt_tokens, _stored(request)] for request in scheduler.running),
        "groups": groups,
        "live_tokens": sum(group["live_tokens"] for group in groups),
        "tail_tokens": sum(group["tail_tokens"] for group in groups),
    }


def _managers(scheduler: Any) -> Any:
    return scheduler.kv_cache_manager.coordinator.single_type_managers


def _group(manager: Any, requests: Any) -> dict[str, int]:
    """Slots are looked at one by one: position -> whether a token of a request is stored there."""
    slots: dict[tuple[int, int], bool] = {}
    blocks_held = set()
    for name, blocks in manager.req_to_blocks.items():
        stored = _stored(requests[name])
        for index, block in enumerate(blocks):
            if block.is_null:
                continue
            blocks_held.add(block.block_id)
            for offset in range(manager.block_size):
                slot = (block.block_id, offset)
                slots[slot] = slots.get(slot, False) or index * manager.block_size + offset < stored
    live = sum(slots.values())
    return {"used_blocks": len(blocks_held), "live_tokens": live, "tail_tokens": len(slots) - live}


def _stored(request: Any) -> int:
    """Tokens in the cache: all but the last sampled one, which is computed and stored by the step after.

    While a prompt is read in pieces, and again after a preemption, those that the engine says are computed.
    """
    known = request.num_prompt_tokens + len(request.output_token_ids)
    computed = int(request.num_computed_tokens)
    if computed < request.num_prompt_tokens or (request.num_preemptions and computed < known - 1):
        return computed
    return int(known + request.num_output_placeholders - 1)
