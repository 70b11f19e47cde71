"""Files of the agent's spool (docs/spool.md) to test with, and the records that come of them."""

import json
import os
import time
from pathlib import Path
from typing import Any

from kvgauge.observe.records import AgentReading, ProcessReading
from kvgauge.observe.spool_file import read_file

Json = dict[str, Any]
HOST = "pod"

# A pool of 1000 blocks of 16 slots of 131,072 bytes, the model of `tests.support.facts`; 500 are held.
BOOKS: Json = {
    "steps": 77,
    "running": 10,
    "waiting": 0,
    "preemptions": 3,
    "max_num_seqs": 128,
    "max_num_batched_tokens": 4096,
    "max_model_len": 8192,
    "kv_dtype": "bfloat16",
    "prefix_caching": True,
    "num_blocks": 1000,
    "null_blocks": 1,
    "used_blocks": 500,
    "cached_blocks": 200,
    "free_blocks": 299,
    "live_tokens": 7900,
    "tail_tokens": 100,
    "kv_pool_bytes": 1000 * 16 * 131_072,
    "bytes_per_block": 16 * 131_072,
    "groups": [
        {
            "kind": "full",
            "block_tokens": 16,
            "layers": 32,
            "layer_bytes_per_block": 16 * 131_072,
            "used_blocks": 500,
            "live_tokens": 7900,
            "tail_tokens": 100,
        }
    ],
    "running_tokens": [[500, 790]] * 10,
}
ALLOCATOR: Json = {
    "device": 0,
    "uuid": "GPU-1",
    "backend": "native",
    "allocated_bytes": 700,
    "reserved_bytes": 1000,
    "requested_bytes": 650,
    "active_bytes": 710,
    "inactive_split_bytes": 120,
    "alloc_retries": 1,
    "ooms": 0,
    "largest_free_bytes": 240,
    "free_bytes": 300,
    "snapshot_age_seconds": 12.0,
    "snapshot_seconds": 0.001,
}


def process(pid: int = 1, *, now: float | None = None, **changes: Any) -> Json:
    """A file's content: of a program without anything, and changes of it. None takes a key out."""
    whole = {
        "schema": 1,
        "agent_version": "0.1.0",
        "pid": pid,
        "instance": 1,
        "role": "program",
        "engine": "torch",
        "wall_seconds": time.time(),
        "monotonic_seconds": time.monotonic() if now is None else now,
        "started_wall_seconds": time.time() - 60,
        "sequence": 60,
        "tick_seconds": 0.0002,
        "missing": {},
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not None}


def scheduler(pid: int = 1, books: Json | None = None, **changes: Any) -> Json:
    """The file of a vLLM scheduler; `books` are changes of BOOKS."""
    named = {"role": "scheduler", "engine": "vllm", "engine_version": "0.19.0", "model": "/models/llama", "tp": 1}
    return process(pid, **{**named, "pp": 1, "dp": 1, "dp_rank": 0, "scheduler": BOOKS | (books or {}), **changes})


def worker(pid: int = 2, **changes: Any) -> Json:
    """The file of a vLLM worker on GPU-1."""
    memory = {"weights_bytes": 16_000, "kv_pool_bytes": 50_000, "activations_bytes": 2_000, "non_torch_bytes": 500}
    named = {"role": "worker", "engine": "vllm", "model": "/models/llama", "tp_rank": 0, "allocators": [ALLOCATOR]}
    return process(pid, **{**named, "memory": memory, **changes})


def write(folder: Path, content: Json | bytes, name: str | None = None, *, age_seconds: float = 0.0) -> Path:
    """Puts a file into the spool; `age_seconds` is that of its modification time."""
    if name is None:
        name = f"{HOST}-{content['pid']}.json" if isinstance(content, dict) else f"{HOST}-99.json"
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    written = time.time() - age_seconds
    os.utime(path, (written, written))
    return path


def record(content: Json) -> ProcessReading:
    """What is read of a file."""
    return read_file(json.dumps(content).encode(), HOST)


def reading(*files: Json, instance: int | None = 1) -> AgentReading:
    """What is read of a spool, with the engine's instance assigned."""
    return AgentReading(tuple(map(record, files)), None if instance is None else f"{HOST}-{instance}")
