"""One run of the engine, and the level on which each GPU's memory settles while it works."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median_low

from kvgauge.assess.allocators import allocators
from kvgauge.assess.calibrating import TOTAL, Figures, learned, predictions
from kvgauge.assess.drifting import WATCHED, Climb
from kvgauge.assess.records import Assessment, ComponentPrediction, GpuAssessment
from kvgauge.observe.records import AgentReading, EngineReading, GpuReading, Observation

SAMPLE_SECONDS = 5.0
SETTLED_AFTER_SECONDS = 120.0
"""An engine that has been up and at work for so long, and ..."""
STEADY_SECONDS = 60.0
STEADY_BYTES = 64 << 20
"""... whose GPU's memory in use has moved by no more than this over the last minute, has settled."""
LEARNING_SECONDS = 1800.0
"""What comes later than this after the start of a run is drift, and not learned."""
GAP_SECONDS = 15.0
"""An engine that was away for longer may have been restarted. Whoever looks less often has to say so."""

_STEADY_SAMPLES = int(STEADY_SECONDS / SAMPLE_SECONDS)


@dataclass(frozen=True, slots=True)
class _Sample:
    parts: tuple[ComponentPrediction, ...]
    measured: Mapping[str, int]
    figures: Mapping[str, int]
    """`used`, `engine`, `reserved`, `allocated` and `beside`, as far as they are told."""


@dataclass(slots=True)
class Track:
    """One GPU during one run."""

    samples: deque[_Sample] = field(default_factory=lambda: deque(maxlen=_STEADY_SAMPLES))
    settled_at: float | None = None
    settled: Mapping[str, int] = field(default_factory=dict)
    """The figures when it settled."""
    now: Mapping[str, int] = field(default_factory=dict)
    """The figures over the last minute, of each the middle one."""
    climbs: dict[str, Climb] = field(default_factory=dict)

    def add(self, sample: _Sample) -> None:
        """One more sample. A figure that most of them lack is not known now."""
        self.samples.append(sample)
        found = {}
        for name in {name for sample in self.samples for name in sample.figures}:
            values = [sample.figures[name] for sample in self.samples if name in sample.figures]
            if 2 * len(values) > len(self.samples):
                found[name] = median_low(values)
        self.now = found

    @property
    def is_steady(self) -> bool:
        """One odd sample on either side is forgiven. Without the driver's memory in use, the engine's own counts."""
        name = next((name for name in ("used", "engine", "reserved") if name in self.samples[-1].figures), "used")
        values = sorted(sample.figures[name] for sample in self.samples if name in sample.figures)
        return len(values) >= _STEADY_SAMPLES - 1 and values[-2] - values[1] <= STEADY_BYTES


class Run:
    """From the engine's start, or our first sight of it, to its end."""

    def __init__(self, observation: Observation, engine: EngineReading) -> None:
        self.began = observation.monotonic_seconds
        self.seen = self.began
        self.tracks: dict[str, Track] = {}
        self._sampled: float | None = None
        self._mark = _mark(observation, engine)
        self._has_worked = False

    def is_ended_by(self, observation: Observation, engine: EngineReading, gap_seconds: float) -> bool:
        """Whether what is seen now must be of another run."""
        if observation.monotonic_seconds - self.seen > gap_seconds:
            return True
        return self._mark.is_of_another(_mark(observation, engine))

    def remember(self, assessment: Assessment, engine: EngineReading) -> bool:
        """Adds one tick of this run, of the same engine. Whether it was sampled."""
        observation = assessment.observation
        now = self.seen = observation.monotonic_seconds
        self._mark = self._mark.after(_mark(observation, engine))
        self._has_worked = self._has_worked or _is_at_work(engine)
        if self._sampled is not None and now - self._sampled < SAMPLE_SECONDS:
            return False
        self._sampled = now
        own = _torch_bytes(observation.agent, observation.gpus)
        for reading, gpu in zip(observation.gpus, assessment.gpus, strict=True):
            sample = _Sample(predictions(gpu), gpu.measured_bytes, _figures(reading, own.get(reading.uuid, {})))
            self._follow(self.tracks.setdefault(reading.uuid, Track()), sample, gpu, now)
        return True

    def _follow(self, track: Track, sample: _Sample, gpu: GpuAssessment, now: float) -> None:
        track.add(sample)
        if track.settled_at is None:
            old_enough = now - self.began >= SETTLED_AFTER_SECONDS
            if not (old_enough and self._has_worked and track.is_steady and _is_taken(gpu, track.now)):
                return
            track.settled_at, track.settled = now, track.now
        for name in WATCHED:
            if name in sample.figures:
                track.climbs.setdefault(name, Climb()).add(now - track.settled_at, sample.figures[name])

    def figures(self, without: Iterable[str] = ()) -> Figures | None:
        """What can be learned now from the GPUs that are settled and steady, other than those `without`."""
        if self.seen - self.began > LEARNING_SECONDS:
            return None
        left_out = set(without)
        tracks = [
            track
            for uuid, track in self.tracks.items()
            if uuid not in left_out and track.settled_at is not None and track.is_steady
        ]
        if not tracks:
            return None
        newest = tracks[0].samples[-1].parts
        expected = [(part.component, part.expected_bytes) for part in newest]
        measured: dict[str, list[int]] = {}
        for sample in (sample for track in tracks for sample in track.samples):
            # After a change the older ones were predicted, and measured, of something else.
            if [(part.component, part.expected_bytes) for part in sample.parts] != expected:
                return None
            values = {**sample.measured}
            if "used" in sample.figures:
                values[TOTAL] = sample.figures["used"]
            for name, value in values.items():
                measured.setdefault(name, []).append(value)
        return learned(newest, measured)


@dataclass(frozen=True, slots=True)
class _Mark:
    """What tells one run of an engine from another."""

    started_seconds: float | None
    instance: str | None
    counters: tuple[float | None, ...]

    def is_of_another(self, now: "_Mark") -> bool:
        if None not in (self.started_seconds, now.started_seconds) and self.started_seconds != now.started_seconds:
            return True
        if None not in (self.instance, now.instance) and self.instance != now.instance:
            return True
        pairs = zip(self.counters, now.counters, strict=False)
        return any(after < before for before, after in pairs if before is not None and after is not None)

    def after(self, now: "_Mark") -> "_Mark":
        """What is known by now: a fact that is not told this time is still what it was."""
        counters = now.counters
        if len(self.counters) == len(counters):
            pairs = zip(self.counters, counters, strict=True)
            counters = tuple(before if after is None else after for before, after in pairs)
        started = self.started_seconds if now.started_seconds is None else now.started_seconds
        return _Mark(started, now.instance or self.instance, counters)


def _mark(observation: Observation, engine: EngineReading) -> _Mark:
    agent = observation.agent
    counters = [
        count
        for rank in engine.ranks
        for count in (rank.prompt_tokens_total, rank.generation_tokens_total, rank.preemptions_total)
    ]
    return _Mark(engine.started_seconds, agent.instance if agent is not None else None, tuple(counters))


def _is_at_work(engine: EngineReading) -> bool:
    return any(rank.running or rank.generation_tokens_total or any(rank.progress or ()) for rank in engine.ranks)


def _is_taken(gpu: GpuAssessment, figures: Mapping[str, int]) -> bool:
    """Whether the engine is on this GPU at all: others may be visible too."""
    if figures.get("engine") or figures.get("reserved"):
        return True
    return gpu.total is None or 2 * figures.get("used", 0) >= gpu.total.expected_bytes


def _figures(reading: GpuReading, torch_bytes: Mapping[str, int]) -> dict[str, int]:
    told = {"used": reading.used_bytes, "engine": reading.engine_bytes}
    if reading.used_bytes is not None and reading.engine_bytes is not None and reading.reserved_bytes is not None:
        told["beside"] = reading.used_bytes - reading.engine_bytes - reading.reserved_bytes
    return {name: size for name, size in told.items() if size is not None} | dict(torch_bytes)


def _torch_bytes(agent: AgentReading | None, gpus: tuple[GpuReading, ...]) -> dict[str, dict[str, int]]:
    """What torch holds for the engine alone, by GPU: other programs with an agent are others."""
    if agent is None or agent.instance is None:
        return {}
    own = AgentReading(agent.engine_processes, agent.instance)
    return {
        each.uuid: {
            name: size
            for name, size in (("reserved", each.reserved_bytes), ("allocated", each.allocated_bytes))
            if size is not None
        }
        for each in allocators(own, gpus)
    }
