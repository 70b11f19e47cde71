"""A plan's JSON read once into a record, for those who print it: what is absent or not a number is None."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Plan = Callable[[Mapping[str, object]], dict[str, object]]
"""`kvmodel.plan.plan`: a case in, a result of the planner's contract out; never raises."""

COMPONENTS = ("weights", "activations", "graphs", "context", "communication", "kv_pool")
GIB = 2**30
_SUMS = frozenset({"total_bytes", "low_bytes", "high_bytes", "gpu_bytes"})


@dataclass(frozen=True, slots=True)
class Advice:
    """One change that would free memory."""

    change: str
    frees_bytes: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Figures:
    """What a person wants to know of a result."""

    model: str
    engine: str
    engine_version: str
    profile: str
    growth_bytes_per_token: float | None
    window_bytes_per_sequence: float | None
    state_bytes_per_sequence: float | None
    cross_bytes_per_sequence: float | None
    bytes_at: tuple[tuple[int, float], ...]
    kv_bytes_per_token_per_gpu: float | None
    block_tokens: float | None
    bytes_per_block: float | None
    num_blocks: float | None
    capacity_tokens: float | None
    max_concurrency: float | None
    """Requests of the longest length that fit at once."""
    max_requests: float | None
    """The engine's cap on running requests."""
    groups: tuple[Mapping[str, object], ...]
    memory: tuple[tuple[str, float], ...]
    """Component and bytes, the parts that are known, the pool last."""
    pool_bytes: float | None
    total_bytes: float | None
    low_bytes: float | None
    high_bytes: float | None
    ttft_seconds: float | None
    tpot_seconds: float | None
    advice: tuple[Advice, ...]
    """By bytes freed, the most first."""
    warnings: tuple[str, ...]
    error: tuple[str, str] | None
    """(field, message)"""

    @property
    def fits(self) -> bool:
        """Something is left for the cache."""
        return self.error is None and bool(self.pool_bytes) and bool(self.capacity_tokens)


def figures(result: Mapping[str, object]) -> Figures:
    """The record of a result."""
    ideal, engine = part(result, "ideal"), part(result, "engine_plan")
    memory, latency = part(result, "memory"), part(result, "latency")
    return Figures(
        model=text(result.get("model")),
        engine=text(result.get("engine")),
        engine_version=text(result.get("engine_version")),
        profile=text(result.get("profile")),
        growth_bytes_per_token=number(ideal.get("growth_bytes_per_token")),
        window_bytes_per_sequence=number(ideal.get("window_bytes_per_sequence")),
        state_bytes_per_sequence=number(ideal.get("state_bytes_per_sequence")),
        cross_bytes_per_sequence=number(ideal.get("cross_bytes_per_sequence")),
        bytes_at=_lengths(part(ideal, "bytes_at")),
        kv_bytes_per_token_per_gpu=number(engine.get("kv_bytes_per_token_per_gpu")),
        block_tokens=number(engine.get("block_tokens")),
        bytes_per_block=number(engine.get("bytes_per_block")),
        num_blocks=number(engine.get("num_blocks")),
        capacity_tokens=number(engine.get("capacity_tokens")),
        max_concurrency=number(engine.get("max_concurrency")),
        max_requests=number(engine.get("max_requests")),
        groups=tuple(group for group in _list(engine.get("groups")) if isinstance(group, Mapping)),
        memory=_components(memory),
        pool_bytes=number(memory.get("kv_pool_bytes", engine.get("pool_bytes"))),
        total_bytes=number(memory.get("total_bytes")),
        low_bytes=number(memory.get("low_bytes")),
        high_bytes=number(memory.get("high_bytes")),
        ttft_seconds=number(latency.get("ttft_seconds")),
        tpot_seconds=number(latency.get("tpot_seconds")),
        advice=_advice(result.get("advice")),
        warnings=tuple(text(warning) for warning in _list(result.get("warnings"))),
        error=_error(result.get("error")),
    )


def concurrency_at(plan: Plan, case: Mapping[str, object], result: Mapping[str, object], tokens: int) -> float | None:
    """Requests of `tokens` tokens that the pool of `result` holds at once, by the engine's own rules.

    The case is planned again with its pool pinned and `tokens` as the longest request. None where that is refused.
    """
    pool = figures(result).pool_bytes
    if not pool:
        return None
    pinned = {key: value for key, value in case.items() if key != "available_kv_gib"}
    again = figures(plan({**pinned, "available_kv_bytes": int(pool), "max_model_len": tokens}))
    return None if again.error else again.max_concurrency


def tokens_per_request(
    plan: Plan, case: Mapping[str, object], result: Mapping[str, object]
) -> tuple[int, float | None] | None:
    """The usual request's length and how many of it fit, where the case names one."""
    tokens = case.get("tokens_per_request")
    if not isinstance(tokens, int) or isinstance(tokens, bool):
        return None
    stated = number(part(result, "engine_plan").get("concurrency_at_tokens_per_request"))
    return tokens, concurrency_at(plan, case, result, tokens) if stated is None else stated


def part(mapping: Mapping[str, object], key: str) -> Mapping[str, object]:
    """The object under `key`, empty where there is none."""
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def number(value: object) -> float | None:
    """`value` where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def text(value: object) -> str:
    """`value` as one line that a terminal shows as it is."""
    line = "" if value is None else str(value)
    return line if line.isprintable() else "".join(c if c.isprintable() else " " for c in line)


def gib(size: float | None) -> str:
    """Bytes as a person reads them: GiB, smaller units below a hundredth of one."""
    if size is None:
        return "-"
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(size) >= unit * (1 if unit < GIB else 0.1):
            return f"{size / unit:,.2f} {name}"
    return f"{size:,.0f} B"


def count(value: float | None) -> str:
    """A whole number with separators."""
    return "-" if value is None else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """A time, in ms below a second."""
    if value is None:
        return "-"
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1000:,.1f} ms"


def requests(value: float | None) -> str:
    """A concurrency: two decimals while they matter."""
    if value is None:
        return "-"
    return f"{value:,.2f}" if value < 100 else f"{math.floor(value):,}"


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _lengths(found: Mapping[str, object]) -> tuple[tuple[int, float], ...]:
    pairs = ((str(key), number(value)) for key, value in found.items())
    return tuple(sorted((int(key), value) for key, value in pairs if key.isdecimal() and value is not None))


def _components(memory: Mapping[str, object]) -> tuple[tuple[str, float], ...]:
    others = (key.removesuffix("_bytes") for key in memory if key.endswith("_bytes") and key not in _SUMS)
    names = [*COMPONENTS[:-1], *(name for name in others if name not in COMPONENTS), COMPONENTS[-1]]
    sizes = ((name, number(memory.get(f"{name}_bytes"))) for name in names)
    return tuple((name, size) for name, size in sizes if size is not None)


def _advice(value: object) -> tuple[Advice, ...]:
    found = [
        Advice(text(item.get("change")), number(item.get("frees_bytes")), text(item.get("why")))
        for item in _list(value)
        if isinstance(item, Mapping)
    ]
    return tuple(sorted(found, key=lambda item: -(item.frees_bytes or 0)))


def _error(value: object) -> tuple[str, str] | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return text(value.get("field")), text(value.get("message"))
    return "plan", text(value)
