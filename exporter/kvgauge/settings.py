"""The sidecar's settings: one validated model, filled from flags, `KVGAUGE_*` variables and a TOML file.

A flag wins over a variable, a variable over the file. Anything wrong is one `InputError` that names the field.
"""

import argparse
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from kvgauge.complaints import InputError, OneLineParser
from kvgauge.observe.engines import NAMES

ENVIRONMENT_PREFIX = "KVGAUGE_"
MAX_CONFIG_BYTES = 1024 * 1024
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h)?")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError("should be a duration such as 500ms, 1s or 2m")
    return float(match[1]) * _UNIT_SECONDS[match[2]]


def _http_url(value: str) -> str:
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


Seconds = Annotated[float, BeforeValidator(_seconds)]


class Settings(BaseModel):
    """Settings of `kvgauge sidecar`. Durations are seconds, or strings such as 500ms, 1s, 2m."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Annotated[str, AfterValidator(_engine_kind)] = Field(
        "auto", description="the engine's kind; auto tells it by what it answers"
    )
    engine_url: Annotated[str, AfterValidator(_http_url)] = Field(
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
    slo_ttft: Seconds | None = Field(None, gt=0, le=3600, description="time to first token to keep")
    slo_tpot: Seconds | None = Field(None, gt=0, le=60, description="time per output token to keep")
    state_file: str | None = Field(
        None, min_length=1, description="file that keeps what was learned of lengths and speed over a restart"
    )
    log_format: Literal["console", "json"] = Field("console", description="shape of log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")


def load(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> tuple[Settings, bool]:
    """(settings, whether they are only to be printed). Raises InputError; `--help` exits 0."""
    flags = vars(_parser().parse_args(arguments))
    print_config = bool(flags.pop("print_config", False))
    config = flags.pop("config", None) or environ.get(ENVIRONMENT_PREFIX + "CONFIG")
    merged = {**(_from_file(Path(config)) if config else {}), **_from_environment(environ), **flags}
    return validated(merged), print_config


def validated(values: Mapping[str, Any]) -> Settings:
    """Settings from plain values. Raises InputError."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise InputError(_first_line(error)) from None


def to_toml(settings: Settings) -> str:
    """The settings as a TOML file that `--config` reads back; of a secret only that it is set."""
    lines = []
    for name, value in settings.model_dump().items():
        if isinstance(value, SecretStr):
            lines.append(f"# {name} is set")
        elif value is not None:
            # JSON's strings, numbers and booleans are TOML's.
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="kvgauge sidecar",
        description="Watches the engine and the GPU of this pod, and serves metrics and advice.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, field in Settings.model_fields.items():
        text = field.description or ""
        if field.default not in {None, False}:
            text += f" (default {field.default})"
        flag = "--" + name.replace("_", "-")
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument(flag, metavar=name.upper(), help=text.replace("%", "%%"))
    parser.add_argument("--config", metavar="FILE.toml", help="file with the same settings, names with underscores")
    parser.add_argument("--print-config", action="store_true", help="print the settings in force and exit")
    return parser


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name in Settings.model_fields:
        value = environ.get(ENVIRONMENT_PREFIX + name.upper())
        # A Service called kvgauge makes Kubernetes set KVGAUGE_PORT=tcp://10.0.0.1:9838 in every pod beside it.
        if value is not None and not (name == "port" and value.startswith(("tcp://", "udp://", "sctp://"))):
            found[name] = value
    return found


def _from_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            body = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise InputError(f"config: {path}: {error.strerror}") from None
    if len(body) > MAX_CONFIG_BYTES:
        raise InputError(f"config: {path}: larger than {MAX_CONFIG_BYTES} bytes")
    try:
        return tomllib.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"config: {path}: {str(error).splitlines()[0]}") from None


def _first_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"]) or "settings"
    message = first["msg"].removeprefix("Value error, ").splitlines()[0]
    if first["type"] == "extra_forbidden":
        return f"{name}: no such setting"
    if name == "engine_api_key":
        return f"{name}: {message}"
    return f"{name}: {message}, got {str(first['input'])[:100]!r}"
