"""What a pod's annotations ask of the injector: each wins over what was read from the spec, and each is checked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, TypeAdapter, ValidationError

from kvgauge.cluster.injector.reading import MODEL
from kvgauge.cluster.names import DOMAIN, PORT
from kvgauge.configuring import Seconds
from kvgauge.observe.engines import NAMES

CONTAINER = f"{DOMAIN}/container"
ENGINE = f"{DOMAIN}/engine"
ENGINE_PORT = f"{DOMAIN}/engine-port"
ENGINE_URL = f"{DOMAIN}/engine-url"
ENGINE_KEY = f"{DOMAIN}/engine-api-key-secret"
MODEL_PATH = f"{DOMAIN}/model"
SLO_TTFT = f"{DOMAIN}/slo-ttft"
SLO_TPOT = f"{DOMAIN}/slo-tpot"
GPU_MODE = f"{DOMAIN}/gpu-mode"
AGENT = f"{DOMAIN}/agent"
"""Annotation, or label."""
STATUS = f"{DOMAIN}/status"
"""Set by the injector: what it made of the pod."""

GPU_MODES = ("none", "env", "runtimeClass", "dra", "hostPath")
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_PATH = re.compile(r"[A-Za-z0-9._/-]{0,200}")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SECRET_KEY = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[-._A-Za-z0-9]{1,253}")
_DURATION_LENGTH = 16
_SHOWN_LENGTH = 60
_TTFT: TypeAdapter[float] = TypeAdapter(Annotated[Seconds, Field(gt=0, le=3600)])
_TPOT: TypeAdapter[float] = TypeAdapter(Annotated[Seconds, Field(gt=0, le=60)])


class AnnotationError(Exception):
    """One annotation that cannot be followed. The message is one line of bounded length: its name, what it should be,
    and the value."""

    def __init__(self, name: str, should: str, value: str) -> None:
        shown = value if len(value) <= _SHOWN_LENGTH else f"{value[:_SHOWN_LENGTH]}..."
        # repr, so that no line break and nothing unprintable gets through.
        super().__init__(f"{name}: should be {should}, got {shown!a}")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the annotations say; None: nothing."""

    container: str | None = None
    engine: str | None = None
    engine_port: int | None = None
    engine_url: str | None = None
    engine_key: tuple[str, str] | None = None
    """Name of a Secret and a key in it, which holds the engine's API key."""
    model: str | None = None
    slo_ttft: str | None = None
    slo_tpot: str | None = None
    port: int | None = None
    gpu_mode: str | None = None
    agent: bool = False


def read_wishes(
    annotations: Mapping[str, str], labels: Mapping[str, str], allowed_gpu_modes: tuple[str, ...]
) -> Wishes:
    """Raises AnnotationError for the first one that cannot be followed."""
    agent = AGENT if AGENT in annotations or AGENT not in labels else None
    given = annotations if agent is not None else {**annotations, AGENT: labels[AGENT]}
    return Wishes(
        container=_matching(given, CONTAINER, _LABEL, "a container's name"),
        engine=_one_of(given, ENGINE, ("auto", *NAMES)),
        engine_port=_number(given, ENGINE_PORT, 1),
        engine_url=_loopback_url(given),
        engine_key=_secret_key(given),
        model=_matching(given, MODEL_PATH, MODEL, "a path or a model's id"),
        slo_ttft=_duration(given, SLO_TTFT, _TTFT, "a duration such as 2s, at most an hour"),
        slo_tpot=_duration(given, SLO_TPOT, _TPOT, "a duration such as 80ms, at most a minute"),
        # Below 1024 a process without capabilities may not serve.
        port=_number(given, PORT, 1024),
        gpu_mode=_one_of(given, GPU_MODE, allowed_gpu_modes),
        agent=_one_of(given, AGENT, ("true", "false")) == "true",
    )


def _matching(given: Mapping[str, str], name: str, pattern: re.Pattern[str], should: str) -> str | None:
    value = given.get(name)
    if value is not None and not pattern.fullmatch(value):
        raise AnnotationError(name, should, value)
    return value


def _one_of(given: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str | None:
    value = given.get(name)
    if value is not None and value not in allowed:
        raise AnnotationError(name, f"one of {', '.join(allowed)}", value)
    return value


def _number(given: Mapping[str, str], name: str, least: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) < 6 and least <= int(value) <= 65535):
        raise AnnotationError(name, f"a port from {least} to 65535", value)
    return int(value)


def _loopback_url(given: Mapping[str, str]) -> str | None:
    """Only the pod itself: a sidecar is not to be pointed at others."""
    value = given.get(ENGINE_URL)
    if value is None:
        return None
    should = "http:// or https:// with 127.0.0.1, localhost or [::1], perhaps a port and a path"
    try:
        parts = urlsplit(value)
        plain = "@" not in parts.netloc and not parts.query and not parts.fragment
        allowed = parts.scheme in {"http", "https"} and parts.hostname in _LOOPBACK and parts.port != 0
        if not (plain and allowed and _PATH.fullmatch(parts.path) and len(value) < 256 and _is_printable(value)):
            raise AnnotationError(ENGINE_URL, should, value)
    except ValueError:
        raise AnnotationError(ENGINE_URL, should, value) from None
    return value.rstrip("/")


def _is_printable(value: str) -> bool:
    # urlsplit takes tabs and line breaks out before it looks.
    return value.isascii() and value.isprintable() and not set(value) & set(" $?#")


def _secret_key(given: Mapping[str, str]) -> tuple[str, str] | None:
    value = _matching(given, ENGINE_KEY, _SECRET_KEY, "SECRET/KEY")
    if value is None:
        return None
    secret, _, key = value.partition("/")
    return secret, key


def _duration(given: Mapping[str, str], name: str, adapter: TypeAdapter[float], should: str) -> str | None:
    value = given.get(name)
    if value is None:
        return None
    try:
        if len(value) > _DURATION_LENGTH:
            raise AnnotationError(name, should, value)
        adapter.validate_python(value)
    except ValidationError:
        raise AnnotationError(name, should, value) from None
    return value.strip()
