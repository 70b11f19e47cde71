"""What earlier ticks showed, for what it says of this one: calibrated predictions, and drift."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

from kvgauge.assess.calibrating import (
    TOTAL,
    Figures,
    Key,
    calibrated,
    figures_of,
    plain_figures,
    predictions,
    size_of,
)
from kvgauge.assess.drifting import FLAGS, FOREIGN_PROCESS, LEAK, flags, foreign_process, leak
from kvgauge.assess.engine_settings import CAPACITY, Settings, SettingsWatch, settings_from, settings_of
from kvgauge.assess.forecasting import KV_POOL, RULES
from kvgauge.assess.records import Assessment, Drift, GpuAssessment
from kvgauge.assess.settling import GAP_SECONDS, Run, Track
from kvgauge.observe.records import EngineReading

MAX_KEYS = 8
_MAX_TEXT = 512

Plain = dict[str, object]


@dataclass(slots=True)
class _Known:
    """What is remembered of one key."""

    figures: Figures = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)
    pool_bytes: int | None = None


class Past:
    """Owned by the loop. What was learned is kept by engine, version, GPU, model and parallelism, of the last MAX_KEYS;
    all else is of the engine's present run, and forgotten with it. Small, and plain where it is to be written down."""

    def __init__(self, plain: Iterable[Plain] = (), *, gap_seconds: float = GAP_SECONDS) -> None:
        self._gap_seconds = gap_seconds
        self._known: OrderedDict[Key, _Known] = OrderedDict()
        self._key: Key | None = None
        self._run: Run | None = None
        self._watch = SettingsWatch()
        for entry in plain:
            key = _key_of(entry.get("key"))
            if key is not None:
                self._known[key] = _known_of(entry)
        self._forget_the_oldest()

    def plain(self) -> list[Plain]:
        """What was learned, as JSON can hold it; the constructor takes it back."""
        return [
            {
                "key": asdict(key),
                "figures": plain_figures(known.figures),
                "settings": dict(known.settings),
                "pool_bytes": known.pool_bytes,
            }
            for key, known in self._known.items()
        ]

    def remember(self, assessment: Assessment) -> None:
        """Adds one tick. A tick without an engine adds nothing; one that sleeps has given its memory back."""
        observation, engine = assessment.observation, assessment.observation.engine
        if engine is None:
            return
        if engine.asleep:
            self._run = None
            return
        key = _key(assessment, engine, self._key)
        if key != self._key:
            self._key, self._run, self._watch = key, None, SettingsWatch()
        known = self._known.setdefault(key, _Known())
        self._known.move_to_end(key)
        self._forget_the_oldest()
        if self._run is None or self._run.is_ended_by(observation, engine, self._gap_seconds):
            self._run = Run(observation, engine)
        self._notice_settings(known, assessment, engine)
        if not self._run.remember(assessment, engine):
            return
        drifting = [gpu.uuid for gpu in assessment.gpus if any(each.drift_bytes for each in self._drifts(gpu))]
        known.figures = self._run.figures(without=drifting) or known.figures

    def calibrated(self, gpu: GpuAssessment, kind: str) -> dict[str, int]:
        """What the parts of a GPU's memory should be, in bytes; empty before anything was learned."""
        known = self._known.get(self._key) if self._key is not None else None
        if known is None or all(figure.measured_bytes is None for figure in known.figures.values()):
            return {}
        rules = RULES.get(kind)
        return calibrated(predictions(gpu), known.figures, rules.pool_pays_for if rules is not None else ())

    def drifts(self, gpu: GpuAssessment, now: float) -> tuple[tuple[Drift, ...], dict[str, str]]:
        """(the kinds that could be looked for, why not for the others, by ``drift.<kind>``)."""
        found = self._drifts(gpu)
        unsettled = "the engine's memory has not settled"
        untold = "neither the driver nor an agent tells what the engine itself holds"
        why = {
            LEAK: unsettled,
            FOREIGN_PROCESS: untold if found else unsettled,
            FLAGS: "the settings are not known yet",
        }
        if self._watch.has_looked(now):
            found = (*found, flags(self._watch.change, gpu.measured_bytes.get(KV_POOL), now))
        looked_for = {drift.kind for drift in found}
        return found, {f"drift.{kind}": reason for kind, reason in why.items() if kind not in looked_for}

    def _drifts(self, gpu: GpuAssessment) -> tuple[Drift, ...]:
        track: Track | None = self._run.tracks.get(gpu.uuid) if self._run is not None else None
        if track is None or track.settled_at is None:
            return ()
        foreign = foreign_process(gpu.gpu, track.settled, track.now)
        return (leak(gpu.gpu, track.climbs), *(() if foreign is None else (foreign,)))

    def _notice_settings(self, known: _Known, assessment: Assessment, engine: EngineReading) -> None:
        now = assessment.observation.monotonic_seconds
        last = self._watch.change
        told = settings_of(assessment, engine)
        known.settings = self._watch.notice(told, known.settings, known.pool_bytes, now)
        if self._watch.change is not last:
            # What was measured before was of other settings.
            self._run = Run(assessment.observation, engine)
        pools = [gpu.measured_bytes[KV_POOL] for gpu in assessment.gpus if KV_POOL in gpu.measured_bytes]
        if pools and self._watch.is_firm(CAPACITY, now):
            known.pool_bytes = min(pools)

    def _forget_the_oldest(self) -> None:
        while len(self._known) > MAX_KEYS:
            self._known.popitem(last=False)


def compared(assessment: Assessment, past: Past) -> Assessment:
    """The assessment with what the past says of it, this tick remembered."""
    engine = assessment.observation.engine
    if engine is None or engine.asleep:
        return assessment
    now = assessment.observation.monotonic_seconds
    gpus = tuple(_compared(gpu, past, assessment, now) for gpu in assessment.gpus)
    found = (drift.warning for gpu in gpus for drift in gpu.drifts)
    # Changed flags say the same of every GPU.
    warnings = dict.fromkeys(warning for warning in found if warning is not None)
    return replace(assessment, gpus=gpus, warnings=tuple(warnings))


def _compared(gpu: GpuAssessment, past: Past, assessment: Assessment, now: float) -> GpuAssessment:
    sizes = past.calibrated(gpu, assessment.kind)
    drifts, missing = past.drifts(gpu, now)
    gpu = replace(gpu, drifts=drifts, missing={**gpu.missing, **missing})
    if not sizes:
        return gpu
    components = tuple(replace(part, calibrated_bytes=sizes.get(part.component)) for part in gpu.components)
    total = None if gpu.total is None else replace(gpu.total, calibrated_bytes=sizes.get(TOTAL))
    return replace(gpu, components=components, total=total)


def _key(assessment: Assessment, engine: EngineReading, before: Key | None) -> Key:
    """A fact that is not told this time is still what it was."""
    observation = assessment.observation
    names = dict.fromkeys(f"{gpu.name} {gpu.mig}".strip() for gpu in observation.gpus)
    key = Key(
        engine=engine.engine,
        version=(engine.version or "")[:_MAX_TEXT],
        gpu=" + ".join(sorted(names))[:_MAX_TEXT],
        model=(engine.model_path or engine.model)[:_MAX_TEXT],
        tp=assessment.tp or 0,
        pp=assessment.pp,
    )
    if before is None or before.engine != key.engine:
        return key
    return replace(
        key,
        version=key.version or before.version,
        gpu=key.gpu or before.gpu,
        model=key.model or before.model,
        tp=key.tp or before.tp,
    )


def _key_of(plain: object) -> Key | None:
    """Of what `Past.plain` gave; None for anything else."""
    if not isinstance(plain, Mapping):
        return None
    texts = {name: plain.get(name) for name in ("engine", "version", "gpu", "model")}
    sizes = {name: plain.get(name) for name in ("tp", "pp")}
    if any(not isinstance(text, str) or len(text) > _MAX_TEXT for text in texts.values()):
        return None
    if any(not isinstance(size, int) or isinstance(size, bool) for size in sizes.values()):
        return None
    return Key(**texts, **sizes)  # type: ignore[arg-type]


def _known_of(plain: Plain) -> _Known:
    return _Known(
        figures_of(plain.get("figures")), settings_from(plain.get("settings")), size_of(plain.get("pool_bytes"))
    )
