"""What the engine's steps should take: kvmodel's roofline, asked with what the readings tell of model and GPU."""

from dataclasses import dataclass

from kvgauge.observe.records import ModelReading
from kvmodel import Gpu, ModelError, find_gpu, step_cost, weights_bytes_per_gpu
from kvmodel.latency import NVLINK, PCIE, Link, StepCost

# Engines that serve from GPUs which hold all the weights. Others mix CPU and GPU, or run no batches.
_BATCHING = frozenset(
    {"vllm", "sglang", "tensorrt-llm", "triton-tensorrt-llm", "tgi", "lmdeploy", "max", "nim", "dynamo"}
)
# Cards that their boards join all to all, but for the versions on plain PCIe.
_JOINED = ("v100", "a100", "a800", "h20", "h100", "h200", "h800", "gh200", "b200", "b300", "gb200", "gb300", "mi")
_NOT_JOINED = ("-pcie", "-nvl")


@dataclass(frozen=True, slots=True)
class StepQuestion:
    """All that a step's cost follows from."""

    kind: str
    model: ModelReading | None
    gpu_name: str | None
    """As the driver has it; None where no GPU is seen."""
    mig: str
    tp: int | None
    pp: int
    kv_dtype: str | None


@dataclass(frozen=True, slots=True)
class StepForecast:
    """The cost, or why there is none."""

    cost: StepCost | None
    why_not: str = ""


def forecast_steps(question: StepQuestion) -> StepForecast:
    """The cost of one rank's steps. Nothing is raised."""
    model = question.model
    why_not = _why_not(question)
    if why_not or model is None or model.weights is None or question.tp is None:
        return StepForecast(None, why_not)
    architecture = model.architecture
    try:
        card = find_gpu(question.gpu_name or "")
        rate = _dense_rate(card, architecture.quantization, architecture.dtype)
        if rate is None:
            return StepForecast(None, f"no rate of {card.name} for {architecture.dtype} is known")
        cost = step_cost(
            architecture,
            active_parameters=model.active_parameters or model.weights.parameters,
            weights_bytes_per_gpu=weights_bytes_per_gpu(model.weights, architecture, question.tp),
            flop_per_second=rate,
            bytes_per_second=card.bandwidth_bytes_per_second,
            kv_dtype=question.kv_dtype or "auto",
            tp=question.tp,
            link=_link(card),
        )
    except ModelError as error:
        return StepForecast(None, str(error))
    return StepForecast(cost)


def _why_not(question: StepQuestion) -> str:
    model = question.model
    if question.kind not in _BATCHING:
        return f"how fast {question.kind} computes is not predicted here"
    if model is None:
        return "the model's architecture is not known"
    if model.weights is None:
        return model.missing.get("weights", "the model's weights were not read")
    if model.active_parameters is None and model.architecture.experts is not None:
        # Of experts a token meets a few: all stored parameters would be many times too many.
        return model.missing.get("active_parameters", "how many parameters a token passes through is not known")
    if question.tp is None:
        return "the tensor parallelism is not known"
    if question.pp > 1:
        return "the steps of a pipeline are not predicted"
    if question.gpu_name is None:
        return "no GPU is seen"
    if question.mig:
        return f"the rates of a MIG slice ({question.mig}) are not known"
    return ""


def _dense_rate(card: Gpu, quantization: str | None, dtype: str) -> float | None:
    """Peak of the card in what the model is multiplied in: fp8 checkpoints in fp8 where the card can."""
    rates = card.dense_flop_per_second
    return next((rates[name] for name in (quantization, dtype, "float16") if name is not None and name in rates), None)


def _link(card: Gpu) -> Link:
    return NVLINK if card.name.startswith(_JOINED) and not card.name.endswith(_NOT_JOINED) else PCIE
