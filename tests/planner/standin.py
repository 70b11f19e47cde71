"""A planner of the contract's shape with simple arithmetic, and the command over it: `python -m tests.planner.standin`.

One model of 8 billion parameters, 32 heads, 128 KiB of KV cache a token and at most 131072 tokens.
"""

import math
import sys
from collections.abc import Mapping

from kvgauge.planner.command import run
from kvmodel.cases import FIELDS, read_case
from kvmodel.errors import ModelError

GIB = 2**30
LONGEST_TOKENS = 131072
WEIGHTS_BYTES = 16 * 10**9
TOKEN_BYTES = 131072
BLOCK_TOKENS = 16


def plan(case: Mapping[str, object]) -> dict[str, object]:
    """The result for one case; never raises."""
    result: dict[str, object] = {
        "model": case.get("model"),
        "engine": "vllm",
        "engine_version": "0.32.0",
        "profile": "vllm 0.32",
        "ideal": None,
        "engine_plan": None,
        "memory": None,
        "latency": None,
        "advice": [],
        "warnings": [],
        "error": None,
    }
    try:
        _fill(result, case)
    except ModelError as error:
        result["error"] = {"field": error.field, "message": error.message}
    return result


def _fill(result: dict[str, object], values: Mapping[str, object]) -> None:
    case, warnings = read_case(values)
    result["warnings"] = warnings
    if 32 % case.tp:
        raise ModelError("tp", f"{case.tp} does not divide 32 attention heads")
    longest = LONGEST_TOKENS if case.max_model_len is None else case.max_model_len
    if longest > LONGEST_TOKENS:
        raise ModelError("max_model_len", f"{longest} is more than the model's {LONGEST_TOKENS}")
    result["max_model_len"] = longest
    seats = case.max_num_seqs or 256
    memory = {
        "weights_bytes": WEIGHTS_BYTES // case.tp,
        "activations_bytes": GIB + seats * 2**20,
        "graphs_bytes": 0 if case.enforce_eager else GIB,
        "context_bytes": GIB // 2,
        "communication_bytes": 0 if case.tp == 1 else GIB,
    }
    card = int((case.gpu_memory_gib or 80) * GIB)
    pool = case.given_kv_bytes or max(0, card * 9 // 10 - sum(memory.values()))
    total = pool + sum(memory.values())
    token = TOKEN_BYTES // case.tp // (2 if case.kv_dtype == "fp8" else 1)
    blocks = pool // (token * BLOCK_TOKENS)
    result["ideal"] = {
        "growth_bytes_per_token": TOKEN_BYTES,
        "state_bytes_per_sequence": 0,
        "window_bytes_per_sequence": 0,
        "bytes_at": {str(tokens): tokens * TOKEN_BYTES for tokens in case.at_tokens},
    }
    result["engine_plan"] = {
        "kv_bytes_per_token_per_gpu": token,
        "block_tokens": BLOCK_TOKENS,
        "bytes_per_block": token * BLOCK_TOKENS,
        "num_blocks": blocks,
        "capacity_tokens": blocks * BLOCK_TOKENS,
        "max_concurrency": blocks / math.ceil(longest / BLOCK_TOKENS),
        "groups": [
            {"kind": "full", "layers": 8, "block_tokens": 16, "page_bytes": 4096, "block_bytes": 32768},
            {"kind": "window", "layers": 24, "block_tokens": 16, "window_tokens": 1024, "page_bytes": 4096},
        ],
    }
    result["memory"] = {
        **memory,
        "kv_pool_bytes": pool,
        "total_bytes": total,
        "low_bytes": total - GIB,
        "high_bytes": total + GIB,
        "gpu_bytes": card,
    }
    result["latency"] = {"ttft_seconds": 0.25, "tpot_seconds": 0.0125}
    result["advice"] = [
        {"change": "enforce_eager", "frees_bytes": GIB, "why": "no CUDA graphs"},
        {"change": "kv_dtype fp8", "frees_bytes": pool // 2, "why": "halves each token"},
    ]


if __name__ == "__main__":
    run(sys.argv[1:], plan, FIELDS)
