"""What vLLM's scheduler knows of its KV pool: blocks, the tokens in them, and the requests that hold them.

A reading is taken in the scheduler's own thread, at the end of a step, so that all its figures belong together: of the
first step after the agent's thread has asked for one, and of the step that leaves nothing running, since none may
follow. At any other step the cost is one call and two comparisons. While the engine is idle nothing changes, so the
last reading stays exact.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kvgauge_agent.log import reason, say_once
from kvgauge_agent.vllm_blocks import CachedBlocks
from kvgauge_agent.vllm_groups import Groups
from kvgauge_agent.vllm_worker import pool_bytes

# How long the agent's thread waits for a step to end before it makes do with the last reading.
PATIENCE_SECONDS = 0.05
MAX_PAIRS = 512

Facts = dict[str, object]


class Reading(NamedTuple):
    """What was read behind a step: one object, so that the agent's thread gets all of one reading."""

    step: int
    taken_at: float
    facts: Facts


class SchedulerPart:
    """The `scheduler` of the file. A kind of figure that fails is left out from then on, and named in `missing`."""

    name = "scheduler"

    def __init__(self, scheduler: Any, *, counts_preemptions: bool) -> None:
        self._scheduler = weakref.ref(scheduler)
        self.preemptions = 0
        self._missing: dict[str, str] = {}
        self._fixed: Facts = {}
        self._kinds: dict[str, Callable[[Any], Facts]] = {
            "configuration": self._configuration,
            "requests": _requests,
            "pool": self._pool,
            "groups": self._slots,
        }
        if counts_preemptions:
            self._kinds["preemptions"] = lambda _: {"preemptions": self.preemptions}
        else:
            self._missing["scheduler.preemptions"] = "this version of vLLM has no one place where it preempts"
        self._cached = CachedBlocks()
        self._groups: Groups | None = None
        self._used_blocks: int | None = None
        self._unheld_blocks = 0
        self._ended = ""
        self._steps = 0
        self._asked = False
        self._taken = threading.Event()
        self._idle_state: object = None
        self._reading = Reading(0, 0.0, {})
        self._read(scheduler)

    def end(self, why: str) -> None:
        """No more steps will be told: what was read last must not pass for what is."""
        self._ended = why

    def stepped(self, scheduler: Any) -> None:
        """In the scheduler's thread, at the end of each step."""
        self._steps += 1
        if self._asked:
            self._read(scheduler)
            self._asked = False
            self._taken.set()
        elif not scheduler.running:
            # More steps may follow, to free what a request held, or to wait for something round after round.
            state = (len(scheduler.requests), scheduler.kv_cache_manager.block_pool.get_num_free_blocks())
            if state != self._idle_state or self._reading.facts.get("running"):
                self._read(scheduler)
                self._idle_state = state
            else:
                self._reading = self._reading._replace(step=self._steps)

    def cache_reset(self, scheduler: Any) -> None:
        """In the scheduler's thread, when it has been told to forget all contents: no step need follow."""
        self._cached = CachedBlocks()
        self._read(scheduler)

    def ask(self) -> None:
        """Has the next step that ends take a reading."""
        self._taken.clear()
        self._asked = True

    def collect(self) -> Mapping[str, object]:
        scheduler = self._scheduler()
        if scheduler is None:
            return {"missing": {"scheduler": "the engine has ended"}}
        if self._ended:
            return {"missing": {"scheduler": self._ended}}
        idle = self._reading.step == self._steps
        if not idle:
            self.ask()
            self._taken.wait(PATIENCE_SECONDS)
        step, taken_at, facts = self._reading
        reading: Facts = {"steps": step, **facts}
        if idle and "pool" in self._kinds:
            # Here and not in the engine's thread, so that the step that leaves it idle is no longer than others.
            self._cached.scan(scheduler.kv_cache_manager.block_pool, step)
            reading.update(self._cached.facts(step, self._unheld_blocks))
        age = 0.0 if step == self._steps else time.monotonic() - taken_at
        reading["reading_age_seconds"] = round(age, 6)
        return {"scheduler": reading, "missing": dict(self._missing)}

    def _read(self, scheduler: Any) -> None:
        began, step = time.perf_counter(), self._steps
        reading: Facts = {}
        for kind, read in list(self._kinds.items()):
            try:
                reading.update(read(scheduler))
            except Exception as error:
                del self._kinds[kind]
                self._missing[f"scheduler.{kind}"] = reason(error)
                say_once(f"the scheduler's {kind} are left out: {reason(error)}")
        reading["reading_seconds"] = round(time.perf_counter() - began, 7)
        self._reading = Reading(step, time.monotonic(), reading)

    def _configuration(self, scheduler: Any) -> Facts:
        if not self._fixed:
            self._fixed = _fixed_facts(scheduler)
        return self._fixed

    def _pool(self, scheduler: Any) -> Facts:
        self._used_blocks = None
        pool = scheduler.kv_cache_manager.block_pool
        null_blocks = int(getattr(pool, "null_block", None) is not None)
        self._unheld_blocks = pool.get_num_free_blocks()
        self._used_blocks = pool.num_gpu_blocks - null_blocks - self._unheld_blocks
        if self._asked:
            self._cached.scan(pool, self._steps)
        return {
            "num_blocks": pool.num_gpu_blocks,
            "null_blocks": null_blocks,
            "used_blocks": self._used_blocks,
            **self._cached.facts(self._steps, self._unheld_blocks),
        }

    def _slots(self, scheduler: Any) -> Facts:
        if self._used_blocks is None:
            raise LookupError("used_blocks")
        if self._groups is None:
            self._groups = Groups(scheduler)
        facts, inexact = self._groups.facts(scheduler.requests, self._used_blocks)
        if inexact:
            self._missing["scheduler.groups.used_blocks"] = inexact
        else:
            self._missing.pop("scheduler.groups.used_blocks", None)
        return facts


def _requests(scheduler: Any) -> Facts:
    running, waiting = scheduler.get_request_counts()
    # Those that have run longest come first: an even choice stands for all.
    some = scheduler.running[:: -(-running // MAX_PAIRS) or 1]
    return {
        "running": running,
        "waiting": waiting,
        "running_tokens": [(request.num_prompt_tokens, request.num_computed_tokens) for request in some],
    }


def _fixed_facts(scheduler: Any) -> Facts:
    """What does not change after the start."""
    config = scheduler.vllm_config
    cache, model = config.cache_config, config.model_config
    pool = pool_bytes(scheduler.kv_cache_config)
    facts = {
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "max_model_len": model.max_model_len,
        "kv_dtype": str(model.dtype if cache.cache_dtype == "auto" else cache.cache_dtype).replace("torch.", "", 1)[
            :32
        ],
        "prefix_caching": bool(cache.enable_prefix_caching),
        "kv_pool_bytes": pool,
        "bytes_per_block": None if pool is None else pool // scheduler.kv_cache_config.num_blocks,
    }
    return {key: value for key, value in facts.items() if value is not None}
