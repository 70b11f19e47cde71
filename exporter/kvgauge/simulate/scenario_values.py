"""Plain values, as TOML and flags give them, to the records of a scenario. What cannot be is an InputError that names
the field, with its place in the file: `stages[2].seconds: should be a number, not 'x'`."""

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Literal, TypeVar, get_args, get_origin, get_type_hints

from kvgauge.complaints import InputError
from kvgauge.simulate.deployment import Deployment
from kvgauge.simulate.hpa_behavior import DEFAULT_SCALE_DOWN, DEFAULT_SCALE_UP, Behavior, Policy, ScalingRules
from kvgauge.simulate.stages import Fixed, Lognormal, Normal, Ramp, Sine, Stage, Steady, TokenCounts, Uniform
from kvmodel.errors import show

_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h)?", re.ASCII)
_UNIT_SECONDS: Mapping[str | None, float] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_LARGEST = 10**24


_Record = TypeVar("_Record")


def text(name: str, value: object) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name}: should be a text, not {show(value)}")
    return value


def number(name: str, value: object) -> float:
    """A finite number, or a text that is one."""
    found = value
    if isinstance(value, str) and "_" not in value:
        try:
            found = float(value)
        except ValueError:
            found = None
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not abs(found) <= _LARGEST:
        raise InputError(f"{name}: should be a number, not {show(value)}")
    return float(found)


def whole(name: str, value: object) -> int:
    """A whole number, or a text that is one; 65.5e9 is one."""
    found = number(name, value)
    if not found.is_integer():
        raise InputError(f"{name}: should be a whole number, not {show(value)}")
    return value if type(value) is int else int(found)


def truth(name: str, value: object) -> bool:
    """true or false, also as a text."""
    known = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    if not isinstance(value, bool):
        raise InputError(f"{name}: should be true or false, not {show(value)}")
    return value


def seconds(name: str, value: object) -> float:
    """A number of seconds, or a text with a unit: 500ms, 90s, 5m, 4h."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None or len(match[1]) > 20:
            raise InputError(f"{name}: should be a time such as 90, 90s, 5m or 4h, not {show(value)}")
        return float(match[1]) * _UNIT_SECONDS[match[2]]
    return number(name, value)


def table(name: str, value: object) -> Mapping[str, object]:
    """A table."""
    if not isinstance(value, Mapping):
        raise InputError(f"{name}: should be a table, not {show(value)}")
    return value


def tables(name: str, value: object) -> list[tuple[str, Mapping[str, object]]]:
    """A list of tables, each with its place."""
    if not isinstance(value, list):
        raise InputError(f"{name}: should be a list of tables, not {show(value)}")
    return [(f"{name}[{index}]", table(f"{name}[{index}]", one)) for index, one in enumerate(value)]


def stages(name: str, value: object) -> tuple[Stage, ...]:
    """Stages of a load: a rate is steady, a rate at each end is a ramp, a swing makes a sine."""
    return tuple(_stage(place, one) for place, one in tables(name, value))


def _stage(place: str, values: Mapping[str, object]) -> Stage:
    if "begin_requests_per_second" in values or "end_requests_per_second" in values:
        return record(Ramp, place, values)
    if values.keys() & {"amplitude_ratio", "period_seconds", "shift_ratio"}:
        return record(Sine, place, values)
    return record(Steady, place, values)


def token_counts(name: str, value: object) -> TokenCounts:
    """A distribution of lengths, told by its parameters."""
    values = table(name, value)
    if "tokens" in values:
        return record(Fixed, name, values)
    if "mean_tokens" in values:
        return record(Normal, name, values)
    if "median_tokens" in values:
        return record(Lognormal, name, values)
    return record(Uniform, name, values)


def behavior(name: str, value: object) -> Behavior:
    """An autoscaler's behavior; what a direction leaves out is the API server's default."""
    values = table(name, value)
    unknown = values.keys() - {"scale_up", "scale_down"}
    if unknown:
        raise InputError(f"{name}.{min(unknown)}: no such setting")
    return Behavior(
        _rules(f"{name}.scale_up", values.get("scale_up", {}), DEFAULT_SCALE_UP),
        _rules(f"{name}.scale_down", values.get("scale_down", {}), DEFAULT_SCALE_DOWN),
    )


@dataclass(frozen=True, slots=True)
class _Rules:
    """Those of `ScalingRules` that are plain values."""

    stabilization_seconds: float
    select: Literal["Max", "Min", "Disabled"]
    tolerance: float | None = None


def _rules(name: str, value: object, default: ScalingRules) -> ScalingRules:
    values = dict(table(name, value))
    policies = default.policies
    if "policies" in values:
        listed = tables(f"{name}.policies", values.pop("policies"))
        policies = tuple(record(Policy, place, one) for place, one in listed)
    inherited = {"stabilization_seconds": default.stabilization_seconds, "select": default.select}
    plain = record(_Rules, name, inherited | values)
    if plain.tolerance is not None and not 0 <= plain.tolerance < math.inf:
        raise InputError(f"{name}.tolerance: should be 0 or more, not {plain.tolerance}")
    try:
        return ScalingRules(policies, plain.stabilization_seconds, plain.select, plain.tolerance)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


ENGINE_FIELDS = tuple(field.name for field in fields(Deployment) if field.name != "config")
"""Keys of a scenario that describe its engine: names of `Deployment`'s fields."""


def deployment(values: Mapping[str, object], base: Deployment) -> Deployment:
    """The engine of these values, those of `base` where there are none; a `model` takes the place of all of `base`."""
    kept = {} if "model" in values else {name: getattr(base, name) for name in ENGINE_FIELDS}
    return record(Deployment, "", {name: one for name, one in kept.items() if one is not None} | dict(values))


def record(kind: type[_Record], place: str, values: Mapping[str, object]) -> _Record:
    """A frozen record of plain fields from a table that has no others. Raises InputError naming place and field."""
    dot = f"{place}." if place else ""
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise InputError(f"{dot}{name}: no such setting")
    for name, field in known.items():
        if name not in values and field.default is MISSING:
            raise InputError(f"{dot}{name}: missing")
    built = {name: _plain(dot + name, hints[name], value) for name, value in values.items()}
    try:
        return kind(**built)
    except ValueError as error:
        raise InputError(f"{place}: {error}" if place else str(error)) from None


def _plain(name: str, hint: object, value: object) -> object:
    """A value of a field's type: text, whole number, number, truth, or one of some texts."""
    if get_origin(hint) is Literal:
        known = get_args(hint)
        if value not in known:
            raise InputError(f"{name}: should be one of {', '.join(known)}, not {show(value)}")
        return value
    kinds = [one for one in get_args(hint) if one is not NoneType] or [hint]
    readers = {str: text, bool: truth, int: whole, float: seconds if name.endswith("seconds") else number}
    for kind, read in readers.items():
        if kind in kinds:
            return read(name, value)
    raise InputError(f"{name}: no such setting")
