"""What is drawn, taken from a sidecar's JSON. What is missing or no figure is None; text is made fit to be shown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvgauge.observe.records import SourceError

_MOST_ITEMS = 64
_MOST_CHARACTERS = 400
_Object = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class PoolView:
    """The KV pool of one rank. Slots."""

    rank: str
    capacity_tokens: float | None
    active_tokens: float | None
    reclaimable_tokens: float | None
    free_tokens: float | None


@dataclass(frozen=True, slots=True)
class PartView:
    """A component of a GPU's memory."""

    name: str
    predicted_bytes: float | None
    actual_bytes: float | None


@dataclass(frozen=True, slots=True)
class GpuView:
    gpu: str
    name: str
    card_bytes: float | None
    used_bytes: float | None
    total: PartView | None
    parts: tuple[PartView, ...]


@dataclass(frozen=True, slots=True)
class WasteView:
    kind: str
    method: str
    waste_bytes: float


@dataclass(frozen=True, slots=True)
class SourceView:
    name: str
    up: bool
    reason: str
    age_seconds: float | None


@dataclass(frozen=True, slots=True)
class PodView:
    """One sidecar's page at one moment."""

    engine: str
    version: str
    model: str
    valid: bool
    safe_concurrency: float | None
    limits: Mapping[str, float]
    binding_limit: str
    load_ratio: float | None
    kv_usage_ratio: float | None
    kv_exhaustion_seconds: float | None
    trend_known: bool
    """Then no time to exhaustion means that it is not heading there."""
    running: float | None
    waiting: float | None
    age_seconds: float | None
    explanation: tuple[str, ...]
    pools: tuple[PoolView, ...]
    gpus: tuple[GpuView, ...]
    waste: tuple[WasteView, ...]
    """Of the first rank that tells."""
    sources: tuple[SourceView, ...]
    warnings: tuple[str, ...]


def pod_view(advice: _Object, assessment: _Object, observation: _Object) -> PodView:
    """Raises SourceError for an advice that is none: another program answers there."""
    if not isinstance(advice.get("valid"), bool):
        raise SourceError("not_a_sidecar", "the answer at /v1/advice is no advice")
    engine = _part(observation, "engine")
    limits = _part(advice, "limits")
    pools = _parts(assessment, "pools")
    return PodView(
        engine=_text(engine, "engine"),
        version=_text(engine, "version"),
        model=_text(engine, "model"),
        valid=advice["valid"] is True,
        safe_concurrency=_figure(advice, "safe_concurrency"),
        limits={shown(name): found for name in limits if (found := _figure(limits, name)) is not None},
        binding_limit=_text(advice, "binding_limit"),
        load_ratio=_figure(advice, "load_ratio"),
        kv_usage_ratio=_figure(advice, "kv_usage_ratio"),
        kv_exhaustion_seconds=_figure(advice, "kv_exhaustion_seconds"),
        trend_known=isinstance(_part(advice, "terms").get("trend_tokens_per_second"), int | float),
        running=_figure(advice, "running"),
        waiting=_figure(advice, "waiting"),
        age_seconds=_figure(advice, "age_seconds"),
        explanation=_texts(advice, "explanation"),
        pools=tuple(_pool(pool) for pool in pools),
        gpus=_gpus(assessment, observation),
        waste=next(filter(None, (_waste(pool) for pool in pools)), ()),
        sources=tuple(
            SourceView(_text(state, "source"), state.get("up") is True, _text(state, "reason"), _age(state))
            for state in _parts(observation, "sources")
        ),
        warnings=_texts(assessment, "warnings"),
    )


def shown(text: object) -> str:
    """On one line, without what would steer a terminal."""
    if not isinstance(text, str):
        return ""
    plain = " ".join(text[: 4 * _MOST_CHARACTERS].split())[:_MOST_CHARACTERS]
    return "".join(letter if letter.isprintable() else "?" for letter in plain)


def _pool(pool: _Object) -> PoolView:
    names = ("capacity_tokens", "active_tokens", "reclaimable_tokens", "free_tokens")
    return PoolView(_text(pool, "rank"), *(_figure(pool, name) for name in names))


def _gpus(assessment: _Object, observation: _Object) -> tuple[GpuView, ...]:
    assessed = {_text(gpu, "uuid"): gpu for gpu in _parts(assessment, "gpus")}
    found = []
    for seen in _parts(observation, "gpus"):
        told = assessed.get(_text(seen, "uuid"), {})
        total = _part(told, "total")
        found.append(
            GpuView(
                gpu=str(seen.get("gpu")) if isinstance(seen.get("gpu"), int) else "?",
                name=_text(seen, "name"),
                card_bytes=_figure(seen, "total_bytes"),
                used_bytes=_figure(seen, "used_bytes"),
                total=_component(total) if total else None,
                parts=tuple(_component(part) for part in _parts(told, "components")),
            )
        )
    return tuple(found)


def _component(part: _Object) -> PartView:
    return PartView(_text(part, "component"), _figure(part, "expected_bytes"), _figure(part, "actual_bytes"))


def _waste(pool: _Object) -> tuple[WasteView, ...]:
    return tuple(
        WasteView(_text(each, "kind"), _text(each, "method"), size)
        for each in _parts(pool, "waste")
        if (size := _figure(each, "waste_bytes")) is not None
    )


def _age(state: _Object) -> float | None:
    return _figure(state, "age_seconds")


def _part(thing: _Object, name: str) -> _Object:
    found = thing.get(name)
    return found if isinstance(found, Mapping) else {}


def _parts(thing: _Object, name: str) -> list[_Object]:
    found = thing.get(name)
    return [each for each in found[:_MOST_ITEMS] if isinstance(each, Mapping)] if isinstance(found, list) else []


def _texts(thing: _Object, name: str) -> tuple[str, ...]:
    found = thing.get(name)
    listed: Sequence[object] = found[:_MOST_ITEMS] if isinstance(found, list) else ()
    return tuple(text for each in listed if (text := shown(each)))


def _text(thing: _Object, name: str) -> str:
    return shown(thing.get(name))


def _figure(thing: _Object, name: str) -> float | None:
    """A finite number that is not negative."""
    found = thing.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found) or found < 0:
        return None
    return float(found)
