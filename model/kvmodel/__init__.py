"""What GPU memory under a language model should be: pure arithmetic on its config and its checkpoint's headers.

Standard library only. The names below are the public surface; each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmodel.architecture import Architecture, load_architecture, load_config, read_architecture
    from kvmodel.engines.contract import EnginePlan, PlanGroup
    from kvmodel.engines.vllm import plan_pool
    from kvmodel.errors import ModelError
    from kvmodel.gguf import read_gguf
    from kvmodel.gpus import Gpu, find_gpu
    from kvmodel.latency import StepCost, estimate_latency, step_cost
    from kvmodel.overheads import Interval, MemoryPrediction, predict_memory
    from kvmodel.parameters import count_parameters, estimate_weights
    from kvmodel.training import training_memory
    from kvmodel.weights import Weights, read_weights, weights_bytes_per_gpu

_HOMES = {
    "Architecture": "architecture",
    "EnginePlan": "engines.contract",
    "Gpu": "gpus",
    "Interval": "overheads",
    "MemoryPrediction": "overheads",
    "ModelError": "errors",
    "PlanGroup": "engines.contract",
    "StepCost": "latency",
    "Weights": "weights",
    "count_parameters": "parameters",
    "estimate_latency": "latency",
    "estimate_weights": "parameters",
    "find_gpu": "gpus",
    "load_architecture": "architecture",
    "load_config": "architecture",
    "plan_pool": "engines.vllm",
    "predict_memory": "overheads",
    "read_architecture": "architecture",
    "read_gguf": "gguf",
    "read_weights": "weights",
    "step_cost": "latency",
    "training_memory": "training",
    "weights_bytes_per_gpu": "weights",
}

__all__ = [
    "Architecture",
    "EnginePlan",
    "Gpu",
    "Interval",
    "MemoryPrediction",
    "ModelError",
    "PlanGroup",
    "StepCost",
    "Weights",
    "count_parameters",
    "estimate_latency",
    "estimate_weights",
    "find_gpu",
    "load_architecture",
    "load_config",
    "plan_pool",
    "predict_memory",
    "read_architecture",
    "read_gguf",
    "read_weights",
    "step_cost",
    "training_memory",
    "weights_bytes_per_gpu",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'kvmodel' has no attribute {name!r}")
    value: object = getattr(import_module(f"kvmodel.{home}"), name)
    # Kept, so that a submodule of the same name never stands in for it, and the next use costs nothing.
    globals()[name] = value
    return value
