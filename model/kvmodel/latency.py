"""How long a prefill and a decode step take: compute against memory traffic (the roofline).

A step reads all weights and the cache of its sequences once, and does two operations per active parameter and token,
plus attention. Two forms: the larger of the two times (they overlap perfectly), and their sum (they do not at all).
Measured step times of real engines grow linearly in the batch, as the sum does. `step_cost` is the sum as coefficients,
with what tensor parallelism and the engine's own host work add: for simulation and for advice.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kvmodel.architecture import Architecture
from kvmodel.dtypes import kv_dtype as find_kv_dtype
from kvmodel.errors import ModelError, show

COMPUTE_EFFICIENCY = 0.52
"""Share of the dense peak a prefill reaches: Qwen3-32B on two H100 under vLLM 0.51 (llm-d), Llama-3.1-8B on two A100
0.39-0.45 (SageServe); 0.50-0.55 is the range to expect."""
BANDWIDTH_EFFICIENCY = 0.72
"""Share of the peak bandwidth a decode reaches: Llama-3.1-8B on H100 0.68 (llm-d's workload variant autoscaler), on
A100-40GB 0.77."""
STEP_OVERHEAD_SECONDS = 0.003
"""Scheduling, launches and sampling of one engine step."""


_ACTIVATION_BYTES = 2


@dataclass(frozen=True, slots=True)
class Link:
    """What joins the GPUs of a tensor-parallel group, and what an all-reduce over it takes."""

    name: str
    all_reduce_seconds: float
    """Of any all-reduce over two ranks, however small."""
    hop_seconds: float
    """What each further rank adds: a ring passes them all."""
    bytes_per_second: float
    shared: bool
    """Whether the ranks share one path, as over a host's bridge, or each has its own."""

    def wait_seconds(self, tp: int) -> float:
        """Of one all-reduce of no size over `tp` ranks."""
        return self.all_reduce_seconds + self.hop_seconds * (tp - 2) if tp > 1 else 0.0

    def byte_seconds(self, tp: int) -> float:
        """What each byte adds: a ring sends it 2 (tp - 1) times over, a tp-th of that on each rank's own path."""
        return 2 * (tp - 1) / (1 if self.shared else tp) / self.bytes_per_second


NVLINK = Link("nvlink", 10e-6, 1e-6, 300e9, shared=False)
"""Every pair at full rate (SXM boards), with the engine's own small all-reduce kernels. The order of magnitude, not
measured here; of a 32B model's step on two H100 the latency is 1.3 ms in 15."""
PCIE = Link("pcie", 40e-6, 11e-6, 68e9, shared=True)
"""NCCL through the host: Llama-3.1-8B on two and four A100 of SageServe's data, whose prefill takes longer on four."""
LINKS: Mapping[str, Link] = {link.name: link for link in (NVLINK, PCIE)}


@dataclass(frozen=True, slots=True)
class Stack:
    """What engine and host make of a card's peaks. None of it depends on the model."""

    name: str
    compute_efficiency: float
    """Share of the dense peak that matrix products reach."""
    bandwidth_efficiency: float
    """Share of the peak bandwidth that a decode reaches."""
    step_seconds: float
    """Scheduling and sampling of one step that the GPU waits for."""
    layer_seconds: float = 0.0
    """Launches of one layer that the GPU waits for; 0 where CUDA graphs replay them."""
    sequence_seconds: float = 0.0
    """Host work for each decoding sequence that the GPU waits for."""


VLLM = Stack("vllm", compute_efficiency=0.62, bandwidth_efficiency=0.78, step_seconds=0.0007)
"""vLLM with CUDA graphs and asynchronous scheduling, from 2024 on: Llama-3.1-8B on H100 7.0 ms a token alone and 8.7 at
64, on A100-40GB 13.3 ms; Qwen3-32B's prefill on two H100 15.4-15.9k tokens/s. Both shares are higher than those of
`estimate_latency`, since all-reduces stand apart and the step's own time is shorter."""


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """One step: what its compute and its memory traffic take each, apart from the fixed overhead."""

    compute_seconds: float
    memory_seconds: float
    overhead_seconds: float = 0.0

    @property
    def sum_seconds(self) -> float:
        """Additive form: nothing overlaps."""
        return self.overhead_seconds + self.compute_seconds + self.memory_seconds

    @property
    def max_seconds(self) -> float:
        """Roofline: compute and traffic overlap, the slower one remains."""
        return self.overhead_seconds + max(self.compute_seconds, self.memory_seconds)

    @property
    def bound(self) -> str:
        """`compute` or `memory`: which side takes longer."""
        return "compute" if self.compute_seconds > self.memory_seconds else "memory"


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of a batch of equal requests."""

    prefill: PhaseTime
    decode: PhaseTime
    """The step at full context, the slowest."""

    @property
    def ttft_seconds(self) -> float:
        """Time to first token without queueing: the prefill, additive form."""
        return self.prefill.sum_seconds

    @property
    def tpot_seconds(self) -> float:
        """Time per output token while no prefill runs beside it: one decode step, additive form."""
        return self.decode.sum_seconds


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a mixed step of a continuously batching engine takes, by what is in it: the additive form, term by term.

    Additive because measured inter-token latency grows as a straight line with the batch.
    """

    fixed_seconds: float
    """Of every step: scheduling, launches, sampling, and reading all weights once."""
    kv_token_seconds: float
    """Reading one resident token of the cache."""
    token_seconds: float
    """The matrix products for one token, decoded or prefilled."""
    pair_seconds: float = 0.0
    """Attention of one prefilled token to one position before it."""
    sequence_seconds: float = 0.0
    """Of one decoding sequence whatever its length: host work, its full windows read, its state read and written."""

    def seconds(self, kv_tokens: float, tokens: float, pairs: float = 0.0, sequences: float = 0.0) -> float:
        """Seconds of one step that reads `kv_tokens` resident tokens and computes `tokens` (decodes and prefill),
        the prefilled ones attending to `pairs` (token, position) pairs in all, with `sequences` decoding."""
        return (
            self.fixed_seconds
            + kv_tokens * self.kv_token_seconds
            + tokens * self.token_seconds
            + pairs * self.pair_seconds
            + sequences * self.sequence_seconds
        )

    def scaled(self, memory: float, compute: float) -> "StepCost":
        """The same where fixed time and traffic take `memory` times as long, and computing `compute` times."""
        return StepCost(
            fixed_seconds=memory * self.fixed_seconds,
            kv_token_seconds=memory * self.kv_token_seconds,
            token_seconds=compute * self.token_seconds,
            pair_seconds=compute * self.pair_seconds,
            sequence_seconds=memory * self.sequence_seconds,
        )

    def prefill_seconds(self, tokens: float, cached_tokens: float = 0.0, chunk_tokens: float = 8192.0) -> float:
        """Seconds that the prefill of a prompt adds to the steps that carry it, `cached_tokens` of it found in a prefix
        cache: one `fixed_seconds` for each chunk, though decodes may share the step."""
        new = max(tokens - cached_tokens, 0.0)
        pairs = new * (cached_tokens + tokens) / 2
        return new * self.token_seconds + pairs * self.pair_seconds + new / chunk_tokens * self.fixed_seconds


def phase_time(
    *,
    flop: float,
    traffic_bytes: float,
    flop_per_second: float,
    bytes_per_second: float,
    compute_efficiency: float = 1.0,
    bandwidth_efficiency: float = 1.0,
    overhead_seconds: float = 0.0,
) -> PhaseTime:
    """Time of `flop` operations and `traffic_bytes` of traffic on a device of these peaks.

    Raises ModelError naming the argument at fault.
    """
    for name, value in (("flop_per_second", flop_per_second), ("bytes_per_second", bytes_per_second)):
        _check(name, value, least=0, above=True)
    for name, value in (("flop", flop), ("traffic_bytes", traffic_bytes), ("overhead_seconds", overhead_seconds)):
        _check(name, value, least=0)
    for name, value in (
        ("compute_efficiency", compute_efficiency),
        ("bandwidth_efficiency", bandwidth_efficiency),
    ):
        _check(name, value, least=0, above=True)
        if value > 1:
            raise ModelError(name, f"{show(value)} is above 1")
    return PhaseTime(
        flop / (flop_per_second * compute_efficiency),
        traffic_bytes / (bytes_per_second * bandwidth_efficiency),
        overhead_seconds,
    )


def estimate_latency(
    architecture: Architecture,
    *,
    active_parameters: int,
    weights_bytes_per_gpu: int,
    flop_per_second: float,
    bytes_per_second: float,
    prompt_tokens: int,
    context_tokens: int | None = None,
    batch: int = 1,
    kv_dtype: str = "auto",
    tp: int = 1,
    cached_tokens: int = 0,
    compute_efficiency: float = COMPUTE_EFFICIENCY,
    bandwidth_efficiency: float = BANDWIDTH_EFFICIENCY,
    overhead_seconds: float = STEP_OVERHEAD_SECONDS,
) -> Latency:
    """Prefill and decode of `batch` requests of `prompt_tokens`, decoding at `context_tokens` (the prompt if absent).

    Peaks are one GPU's; work is cut over `tp`, whose communication is not modelled. `active_parameters` are those one
    token passes through; of a mixture of experts a batch may touch more weights than these, up to all, which
    `weights_bytes_per_gpu` counts. `cached_tokens` of each prompt come from a prefix cache. Raises ModelError naming
    the argument at fault.
    """
    context = prompt_tokens if context_tokens is None else context_tokens
    for name, value, least in (
        ("active_parameters", active_parameters, 1),
        ("weights_bytes_per_gpu", weights_bytes_per_gpu, 0),
        ("prompt_tokens", prompt_tokens, 1),
        ("context_tokens", context, 1),
        ("batch", batch, 1),
        ("cached_tokens", cached_tokens, 0),
    ):
        _check_count(name, value, least)
    if cached_tokens >= prompt_tokens:
        raise ModelError("cached_tokens", f"{show(cached_tokens)} leaves nothing of {prompt_tokens} prompt tokens")
    new_tokens = prompt_tokens - cached_tokens
    per_pair = _attention_flop_per_pair(architecture)
    # Each new token attends to what is kept before it; half the new ones on average.
    pairs = new_tokens * (
        _kept_layer_tokens(architecture, cached_tokens) + _kept_layer_tokens(architecture, prompt_tokens)
    )
    prefill_flop = batch * (2 * active_parameters * new_tokens + per_pair * pairs / 2)
    decode_flop = batch * (2 * active_parameters + per_pair * _kept_layer_tokens(architecture, context))
    cache_read = architecture.bytes_at(cached_tokens, kv_dtype, tp)
    cache_written = architecture.bytes_at(prompt_tokens, kv_dtype, tp)

    def step(flop: float, cache_bytes: float) -> PhaseTime:
        return phase_time(
            flop=flop / tp,
            traffic_bytes=weights_bytes_per_gpu + batch * cache_bytes,
            flop_per_second=flop_per_second,
            bytes_per_second=bytes_per_second,
            compute_efficiency=compute_efficiency,
            bandwidth_efficiency=bandwidth_efficiency,
            overhead_seconds=overhead_seconds,
        )

    decode = step(decode_flop, architecture.bytes_at(context, kv_dtype, tp))
    return Latency(step(prefill_flop, cache_read + cache_written), decode)


def step_cost(
    architecture: Architecture,
    *,
    active_parameters: int,
    weights_bytes_per_gpu: int,
    flop_per_second: float,
    bytes_per_second: float,
    kv_dtype: str = "auto",
    tp: int = 1,
    stack: Stack = VLLM,
    link: Link = NVLINK,
    compute_efficiency: float | None = None,
    bandwidth_efficiency: float | None = None,
    overhead_seconds: float | None = None,
) -> StepCost:
    """What the steps of this model take on `tp` GPUs of these peaks (one GPU's, dense).

    A step reads all weights, those of experts it may not need included: 32 sequences that take 8 experts of 128 touch
    seven of eight, and capacity is decided there; a lone sequence of a mixture is faster than this says. Computed are
    `active_parameters`. Layers with a window and state count as full from the start; only layers that keep all tokens
    count per resident token and per pair. Two all-reduces a layer, none where `tp` is 1. The last three arguments
    replace the stack's. Raises ModelError naming the argument at fault.
    """
    for name, value, least in (
        ("active_parameters", active_parameters, 1),
        ("weights_bytes_per_gpu", weights_bytes_per_gpu, 0),
    ):
        _check_count(name, value, least)
    compute = stack.compute_efficiency if compute_efficiency is None else compute_efficiency
    bandwidth = stack.bandwidth_efficiency if bandwidth_efficiency is None else bandwidth_efficiency
    overhead = stack.step_seconds if overhead_seconds is None else overhead_seconds
    per_token_bytes = architecture.growth_bytes_per_token(kv_dtype, tp)
    growing, kept = _attended(architecture)
    per_pair = _attention_flop_per_pair(architecture)
    reduces = 2 * architecture.num_layers
    token_bytes = reduces * architecture.hidden_size * _ACTIVATION_BYTES

    def time(flop: float = 0.0, traffic_bytes: float = 0.0) -> float:
        return phase_time(
            flop=flop / tp,
            traffic_bytes=traffic_bytes,
            flop_per_second=flop_per_second,
            bytes_per_second=bytes_per_second,
            compute_efficiency=compute,
            bandwidth_efficiency=bandwidth,
        ).sum_seconds

    _check("overhead_seconds", overhead, least=0)
    host = overhead + architecture.num_layers * stack.layer_seconds
    return StepCost(
        fixed_seconds=host + reduces * link.wait_seconds(tp) + time(traffic_bytes=weights_bytes_per_gpu),
        kv_token_seconds=time(traffic_bytes=per_token_bytes),
        token_seconds=time(flop=2.0 * active_parameters + per_pair * kept) + token_bytes * link.byte_seconds(tp),
        pair_seconds=time(flop=per_pair * growing),
        sequence_seconds=stack.sequence_seconds
        + time(
            traffic_bytes=architecture.window_bytes_per_sequence(kv_dtype, tp)
            + 2 * architecture.state_bytes_per_sequence(kv_dtype, tp)
        ),
    )


def _attended(architecture: Architecture) -> tuple[float, float]:
    """(layers that keep all tokens, tokens that full windows keep summed over the others)."""
    kv = find_kv_dtype("auto", architecture.dtype)
    growing = kept = 0.0
    for group in architecture.groups:
        token_bytes = group.layer.token_bytes(kv, 1)
        if token_bytes:
            growing += group.count * group.layer.growth_bytes_per_token(kv, 1) / token_bytes
            kept += group.count * group.layer.window_bytes(kv, 1) / token_bytes
    return growing, kept


def _attention_flop_per_pair(architecture: Architecture) -> float:
    """Operations of one layer for one (query, key) pair: two per element of the score and of the weighted sum."""
    if architecture.v_head_dim is not None and architecture.qk_nope_head_dim is not None:
        width = architecture.qk_nope_head_dim + (architecture.rotary_dim or 0) + architecture.v_head_dim
    else:
        width = 2 * architecture.head_dim
    return 2.0 * architecture.num_attention_heads * width


def _kept_layer_tokens(architecture: Architecture, tokens: int) -> float:
    """Tokens kept for attention at this length, summed over the layers; layers of constant state keep none."""
    kv = find_kv_dtype("auto", architecture.dtype)
    kept = 0.0
    for group in architecture.groups:
        token_bytes = group.layer.token_bytes(kv, 1)
        if token_bytes:
            grown = group.layer.bytes_at(tokens, kv, 1) - group.layer.state_bytes(kv, 1)
            kept += group.count * grown / token_bytes
    return kept


def _check(name: str, value: float, least: float, above: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (value > least if above else value >= least) or value > 1e30:
        raise ModelError(name, f"{show(value)} is not a number {'above' if above else 'of at least'} {least}")


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**60:
        raise ModelError(name, f"{show(value)} is not a whole number of at least {least}")
