"""The KV pool that vLLM made on H100, predicted from the checkpoint's size and the flags alone."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.model.h100_startups import VLLM_011_016, VLLM_019

from bench.accuracy.configs import Config, Library
from bench.accuracy.page import GIB, Section, paragraphs, percent, table, whole
from bench.table import Figure
from kvmodel import Architecture, ModelError, plan_pool, predict_memory, read_architecture
from kvmodel.resident import resident_extras

_CARD_BYTES = int(79.19 * GIB)
_OLDER_TOLERANCE = 0.01
_ROUNDING_GIB = 0.005
"""The logs round the pool to 0.01 GiB."""


@dataclass(frozen=True, slots=True)
class PoolError:
    """One start-up: the pool predicted and as printed."""

    model: str
    tp: int
    version: str
    utilization: float
    predicted_gib: float
    low_gib: float
    high_gib: float
    measured_gib: float

    @property
    def error(self) -> float:
        """Relative; positive where more was predicted than there was."""
        return self.predicted_gib / self.measured_gib - 1


@dataclass(frozen=True, slots=True)
class TokensOfPool:
    """One start-up: tokens of the pool that was printed, with its rounding, and as printed."""

    low: int
    middle: int
    high: int
    printed: int

    @property
    def error(self) -> float:
        return self.middle / self.printed - 1

    @property
    def inside(self) -> bool:
        """What was printed lies between the plans for both ends of the pool's rounding."""
        return self.low <= self.printed <= self.high


def section(engines: Mapping[str, Any], library: Library) -> Section:
    rows = engines["vllm_019_h100"]["rows"]
    pools = [_pool(row) for row in rows]
    tokens = [_tokens(row) for row in rows]
    errors = [abs(pool.error) for pool in pools]
    mean, worst = 100 * statistics.mean(errors), 100 * max(errors)
    older = [_older_pool(row, library) for row in engines["vllm_011_016_h100"]["rows"]]
    older_errors = [abs(pool.error) for pool in older]
    return Section(
        "Measured start-ups on H100",
        paragraphs(
            f"vLLM 0.19.0, {len(rows)} public start-ups (jgchn/llm-d-planner, accuracy/results/v0.19.0, Apache-2.0): "
            "utilization 0.95 of 79.19 GiB, `max_model_len` 8192, 1024 sequences, 8192 tokens a step. The prediction "
            "knows the config, the bytes in the checkpoint's headers and these flags; its constants are one set for "
            "all models. They were found from these very logs and their neighbours, so this says how well one set fits "
            "all, not how it would do on another card or version; their sources stand in `model/kvmodel/startup.py`.",
            f"Mean error {mean:.2f} %, median {100 * statistics.median(errors):.2f} %, largest {worst:.2f} %; "
            f"{sum(_holds(pool) for pool in pools)} of {len(pools)} pools lie in the predicted interval. Tokens are "
            "those of the pool that the log prints, which it rounds to 0.01 GiB.",
            table(
                [
                    "model",
                    ">TP",
                    ">pool predicted, GiB",
                    ">measured, GiB",
                    ">error",
                    ">tokens of the printed pool",
                    ">printed",
                    ">error",
                    "within the pool's rounding",
                ],
                [_row(pool, held) for pool, held in zip(pools, tokens, strict=True)],
            ),
            "vLLM 0.11 to 0.16 (llm-d-incubation/llm-d-planner, docs/empirical-vllm-memory-results.md; 16,000 tokens "
            "of context). Which version made which row is not told: 0.15's rules are taken, and 0.19's where 0.15's "
            "miss by more than 1 %. The checkpoints' sizes are not told either, so weights are as the engine printed "
            "them, and the utilization is what the printed parts add up to. "
            f"Mean error {100 * statistics.mean(older_errors):.2f} %, largest {100 * max(older_errors):.2f} %.",
            table(
                ["model", ">TP", "rules of", ">utilization", ">pool predicted, GiB", ">measured, GiB", ">error"],
                [
                    [
                        pool.model,
                        str(pool.tp),
                        pool.version,
                        f"{pool.utilization:.2f}",
                        f"{pool.predicted_gib:.2f}",
                        f"{pool.measured_gib:.2f}",
                        percent(pool.error),
                    ]
                    for pool in older
                ],
            ),
        ),
        (
            Figure("H100 start-ups, vLLM 0.19: mean error of the pool", "%", 1, mean),
            Figure("H100 start-ups, vLLM 0.19: largest error", "%", 5, worst),
            Figure(
                "H100 start-ups, vLLM 0.19: tokens more than 0.5 % off",
                "rows",
                0,
                sum(abs(held.error) > 0.005 for held in tokens),
            ),
        ),
    )


def _holds(pool: PoolError) -> bool:
    return pool.low_gib <= pool.measured_gib + _ROUNDING_GIB and pool.measured_gib - _ROUNDING_GIB <= pool.high_gib


def _row(pool: PoolError, tokens: TokensOfPool) -> list[str]:
    return [
        pool.model,
        str(pool.tp),
        f"{pool.predicted_gib:.2f}",
        f"{pool.measured_gib:.2f}",
        percent(pool.error),
        whole(tokens.middle),
        whole(tokens.printed),
        percent(tokens.error),
        "yes" if tokens.inside else "no",
    ]


def _tests_row(model: str, tp: int) -> tuple[Config, float]:
    """The config of a start-up as the tests hold it, and the checkpoint's published GiB for each rank."""
    name = model.rpartition("/")[2]
    row = next(row for row in VLLM_019 if row.model == name and row.tp == tp)
    return row.config, row.file


def _pool(row: Mapping[str, Any]) -> PoolError:
    config, published_gib = _tests_row(row["model"], row["tp"])
    header_gib = row["header_weights_gib_per_rank"]
    return _predicted(
        row["model"],
        read_architecture(config),
        tp=row["tp"],
        weights_bytes=int((published_gib if header_gib is None else header_gib) * GIB),
        measured_gib=row["kv_gib"],
        utilization=0.95,
        version="0.19.0",
        max_model_len=8192,
    )


def _tokens(row: Mapping[str, Any]) -> TokensOfPool:
    config, _ = _tests_row(row["model"], row["tp"])
    low, middle, high = (
        plan_pool(
            read_architecture(config),
            kv_bytes=int((row["kv_gib"] + off) * GIB),
            max_model_len=8192,
            max_num_batched_tokens=8192,
            max_num_seqs=1024,
            tp=row["tp"],
            engine_version="0.19.0",
        ).capacity_tokens
        for off in (-_ROUNDING_GIB, 0, _ROUNDING_GIB)
    )
    return TokensOfPool(low, middle, high, row["kv_tokens"])


def _older_pool(row: Mapping[str, Any], library: Library) -> PoolError:
    architecture = read_architecture(_older_config(row["model"], row["tp"], library))
    extras = sum(resident_extras(architecture, tp=row["tp"]).values())
    requested_gib = sum(row[part] for part in ("weights", "activation", "non_torch", "kv"))
    tried = [
        _predicted(
            row["model"],
            architecture,
            tp=row["tp"],
            weights_bytes=int(row["weights"] * GIB) - extras,
            measured_gib=row["kv"],
            utilization=round(requested_gib * GIB / _CARD_BYTES, 2),
            version=version,
            max_model_len=16000,
        )
        for version in ("0.15.0", "0.19.0")
    ]
    return next((pool for pool in tried if abs(pool.error) <= _OLDER_TOLERANCE), tried[0])


def _older_config(model: str, tp: int, library: Library) -> Config:
    """The tests' config, that of the 24B Mistral of 0.19 for its successor, or the listed facts'."""
    name = model.rpartition("/")[2]
    for row in VLLM_011_016:
        if row.model == name and row.tp == tp:
            return row.config
    if name.startswith("Mistral-Small-3."):
        return next(row.config for row in VLLM_019 if row.model.startswith("Mistral-Small-3."))
    config = library.config(model)
    if config is None:
        raise ModelError("model", f"{model} has no config in the set")
    if "gpt-oss" in model:
        return {**config, "quantization_config": {"quant_method": "mxfp4"}}
    return config


def _predicted(
    model: str,
    architecture: Architecture,
    *,
    tp: int,
    weights_bytes: int,
    measured_gib: float,
    utilization: float,
    version: str,
    max_model_len: int,
) -> PoolError:
    pool = predict_memory(
        architecture,
        weights_bytes_per_gpu=weights_bytes,
        gpu_total_bytes=_CARD_BYTES,
        gpu_memory_utilization=utilization,
        engine_version=version,
        tp=tp,
        max_model_len=max_model_len,
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
    ).kv_pool
    return PoolError(
        model=model,
        tp=tp,
        version=version,
        utilization=utilization,
        predicted_gib=pool.expected_bytes / GIB,
        low_gib=pool.low_bytes / GIB,
        high_gib=pool.high_bytes / GIB,
        measured_gib=measured_gib,
    )
