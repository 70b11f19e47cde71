"""How the engine runs: its flags as far as they are told, and the size of its pool; and which of them have changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from kvgauge.assess.records import Assessment
from kvgauge.observe.records import EngineReading, ModelReading

FIRM_SECONDS = 10.0
"""A setting counts once it has been told for so long: one odd tick is nothing."""
POOL_TOLERANCE_RATIO = 0.02
"""The pool of an engine that measures the card differs from start to start."""

# Sources that come and go may tell one after the other.
_SAME_CHANGE_SECONDS = 60.0
_MAX_TEXT = 512
# The type that `auto` stands for may be named by one source and not by another.
_SIXTEEN_BITS = frozenset({"auto", "bfloat16", "float16", "half"})

Setting = int | float | str
Settings = Mapping[str, Setting]
CAPACITY = "capacity_tokens"
NAMES = (
    "max_model_len",
    "gpu_memory_utilization",
    "block_size",
    "kv_dtype",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_bytes",
    "num_blocks_override",
    "prefix_caching",
    CAPACITY,
)


@dataclass(frozen=True, slots=True)
class Change:
    """Settings that differ from before, and the pool's bytes on each GPU before."""

    seconds: float
    """Monotonic time at which it was noticed."""
    settings: Mapping[str, tuple[Setting, Setting]]
    """(before, now) by name."""
    pool_bytes_before: int | None


class SettingsWatch:
    """What is told of one engine from tick to tick, its restarts included."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[Setting, float]] = {}
        self.change: Change | None = None
        """The last one."""

    def notice(self, told: Settings, before: Settings, pool_bytes_before: int | None, now: float) -> Settings:
        """The settings that hold by now: those of `before`, with what has been told otherwise for FIRM_SECONDS."""
        changed: dict[str, tuple[Setting, Setting]] = {}
        settings = dict(before)
        for name, value in told.items():
            if name not in self._told or self._told[name][0] != value:
                self._told[name] = value, now
            if not self.is_firm(name, now):
                continue
            if name not in settings:
                settings[name] = value
            elif _differ(name, settings[name], value):
                changed[name] = settings[name], value
                settings[name] = value
        if changed:
            last = self.change
            if last is not None and now - last.seconds <= _SAME_CHANGE_SECONDS:
                self.change = Change(now, {**last.settings, **changed}, last.pool_bytes_before)
            else:
                self.change = Change(now, changed, pool_bytes_before)
        return settings

    def has_looked(self, now: float) -> bool:
        """Whether anything has been told for long enough to be compared."""
        return any(self.is_firm(name, now) for name in self._told)

    def is_firm(self, name: str, now: float) -> bool:
        """Whether the setting has been told to be what it is now for long enough."""
        return name in self._told and now - self._told[name][1] >= FIRM_SECONDS


def settings_of(assessment: Assessment, engine: EngineReading) -> Settings:
    """What the engine runs with. A setting that is not told is not in it."""
    capacities = [pool.capacity_tokens for pool in assessment.pools]
    known = [capacity for capacity in capacities if capacity is not None]
    block_sizes = {pool.block_tokens for pool in assessment.pools}
    values: tuple[Setting | None, ...] = (
        engine.max_model_len,
        engine.gpu_memory_utilization,
        block_sizes.pop() if len(block_sizes) == 1 else None,
        _kv_dtype(engine.kv_dtype, assessment.observation.model),
        assessment.max_num_seqs,
        assessment.max_num_batched_tokens,
        engine.kv_cache_bytes,
        engine.num_blocks_override,
        engine.prefix_caching,
        sum(known) if known and len(known) == len(capacities) else None,
    )
    return {name: value for name, value in zip(NAMES, values, strict=True) if value is not None}


def settings_from(plain: object) -> Settings:
    """Settings that were written down; whatever else is in there is left out."""
    return {
        name: value
        for name, value in (plain.items() if isinstance(plain, Mapping) else ())
        if name in NAMES and _is_setting(value)
    }


def _is_setting(plain: object) -> bool:
    if isinstance(plain, str):
        return len(plain) <= _MAX_TEXT
    return isinstance(plain, int | float) and isfinite(plain)


def _kv_dtype(told: str | None, model: ModelReading | None) -> str | None:
    if told == "auto" and model is not None:
        return model.architecture.kv_cache_dtype or model.architecture.dtype
    return told


def _differ(name: str, before: Setting, now: Setting) -> bool:
    if isinstance(before, str) or isinstance(now, str):
        return before != now and not ("auto" in (before, now) and {before, now} <= _SIXTEEN_BITS)
    if name == CAPACITY:
        return abs(now - before) > POOL_TOLERANCE_RATIO * max(before, now)
    return before != now
