"""Scaling signals by name: `queue:1`, `kv:0.8`, `queue-or-running:1,16`. A name alone takes the published values."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from kvgauge.complaints import InputError
from kvgauge.simulate import baselines
from kvgauge.simulate.baseline_rules import SLO_DOWN, SLO_UP, AibrixKpa, SloAware
from kvgauge.simulate.baseline_wva import WvaV1, WvaV2
from kvgauge.simulate.clairvoyant import Clairvoyant
from kvgauge.simulate.fleet import FleetPlan, Signal
from kvgauge.simulate.hpa_behavior import Behavior
from kvgauge.simulate.spec import Request
from kvmodel.errors import show


@dataclass(frozen=True, slots=True)
class Parameter:
    """One value that may follow a signal's name."""

    name: str
    default: float | None
    """None for a value that may be missing and has no number that stands for it."""
    most: float = math.inf
    whole: bool = False

    def read(self, signal: str, text: str) -> float:
        """The value, above 0 and at most `most`. Raises InputError naming the signal."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0.001 <= value <= self.most or value == math.inf or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            limit = f" and at most {self.most:g}" if self.most < math.inf else ""
            least = "1" if self.whole else "0.001"
            raise InputError(
                f"signal {signal}: {self.name} should be {kind}, at least {least}{limit}, not {show(text)}"
            )
        return value


@dataclass(frozen=True, slots=True)
class Wish:
    """What a signal is made from."""

    text: str
    """As it was asked for; the signal's name in results."""
    plan: FleetPlan
    values: tuple[float | None, ...]
    """One for each parameter."""
    requests: Sequence[Request] | None
    behavior: Behavior | None
    """In place of the signal's own, where it has an autoscaler under it."""

    def number(self, index: int) -> float:
        """The value of a parameter that always has one."""
        value = self.values[index]
        if value is None:
            raise ValueError(f"parameter {index} of signal {self.text} has no value")
        return value


@dataclass(frozen=True, slots=True)
class Kind:
    """A signal that can be asked for."""

    name: str
    about: str
    """One line: what it follows, at which default, after whom."""
    make: Callable[[Wish], Signal]
    parameters: tuple[Parameter, ...] = ()


_KINDS: dict[str, Kind] = {}
_NAMES: dict[str, str] = {}
NAMES: Mapping[str, str] = MappingProxyType(_NAMES)
"""Name to its one line, for help and documentation."""


def register(kind: Kind) -> None:
    """Makes a signal known. Raises ValueError for a name that is taken."""
    if kind.name in _KINDS:
        raise ValueError(f"signal {kind.name} is registered twice")
    _KINDS[kind.name] = kind
    _NAMES[kind.name] = kind.about


def make_signal(
    text: str,
    plan: FleetPlan,
    requests: Sequence[Request] | None = None,
    *,
    behavior: Behavior | None = None,
) -> Signal:
    """A new signal from `name` or `name:value,...` for one run of that plan.

    `requests` is the load, for a signal that knows it in advance; `behavior` replaces the signal's own. Raises
    InputError for a name that there is not and for values that cannot be, naming both.
    """
    name, colon, rest = text.strip().partition(":")
    kind = _KINDS.get(name)
    if kind is None:
        raise InputError(f"signal: should be one of {', '.join(sorted(_KINDS))}, not {show(name)}")
    given = [part.strip() for part in rest.split(",")] if colon else []
    if len(given) > len(kind.parameters):
        takes = " and ".join(one.name for one in kind.parameters) or "no value"
        raise InputError(f"signal {name}: takes {takes}, not {show(rest)}")
    values = [one.read(name, part) for one, part in zip(kind.parameters, given, strict=False)]
    defaults = [one.default for one in kind.parameters[len(values) :]]
    return kind.make(Wish(text.strip(), plan, (*values, *defaults), requests, behavior))


def _clairvoyant(wish: Wish) -> Signal:
    if wish.requests is None:
        raise InputError(f"signal {wish.text}: needs the load in advance")
    return Clairvoyant(wish.text, wish.plan, wish.requests, wish.number(0))


def _static(wish: Wish) -> Signal:
    replicas = wish.values[0]
    return baselines.Static(wish.text, None if replicas is None else int(replicas))


def _slo_aware(wish: Wish) -> Signal:
    up, down = wish.number(0), wish.number(1)
    if down > up:
        raise InputError(f"signal slo-aware: down should be at most up ({up:g}), not {down:g}")
    return SloAware(wish.text, wish.plan, up, down, wish.behavior)


_TARGET = "requests per replica"

for _kind in (
    Kind(
        "cpu",
        "CPU at 70 % of the request (HPA's usual example); an engine's never moves, taken as 20 %",
        lambda wish: baselines.cpu(wish.text, wish.plan, int(wish.number(0)), wish.number(1), wish.behavior),
        (Parameter("target %", 70.0, 1000.0, whole=True), Parameter("usage %", 20.0, 1000.0)),
    ),
    Kind(
        "gpu-utilization",
        "mean GPU utilisation at 0.8 (DCGM through an adapter, default HPA)",
        lambda wish: baselines.gpu_utilization(wish.text, wish.plan, wish.number(0), wish.behavior),
        (Parameter("ratio", 0.8, 1.0),),
    ),
    Kind(
        "queue",
        "5 waiting requests per replica (production-stack's KEDA)",
        lambda wish: baselines.queue(wish.text, wish.plan, wish.number(0), wish.behavior),
        (Parameter(_TARGET, 5.0),),
    ),
    Kind(
        "running",
        "16 running requests per replica (one trigger of llm-d's KEDA + EPP)",
        lambda wish: baselines.running(wish.text, wish.plan, wish.number(0), wish.behavior),
        (Parameter(_TARGET, 16.0),),
    ),
    Kind(
        "in-flight",
        "64 requests in flight per replica (through llm-d's KEDA)",
        lambda wish: baselines.in_flight(wish.text, wish.plan, wish.number(0), wish.behavior),
        (Parameter(_TARGET, 64.0),),
    ),
    Kind(
        "kv",
        "mean KV cache usage at 0.8 (engine's gauge through an adapter, default HPA)",
        lambda wish: baselines.kv_usage(wish.text, wish.plan, wish.number(0), wish.behavior),
        (Parameter("ratio", 0.8, 1.0),),
    ),
    Kind(
        "queue-or-running",
        "1 waiting or 16 running requests per replica (llm-d's KEDA + EPP)",
        lambda wish: baselines.queue_or_running(wish.text, wish.plan, wish.number(0), wish.number(1), wish.behavior),
        (Parameter("waiting requests", 1.0), Parameter("running requests", 16.0)),
    ),
    Kind(
        "token-aware",
        "1.5 s of waiting prefill or 0.8 of a KV cache per replica (llm-d's token-aware KEDA)",
        lambda wish: baselines.token_aware(wish.text, wish.plan, wish.number(0), wish.number(1), wish.behavior),
        (Parameter("seconds", 1.5), Parameter("ratio", 0.8, 1.0)),
    ),
    Kind(
        "wva-v1",
        "spare cache and queue, one replica at a time (llm-d's Workload Variant Autoscaler, v1)",
        lambda wish: WvaV1(wish.text, wish.plan, wish.behavior),
    ),
    Kind(
        "wva-v2",
        "tokens wanted against tokens held, between 0.70 and 0.85 (Workload Variant Autoscaler, v2)",
        lambda wish: WvaV2(wish.text, wish.plan, wish.behavior),
    ),
    Kind(
        "slo-aware",
        "P90 latency over its objective, up above 0.55 and down below 0.40 (llm-d's SLO-aware KEDA)",
        _slo_aware,
        (Parameter("up", SLO_UP, 2.0), Parameter("down", SLO_DOWN, 2.0)),
    ),
    Kind(
        "aibrix-kpa",
        "KV cache usage at 0.5 over windows of 180 and 60 s (AIBrix's KPA)",
        lambda wish: AibrixKpa(wish.text, wish.plan, wish.number(0)),
        (Parameter("ratio", 0.5, 1.0),),
    ),
    Kind(
        "static",
        "no scaling: the replicas at the start, or static:N",
        _static,
        (Parameter("replicas", None, 10_000.0, whole=True),),
    ),
    Kind(
        "clairvoyant",
        "a schedule from all arrivals in advance, at 0.8 of memory and TPOT (foresight, no product)",
        _clairvoyant,
        (Parameter("share", 0.8, 1.0),),
    ),
):
    register(_kind)
