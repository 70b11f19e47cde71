"""Flags of an engine that free memory for its cache: the list that the planner and the sidecar try."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvmodel.architecture import Architecture
from kvmodel.engines.contract import EnginePlan

_SIXTEEN_BITS = frozenset({"auto", "bfloat16", "float16"})
_MODEST_LENGTH_TOKENS = 32768
_ENGINE_FLAGS: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        "--kv-dtype fp8": "--kv-cache-dtype fp8",
        "--hybrid-kv-cache": "leave out --disable-hybrid-kv-cache-manager",
    },
    "sglang": {
        "--kv-dtype fp8": "--kv-cache-dtype fp8_e4m3",
        f"--max-model-len {_MODEST_LENGTH_TOKENS}": f"--context-length {_MODEST_LENGTH_TOKENS}",
    },
    "tensorrt-llm": {
        "--kv-dtype fp8": "kv_cache_config.dtype: fp8",
        f"--max-model-len {_MODEST_LENGTH_TOKENS}": f"--max_seq_len {_MODEST_LENGTH_TOKENS}",
    },
}
"""Where an engine calls it otherwise than the planner does."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What an engine runs with, as far as it matters here. None: the engine version's own default, but for `kv_dtype`,
    where it is not known."""

    engine: str
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    kv_dtype: str | None
    hybrid_kv_cache: bool | None
    enforce_eager: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One flag to set otherwise."""

    flag: str
    """As the planner takes it."""
    engine_flag: str
    """As the engine does."""
    why: str
    values: Mapping[str, object]
    """By the planner's names of fields."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A cache: the bytes on each GPU that are there for it, and what the engine makes of them."""

    kv_bytes: int | None
    plan: EnginePlan | None


def changes(flags: Flags, architecture: Architecture) -> list[Change]:
    """What may free memory. Whether it does, and how much, is for a forecast to say."""
    found: list[tuple[str, str, dict[str, object]]] = []
    if flags.engine == "vllm":
        found += _of_vllm(flags)
    if flags.kv_dtype in _SIXTEEN_BITS and architecture.kv_cache_dtype is None:
        found.append(("--kv-dtype fp8", "a cached token takes half; check quality", {"kv_dtype": "fp8"}))
    if flags.max_model_len is None and (architecture.max_position_embeddings or 0) > _MODEST_LENGTH_TOKENS:
        why = "what windows and states are padded for, and the worst case, shrink with it"
        values: dict[str, object] = {"max_model_len": _MODEST_LENGTH_TOKENS}
        found.append((f"--max-model-len {_MODEST_LENGTH_TOKENS}", why, values))
    names = _ENGINE_FLAGS.get(flags.engine, {})
    return [Change(flag, names.get(flag, flag), why, values) for flag, why, values in found]


def _of_vllm(flags: Flags) -> list[tuple[str, str, dict[str, object]]]:
    found: list[tuple[str, str, dict[str, object]]] = []
    seqs = next((few for few in (256, 128) if flags.max_num_seqs is None or flags.max_num_seqs > few), None)
    if seqs is not None:
        why = "the sampler's buffers grow with max_num_seqs times the vocabulary"
        found.append((f"--max-num-seqs {seqs}", why, {"max_num_seqs": seqs}))
    if flags.max_num_batched_tokens is None or flags.max_num_batched_tokens > 2048:
        why = "activations, and what windows reserve for tokens in flight, grow with it; prefill gets slower"
        found.append(("--max-num-batched-tokens 2048", why, {"max_num_batched_tokens": 2048}))
    if not flags.enforce_eager:
        why = "no CUDA graphs are kept; decoding gets slower"
        found.append(("--enforce-eager", why, {"enforce_eager": True}))
    if flags.hybrid_kv_cache is False:
        why = "window and state layers get pools of their own size"
        found.append(("--hybrid-kv-cache", why, {"hybrid_kv_cache": True}))
    return found


def freed_bytes(before: Pool, after: Pool) -> int:
    """What the pool gains on each GPU, and what the same tokens take less of it; 0 where either is not known."""
    if before.plan is None or after.plan is None:
        return 0
    gained = (after.kv_bytes or 0) - (before.kv_bytes or 0)
    if not after.plan.capacity_tokens:
        return gained
    capacity = before.plan.capacity_tokens
    per_token_before = before.plan.pool_bytes / capacity if capacity else 0
    per_token_after = after.plan.pool_bytes / after.plan.capacity_tokens
    return gained + max(0, round(capacity * (per_token_before - per_token_after)))
