"""A scenario: one record with everything that a fleet simulation needs, built in or from a TOML file.

Keys of the file are the flags of `kvgauge simulate`, with underscores or hyphens: `trace` (as `model`, seen from the
file's folder), `scale`, `duration`, `slo_ttft`, `slo_tpot`, `start_up`, `warm_up`, `min`, `max`, `initial`, `seed`, the
engine's (`model`, `gpu`, `tp`, `kv_tokens`, `weights_bytes` and the others of `Deployment`), and what no flag can say:

    name = "evening"
    arrivals = "poisson"                      # or constant
    prompts = {median_tokens = 900, sigma = 1.0, most_tokens = 20000}
    outputs = {least_tokens = 100, most_tokens = 500}
    stages = [
        {seconds = 600, requests_per_second = 4},
        {seconds = 300, begin_requests_per_second = 4, end_requests_per_second = 12},
        {seconds = 86400, requests_per_second = 8, amplitude_ratio = 0.5, shift_ratio = 0.75},
    ]
    [behavior.scale_down]                     # HPA v2's, the API server's defaults where left out
    stabilization_seconds = 180
    policies = [{kind = "Pods", value = 1, period_seconds = 120}]
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kvgauge.complaints import InputError
from kvgauge.simulate import scenario_values as read
from kvgauge.simulate.deployment import Deployment, engine_spec
from kvgauge.simulate.hpa_behavior import Behavior, Policy, ScalingRules
from kvgauge.simulate.spec import EngineSpec, Request
from kvgauge.simulate.stages import StagedLoad, Steady, Uniform
from kvgauge.simulate.traces import MAX_SCALE, Trace, read_trace
from kvmodel.errors import show

MAX_FILE_BYTES = 1024 * 1024
MAX_REPLICAS = 10_000
_LONGEST_SECONDS = 366 * 86400.0


class Load(Protocol):
    """Requests and how long they go on: a `Trace` or a `StagedLoad`."""

    @property
    def duration_seconds(self) -> float:
        """When the load ends, from second 0 of its clock."""

    def requests(self) -> Iterator[Request]:
        """All requests in order of arrival, from the first each time it is called."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fleet, its load and what is asked of it. Raises ValueError naming the flag of what cannot be."""

    name: str
    source: Path | StagedLoad
    """A trace's file, or stages."""
    engine: Deployment
    """One replica."""
    scale: float = 1.0
    """Arrivals come so many times as often."""
    duration_seconds: float | None = None
    """Where the load ends before its own end."""
    slo_ttft_seconds: float = 3.0
    slo_tpot_seconds: float = 0.1
    start_up_seconds: float = 120.0
    """From a pod's creation until it serves."""
    min_replicas: int = 1
    max_replicas: int = 24
    initial_replicas: int = 2
    """Ready when the load begins."""
    warm_up_seconds: float = 300.0
    """Time from the load's begin that results leave out."""
    behavior: Behavior | None = None
    """The autoscaler's `spec.behavior` in place of the signal's own."""
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.scale <= MAX_SCALE:
            raise ValueError(f"scale: should be above 0 and at most {MAX_SCALE:g}, not {show(self.scale)}")
        for name, value in (
            ("duration", self.duration_seconds),
            ("slo_ttft", self.slo_ttft_seconds),
            ("slo_tpot", self.slo_tpot_seconds),
        ):
            if value is not None and not 0 < value <= _LONGEST_SECONDS:
                raise ValueError(f"{name}: should be above 0 seconds and at most a year, not {show(value)}")
        for name, value in (("start_up", self.start_up_seconds), ("warm_up", self.warm_up_seconds)):
            if not 0 <= value <= _LONGEST_SECONDS:
                raise ValueError(f"{name}: should be from 0 seconds to a year, not {show(value)}")
        if not 0 <= self.min_replicas <= MAX_REPLICAS:
            raise ValueError(f"min: should be from 0 to {MAX_REPLICAS} replicas, not {show(self.min_replicas)}")
        least = max(1, self.min_replicas)
        if not least <= self.max_replicas <= MAX_REPLICAS:
            raise ValueError(f"max: should be from {least} to {MAX_REPLICAS} replicas, not {show(self.max_replicas)}")
        if not self.min_replicas <= self.initial_replicas <= self.max_replicas:
            raise ValueError(
                f"initial: should be from min to max ({self.min_replicas} to {self.max_replicas}), "
                f"not {show(self.initial_replicas)}"
            )

    def load(self) -> Trace | StagedLoad:
        """The requests. Raises InputError for a trace that cannot be read, a scale or a cut that leaves nothing."""
        if isinstance(self.source, Path):
            return read_trace(self.source, scale=self.scale, duration_seconds=self.duration_seconds, seed=self.seed)
        try:
            return replace(self.source, seed=self.seed, cut_seconds=self.duration_seconds).scaled(self.scale)
        except ValueError as error:
            raise InputError(f"stages: {error}") from None

    def spec(self) -> EngineSpec:
        """The engine of one replica. Raises InputError naming the field."""
        return engine_spec(self.engine)


LLM_D_ENGINE = Deployment(
    tp=2,
    kv_tokens=350_000,
    kv_bytes_per_token=131_072,
    weights_bytes=32_750_000_000,
    parameters=32_800_000_000,
    bandwidth_bytes_per_second=0.78 * 3.35e12,
    flops_per_second=2 * 0.60 * 989e12,
    step_overhead_seconds=0.0007,
    attention_flop_per_pair=4 * 64 * 64 * 128,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    block_size=16,
)
"""Qwen3-32B on two H100 with vLLM. The pool is that of llm-d's guides, and the arithmetic rate is set to the prefill
rate that they measure with prompts of 8,192 tokens, 15.4 to 15.9 thousand tokens/s; bandwidth and overhead are those of
`kvmodel.latency.VLLM`. One replica then bears 1.4 to 1.45 requests/s of the episode, at which llm-d's own loop
settles."""

LLM_D_BEHAVIOR = Behavior(
    ScalingRules((Policy("Percent", 100, 60), Policy("Pods", 4, 60)), stabilization_seconds=30),
    ScalingRules((Policy("Pods", 1, 120),), stabilization_seconds=180),
)
"""What llm-d's guide sets for its own SLO-aware signal; other signals bring theirs."""

LLM_D = Scenario(
    name="llm-d",
    source=StagedLoad(
        stages=tuple(
            Steady(seconds, rate) for seconds, rate in ((330, 2), *((360, rate) for rate in (4, 6, 8, 10, 4)), (300, 1))
        ),
        prompts=Uniform(3500, 4500),
        outputs=Uniform(900, 1100),
    ),
    engine=LLM_D_ENGINE,
    slo_ttft_seconds=3.0,
    slo_tpot_seconds=0.1,
    start_up_seconds=100.0,
    min_replicas=3,
    max_replicas=8,
    initial_replicas=3,
    warm_up_seconds=0.0,
)
"""The closed loop that llm-d publishes for its SLO-aware autoscaling guide: 2 to 10 requests/s and down again in 40
minutes."""

BUILT_IN: Mapping[str, Scenario] = {LLM_D.name: LLM_D}


def load_scenario(name_or_file: str) -> Scenario:
    """A built-in scenario by name, or one from a TOML file. Raises InputError naming the field."""
    if name_or_file in BUILT_IN:
        return BUILT_IN[name_or_file]
    path = Path(name_or_file)
    if path.suffix != ".toml":
        known = ", ".join(BUILT_IN)
        raise InputError(f"scenario: {show(name_or_file)} is not built in ({known}) and no .toml file")
    try:
        with path.open("rb") as file:
            body = file.read(MAX_FILE_BYTES + 1)
        if len(body) > MAX_FILE_BYTES:
            raise InputError(f"scenario: {path}: larger than {MAX_FILE_BYTES} bytes")
        values = tomllib.loads(body.decode())
    except OSError as error:
        raise InputError(f"scenario: {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        first = (str(error).splitlines() or ["not TOML"])[0]
        raise InputError(f"scenario: {show(str(path))}: {first}") from None
    try:
        return scenario_from({"name": path.stem} | values, folder=path.parent)
    except InputError as error:
        raise InputError(f"scenario: {path}: {error}") from None


def scenario_from(values: Mapping[str, object], base: Scenario | None = None, folder: Path = Path()) -> Scenario:
    """A scenario of these values, those of `base` where there are none; a relative trace lies in `folder`.

    Values may be texts, as flags are; times may have a unit (`90s`, `5m`). A `model` in `values` takes the place of the
    whole engine of `base`, `trace` or `stages` that of its load, with scale and duration. Raises InputError naming the
    field: unknown, of the wrong type, out of range, or missing.
    """
    rest: dict[str, object] = {}
    for key, value in values.items():
        if rest.setdefault(key.replace("-", "_"), value) is not value:
            raise InputError(f"{key}: given twice")
    engine_values = {name: rest.pop(name) for name in read.ENGINE_FIELDS if name in rest}
    model = engine_values.get("model")
    if isinstance(model, str) and "\0" not in model and (folder / model).exists():
        engine_values["model"] = str(folder / model)
    engine = read.deployment(engine_values, Deployment() if base is None else base.engine)
    source = _source(rest, base, folder)
    changes = {field: reader(key, rest.pop(key)) for key, (field, reader) in _PLAIN.items() if key in rest}
    if rest:
        raise InputError(f"{next(iter(rest))}: no such setting")
    try:
        if base is None:
            return Scenario(source=source, engine=engine, **({"name": "scenario"} | changes))  # type: ignore[arg-type]
        if "trace" in values or "stages" in values:
            changes = {"scale": 1.0, "duration_seconds": None} | changes
        return replace(base, source=source, engine=engine, **changes)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(str(error)) from None


_PLAIN: Mapping[str, tuple[str, Callable[[str, object], object]]] = {
    "name": ("name", read.text),
    "scale": ("scale", read.number),
    "duration": ("duration_seconds", read.seconds),
    "slo_ttft": ("slo_ttft_seconds", read.seconds),
    "slo_tpot": ("slo_tpot_seconds", read.seconds),
    "start_up": ("start_up_seconds", read.seconds),
    "warm_up": ("warm_up_seconds", read.seconds),
    "min": ("min_replicas", read.whole),
    "max": ("max_replicas", read.whole),
    "initial": ("initial_replicas", read.whole),
    "behavior": ("behavior", read.behavior),
    "seed": ("seed", read.whole),
}
"""Keys that are one field each: its name and how it is read."""


def _source(rest: dict[str, object], base: Scenario | None, folder: Path) -> Path | StagedLoad:
    """Takes what describes the load out of `rest`."""
    given = {key: rest.pop(key) for key in ("stages", "prompts", "outputs", "arrivals") if key in rest}
    before = None if base is None else base.source
    if "trace" in rest:
        if given:
            raise InputError(f"{next(iter(given))}: either a trace or stages")
        return folder / read.text("trace", rest.pop("trace"))
    if not given and before is not None:
        return before
    staged = before if isinstance(before, StagedLoad) else None
    if staged is None:
        for key in ("stages", "prompts", "outputs"):
            if key not in given:
                raise InputError(f"{key}: missing" if given else "trace: missing, as are stages")
    changes: dict[str, object] = {}
    if "stages" in given:
        changes["stages"] = read.stages("stages", given["stages"])
    for key in ("prompts", "outputs"):
        if key in given:
            changes[key] = read.token_counts(key, given[key])
    if "arrivals" in given:
        changes["arrivals"] = read.text("arrivals", given["arrivals"])
    try:
        return StagedLoad(**changes) if staged is None else replace(staged, **changes)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(str(error)) from None
