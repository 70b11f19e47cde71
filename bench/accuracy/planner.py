"""Engine plans against the engines' own planning code: vLLM 0.32, llama.cpp and SGLang."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.accuracy.configs import Library
from bench.accuracy.models import KnownModel, with_layers_of
from bench.accuracy.page import Section, gib, paragraphs, table, whole
from bench.table import Figure
from kvmodel import Architecture, ModelError, plan_pool, read_architecture
from kvmodel.engines.contract import EnginePlan
from kvmodel.engines.llama_cpp import plan as plan_llama_cpp
from kvmodel.engines.sglang import plan as plan_sglang

_ALIASES = {"deepseek-ai/DeepSeek-V3": "deepseek-ai/DeepSeek-R1"}
"""Rows that name a model of the same shape as one whose config is at hand."""
_CONCURRENCY_DIGITS = 4
_STATE_BLOCK_TOKENS = 1 << 20
"""What the rows print as the block size of a state group, which counts no tokens."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of an engine's own output beside ours; both as (name, value) in the same order."""

    model: str
    flags: str
    ours: tuple[tuple[str, str], ...]
    theirs: tuple[tuple[str, str], ...]

    @property
    def differs(self) -> str:
        """What is not the same, by name; empty where all is."""
        if len(self.ours) != len(self.theirs):
            return self.ours[0][1] if self.ours else "not planned"
        pairs = zip(self.ours, self.theirs, strict=True)
        return ", ".join(f"{mine[0]} (theirs {other[1]})" for mine, other in pairs if mine != other)


def planner_section(engines: Mapping[str, Any], models: list[KnownModel], library: Library) -> Section:
    """vLLM's own planner, run on the same geometries."""
    layers = {model.id: model.layers for model in models}
    outcomes = [_vllm(row, library, layers) for row in engines["vllm_032_planner"]["plans"]]
    wrong = sum(bool(one.differs) for one in outcomes)
    names = ["blocks", "block size", "bytes per block", "concurrency"]
    rows = []
    for one in outcomes:
        ours = dict(one.ours)
        values = [ours.get(name, "-") for name in names]
        rows.append([one.model, one.flags, ours.get("groups", "-"), *values, one.differs or "nothing"])
    return Section(
        "vLLM 0.32's own planner",
        paragraphs(
            f"{len(outcomes)} plans of vLLM 0.32.0's planning code (`v1/core/kv_cache_utils.py` and its planner) on "
            "the same layers, with 40 GiB for the cache and 8,192 tokens a step. Compared are every group (layers, "
            "block size, page bytes), the block size, bytes per block, blocks, and the concurrency to four digits. "
            f"Rows that differ in any of these: {wrong}.",
            table(
                ["model", "flags", "groups: layers x page bytes", *(f">{name}" for name in names), "differs in"], rows
            ),
        ),
        (Figure("vLLM's planner: plans that differ", "plans", 0, wrong),),
    )


def _vllm(row: Mapping[str, Any], library: Library, layers: Mapping[str, tuple[tuple[str, int], ...]]) -> Outcome:
    model_id = row["id"]
    flags = f"{row['max_model_len']:,} tokens, {row['in_flight_batches']} in flight"
    flags += f", TP {row['tp']}" if row["tp"] > 1 else ""
    flags += "" if row["hybrid_allocator"] else ", no hybrid allocator"
    theirs = (
        ("groups", _groups([(group["layers"], group["page_bytes"]) for group in row["groups"]])),
        ("group block sizes", str([_block(group["block_size"]) for group in row["groups"]])),
        ("blocks", whole(row["num_blocks"])),
        ("block size", whole(row["block_size"])),
        ("bytes per block", whole(row["bytes_per_block"])),
        ("concurrency", f"{row['max_concurrency']:.{_CONCURRENCY_DIGITS}f}"),
    )
    try:
        plan = plan_pool(
            _architecture(model_id, library, layers),
            kv_bytes=row["kv_bytes_available"],
            max_model_len=row["max_model_len"],
            max_num_batched_tokens=row["max_num_batched_tokens"],
            in_flight_batches=row["in_flight_batches"],
            hybrid_kv_cache=row["hybrid_allocator"],
            tp=row["tp"],
            engine_version="0.32.0",
            prefix_caching=False,
        )
    except ModelError as error:
        return Outcome(model_id, flags, (("error", str(error)),), theirs)
    return Outcome(model_id, flags, _planned(plan), theirs)


def _planned(plan: EnginePlan) -> tuple[tuple[str, str], ...]:
    return (
        ("groups", _groups([(group.layers, group.page_bytes) for group in plan.groups])),
        ("group block sizes", str([group.block_tokens for group in plan.groups])),
        ("blocks", whole(plan.num_blocks)),
        ("block size", whole(plan.block_tokens)),
        ("bytes per block", whole(plan.bytes_per_block)),
        ("concurrency", f"{plan.max_concurrency:.{_CONCURRENCY_DIGITS}f}"),
    )


def _block(tokens: int) -> int | None:
    return None if tokens == _STATE_BLOCK_TOKENS else tokens


def _groups(groups: list[tuple[int, int]]) -> str:
    """`4 x 327,680, 7 times 4 x ...` in order, equal neighbours counted."""
    runs: list[tuple[tuple[int, int], int]] = []
    for group in groups:
        if runs and runs[-1][0] == group:
            runs[-1] = (group, runs[-1][1] + 1)
        else:
            runs.append((group, 1))
    return ", ".join(
        f"{count} of {layers} x {page:,}" if count > 1 else f"{layers} x {page:,}" for (layers, page), count in runs
    )


def _architecture(model_id: str, library: Library, layers: Mapping[str, tuple[tuple[str, int], ...]]) -> Architecture:
    """The model, with the row's numbers of layers where the file lists others. Raises ModelError."""
    config = library.config(_ALIASES.get(model_id, model_id))
    if config is None:
        raise ModelError("model", "has no config in the set")
    read = read_architecture(config)
    known = layers.get(model_id)
    if known is None or sorted(group.count for group in read.groups) == sorted(count for _, count in known):
        return read
    mended = with_layers_of(config, known)
    return read if mended is None else read_architecture(mended)


def other_engines_section(engines: Mapping[str, Any], library: Library) -> Section:
    """llama.cpp's and SGLang's formulas, worked out for the same models."""
    llama_cpp = [_llama_cpp(row, library) for row in engines["llama_cpp"]["rows"]]
    sglang = [_sglang(row, library) for row in engines["sglang"]["rows"]]
    wrong = sum(bool(one.differs) for one in (*llama_cpp, *sglang))
    columns = ["model", "flags", "ours", "theirs", "differs in"]
    return Section(
        "llama.cpp and SGLang",
        paragraphs(
            "llama.cpp: cells and bytes by the formulas of `llama-kv-cache*.cpp`, cells padded to 256.",
            table(columns, map(_outcome_row, llama_cpp)),
            "SGLang 0.5.23: cell bytes, tokens of the pools, slots of state and bytes by `pool_configurator.py`.",
            table(columns, map(_outcome_row, sglang)),
        ),
        (Figure("llama.cpp and SGLang: rows that differ", "rows", 0, wrong),),
    )


def _outcome_row(one: Outcome) -> list[str]:
    ours, theirs = (", ".join(f"{name} {value}" for name, value in side) for side in (one.ours, one.theirs))
    return [one.model, one.flags, ours, theirs, one.differs or "nothing"]


def _llama_cpp(row: Mapping[str, Any], library: Library) -> Outcome:
    model_id, _, words = row["model"].partition(" ")
    kv = row["type"].split()[0]
    slots = row.get("n_parallel", 1)
    flags = f"{row['ctx']:,} tokens, {kv}, {slots} slot{'s' if slots > 1 else ''}" + (
        ", --swa-full" if "--swa-full" in words else ""
    )
    cells = [row[name] for name in ("swa_cells", "full_cells") if name in row]
    theirs = (*((("cells", _list(cells)),) if cells else ()), ("bytes", whole(row["bytes"])))
    architecture = library.architecture(_ALIASES.get(model_id, model_id))
    if architecture is None:
        return Outcome(model_id, flags, (("error", "no config in the set"),), theirs)
    plan = plan_llama_cpp(
        architecture,
        n_ctx=row["ctx"],
        n_parallel=slots,
        unified=True,
        n_ubatch=row.get("ubatch", 512),
        swa_full="--swa-full" in words,
        cache_type_k=kv,
        cache_type_v=kv,
    )
    mine = _list([group.num_blocks or 0 for group in plan.groups])
    return Outcome(model_id, flags, (*((("cells", mine),) if cells else ()), ("bytes", whole(plan.pool_bytes))), theirs)


def _list(values: list[int]) -> str:
    return " and ".join(map(whole, values))


def _sglang(row: Mapping[str, Any], library: Library) -> Outcome:
    model_id = row["id"]
    architecture = library.architecture(model_id)
    if architecture is None:
        return Outcome(model_id, "", (("error", "no config in the set"),), ())
    if "slots" in row:
        return _sglang_states(row, architecture)
    ratio = row["swa_full_tokens_ratio"]
    plan = plan_sglang(architecture, kv_bytes=row["kv_bytes_available"], swa_full_tokens_ratio=ratio, two_pools=True)
    by_kind = {group.kind: group for group in plan.groups}
    cell = by_kind["full"].block_bytes + ratio * by_kind["window"].block_bytes
    ours = (
        ("cell", f"{cell:,.1f}"),
        ("full tokens", whole(by_kind["full"].capacity_tokens)),
        ("window tokens", whole(by_kind["window"].capacity_tokens)),
        ("bytes", whole(plan.pool_bytes)),
    )
    theirs = (
        ("cell", f"{row['cell_bytes']:,.1f}"),
        ("full tokens", whole(row["full_tokens"])),
        ("window tokens", whole(row["swa_tokens"])),
        ("bytes", whole(row["bytes"])),
    )
    return Outcome(
        model_id, f"{gib(row['kv_bytes_available'])} GiB, window pool {ratio:g} of the full one", ours, theirs
    )


def _sglang_states(row: Mapping[str, Any], architecture: Architecture) -> Outcome:
    plan = plan_sglang(architecture, kv_bytes=row["rest_bytes"], context_tokens=4096)
    state = next(group for group in plan.groups if group.kind == "state")
    ours = (
        ("slots", whole(state.num_blocks)),
        ("bytes per slot", whole(state.block_bytes)),
        ("requests", whole(plan.max_requests)),
    )
    theirs = (
        ("slots", whole(row["slots"])),
        ("bytes per slot", whole(row["per_slot"])),
        ("requests", whole(row["max_requests_radix"])),
    )
    return Outcome(row["id"], f"{gib(row['rest_bytes'])} GiB, radix cache", ours, theirs)


def read_engines(vectors: Path) -> Mapping[str, Any]:
    """The rows of engines' own output. Keys: `vllm_019_h100`, `vllm_032_planner`, `llama_cpp`, `sglang` and more."""
    rows: Mapping[str, Any] = json.loads((vectors / "engine_vectors.json").read_text())
    return rows
