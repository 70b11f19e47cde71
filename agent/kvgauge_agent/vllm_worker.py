"""What a worker of vLLM measured of its GPU's memory when it started."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from typing import Any

from kvgauge_agent.wrapping import call_after

_GRAPHS_BYTES = "_kvgauge_graphs_bytes"
_WHY_NOT = "this version or set-up of vLLM does not keep it"


class WorkerPart:
    """The `memory` of the file, in bytes; each figure appears as soon as the engine has it."""

    name = "memory"

    def __init__(self, worker: Any) -> None:
        self._worker = weakref.ref(worker)
        runner = type(getattr(worker, "model_runner", None))
        if hasattr(runner, "capture_model"):
            # It returns the bytes that the graphs took, and nobody keeps them.
            call_after(runner, "capture_model", _keep_graphs_bytes, "the size of the graphs")

    def collect(self) -> Mapping[str, object]:
        worker = self._worker()
        if worker is None:
            return {"missing": {"memory": "the worker has ended"}}
        runner = worker.model_runner
        figures = {
            "weights_bytes": _whole(getattr(runner, "model_memory_usage", None)),
            "kv_pool_bytes": pool_bytes(getattr(runner, "kv_cache_config", None)),
            "activations_bytes": _activations_bytes(worker),
            "graphs_bytes": _whole(getattr(runner, _GRAPHS_BYTES, None)),
            "non_torch_bytes": _whole(getattr(worker, "non_torch_memory", None)),
        }
        return {
            "memory": {name: value for name, value in figures.items() if value is not None},
            "missing": {f"memory.{name}": _WHY_NOT for name, value in figures.items() if value is None},
        }


def _keep_graphs_bytes(runner: Any, graphs_bytes: object) -> None:
    setattr(runner, _GRAPHS_BYTES, graphs_bytes)


def pool_bytes(config: Any) -> int | None:
    """Bytes of the KV pool on one GPU by vLLM's KVCacheConfig."""
    tensors = [
        tensor for tensor in getattr(config, "kv_cache_tensors", ()) if not getattr(tensor, "host_resident", False)
    ]
    if not tensors:
        return None
    if hasattr(tensors[0], "layer_stride"):
        # Somewhere between 0.26 and 0.32 the tensors became places in one allocation, and `size` that of the whole.
        return max(int(tensor.size) for tensor in tensors)
    return sum(int(tensor.size) for tensor in tensors)


def _activations_bytes(worker: Any) -> int | None:
    peak = _whole(getattr(worker, "peak_activation_memory", None))
    if peak is None or not hasattr(worker, "total_consumed"):
        return peak
    # A worker that keeps `total_consumed` (0.32) has added its estimate of the graphs to the peak, unless told not to.
    envs = sys.modules.get("vllm.envs")
    added = getattr(envs, "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", False)
    return peak - int(getattr(worker, "cudagraph_memory_estimate", 0)) if added else peak


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, (int, float)) else None
