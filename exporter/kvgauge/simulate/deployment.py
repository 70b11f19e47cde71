"""From a model and cards, or from plain numbers, to the engine that the simulator runs.

The pool and the weights are those that `kvgauge plan` gives for the same case; the step's cost is `kvmodel.step_cost`,
put back into the engine's physical fields. Any figure that is known better may be given and replaces the derived one.
`EngineSpec` has no cost per sequence: what full windows and state cost a step is spread over the tokens of a usual
request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

from kvgauge.complaints import InputError
from kvgauge.simulate.spec import EngineSpec
from kvmodel.architecture import Architecture, load_architecture, load_config, read_architecture
from kvmodel.errors import ModelError, show
from kvmodel.gpus import Gpu, find_gpu
from kvmodel.latency import LINKS, NVLINK, PCIE, VLLM, Link, step_cost
from kvmodel.parameters import estimate_weights
from kvmodel.plan import plan

_PLANNED = (
    "model",
    "config",
    "engine_version",
    "gpu",
    "tp",
    "max_model_len",
    "gpu_memory_utilization",
    "kv_dtype",
    "weights_dtype",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
)
"""Fields that go to the planner under the same name."""
_NUMBERS = frozenset(
    {"bandwidth_bytes_per_second", "flops_per_second", "step_overhead_seconds", "attention_flop_per_pair"}
)
_COUNTS = frozenset(
    {
        "kv_tokens",
        "kv_bytes_per_token",
        "weights_bytes",
        "parameters",
        "tp",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "block_size",
    }
)
_MOST = 2**60
_MAX_NUM_SEQS = 256
_MAX_NUM_BATCHED_TOKENS = 8192
_BLOCK_TOKENS = 16
_NULL_BLOCK = 1
_USUAL_TOKENS = 4096
_FABRIC = ("v100", "a100", "a800", "h20", "h100", "h200", "h800", "gh200", "b200", "b300", "gb200", "gb300", "mi")
"""Beginnings of the names of cards that are joined all to all, `-pcie` and `-nvl` boards apart."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One replica: a model on `tp` cards, or numbers in its stead. None: derived, or the engine's default.

    Names are those of `kvgauge plan` and `kvgauge simulate`. Bytes and rates are one GPU's, `parameters`,
    `flops_per_second` and `attention_flop_per_pair` those of the whole group.
    """

    model: str | None = None
    """A config.json, a folder that holds one, or a .gguf file."""
    config: Mapping[str, object] | None = None
    gpu: str | None = None
    tp: int = 1
    engine_version: str | None = None
    max_model_len: int | None = None
    """None: the model's own limit, or what the pool holds where that is less."""
    gpu_memory_utilization: float | None = None
    kv_dtype: str | None = None
    weights_dtype: str | None = None
    max_num_seqs: int | None = None
    """None: the engine version's own for the card; 256 without a model."""
    max_num_batched_tokens: int | None = None
    """None: 8192, whatever the card."""
    block_size: int | None = None
    prefix_caching: bool = False
    interconnect: str | None = None
    """`nvlink` or `pcie`; None: by the card."""
    kv_tokens: int | None = None
    """Tokens the pool holds, as the engine prints at its start."""
    kv_bytes_per_token: int | None = None
    weights_bytes: int | None = None
    parameters: int | None = None
    """Those one token passes through."""
    bandwidth_bytes_per_second: float | None = None
    """Reached, not the data sheet's."""
    flops_per_second: float | None = None
    """Reached by the whole group, its all-reduces counted in."""
    step_overhead_seconds: float | None = None
    attention_flop_per_pair: float | None = None


@dataclass(frozen=True, slots=True)
class _Physics:
    """What a model on its cards, or the given numbers, say of the pool and the steps."""

    usable_blocks: int
    block_tokens: int
    longest_tokens: int | None
    max_num_seqs: int
    kv_bytes_per_token: int
    weights_bytes: int
    parameters: int
    bandwidth_bytes_per_second: float
    flops_per_second: float
    step_overhead_seconds: float
    attention_flop_per_pair: float


def engine_spec(deployment: Deployment) -> EngineSpec:
    """The engine of one replica.

    Raises InputError naming the field: what the planner refuses, what is missing without a model, what cannot be.
    """
    _check(deployment)
    try:
        bare = deployment.model is None and deployment.config is None
        found = _from_numbers(deployment) if bare else _from_model(deployment)
        return EngineSpec(
            num_blocks=found.usable_blocks + _NULL_BLOCK,
            max_model_len=deployment.max_model_len or _longest(found),
            kv_bytes_per_token=found.kv_bytes_per_token,
            weights_bytes=found.weights_bytes,
            parameters=found.parameters,
            bandwidth_bytes_per_second=found.bandwidth_bytes_per_second,
            flops_per_second=found.flops_per_second,
            step_overhead_seconds=found.step_overhead_seconds,
            block_tokens=found.block_tokens,
            max_num_seqs=found.max_num_seqs,
            max_num_batched_tokens=deployment.max_num_batched_tokens or _MAX_NUM_BATCHED_TOKENS,
            attention_flop_per_pair=found.attention_flop_per_pair,
            prefix_caching=deployment.prefix_caching,
        )
    except ModelError as error:
        raise InputError(f"{error.field}: {error.message}") from None
    except ValueError as error:
        # EngineSpec's own words: they name the field and the value.
        raise InputError(str(error)) from None


def _check(deployment: Deployment) -> None:
    for name in (field.name for field in fields(deployment)):
        value = getattr(deployment, name)
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in _COUNTS and not (number and isinstance(value, int) and 1 <= value <= _MOST):
            raise InputError(f"{name}: {show(value)} is not a whole number of at least 1")
        if name in _NUMBERS and not (number and 0 <= value < 1e30):
            raise InputError(f"{name}: {show(value)} is not a number of at least 0")
    if deployment.interconnect is not None and deployment.interconnect not in LINKS:
        raise InputError(f"interconnect: {show(deployment.interconnect)} is not one of {', '.join(LINKS)}")
    if not isinstance(deployment.prefix_caching, bool):
        raise InputError(f"prefix_caching: {show(deployment.prefix_caching)} is not true or false")


def _longest(found: _Physics) -> int:
    pool = found.usable_blocks * found.block_tokens
    return pool if found.longest_tokens is None else min(pool, found.longest_tokens)


def _from_numbers(deployment: Deployment) -> _Physics:
    """Without a model all of it must be given; a card saves the two rates."""
    block_tokens = deployment.block_size or _BLOCK_TOKENS
    bandwidth, rate = deployment.bandwidth_bytes_per_second, deployment.flops_per_second
    overhead = deployment.step_overhead_seconds
    if deployment.gpu is not None:
        card = find_gpu(deployment.gpu)
        bandwidth = bandwidth or card.bandwidth_bytes_per_second * VLLM.bandwidth_efficiency
        rate = rate or deployment.tp * _dense_rate(card, "bfloat16", None) * VLLM.compute_efficiency
    return _Physics(
        usable_blocks=_given("kv_tokens", deployment.kv_tokens) // block_tokens,
        block_tokens=block_tokens,
        longest_tokens=None,
        max_num_seqs=deployment.max_num_seqs or _MAX_NUM_SEQS,
        kv_bytes_per_token=_given("kv_bytes_per_token", deployment.kv_bytes_per_token),
        weights_bytes=_given("weights_bytes", deployment.weights_bytes),
        parameters=_given("parameters", deployment.parameters),
        bandwidth_bytes_per_second=_given("bandwidth_bytes_per_second", bandwidth),
        flops_per_second=_given("flops_per_second", rate),
        step_overhead_seconds=VLLM.step_seconds if overhead is None else overhead,
        attention_flop_per_pair=deployment.attention_flop_per_pair or 0.0,
    )


_Number = TypeVar("_Number", int, float)


def _given(name: str, value: _Number | None) -> _Number:
    if value is None:
        raise InputError(f"{name}: is missing: give it, or a model and its card")
    return value


def _from_model(deployment: Deployment) -> _Physics:
    if deployment.gpu is None:
        raise InputError("gpu: is missing: a model needs its card, such as h100-80gb")
    card = find_gpu(deployment.gpu)
    planned = _planned(deployment)
    architecture, active = _model(deployment)
    cost = step_cost(
        architecture,
        active_parameters=active,
        weights_bytes_per_gpu=planned.weights_bytes,
        flop_per_second=_dense_rate(card, architecture.dtype, architecture.quantization),
        bytes_per_second=card.bandwidth_bytes_per_second,
        kv_dtype=deployment.kv_dtype or "auto",
        tp=deployment.tp,
        link=_link(deployment, card),
    )
    reached = card.bandwidth_bytes_per_second * VLLM.bandwidth_efficiency
    overhead = deployment.step_overhead_seconds
    # The engine computes 2 N operations a token: a rate that makes this the whole cost of one, all-reduces included.
    rate = 2 * active / cost.token_seconds
    pair = deployment.attention_flop_per_pair
    return _Physics(
        usable_blocks=planned.usable_blocks,
        block_tokens=planned.block_tokens,
        longest_tokens=architecture.max_position_embeddings,
        max_num_seqs=planned.max_num_seqs,
        kv_bytes_per_token=deployment.kv_bytes_per_token
        or round(architecture.bytes_at(_USUAL_TOKENS, deployment.kv_dtype or "auto", deployment.tp) / _USUAL_TOKENS),
        weights_bytes=planned.weights_bytes,
        parameters=active,
        bandwidth_bytes_per_second=deployment.bandwidth_bytes_per_second or reached,
        flops_per_second=deployment.flops_per_second or rate,
        step_overhead_seconds=cost.fixed_seconds - planned.weights_bytes / reached if overhead is None else overhead,
        attention_flop_per_pair=cost.pair_seconds * rate if pair is None else pair,
    )


@dataclass(frozen=True, slots=True)
class _Planned:
    usable_blocks: int
    block_tokens: int
    max_num_seqs: int
    weights_bytes: int


def _planned(deployment: Deployment) -> _Planned:
    """The planner's answer, as far as the engine needs it. Raises InputError with the planner's own complaint."""
    case = {name: getattr(deployment, name) for name in _PLANNED}
    case["weights_bytes_per_gpu"] = deployment.weights_bytes
    result = plan(case)
    error = result["error"]
    if isinstance(error, Mapping):
        raise InputError(f"{error['field']}: {error['message']}")
    weights_bytes = _whole(result["memory"], "weights_bytes")
    if weights_bytes is None:
        raise InputError("weights_bytes: is missing: it cannot be told from this model")
    engine = result["engine_plan"]
    block_tokens = _whole(engine, "block_tokens") or deployment.block_size or _BLOCK_TOKENS
    if deployment.kv_tokens is not None:
        usable = deployment.kv_tokens // block_tokens
    else:
        # The engine's own figure counts the null block.
        usable = (_whole(engine, "capacity_tokens") or 0) // block_tokens - _NULL_BLOCK
    if usable < 1:
        raise InputError(f"gpu: {show(deployment.gpu)}: the weights leave nothing for the KV cache")
    return _Planned(
        usable, block_tokens, deployment.max_num_seqs or _whole(engine, "max_requests") or _MAX_NUM_SEQS, weights_bytes
    )


def _whole(section: object, name: str) -> int | None:
    value = section.get(name) if isinstance(section, Mapping) else None
    return value if isinstance(value, int) else None


def _model(deployment: Deployment) -> tuple[Architecture, int]:
    """The architecture, and the parameters that one token passes through."""
    config = deployment.config
    if config is not None:
        architecture = read_architecture(config)
    else:
        path = str(deployment.model)
        architecture = load_architecture(path)
        config = None if path.endswith(".gguf") else load_config(path)
    if deployment.parameters is not None:
        return architecture, deployment.parameters
    if config is None:
        raise InputError("parameters: is missing: it is not counted from a .gguf file")
    try:
        return architecture, estimate_weights(config, weights_dtype=deployment.weights_dtype).active_parameters
    except ModelError as error:
        raise InputError(f"parameters: is missing: {error}") from None


def _dense_rate(card: Gpu, dtype: str, quantization: str | None) -> float:
    """Peak of the card in what the model is multiplied in: fp8 checkpoints in fp8 where the card can."""
    for name in (quantization or dtype, dtype, "float16"):
        if name in card.dense_flop_per_second:
            return card.dense_flop_per_second[name]
    raise InputError(f"flops_per_second: is missing: no rate of {card.name} for {dtype} is known")


def _link(deployment: Deployment, card: Gpu) -> Link:
    if deployment.interconnect is not None:
        return LINKS[deployment.interconnect]
    joined = card.name.startswith(_FABRIC) and not card.name.endswith(("-pcie", "-nvl"))
    return NVLINK if joined else PCIE
