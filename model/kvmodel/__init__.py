"""What the memory of a language model under inference should be: pure arithmetic, the standard library only."""

from kvmodel.architecture import Architecture, load_architecture, read_architecture
from kvmodel.engines.vllm import PoolPlan, plan_pool
from kvmodel.errors import ModelError
from kvmodel.overheads import Interval, MemoryPrediction, predict_memory
from kvmodel.weights import Weights, read_weights, weights_bytes_per_gpu

__all__ = [
    "Architecture",
    "Interval",
    "MemoryPrediction",
    "ModelError",
    "PoolPlan",
    "Weights",
    "load_architecture",
    "plan_pool",
    "predict_memory",
    "read_architecture",
    "read_weights",
    "weights_bytes_per_gpu",
]
