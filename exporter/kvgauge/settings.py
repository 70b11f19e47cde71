"""The sidecar's settings."""

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from kvgauge.configuring import RoleSettings, Seconds, load_role, to_toml, validated_role
from kvgauge.observe.engines import NAMES

__all__ = ["Settings", "load", "to_toml", "validated"]


def http_url(value: str) -> str:
    """Of a setting: without the slash at its end. Raises ValueError for what is no plain address."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("should be an http:// or https:// address")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("should be a plain address, without credentials, query or fragment")
    _ = parts.port
    return value.rstrip("/")


def _engine_kind(value: str) -> str:
    if value != "auto" and value not in NAMES:
        raise ValueError(f"should be auto or one of: {', '.join(NAMES)}")
    return value


class Settings(RoleSettings):
    """Settings of `kvgauge sidecar`. Durations are seconds, or strings such as 500ms, 1s, 2m."""

    engine: Annotated[str, AfterValidator(_engine_kind)] = Field(
        "auto", description="the engine's kind; auto tells it by what it answers"
    )
    engine_url: Annotated[str, AfterValidator(http_url)] = Field(
        "http://127.0.0.1:8000", description="where the engine serves"
    )
    engine_api_key: SecretStr | None = Field(
        None, description="bearer key for the engine's /v1 pages; prefer the variable, flags are visible to others"
    )
    engine_timeout: Seconds = Field(1.0, gt=0, le=60, description="bound on each request to the engine")
    engine_capacity_tokens: int | None = Field(
        None, ge=1, le=10**12, description="KV slots of one rank, for engines whose pages do not state them"
    )
    engine_kv_dtype: str | None = Field(
        None, min_length=1, description="the engine's KV dtype, where no page states it"
    )
    engine_max_model_len: int | None = Field(
        None, ge=1, le=10**9, description="longest request in tokens, where no page states it"
    )
    engine_parallel: int | None = Field(
        None, ge=1, le=100_000, description="requests served at a time (Ollama's OLLAMA_NUM_PARALLEL)"
    )
    llamacpp_kv_unified: bool | None = Field(None, description="llama.cpp's slots share one pool (--kv-unified)")
    trtllm_read_iteration_stats: bool = Field(
        False, description="read trtllm-serve's JSON records, which takes them away from any other reader"
    )
    stalled_after: Seconds = Field(
        30.0, gt=0, le=3600, description="an engine with requests that has not moved for this long counts as down"
    )
    model: str | None = Field(
        None, min_length=1, description="the model's folder, config.json, or id in the local hub cache"
    )
    port: int = Field(9838, ge=0, le=65535, description="port to serve on; 0 takes a free one")
    host: str = Field("0.0.0.0", min_length=1, description="address to serve on")  # noqa: S104
    interval: Seconds = Field(1.0, ge=0.1, le=60, description="time between two looks")
    stale_after: Seconds = Field(5.0, gt=0, le=300, description="age at which facts are dropped")
    tp: int | None = Field(None, ge=1, le=1024, description="the engine's tensor parallelism")
    pp: int | None = Field(None, ge=1, le=1024, description="the engine's pipeline parallelism")
    max_num_seqs: int | None = Field(None, ge=1, le=1_000_000, description="the engine's max_num_seqs")
    max_num_batched_tokens: int | None = Field(
        None, ge=1, le=100_000_000, description="the engine's max_num_batched_tokens"
    )
    enforce_eager: bool = Field(False, description="the engine runs without CUDA graphs")
    spool: str | None = Field(
        None, min_length=1, description="the agent's spool folder; without it /run/kvgauge, where that exists"
    )
    gpu_count: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="GPUs that the engine has; of more visible ones those not known as its are hidden",
    )
    gpu_uuids: str | None = Field(
        None, min_length=1, max_length=4096, description="their UUIDs, separated by commas; others are hidden"
    )
    slo_ttft: Seconds | None = Field(None, gt=0, le=3600, description="time to first token to keep")
    slo_tpot: Seconds | None = Field(None, gt=0, le=60, description="time per output token to keep")
    state_file: str | None = Field(
        None, min_length=1, description="file that keeps what was learned of lengths and speed over a restart"
    )
    log_format: Literal["console", "json"] = Field("console", description="shape of log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")


def load(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> tuple[Settings, bool]:
    """(settings, whether they are only to be printed). Raises InputError; `--help` exits 0."""
    description = "Watches the engine and the GPU of this pod, and serves metrics and advice."
    return load_role(Settings, "sidecar", description, arguments, environ)


def validated(values: Mapping[str, Any]) -> Settings:
    """Settings from plain values. Raises InputError."""
    return validated_role(Settings, values)
