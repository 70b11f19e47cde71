"""Run by the python of an environment with vLLM: what its own scheduler does with given requests, without a model.

Reads a JSON object from stdin and writes one to stdout: `model` names the folder of a tiny model, whose config the
scheduler wants to see; `traces` are loads to be followed step by step; `limits` are requests of equal length of which
as many are wanted as run together. Scheduler, cache manager and their settings are vLLM's own; the one thing made up is
what a model would have sampled.
"""

import json
import sys
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

Case = dict[str, Any]
HASH = get_hash_fn_by_name("sha256")
OWN_TOKENS = 1_000_000_000
"""From here on token ids are those of one request only: its tail, and what it samples."""
MOST_REQUESTS = 4096


@cache
def model_config(folder: str, max_model_len: int) -> ModelConfig:
    return ModelConfig(model=folder, dtype="bfloat16", max_model_len=max_model_len, skip_tokenizer_init=True)


class Engine:
    """One pool and its scheduler's settings, from which schedulers are made as an engine core makes its own."""

    def __init__(self, folder: str, case: Case) -> None:
        length = case["max_model_len"]
        cache_config = CacheConfig(
            block_size=case["block_tokens"],
            num_gpu_blocks_override=case["num_blocks"],
            enable_prefix_caching=case.get("prefix_caching", False),
        )
        cache_config.kv_cache_layout = "LBNHC"
        scheduling = SchedulerConfig(
            max_num_seqs=case["max_num_seqs"],
            max_num_batched_tokens=case["max_num_batched_tokens"],
            max_model_len=length,
            is_encoder_decoder=False,
        )
        self.config = VllmConfig(
            model_config=model_config(folder, length),
            cache_config=cache_config,
            scheduler_config=scheduling,
            device_config=DeviceConfig("cpu"),
        )
        # The platform of this machine has it off, and a larger block than asked for; a GPU's has neither.
        self.overlapped = case.get("async_scheduling", False)
        scheduling.async_scheduling = self.overlapped
        cache_config.block_size = case["block_tokens"]
        specs = {f"layer.{place}": spec(layer, case["block_tokens"]) for place, layer in enumerate(case["layers"])}
        [self.pool] = kv_cache_utils.get_kv_cache_configs(self.config, [specs], [1 << 40])
        cache_config.num_gpu_blocks = self.pool.num_blocks
        self.block, self.hashed = kv_cache_utils.resolve_kv_cache_block_sizes(self.pool, self.config)
        self.hasher = None
        if cache_config.enable_prefix_caching:
            kv_cache_utils.init_none_hash(HASH)
            self.hasher = kv_cache_utils.get_request_block_hasher(self.hashed, HASH)
        self.grammars = StructuredOutputManager(self.config)

    def scheduler(self) -> Any:
        kind = AsyncScheduler if self.overlapped else Scheduler
        return kind(self.config, self.pool, self.grammars, self.block, self.hashed, log_stats=True)

    def request(self, number: int, prompt: list[int], output: int) -> Request:
        params = SamplingParams(max_tokens=output, ignore_eos=True)
        return Request(str(number), prompt, params, None, arrival_time=float(number), block_hasher=self.hasher)

    def groups(self) -> list[list[int | None]]:
        """Each group's layers, block size and window."""
        return [
            [
                len(group.layer_names),
                group.kv_cache_spec.block_size,
                getattr(group.kv_cache_spec, "sliding_window", None),
            ]
            for group in self.pool.kv_cache_groups
        ]


def spec(layer: Case, block_tokens: int) -> Any:
    rows = {"num_kv_heads": layer["kv_heads"], "head_size": layer["head_dim"], "dtype": torch.bfloat16}
    if layer["window"] is None:
        return FullAttentionSpec(block_size=block_tokens, **rows)
    return SlidingWindowSpec(block_size=block_tokens, sliding_window=layer["window"], **rows)


class Drive:
    """A scheduler and the steps that are under way: one, or two where scheduling overlaps."""

    def __init__(self, engine: Engine) -> None:
        self.scheduler = engine.scheduler()
        self.depth = 2 if engine.overlapped else 1
        self.usable: int = engine.pool.num_blocks - 1
        self.flying: deque[tuple[Any, ModelRunnerOutput]] = deque()
        self.preemptions = 0
        self.most_running = 0
        self.sampled = 0

    @property
    def used_blocks(self) -> int:
        return self.usable - int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    @property
    def cached_blocks(self) -> int:
        """Blocks that nobody holds and that could still be found."""
        blocks = self.scheduler.kv_cache_manager.block_pool.blocks
        return sum(1 for block in blocks if block.ref_cnt == 0 and block.block_hash is not None)

    def schedule(self) -> None:
        output = self.scheduler.schedule()
        self.preemptions += len(output.preempted_req_ids)
        self.most_running = max(self.most_running, len(self.scheduler.running))
        names = list(output.num_scheduled_tokens)
        tokens = []
        for name in names:
            # Only the last chunk of a prompt yields a token.
            chunk = self.scheduler.requests[name].is_prefill_chunk
            self.sampled += not chunk
            tokens.append([] if chunk else [2 * OWN_TOKENS + self.sampled])
        places = {name: place for place, name in enumerate(names)}
        self.flying.append((output, ModelRunnerOutput(names, places, tokens)))

    def complete(self) -> Any:
        """The outcome of the oldest step under way."""
        return self.scheduler.update_from_output(*self.flying.popleft()).get(0)

    def step(self) -> list[str]:
        """The next step; returns who finished, by whatever step that was."""
        if self.scheduler.has_requests():
            self.schedule()
            if len(self.flying) < self.depth and self.scheduler.has_requests():
                return []
        outcome = self.complete()
        return [] if outcome is None else [one.request_id for one in outcome.outputs if one.finish_reason is not None]


def prompts(case: Case) -> Iterator[tuple[int, int, list[int], int]]:
    """(number, step of arrival, token ids, output tokens) of each request. A unit's name stands for its tokens."""
    size = case["unit_tokens"]
    for number, (step, length, output, units) in enumerate(case["requests"]):
        shared = [unit * size + place for unit in units for place in range(size)][:length]
        own = OWN_TOKENS + number * case["max_model_len"]
        yield number, step, shared + list(range(own, own + length - len(shared))), output


def trace(folder: str, case: Case) -> Case:
    """Each step's figures once it is scheduled, and when each request had its first and its last token."""
    engine = Engine(folder, case)
    drive = Drive(engine)
    scheduler = drive.scheduler
    coming = deque(prompts(case))
    rows: list[list[int]] = []
    first: dict[str, int] = {}
    ends: dict[str, list[int]] = {}
    requests: dict[str, Request] = {}
    hits = 0
    for step in range(case["most_steps"]):
        while coming and coming[0][1] <= step:
            number, _, prompt, output = coming.popleft()
            requests[str(number)] = request = engine.request(number, prompt, output)
            scheduler.add_request(request)
        if not coming and not scheduler.has_unfinished_requests():
            break
        drive.schedule()
        row = [len(scheduler.running), len(scheduler.waiting), drive.used_blocks, drive.preemptions]
        row.append(drive.cached_blocks if engine.hasher is not None else 0)
        outcome = drive.complete()
        hits += outcome.scheduler_stats.prefix_cache_stats.hits
        rows.append([*row, hits])
        for one in outcome.outputs:
            first.setdefault(one.request_id, step)
            if one.finish_reason is not None:
                ends[one.request_id] = [first[one.request_id], step, requests[one.request_id].num_preemptions]
    return {"rows": rows, "ends": [ends.get(str(number)) for number in range(len(case["requests"]))]}


def run(engine: Engine, case: Case, count: int, stop: bool = True) -> Drive:
    """Keeps `count` requests in flight, each followed by the next when it ends; may `stop` at the first preemption."""
    drive = Drive(engine)
    prompt = [0] * case["prompt"]
    for number in range(count):
        drive.scheduler.add_request(engine.request(number, prompt, case["output"]))
    sent, total = count, case["rounds"] * count
    while drive.scheduler.has_unfinished_requests() or drive.flying:
        ended = drive.step()
        if stop and drive.preemptions:
            break
        for _ in ended:
            if sent < total:
                drive.scheduler.add_request(engine.request(sent, prompt, case["output"]))
                sent += 1
    return drive


def limit(folder: str, case: Case) -> Case:
    """The most requests that run together without a preemption, and what as many as are advised do."""
    engine = Engine(folder, case)

    def together(count: int) -> bool:
        drive = run(engine, case, count)
        return not drive.preemptions and drive.most_running == count

    low, high = 0, 1
    while high < MOST_REQUESTS and together(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if together(middle):
            low = middle
        else:
            high = middle
    advised = run(engine, case, case["advised"], stop=False)
    return {"requests": low, "preemptions": advised.preemptions, "groups": engine.groups()}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    answer = {
        "traces": [trace(asked["model"], case) for case in asked["traces"]],
        "limits": [limit(asked["model"], case) for case in asked["limits"]],
    }
    # Whatever the engine's packages print, the answer is the last line.
    print(json.dumps(answer), flush=True)
