"""From a planner's case to each engine's own plan: which of the case's fields an engine knows, and under what name."""

from collections.abc import Callable, Mapping

from kvmodel.architecture import Architecture
from kvmodel.cases import Case
from kvmodel.engines import plan_of
from kvmodel.engines.contract import EnginePlan
from kvmodel.engines.vllm.profiles import profile_of
from kvmodel.errors import ModelError
from kvmodel.gpus import Gpu

_BUDGET = {"sglang": 0.88, "tensorrt-llm": 0.9}
"""Default share of the card (SGLang) or of what is free (TensorRT-LLM)."""

Arguments = Mapping[str, object]


def default_utilization(engine: str, engine_version: str | None) -> float:
    """What the engine takes where no flag says so. Raises ModelError for a version that is none."""
    if engine == "vllm":
        return profile_of(engine_version).gpu_memory_utilization
    return _BUDGET.get(engine, 0.9)


def plan_engine(case: Case, architecture: Architecture, kv_bytes: int | None, gpu: Gpu | None) -> EnginePlan | None:
    """The engine's plan for `kv_bytes` on each GPU. None where the bytes are not known and the engine needs them.

    Raises ModelError: field `engine` for an engine that is not known or takes no size of pool, else what it refuses.
    """
    plan = plan_of(case.engine)
    arguments = _ARGUMENTS.get(case.engine)
    if arguments is None:
        raise ModelError("engine", f"{case.engine}: its plan needs flags that a case does not have")
    if kv_bytes is None and case.engine != "llama.cpp":
        return None
    given = {"gpu": gpu, **arguments(case, kv_bytes)} if case.engine == "vllm" else arguments(case, kv_bytes)
    return plan(architecture, **{name: value for name, value in given.items() if value is not None})


def _vllm(case: Case, kv_bytes: int | None) -> Arguments:
    return {
        "kv_bytes": kv_bytes,
        "block_tokens": case.block_size,
        "max_model_len": case.max_model_len,
        "kv_dtype": case.kv_dtype,
        "tp": case.tp,
        "pp": case.pp,
        "dcp": case.dcp,
        "engine_version": case.engine_version,
        "max_num_batched_tokens": case.max_num_batched_tokens,
        "max_num_seqs": case.max_num_seqs,
        "hybrid_kv_cache": case.hybrid_kv_cache,
        "async_scheduling": case.async_scheduling,
        "prefix_caching": case.prefix_caching,
    }


def _sglang(case: Case, kv_bytes: int | None) -> Arguments:
    return {
        "kv_bytes": kv_bytes,
        "context_tokens": case.max_model_len,
        "version": case.engine_version,
        "kv_dtype": case.kv_dtype,
        "tp": case.tp,
        "dp": case.dp,
        "page_size": case.block_size,
        "radix_cache": case.prefix_caching,
        "max_running_requests": case.max_num_seqs,
    }


def _tensorrt(case: Case, kv_bytes: int | None) -> Arguments:
    return {
        "kv_bytes": kv_bytes,
        "max_seq_len": case.max_model_len,
        "tokens_per_block": case.block_size,
        "max_batch_size": case.max_num_seqs,
        "kv_dtype": case.kv_dtype,
        "tp": case.tp,
    }


def _tgi(case: Case, kv_bytes: int | None) -> Arguments:
    return {
        "kv_bytes": kv_bytes,
        "max_total_tokens": case.max_model_len,
        "kv_dtype": case.kv_dtype,
        "tp": case.tp,
        "max_concurrent_requests": case.max_num_seqs,
    }


def _lmdeploy(case: Case, kv_bytes: int | None) -> Arguments:
    return {
        # The case states the pool itself, which is all of what the engine would be left.
        "free_bytes": kv_bytes,
        "cache_max_entry_count": 1.0,
        "session_len": case.max_model_len,
        "block_tokens": case.block_size,
        "max_batch_size": case.max_num_seqs,
        "prefix_caching": case.prefix_caching,
        "tp": case.tp,
    }


def _llama_cpp(case: Case, _kv_bytes: int | None) -> Arguments:
    kv = None if case.kv_dtype == "auto" else case.kv_dtype
    slots = case.max_num_seqs
    length = case.max_model_len
    return {
        "n_ctx": length * (slots or 1) if length is not None else None,
        "n_parallel": slots,
        "n_ubatch": case.max_num_batched_tokens,
        "cache_type_k": kv,
        "cache_type_v": kv,
    }


_ARGUMENTS: Mapping[str, Callable[[Case, int | None], Arguments]] = {
    "llama.cpp": _llama_cpp,
    "lmdeploy": _lmdeploy,
    "sglang": _sglang,
    "tensorrt-llm": _tensorrt,
    "tgi": _tgi,
    "vllm": _vllm,
}
