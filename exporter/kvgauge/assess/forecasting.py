"""What an engine's memory and pool should be: kvmodel, asked with what the reading tells.

A forecast follows from its question alone, and a question hardly changes from tick to tick: `Memo` keeps the answers.
"""

import math
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from kvgauge.observe.records import ModelReading
from kvmodel import EnginePlan, Gpu, Interval, ModelError, find_gpu, plan_pool, predict_memory
from kvmodel import weights_bytes_per_gpu as weights_bytes_on_each
from kvmodel.engines import plan_of
from kvmodel.gpus import card_of

KV_POOL, WEIGHTS, ACTIVATIONS, GRAPHS, CONTEXT = "kv_pool", "weights", "activations", "graphs", "context"


@dataclass(frozen=True, slots=True)
class Rules:
    """How kvmodel knows an engine."""

    plan: str
    """Its name in `kvmodel.engines`."""
    memory: str | None = None
    """Its name in `predict_memory`; None where that does not know it, and `unsized` says what is missing."""
    share: str = ""
    """The setting that says which share of a GPU it takes."""
    unsized: str = ""
    pool_pays_for: tuple[str, ...] = ()
    """Components whose bytes come out of the pool: where one takes more, the pool is so much smaller."""
    weights_on_gpu: bool = True
    """Whether all weights lie on the GPUs, in shares of one size."""


RULES: Mapping[str, Rules] = {
    "vllm": Rules("vllm", "vllm", "gpu_memory_utilization", pool_pays_for=(WEIGHTS, ACTIVATIONS)),
    "sglang": Rules("sglang", "sglang", "mem_fraction_static", pool_pays_for=(WEIGHTS,)),
    "tensorrt-llm": Rules(
        "tensorrt-llm", "tensorrt_llm", "free_gpu_memory_fraction", pool_pays_for=(WEIGHTS, ACTIVATIONS)
    ),
    "triton-tensorrt-llm": Rules(
        "tensorrt-llm", "tensorrt_llm", "free_gpu_memory_fraction", pool_pays_for=(WEIGHTS, ACTIVATIONS)
    ),
    "llama.cpp": Rules(
        "llama.cpp", unsized="llama.cpp does not tell which layers are on which GPU", weights_on_gpu=False
    ),
    "tgi": Rules("tgi", unsized="TGI gives its pool what a trial run leaves free, which is not predicted"),
    "lmdeploy": Rules("lmdeploy", unsized="LMDeploy does not tell its share of a GPU (cache_max_entry_count)"),
    "transformers": Rules("transformers", unsized="the program makes its caches as large as it likes"),
}
"""By the engine's name in readings. Those that only wrap another are what runs inside, where that is told."""

_OLDEST = {"vllm": (0, 6), "sglang": (0, 4)}
"""The oldest versions with rules of their own."""


@dataclass(frozen=True, slots=True)
class MemoryQuestion:
    """All that the memory of one GPU follows from."""

    kind: str
    """The engine's name in readings."""
    version: str | None
    model: ModelReading
    tp: int
    pp: int
    num_ranks: int
    gpu_total_bytes: int | None
    gpu_name: str
    gpu_memory_utilization: float | None
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    kv_cache_bytes: int | None
    enforce_eager: bool


@dataclass(frozen=True, slots=True)
class MemoryForecast:
    """One GPU's memory; the total and the parts as far as they can be told, in bytes."""

    components: Mapping[str, Interval] = field(default_factory=dict)
    total: Interval | None = None
    why_not: str = ""
    """Why something is missing."""

    @property
    def kv_pool_bytes(self) -> int | None:
        pool = self.components.get(KV_POOL)
        return pool.expected_bytes if pool is not None else None


@dataclass(frozen=True, slots=True)
class PoolQuestion:
    """All that the pool of one data-parallel rank follows from."""

    kind: str
    version: str | None
    model: ModelReading | None
    tp: int | None
    gpu_total_bytes: int | None
    gpu_name: str
    kv_bytes: int | None
    """Bytes on each GPU that are asked for by flag, or left for the pool by the forecast of its memory."""
    num_blocks_override: int | None
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    kv_dtype: str | None
    prefix_caching: bool | None
    capacity_tokens: int | None
    block_tokens: int | None
    num_blocks: int | None


@dataclass(frozen=True, slots=True)
class PoolForecast:
    """One rank's pool. Bytes are bytes on each GPU."""

    token_bytes: int | None
    """Bytes that one more token of a sequence adds."""
    request_bytes: int | None
    """Bytes that a sequence holds whatever its length: state, and windows once full."""
    plan: EnginePlan | None
    """Where the capacity is not predicted, of the engine's own number of blocks, if at all."""
    capacity_tokens: int | None
    missing: Mapping[str, str]


_Question = TypeVar("_Question")
_Answer = TypeVar("_Answer")


class Memo:
    """The answers to the last few questions, owned by the loop. Equal questions have equal answers."""

    def __init__(self, size: int = 16) -> None:
        self._known: deque[tuple[object, object, Any]] = deque(maxlen=size)

    def answer(self, ask: Callable[[_Question], _Answer], question: _Question) -> _Answer:
        """`ask(question)`, from memory where it was asked lately."""
        for asked, known, answer in self._known:
            if asked is ask and known == question:
                found: _Answer = answer
                return found
        fresh = ask(question)
        self._known.append((ask, question, fresh))
        return fresh


def forecast_memory(question: MemoryQuestion) -> MemoryForecast:
    """The memory of one GPU. Nothing is raised: what cannot be told is left out."""
    rules, weights = RULES.get(question.kind), question.model.weights
    if rules is None:
        return MemoryForecast(why_not=f"how {question.kind} shares out a GPU's memory is not predicted here")
    if weights is None:
        return MemoryForecast(why_not=question.model.missing.get("weights", "the model's weights were not read"))
    if question.pp > 1:
        return MemoryForecast(why_not="the share of a pipeline stage is not predicted")
    try:
        share = weights_bytes_on_each(weights, question.model.architecture, question.tp)
        why_not = _why_no_total(question, rules)
        if why_not:
            own = {WEIGHTS: Interval(share, share, share, "checkpoint share")} if rules.weights_on_gpu else {}
            return MemoryForecast(own, None, why_not)
        prediction = predict_memory(
            question.model.architecture,
            weights_bytes_per_gpu=share,
            gpu_total_bytes=question.gpu_total_bytes or 0,
            gpu_memory_utilization=question.gpu_memory_utilization or 0.0,
            engine=rules.memory or "",
            engine_version=_release(question.kind, question.version),
            tp=question.tp,
            max_model_len=question.max_model_len,
            max_num_seqs=question.max_num_seqs,
            max_num_batched_tokens=question.max_num_batched_tokens,
            enforce_eager=question.enforce_eager,
            kv_cache_bytes=question.kv_cache_bytes,
            gpu_name=question.gpu_name or None,
        )
    except ModelError as error:
        return MemoryForecast(why_not=str(error))
    return MemoryForecast(prediction.components, prediction.total)


def _why_no_total(question: MemoryQuestion, rules: Rules) -> str:
    if rules.memory is None:
        return rules.unsized
    if question.gpu_total_bytes is None:
        return "no GPU's memory size is known"
    if question.gpu_memory_utilization is None:
        return f"the engine does not tell {rules.share}"
    if rules.memory == "sglang" and question.num_ranks > 1:
        return "the weights' share under data-parallel attention is not predicted"
    return ""


def forecast_pool(question: PoolQuestion) -> PoolForecast:
    """The pool of one rank. Nothing is raised: what cannot be told is left out, with a reason."""
    missing: dict[str, str] = {}
    token_bytes, request_bytes = _sequence_bytes(question, missing)
    rules = RULES.get(question.kind)
    plan = None
    if rules is None:
        missing["predicted_capacity_tokens"] = f"the pool of {question.kind} is not predicted here"
    elif question.model is None or question.tp is None:
        missing["predicted_capacity_tokens"] = "the model's architecture or the tensor parallelism is not known"
    else:
        try:
            plan = _PLANS.get(rules.plan, _none)(question, question.model, question.tp, missing)
        except ModelError as error:
            missing["predicted_capacity_tokens"] = str(error)
        if plan is None:
            missing.setdefault("predicted_capacity_tokens", rules.unsized or "the bytes for the pool are not predicted")
    # Planned without a predicted pool, it is only the engine's own number of blocks said again.
    capacity = None if plan is None or "predicted_capacity_tokens" in missing else plan.capacity_tokens
    return PoolForecast(token_bytes, request_bytes, plan, capacity, missing)


def _sequence_bytes(question: PoolQuestion, missing: dict[str, str]) -> tuple[int | None, int | None]:
    tp, kv_dtype = question.tp, question.kv_dtype or "auto"
    if question.model is None or tp is None:
        missing["kv_bytes_per_token"] = "the model's architecture or the tensor parallelism is not known"
        return None, None
    architecture = question.model.architecture
    try:
        windows = architecture.window_bytes_per_sequence(kv_dtype, tp)
        # Compressed caches add a fraction of a byte; a token is never promised for less than it takes.
        token_bytes = math.ceil(architecture.growth_bytes_per_token(kv_dtype, tp))
        return token_bytes, windows + architecture.state_bytes_per_sequence(kv_dtype, tp)
    except ModelError as error:
        missing["kv_bytes_per_token"] = str(error)
        return None, None


def _vllm(question: PoolQuestion, model: ModelReading, tp: int, missing: dict[str, str]) -> EnginePlan | None:
    """From the blocks or bytes asked for by flag, or from the predicted pool. Else from the engine's own blocks, which
    predicts no capacity, and `missing` says so."""
    blocks = question.num_blocks_override
    if question.max_model_len is None or not question.block_tokens:
        missing["predicted_capacity_tokens"] = "the block size or max_model_len is not known"
        return None
    if question.kv_bytes is None and blocks is None:
        missing["predicted_capacity_tokens"] = "the bytes left for the pool could not be predicted"
        blocks = question.num_blocks
        if blocks is None:
            return None
    return plan_pool(
        model.architecture,
        kv_bytes=None if blocks is not None else question.kv_bytes,
        num_blocks=blocks,
        block_tokens=question.block_tokens,
        max_model_len=question.max_model_len,
        kv_dtype=question.kv_dtype or "auto",
        tp=tp,
        engine_version=_release(question.kind, question.version),
        max_num_batched_tokens=question.max_num_batched_tokens,
        max_num_seqs=question.max_num_seqs,
        prefix_caching=question.prefix_caching,
        gpu=_card(question.gpu_name, question.gpu_total_bytes),
    )


def _sglang(question: PoolQuestion, model: ModelReading, tp: int, _: dict[str, str]) -> EnginePlan | None:
    return _planned(
        question,
        model,
        kv_bytes=question.kv_bytes,
        context_tokens=question.max_model_len,
        version=_release(question.kind, question.version),
        kv_dtype=question.kv_dtype,
        tp=tp,
        page_size=question.block_tokens,
        radix_cache=question.prefix_caching,
        max_running_requests=question.max_num_seqs,
        chunked_prefill_size=question.max_num_batched_tokens,
    )


def _tensorrt_llm(question: PoolQuestion, model: ModelReading, tp: int, _: dict[str, str]) -> EnginePlan | None:
    return _planned(
        question,
        model,
        kv_bytes=question.kv_bytes,
        max_seq_len=question.max_model_len,
        tokens_per_block=question.block_tokens,
        max_batch_size=question.max_num_seqs,
        kv_dtype=question.kv_dtype,
        tp=tp,
    )


def _planned(question: PoolQuestion, model: ModelReading, **given: object) -> EnginePlan | None:
    """The plan for the bytes on each GPU; what was not told takes the engine's default."""
    if question.kv_bytes is None:
        return None
    told = {name: value for name, value in given.items() if value is not None}
    return plan_of(RULES[question.kind].plan)(model.architecture, **told)


def _llama_cpp(question: PoolQuestion, model: ModelReading, _tp: int, missing: dict[str, str]) -> EnginePlan | None:
    """`max_model_len` is what one slot holds: of slots that share a pool, all of it."""
    slot_tokens, slots = question.max_model_len, question.max_num_seqs
    if slot_tokens is None or slots is None:
        missing["predicted_capacity_tokens"] = "the slots, or what one of them holds, are not known"
        return None
    if slots > 1 and question.capacity_tokens is None:
        missing["predicted_capacity_tokens"] = "whether the slots share one pool (--kv-unified) is not known"
        return None
    unified = slots > 1 and question.capacity_tokens == slot_tokens
    kv_type = "f16" if question.kv_dtype in (None, "auto") else question.kv_dtype
    return plan_of("llama.cpp")(
        model.architecture,
        n_ctx=slot_tokens if unified else slot_tokens * slots,
        n_parallel=slots,
        unified=unified,
        cache_type_k=kv_type,
        cache_type_v=kv_type,
    )


def _none(_question: PoolQuestion, _model: ModelReading, _tp: int, _missing: dict[str, str]) -> EnginePlan | None:
    return None


_Plan = Callable[[PoolQuestion, ModelReading, int, dict[str, str]], EnginePlan | None]
_PLANS: Mapping[str, _Plan] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "tensorrt-llm": _tensorrt_llm,
    "llama.cpp": _llama_cpp,
}


def _card(name: str, total_bytes: int | None) -> Gpu | None:
    """The card of the driver's name, of the size that the driver tells; one that the catalogue lacks has a name."""
    if total_bytes is None:
        return None
    try:
        return replace(find_gpu(name), usable_bytes=total_bytes)
    except ModelError:
        card = card_of(None, total_bytes)
        return None if card is None else replace(card, name=name)


def _release(kind: str, version: str | None) -> str | None:
    """A version whose rules can be looked up. A development build calls itself 0.1.dev or 0.0.0: the newest rules are
    meant."""
    match = re.match(r"v?(\d{1,5})\.(\d{1,5})", version or "")
    if match is None:
        return None
    number = int(match[1]), int(match[2])
    return None if number < _OLDEST.get(kind, (0, 0)) else version
