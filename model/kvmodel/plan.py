"""The planner: a case in; out come the ideal bytes of one sequence, the engine's plan, and the memory around it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, cast

from kvmodel.architecture import Architecture, load_architecture, load_config, read_architecture
from kvmodel.cases import FIELDS, Case, read_case
from kvmodel.engine_cases import default_utilization, left_aside, plan_engine
from kvmodel.engines.contract import EnginePlan
from kvmodel.errors import ModelError, show
from kvmodel.expected import Lengths, expected_ideal_bytes, expected_plan_bytes
from kvmodel.gpus import Gpu, card_of
from kvmodel.latency import Latency, estimate_latency
from kvmodel.overheads import MemoryPrediction, predict_memory
from kvmodel.parameters import WeightsEstimate, estimate_weights
from kvmodel.savings import Flags, Pool, changes, freed_bytes
from kvmodel.weights import Weights, read_weights, weights_bytes_per_gpu

__all__ = ["FIELDS", "plan"]

Result = dict[str, object]

_USUAL_PROMPT_TOKENS = 1024
_GIB = 2**30


@dataclass(slots=True)
class _Subject:
    """What is planned: the model, and what tells the size of its weights. Remembers what was counted for it."""

    architecture: Architecture
    config: Mapping[str, object] | None
    weights: Weights | None
    estimates: dict[tuple[object, ...], WeightsEstimate | ModelError] = field(default_factory=dict)

    def estimate(self, weights_dtype: str | None, params: int | None, tp: int, pp: int) -> WeightsEstimate:
        """The weights by the config. Raises ModelError."""
        if self.config is None:
            raise ModelError("model", "has no config to estimate weights from")
        key = (weights_dtype, params, tp, pp)
        if key not in self.estimates:
            try:
                self.estimates[key] = estimate_weights(
                    self.config, weights_dtype=weights_dtype, parameters=params, tp=tp, pp=pp
                )
            except ModelError as error:
                self.estimates[key] = error
        known = self.estimates[key]
        if isinstance(known, ModelError):
            raise known
        return known


@dataclass(frozen=True, slots=True)
class _Answer:
    """One case worked out."""

    engine: EnginePlan | None
    memory: MemoryPrediction | None
    weights_bytes: int | None
    kv_bytes: int | None


def plan(case: Mapping[str, object]) -> Result:
    """The result for one case, by the planner's contract. Never raises: what is wrong stands in `error`, and what could
    be answered without it is answered."""
    given: Mapping[str, object] = case if isinstance(case, Mapping) else {}
    result: Result = {
        "model": _text(given.get("model")),
        "engine": _text(given.get("engine", "vllm")),
        "engine_version": _text(given.get("engine_version")),
        "profile": None,
        "ideal": None,
        "engine_plan": None,
        "expected": None,
        "memory": None,
        "latency": None,
        "advice": [],
        "warnings": [],
        "error": None,
    }
    try:
        checked, warnings = read_case(case)
        result["warnings"] = warnings
        _fill(result, checked, warnings)
    except ModelError as error:
        message = error.message if error.file is None else f"{error.message} (in {error.file})"
        result["error"] = {"field": error.field, "message": message}
    return result


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _fill(result: Result, case: Case, warnings: list[str]) -> None:
    subject = _subject(case)
    architecture = subject.architecture
    if result["model"] is None:
        result["model"] = architecture.architectures[0] if architecture.architectures else architecture.model_type
    result["ideal"] = _ideal(architecture, case.at_tokens)
    lengths = case.lengths or (((case.tokens_per_request, 0, 1.0),) if case.tokens_per_request is not None else None)
    expected = None if lengths is None else _expected_ideal(architecture, lengths)
    result["expected"] = expected
    gpu = card_of(case.gpu, None if case.gpu_memory_gib is None else int(case.gpu_memory_gib * _GIB))
    warnings += left_aside(case)
    answer = _answer(case, subject, gpu, warnings)
    if answer.engine is not None:
        longest = case.max_model_len or architecture.max_position_embeddings
        result["profile"] = answer.engine.profile
        result["engine_plan"] = _engine_view(answer.engine, case, longest)
        if lengths is not None and expected is not None:
            expected |= _expected_plan(answer.engine, lengths)
            warnings += _too_long(lengths, longest)
        warnings += [warning for warning in answer.engine.warnings if warning not in warnings]
    result["memory"] = _memory_view(answer, _card_bytes(gpu))
    result["latency"] = _latency_view(_latency(case, subject, gpu, answer))
    result["advice"] = _advice(case, subject, gpu, answer)


def _subject(case: Case) -> _Subject:
    if case.config is not None:
        try:
            # Cases come in rows of one model: the text finds it again.
            return _subject_of(json.dumps(case.config))
        except (TypeError, ValueError, RecursionError):
            return _Subject(read_architecture(case.config), case.config, None)
    if case.model is None:
        raise ModelError("model", "is missing")
    return _subject_at(case.model)


@lru_cache(maxsize=256)
def _subject_of(text: str) -> _Subject:
    config = json.loads(text)
    return _Subject(read_architecture(config), config, None)


@lru_cache(maxsize=64)
def _subject_at(path: str) -> _Subject:
    from pathlib import Path

    place = Path(path)
    if not place.exists():
        raise ModelError("model", f"{show(path)} is no config.json, folder or .gguf file here")
    if place.suffix == ".gguf":
        return _Subject(load_architecture(place), None, read_weights(place))
    folder = place if place.is_dir() else place.parent
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json"))
    return _Subject(load_architecture(place), load_config(place), read_weights(folder) if has_weights else None)


def _ideal(architecture: Architecture, at_tokens: tuple[int, ...]) -> Result:
    encoder_tokens = architecture.encoder_tokens or 0
    return {
        "growth_bytes_per_token": architecture.growth_bytes_per_token(),
        "state_bytes_per_sequence": architecture.state_bytes_per_sequence(),
        "window_bytes_per_sequence": architecture.window_bytes_per_sequence(),
        "cross_bytes_per_sequence": encoder_tokens * architecture.cross_bytes_per_encoder_token(),
        # What an encoder fills once is no matter of the sequence's length: it stands beside.
        "bytes_at": {str(tokens): architecture.bytes_at(tokens) for tokens in at_tokens},
    }


def _expected_ideal(architecture: Architecture, lengths: Lengths) -> Result:
    """What one running request holds on average, not rounded and not cut; of the engine nothing yet."""
    ideal = expected_ideal_bytes(architecture, lengths, encoder_tokens=architecture.encoder_tokens or 0)
    return {
        "label": "live bytes of one running request, on average over time",
        "mean_tokens": ideal.mean_tokens,
        "standard_deviation_tokens": ideal.standard_deviation_tokens,
        "longest_tokens": ideal.longest_tokens,
        "ideal_bytes": ideal.mean_bytes,
        "ideal_p95_bytes": ideal.quantile_bytes(0.95),
        "plan_bytes": None,
        "plan_p95_bytes": None,
        "concurrency": None,
    }


def _expected_plan(engine: EnginePlan, lengths: Lengths) -> Result:
    """The same in the engine's blocks on each GPU, and how many such requests the pool holds."""
    held = expected_plan_bytes(engine, lengths)
    fitting = engine.pool_bytes / held.mean_bytes if held.mean_bytes else math.inf
    most = min(fitting, math.inf if engine.max_requests is None else engine.max_requests)
    return {
        "plan_bytes": held.mean_bytes,
        "plan_p95_bytes": held.quantile_bytes(0.95),
        "concurrency": most if math.isfinite(most) else None,
    }


def _too_long(lengths: Lengths, longest: int | None) -> list[str]:
    most = max(prompt + output for prompt, output, _ in lengths)
    return (
        [] if longest is None or most <= longest else [f"{most} tokens are more than the longest request's {longest}"]
    )


def _answer(case: Case, subject: _Subject, gpu: Gpu | None, warnings: list[str]) -> _Answer:
    total_bytes = _card_bytes(gpu)
    weights_bytes = _weights_bytes(case, subject, warnings)
    memory = None
    if total_bytes is not None and weights_bytes is not None and case.engine in {"vllm", "sglang", "tensorrt-llm"}:
        memory = predict_memory(
            subject.architecture,
            weights_bytes_per_gpu=weights_bytes,
            gpu_total_bytes=total_bytes,
            gpu_memory_utilization=case.gpu_memory_utilization
            or default_utilization(case, subject.architecture, subject.config, gpu),
            gpu_name=None if gpu is None else gpu.name,
            engine=case.engine.replace("-", "_"),
            engine_version=case.engine_version,
            tp=case.tp,
            pp=case.pp,
            max_model_len=case.max_model_len or subject.architecture.max_position_embeddings,
            max_num_seqs=case.max_num_seqs,
            max_num_batched_tokens=case.max_num_batched_tokens,
            enforce_eager=case.enforce_eager,
            kv_cache_bytes=case.given_kv_bytes,
        )
        warnings += [note for note in memory.notes if note not in warnings]
    kv_bytes = case.given_kv_bytes
    if kv_bytes is None and memory is not None:
        kv_bytes = memory.kv_pool.expected_bytes
    if kv_bytes == 0:
        return _Answer(None, memory, weights_bytes, kv_bytes)
    engine = plan_engine(case, subject.architecture, kv_bytes, gpu)
    if engine is None:
        known = "are not predicted from the card" if total_bytes is not None else "and the card are not known"
        warnings.append(f"the bytes for the KV cache {known}: the pool is not sized")
    return _Answer(engine, memory, weights_bytes, kv_bytes)


def _card_bytes(gpu: Gpu | None) -> int | None:
    return gpu.usable_bytes if gpu is not None else None


def _weights_bytes(case: Case, subject: _Subject, warnings: list[str]) -> int | None:
    """Bytes on each GPU: as stated, exactly from the checkpoint, or estimated from the config."""
    if case.weights_bytes_per_gpu is not None:
        return case.weights_bytes_per_gpu
    if subject.weights is not None and case.weights_dtype is None and case.params is None:
        return weights_bytes_per_gpu(subject.weights, subject.architecture, case.tp, pp=case.pp)
    if subject.config is None:
        return None
    try:
        return subject.estimate(case.weights_dtype, case.params, case.tp, case.pp).bytes_per_gpu
    except ModelError as error:
        if case.weights_dtype is not None or case.params is not None:
            raise
        warnings.append(f"weights are not estimated: {error}")
        return None


def _latency(case: Case, subject: _Subject, gpu: Gpu | None, answer: _Answer) -> Latency | None:
    """Of one request alone, where the card's rates are known."""
    if gpu is None or answer.weights_bytes is None or not subject.architecture.num_attention_heads:
        return None
    rate = gpu.dense_flop_per_second.get(subject.architecture.dtype)
    active = case.params
    if active is None and subject.config is not None:
        try:
            active = subject.estimate(case.weights_dtype, None, case.tp, case.pp).active_parameters
        except ModelError:
            active = None
    if rate is None or active is None:
        return None
    return estimate_latency(
        subject.architecture,
        active_parameters=active,
        weights_bytes_per_gpu=answer.weights_bytes,
        flop_per_second=rate,
        bytes_per_second=gpu.bandwidth_bytes_per_second,
        prompt_tokens=case.tokens_per_request or _USUAL_PROMPT_TOKENS,
        kv_dtype=case.kv_dtype,
        tp=case.tp,
    )


def _latency_view(latency: Latency | None) -> Result | None:
    if latency is None:
        return None
    return {
        "ttft_seconds": latency.ttft_seconds,
        "tpot_seconds": latency.tpot_seconds,
        "prefill_bound": latency.prefill.bound,
        "decode_bound": latency.decode.bound,
    }


def _engine_view(engine: EnginePlan, case: Case, max_model_len: int | None) -> Result:
    view: Result = {
        "kv_bytes_per_token_per_gpu": engine.kv_bytes_per_token_per_gpu,
        "block_tokens": engine.block_tokens,
        "bytes_per_block": engine.bytes_per_block,
        "num_blocks": engine.num_blocks,
        "capacity_tokens": engine.capacity_tokens,
        # A cache that does not grow holds any number of tokens; JSON has no infinity.
        "max_concurrency": engine.max_concurrency if math.isfinite(engine.max_concurrency) else None,
        "max_model_len": max_model_len,
        "groups": [asdict(group) for group in engine.groups],
        "max_requests": engine.max_requests,
        "limit": engine.limit,
        "pool_bytes": engine.pool_bytes,
    }
    if case.tokens_per_request is not None and engine.pool_bytes:
        held = engine.held_bytes(case.tokens_per_request)
        fitting = engine.pool_bytes // held if held else None
        view["bytes_per_request"] = held
        view["concurrency_at_tokens_per_request"] = (
            fitting if engine.max_requests is None or fitting is None else min(fitting, engine.max_requests)
        )
    return view


def _memory_view(answer: _Answer, gpu_bytes: int | None) -> Result | None:
    if answer.memory is None:
        return None if answer.weights_bytes is None else {"weights_bytes": answer.weights_bytes}
    parts = answer.memory.components
    view: Result = {f"{name}_bytes": part.expected_bytes for name, part in parts.items()}
    view["total_bytes"] = answer.memory.total.expected_bytes
    view["low_bytes"] = answer.memory.total.low_bytes
    view["high_bytes"] = answer.memory.total.high_bytes
    view["gpu_bytes"] = gpu_bytes
    view["sources"] = {name: part.source for name, part in parts.items()}
    return view


def _advice(case: Case, subject: _Subject, gpu: Gpu | None, answer: _Answer) -> list[Result]:
    """Changes of flags, worked out anew, ranked by the bytes that each frees for the cache on each GPU."""
    if answer.engine is None or answer.memory is None or case.given_kv_bytes is not None:
        return []
    found = []
    before = Pool(answer.kv_bytes, answer.engine)
    for change in changes(_flags(case), subject.architecture):
        try:
            other = _answer(replace(case, **cast("dict[str, Any]", change.values)), subject, gpu, [])
        except ModelError:
            continue
        freed = freed_bytes(before, Pool(other.kv_bytes, other.engine))
        if freed > 0:
            found.append((freed, {"change": change.flag, "frees_bytes": freed, "why": change.why}))
    return [entry for _, entry in sorted(found, key=lambda pair: -pair[0])]


def _flags(case: Case) -> Flags:
    return Flags(
        engine=case.engine,
        max_model_len=case.max_model_len,
        max_num_seqs=case.max_num_seqs,
        max_num_batched_tokens=case.max_num_batched_tokens,
        kv_dtype=case.kv_dtype,
        hybrid_kv_cache=case.hybrid_kv_cache,
        enforce_eager=case.enforce_eager,
    )
