"""From a planner's case to each engine's own plan: which of the case's fields an engine knows, and under what name."""

from collections.abc import Mapping

from kvmodel.architecture import Architecture
from kvmodel.cases import Case
from kvmodel.engines import plan_of
from kvmodel.engines.contract import EnginePlan
from kvmodel.engines.vllm.profiles import profile_of
from kvmodel.errors import ModelError
from kvmodel.gpus import Gpu
from kvmodel.layers import LatentAttention

_TENSORRT_SHARE = 0.9
"""Of what is free; SGLang's and vLLM's shares are of the card and follow the version."""
_UNSIZED = frozenset({"llama.cpp", "transformers"})
"""Engines that allocate what the flags say, not what memory allows."""
_MIB = 2**20

_KNOWN: Mapping[str, Mapping[str, str]] = {
    "llama.cpp": {"max_num_seqs": "n_parallel", "max_num_batched_tokens": "n_ubatch", "kv_dtype": "cache_type_k"},
    "lmdeploy": {
        "max_model_len": "session_len",
        "block_size": "block_tokens",
        "max_num_seqs": "max_batch_size",
        "prefix_caching": "prefix_caching",
        "tp": "tp",
    },
    "sglang": {
        "max_model_len": "context_tokens",
        "engine_version": "version",
        "kv_dtype": "kv_dtype",
        "state_dtype": "state_dtype",
        "tp": "tp",
        "dp": "dp",
        "block_size": "page_size",
        "prefix_caching": "radix_cache",
        "max_num_seqs": "max_running_requests",
        "max_num_batched_tokens": "chunked_prefill_size",
        "speculative_tokens": "draft_tokens",
        "draft_layers": "draft_layers",
    },
    "tensorrt-llm": {
        "max_model_len": "max_seq_len",
        "block_size": "tokens_per_block",
        "max_num_seqs": "max_batch_size",
        "kv_dtype": "kv_dtype",
        "tp": "tp",
    },
    "tgi": {
        "max_model_len": "max_total_tokens",
        "kv_dtype": "kv_dtype",
        "tp": "tp",
        "max_num_seqs": "max_concurrent_requests",
        "speculative_tokens": "speculate",
    },
    "transformers": {
        "max_model_len": "length",
        "max_num_seqs": "batch",
        "kv_dtype": "dtype",
        "block_size": "page_size",
        "max_num_batched_tokens": "max_batch_tokens",
        "tp": "tp",
    },
    "vllm": {
        "block_size": "block_tokens",
        "max_model_len": "max_model_len",
        "kv_dtype": "kv_dtype",
        "kv_dtype_skip_layers": "kv_dtype_skip_layers",
        "state_dtype": "state_dtype",
        "tp": "tp",
        "pp": "pp",
        "dcp": "dcp",
        "engine_version": "engine_version",
        "max_num_batched_tokens": "max_num_batched_tokens",
        "max_num_seqs": "max_num_seqs",
        "hybrid_kv_cache": "hybrid_kv_cache",
        "async_scheduling": "async_scheduling",
        "prefix_caching": "prefix_caching",
        "speculative_tokens": "speculative_tokens",
        "draft_layers": "draft_layers",
    },
}
"""By engine: a case's field, and what the engine's plan calls it."""
_MISSED = (
    "block_size",
    "kv_dtype",
    "kv_dtype_skip_layers",
    "state_dtype",
    "dcp",
    "hybrid_kv_cache",
    "async_scheduling",
    "prefix_caching",
    "speculative_tokens",
    "draft_layers",
)
"""Fields that say something of the cache alone: given to an engine without them, they are warned of."""
_UNSAID = Case()


def default_utilization(
    case: Case, architecture: Architecture, config: Mapping[str, object] | None, gpu: Gpu | None
) -> float:
    """The share of the card the engine takes where no flag says so. Raises ModelError naming the case's field."""
    if case.engine == "vllm":
        return profile_of(case.engine_version).gpu_memory_utilization
    if case.engine != "sglang" or gpu is None or gpu.usable_bytes is None:
        return _TENSORRT_SHARE
    # Here, not above: plans of other engines need none of it.
    from kvmodel.engines.sglang.budget import default_mem_fraction_static

    try:
        return default_mem_fraction_static(
            gpu_memory_mib=gpu.usable_bytes // _MIB,
            version=case.engine_version,
            tp=case.tp,
            pp=case.pp,
            dp=case.dp,
            latent=any(isinstance(group.layer, LatentAttention) for group in architecture.groups),
            chunked_prefill_size=case.max_num_batched_tokens,
            max_running_requests=case.max_num_seqs,
            draft="EAGLE" if case.speculative_tokens else None,
            vision=_vision_tower(config),
        )
    except ModelError as error:
        raise _in_the_cases_words("sglang", error) from None


def _vision_tower(config: Mapping[str, object] | None) -> tuple[int, int] | None:
    """Layers and width, ViT-L/14's where the config is silent, as SGLang takes them (`adjust_mem_fraction_for_vlm`)."""
    section = config.get("vision_config") if config is not None else None
    if not isinstance(section, Mapping):
        return None
    layers, width = section.get("num_hidden_layers", 24), section.get("hidden_size", 1024)
    return (layers, width) if isinstance(layers, int) and isinstance(width, int) else (24, 1024)


def plan_engine(case: Case, architecture: Architecture, kv_bytes: int | None, gpu: Gpu | None) -> EnginePlan | None:
    """The engine's plan for `kv_bytes` on each GPU. None where the bytes are not known and the engine needs them.

    Raises ModelError: field `engine` for an engine that is not known, else the case's field that it refuses.
    """
    plan = plan_of(case.engine)
    if kv_bytes is None and case.engine not in _UNSIZED:
        return None
    given = {argument: getattr(case, field) for field, argument in _KNOWN[case.engine].items()}
    given |= _more(case, kv_bytes, gpu)
    try:
        return plan(architecture, **{name: value for name, value in given.items() if value is not None})
    except ModelError as error:
        raise _in_the_cases_words(case.engine, error) from None


def left_aside(case: Case) -> list[str]:
    """A warning for each field of the cache that the case gives and the engine's plan has not."""
    known = _KNOWN.get(case.engine, {})
    return [
        f"{name}: the plan of {case.engine} has no such setting, left aside"
        for name in _MISSED
        if name not in known and getattr(case, name) != getattr(_UNSAID, name)
    ]


def _in_the_cases_words(engine: str, error: ModelError) -> ModelError:
    fields = {argument: field for field, argument in _KNOWN[engine].items()}
    return ModelError(fields.get(error.field, error.field), error.message, error.file)


def _more(case: Case, kv_bytes: int | None, gpu: Gpu | None) -> Mapping[str, object]:
    """What one engine takes in a form of its own."""
    if case.engine == "llama.cpp":
        length = case.max_model_len
        kv = None if case.kv_dtype == "auto" else case.kv_dtype
        slots = case.max_num_seqs or 1
        return {"n_ctx": None if length is None else length * slots, "cache_type_k": kv, "cache_type_v": kv}
    if case.engine == "lmdeploy":
        # The case states the pool itself, which is all of what the engine would be left.
        return {"free_bytes": kv_bytes, "cache_max_entry_count": 1.0}
    if case.engine == "transformers":
        # Only continuous batching asks how much there is; `generate` grows a cache for its batch.
        return {} if kv_bytes is None else {"cache": "paged", "available_bytes": kv_bytes, "max_memory_percent": 1.0}
    return {"kv_bytes": kv_bytes, "gpu": gpu} if case.engine == "vllm" else {"kv_bytes": kv_bytes}
