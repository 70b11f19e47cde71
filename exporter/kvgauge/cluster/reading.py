"""One answer of a sidecar's `/v1/advice`, as far as it can be believed.

A pod is not trusted: what it says is bounded, and a figure beyond belief makes the whole answer void rather than a
reason to scale.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import astuple

from kvgauge.advise.demand import Demand, read_demand
from kvgauge.advise.served import Served
from kvgauge.cluster.records import Reading

MAX_BODY_BYTES = 256 * 1024
MOST_LOAD_RATIO = 1000.0
"""So many times its safe capacity no pod ever had to do."""
MOST_REQUESTS = 1_000_000
_MOST_SECONDS = 1e9
_MOST_TOKENS = 1e15
_MOST_LENGTH_TOKENS = 1e9
_MOST_STEP_SECONDS = 60.0
"""Any one term of a step's cost: even a large model on a CPU takes less."""
_LEAST_OBJECTIVE_SECONDS = 1e-4
_MOST_RANKS = 65_536


class ReadingError(Exception):
    """An answer that is none. `reason` is a word for logs and metrics."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read(body: bytes, now_seconds: float, wall_seconds: float, stale_after_seconds: float) -> Reading:
    """The reading in an answer that came now. Raises ReadingError: not_json, malformed, unbelievable, stale."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise ReadingError("not_json") from None
    if not isinstance(told, dict) or not isinstance(told.get("valid"), bool):
        raise ReadingError("malformed")
    valid = told["valid"]
    age = _figure(told, "age_seconds", _MOST_SECONDS) or 0.0
    if valid and age > stale_after_seconds:
        raise ReadingError("stale")
    terms = told.get("terms")
    binding = told.get("binding_limit")
    return Reading(
        read_seconds=now_seconds - age,
        wall_seconds=wall_seconds - age,
        valid=valid,
        load_ratio=_figure(told, "load_ratio", MOST_LOAD_RATIO),
        safe_concurrency=_count(told, "safe_concurrency"),
        running=_count(told, "running"),
        waiting=_count(told, "waiting"),
        kv_usage_ratio=_figure(told, "kv_usage_ratio", 1.0),
        kv_exhaustion_seconds=_figure(told, "kv_exhaustion_seconds", _MOST_SECONDS),
        kv_active_tokens=_figure(terms, "active_tokens", _MOST_TOKENS) if isinstance(terms, Mapping) else None,
        binding_limit=binding if isinstance(binding, str) and len(binding) <= 40 else None,
        demand=_demand(told.get("demand")),
        served=_served(told.get("served")),
        load_now_ratio=_shown(terms, "load_now_ratio", MOST_LOAD_RATIO),
    )


def _demand(stored: object) -> Demand | None:
    demand = read_demand(stored)
    if demand is not None and not _possible(demand):
        raise ReadingError("unbelievable")
    return demand


def _possible(demand: Demand) -> bool:
    """Whether an engine could be like that. One pod's figures stand for all that are like it, so that nonsense in them
    would size the whole workload."""
    rooms = (demand.pool_slots, demand.max_num_seqs, demand.max_num_batched_tokens)
    objectives = (demand.slo_ttft_seconds, demand.slo_tpot_seconds)
    held = demand.resident.mean_slots if demand.resident is not None else 0.0
    return (
        1 <= demand.ranks <= _MOST_RANKS
        and all(room is None or room >= 1 for room in rooms)
        and all(objective is None or objective >= _LEAST_OBJECTIVE_SECONDS for objective in objectives)
        and max(demand.prompts.points[-1], demand.outputs.points[-1], held) <= _MOST_LENGTH_TOKENS
        and (demand.cost is None or max(astuple(demand.cost)) <= _MOST_STEP_SECONDS)
    )


def _served(stored: object) -> Served | None:
    if not isinstance(stored, Mapping):
        return None
    return Served(*(_figure(stored, name, _MOST_TOKENS) for name in ("arrived_total", "judged_total", "slow_total")))


def _count(told: Mapping[str, object], name: str) -> int | None:
    value = _figure(told, name, MOST_REQUESTS)
    if value is None:
        return None
    if value != int(value):
        raise ReadingError("malformed")
    return int(value)


def _shown(told: object, name: str, most: float) -> float | None:
    """A figure that is only shown: what is wrong with it makes nothing else void."""
    try:
        return _figure(told, name, most) if isinstance(told, Mapping) else None
    except ReadingError:
        return None


def _figure(told: Mapping[str, object], name: str, most: float) -> float | None:
    value = told.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ReadingError("malformed")
    if not 0 <= value <= most or not math.isfinite(value):
        raise ReadingError("unbelievable")
    return float(value)
