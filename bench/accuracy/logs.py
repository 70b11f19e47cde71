"""Public start-up logs: what a record prints, and the tokens that the pool it prints should hold."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.accuracy.page import GIB
from kvmodel import Architecture, EnginePlan, ModelError, plan_pool
from kvmodel.engines.vllm.profiles import PROFILES

V0_BLOCK_TOKENS = 16
ROUNDING_GIB = 0.005
"""Logs round the pool to 0.01 GiB."""
_FIRST_V1_MINOR = 8
_ANY_POOL = 1 << 40


@dataclass(frozen=True, slots=True)
class Record:
    """One log, as far as the KV cache goes. None: not printed."""

    id: str
    engine: str
    outcome: str
    source: str | None
    generation: str | None
    """V0 or V1, vLLM's."""
    model_id: str | None
    engine_version: str | None
    tp: int | None
    pp: int | None
    kv_dtype: str | None
    weights_dtype: str | None
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    prefix_caching: bool | None
    block_tokens: int | None
    speculative: str | None
    hybrid: bool | None
    state_dtype: str | None
    pool_gib: float | None
    """The least that any rank printed: the engine takes the minimum."""
    ranks_printed: int
    tokens: int | None
    """`GPU KV cache size`, or GPU blocks times their size where only blocks are printed."""
    needed_gib: float | None
    needed_for_tokens: int | None
    context_tokens: int | None = None
    """llama.cpp's `n_ctx`."""
    micro_batch: int | None = None
    one_stream: bool = False
    """llama.cpp's slots share one pool (`4/1`: four sequences, one stream)."""
    rollback: int = 0
    """States that llama.cpp keeps per slot to take drafts back."""
    sizes_mib: tuple[tuple[str, float], ...] = ()
    """Sizes of pools that other engines print, by name: `K and V`, `full`, `window`, `state`."""

    @property
    def ranks(self) -> int:
        """GPUs of one engine, as far as printed."""
        return (self.tp or 1) * (self.pp or 1)


def read_records(vectors: Path) -> list[Record]:
    lines = (vectors / "engine_logs.jsonl").read_text().splitlines()
    return [read_record(json.loads(line)) for line in lines if line.strip()]


def read_further(engines: Mapping[str, Any]) -> list[Record]:
    """Logs quoted beside the engines' own output, numbered E1, E2, ..."""
    found = []
    for number, row in enumerate(engines["engine_logs"], 1):
        version = re.search(r"vLLM (\d+\.\d+\.\d+)", row["engine"])
        printed = {
            "id": f"E{number}",
            "engine": "vllm",
            "engine_arch": "V1",
            "outcome": "ok",
            "engine_version": None if version is None else version[1],
            "model_id": row["model"],
            "tensor_parallel": row.get("tp", 1),
            "max_model_len": row.get("max_model_len"),
            "available_kv_gib": row.get("kv_gib"),
            "kv_tokens": row.get("kv_tokens", row.get("kv_tokens_without")),
            "source_url": _issue_url(row["source"]),
        }
        found.append(read_record({name: value for name, value in printed.items() if value is not None}))
    return found


def _issue_url(source: str) -> str | None:
    """The address of `github OWNER/REPOSITORY issue N`."""
    named = re.fullmatch(r"github (\S+) issue (\d+)", source)
    return None if named is None else f"https://github.com/{named[1]}/issues/{named[2]}"


def read_record(row: Mapping[str, Any]) -> Record:
    notes = row.get("notes") or ""
    ranks = [rank["available_kv_gib"] for rank in row.get("per_rank", []) if "available_kv_gib" in rank]
    pools = [row["available_kv_gib"]] if "available_kv_gib" in row else []
    hybrid = re.search(r"hybrid KV cache manager (on|off)", notes)
    state = re.search(r"ssm cache dtype (\w+)", notes)
    return Record(
        id=row["id"],
        engine=row["engine"],
        outcome=row["outcome"],
        source=row.get("source_url"),
        generation=row.get("engine_arch"),
        model_id=row.get("model_id"),
        engine_version=row.get("engine_version"),
        tp=row.get("tensor_parallel"),
        pp=row.get("pipeline_parallel"),
        kv_dtype=row.get("kv_cache_dtype") or (_llama_cpp_type(row) if row["engine"] == "llama.cpp" else None),
        weights_dtype=row.get("weights_dtype"),
        max_model_len=row.get("max_model_len") or row.get("max_concurrency_len"),
        max_num_seqs=row.get("max_num_seqs"),
        max_num_batched_tokens=row.get("max_num_batched_tokens"),
        prefix_caching=row.get("prefix_caching"),
        block_tokens=row.get("block_size"),
        speculative=row.get("speculative"),
        hybrid=None if hybrid is None else hybrid[1] == "on",
        state_dtype=None if state is None else state[1],
        pool_gib=min(pools + ranks, default=None),
        ranks_printed=max(len(ranks), len(pools)),
        tokens=_tokens(row),
        needed_gib=row.get("kv_needed_gib"),
        needed_for_tokens=row.get("kv_needed_for_len"),
        context_tokens=row.get("llamacpp_n_ctx"),
        micro_batch=row.get("llamacpp_n_ubatch"),
        one_stream=any(str(pool.get("seqs", "")).endswith("/1") for pool in row.get("llamacpp_kv", [])),
        rollback=row.get("llamacpp_recurrent", {}).get("rs_seq", 0),
        sizes_mib=tuple(_other_sizes(row)),
    )


def _tokens(row: Mapping[str, Any]) -> int | None:
    if "kv_tokens" in row:
        tokens: int = row["kv_tokens"]
        return tokens
    blocks = row.get("num_gpu_blocks")
    return None if blocks is None else blocks * row.get("block_size", V0_BLOCK_TOKENS)


def _other_sizes(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if "sglang_k_gb" in row and "sglang_swa_layer_tokens" not in row:
        # What SGLang prints as GB counts in powers of 1024.
        yield "K and V", 1024 * (row["sglang_k_gb"] + row["sglang_v_gb"])
    names = {"all": "full", "non-SWA": "full", "SWA": "window"}
    for pool in row.get("llamacpp_kv", []):
        yield names[pool["pool"]], pool["size_mib"]
    if "size_mib" in row.get("llamacpp_recurrent", {}):
        yield "state", row["llamacpp_recurrent"]["size_mib"]


def _llama_cpp_type(row: Mapping[str, Any]) -> str:
    """The type of K and V; f16 where none is printed."""
    kinds = {pool.get("k_type", "f16") for pool in row.get("llamacpp_kv", [])}
    return kinds.pop() if len(kinds) == 1 else "f16"


@dataclass(frozen=True, slots=True)
class Settings:
    """What vLLM's plan hangs on. None: the engine's default."""

    version: str | None = None
    kv_dtype: str = "auto"
    tp: int = 1
    pp: int = 1
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    prefix_caching: bool | None = None
    hybrid: bool | None = None
    state_dtype: str = "auto"
    draft_layers: int = 0
    drafted_tokens: int = 0
    block_tokens: int | None = None


def printed_settings(record: Record, architecture: Architecture) -> Settings:
    """The settings as printed, vLLM's defaults for the rest. A V0 log without a version gets the rules of V0."""
    version = record.engine_version
    if version is None and record.generation == "V0":
        version = "0.7.0"
    drafted = drafted_tokens(record.speculative)
    kv_dtype = record.kv_dtype or "auto"
    if kv_dtype == "auto" and record.weights_dtype == "float32":
        kv_dtype = "float32"
    hybrid_states = architecture.state_bytes_per_sequence() > 0
    return Settings(
        version=version,
        kv_dtype=kv_dtype,
        tp=record.tp or 1,
        pp=record.pp or 1,
        max_model_len=record.max_model_len,
        max_num_batched_tokens=record.max_num_batched_tokens,
        prefix_caching=record.prefix_caching,
        hybrid=record.hybrid,
        state_dtype=record.state_dtype or "auto",
        draft_layers=1 if drafted else 0,
        drafted_tokens=drafted or 0,
        # Hybrids print the size that they work out; others the flag's.
        block_tokens=None if hybrid_states else record.block_tokens,
    )


def drafted_tokens(speculative: str | None) -> int | None:
    """Tokens of multi-token prediction; None where the log names none, or drafts by other means."""
    if speculative is None or not speculative.startswith("mtp"):
        return None
    number = re.search(r"n=(\d+)", speculative)
    return int(number[1]) if number else 1


def plan(architecture: Architecture, settings: Settings, kv_bytes: int) -> EnginePlan:
    """vLLM's plan under these settings. Raises ModelError."""
    return plan_pool(
        architecture,
        kv_bytes=kv_bytes,
        block_tokens=settings.block_tokens,
        max_model_len=settings.max_model_len,
        kv_dtype=settings.kv_dtype,
        tp=settings.tp,
        pp=settings.pp,
        engine_version=settings.version,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        hybrid_kv_cache=settings.hybrid,
        prefix_caching=settings.prefix_caching,
        draft_layers=settings.draft_layers,
        speculative_tokens=settings.drafted_tokens,
        state_dtype=settings.state_dtype,
    )


def tokens_of(architecture: Architecture, settings: Settings, pool_gib: float) -> int | None:
    """Tokens of a pool; None where the engine would refuse these settings."""
    try:
        return plan(architecture, settings, int(pool_gib * GIB)).capacity_tokens
    except ModelError:
        return None


def versions_of(generation: str | None) -> Iterable[str]:
    """Every minor version there are rules for, and the patches that changed them, oldest first."""
    if generation == "V0":
        return ("0.7.0",)
    minors = {(0, minor, 0) for minor in range(_FIRST_V1_MINOR, PROFILES[-1].since[1] + 1)}
    patches = {profile.since for profile in PROFILES if profile.since[1] >= _FIRST_V1_MINOR}
    return [".".join(map(str, version)) for version in sorted(minors | patches)]


def needed_bytes(architecture: Architecture, settings: Settings, tokens: int) -> int:
    """What vLLM says that one request of `tokens` needs. Raises ModelError."""
    found = plan(architecture, replace(settings, max_model_len=tokens), _ANY_POOL)
    blocks = sum(group.blocks_per_request or 0 for group in found.groups)
    return blocks * (found.bytes_per_block or 0)
