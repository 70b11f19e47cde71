"""Pages of a sidecar to serve, with figures that are known."""

import json
from typing import Any

from tests.support.web import Behaviour, page

ADVICE: dict[str, Any] = {
    "valid": True,
    "safe_concurrency": 37,
    "limits": {"kv": 37, "max_num_seqs": 64},
    "binding_limit": "kv",
    "load_ratio": 0.84,
    "kv_usage_ratio": 0.5,
    "kv_exhaustion_seconds": 125.0,
    "running": 21,
    "waiting": 3,
    "age_seconds": 0.5,
    "explanation": ["37 requests may run together."],
}
GIB = 1 << 30
ASSESSMENT: dict[str, Any] = {
    "pools": [
        {
            "rank": "0",
            "capacity_tokens": 100_000,
            "active_tokens": 50_000,
            "reclaimable_tokens": 25_000,
            "free_tokens": 25_000,
            "waste": [{"kind": "block_tail", "method": "measured", "waste_bytes": GIB}],
        }
    ],
    "gpus": [
        {
            "uuid": "GPU-1",
            "components": [{"component": "weights", "expected_bytes": 16 * GIB, "actual_bytes": None}],
            "total": {"component": "total", "expected_bytes": 40 * GIB, "actual_bytes": 50 * GIB},
        }
    ],
    "warnings": ["Memory grows."],
}
OBSERVATION: dict[str, Any] = {
    "engine": {"engine": "vllm", "version": "0.19.0", "model": "m"},
    "gpus": [{"gpu": 0, "uuid": "GPU-1", "name": "NVIDIA H100", "total_bytes": 80 * GIB, "used_bytes": 50 * GIB}],
    "sources": [
        {"source": "engine", "up": True, "age_seconds": 0.5, "reason": None},
        {"source": "agent", "up": False, "age_seconds": 9.0, "reason": "stale"},
    ],
}


def pages() -> dict[str, Behaviour]:
    told = {"advice": ADVICE, "assessment": ASSESSMENT, "observation": OBSERVATION}
    return {f"/v1/{name}": page(json.dumps(answer).encode(), "application/json") for name, answer in told.items()}
