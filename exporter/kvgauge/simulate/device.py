"""The device that the embedded engine claims to run on, and what an engine measurably used of it."""

from dataclasses import dataclass

from kvgauge.simulate.spec import EngineSpec

_GIB = 1 << 30


def _gib(amount: float) -> int:
    return round(amount * _GIB)


@dataclass(frozen=True, slots=True)
class EmbeddedDevice:
    """One GPU with one started engine on it: where every byte of it is, and how fast it works."""

    gpu_name: str
    model_name: str
    engine_version: str
    """The engine whose start-up was measured."""
    gpu_memory_utilization: float
    total_bytes: int
    """What CUDA offers."""
    reserved_bytes: int
    context_bytes: int
    """CUDA context and libraries, taken before the engine looks at the memory for the first time."""
    weights_bytes: int
    activation_bytes: int
    """The peak of one full step. The allocator keeps it, so it counts as used from then on."""
    non_torch_bytes: int
    graphs_bytes: int
    spec: EngineSpec

    @property
    def kv_pool_bytes(self) -> int:
        """The KV pool: whole blocks."""
        return self.spec.num_blocks * self.spec.bytes_per_block

    @property
    def used_bytes(self) -> int:
        """All that is taken. It doesn't move with the load: an engine takes its memory when it starts."""
        return (
            self.context_bytes
            + self.weights_bytes
            + self.activation_bytes
            + self.non_torch_bytes
            + self.graphs_bytes
            + self.kv_pool_bytes
        )


LLAMA_31_8B_PARAMETERS = 8_030_261_248

# Speed. Bandwidth is 74 % of HBM3's 3.35 TB/s and arithmetic 55 % of the dense BF16 peak of 989.4 TFLOP/s, the upper
# end of what serving engines reach in public measurements. The overhead is what remains of the 6.97 ms that one
# sequence's token takes with this model on this GPU in vLLM (workload-variant-autoscaler's guide, worked example).
_LLAMA_31_8B_ON_H100 = EngineSpec(
    num_blocks=29_751,
    max_model_len=8192,
    kv_bytes_per_token=131_072,
    weights_bytes=2 * LLAMA_31_8B_PARAMETERS,
    parameters=LLAMA_31_8B_PARAMETERS,
    bandwidth_bytes_per_second=0.74 * 3.35e12,
    flops_per_second=0.55 * 989.4e12,
    step_overhead_seconds=0.0005,
    block_tokens=16,
    max_num_seqs=1024,
    max_num_batched_tokens=8192,
)

H100_LLAMA_31_8B = EmbeddedDevice(
    gpu_name="NVIDIA H100 80GB HBM3",
    model_name="meta-llama/Llama-3.1-8B-Instruct",
    engine_version="0.19.0",
    gpu_memory_utilization=0.95,
    total_bytes=_gib(79.19),
    reserved_bytes=0,
    context_bytes=_gib(0.51),
    weights_bytes=_gib(14.99),
    activation_bytes=_gib(1.89),
    non_torch_bytes=_gib(0.25),
    graphs_bytes=_gib(0.91),
    spec=_LLAMA_31_8B_ON_H100,
)
"""Llama-3.1-8B on an H100 80 GB, as vLLM 0.19.0 really started it.

All figures of memory are public measurements of the llm-d-planner project (Apache-2.0), one start with tensor
parallelism 1, `--gpu-memory-utilization 0.95 --max-model-len 8192`, 1024 sequences, 8192 batched tokens, blocks of 16:
weights 14.99 GiB, activation peak 1.89, outside torch 0.25, context 0.51, CUDA graphs 0.91 (captured after the pool was
sized), and 29,751 blocks of KV, which its log calls 58.11 GiB and 476,016 tokens. The pool is that one, whole: pressure
comes from the size of the load. The driver's own reserve is already taken out of CUDA's 79.19 GiB, so none is left in
that total.
"""
