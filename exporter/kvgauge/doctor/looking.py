"""Looks at what is in this pod: each source once, all bounded in time, and what came of it as facts."""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from kvgauge.doctor.findings import words
from kvgauge.doctor.here import is_local
from kvgauge.doctor.neighbours import Neighbours, neighbours
from kvgauge.doctor.settings import DoctorSettings
from kvgauge.observe.agent import DEFAULT_SPOOL, AgentSource
from kvgauge.observe.engine import EngineSource
from kvgauge.observe.engines.contract import Hints, Json
from kvgauge.observe.fetching import Endpoint
from kvgauge.observe.merging import PAGELESS, assign, refined, standing_in
from kvgauge.observe.model import ModelSource
from kvgauge.observe.nvml import NvmlSource
from kvgauge.observe.owning import Ownership
from kvgauge.observe.records import AgentReading, EngineReading, GpuReading, ModelReading, SourceError
from kvgauge.observe.watching import Source

PROBE_SECONDS = 5.0
_SIDECAR_TIMEOUT_SECONDS = 2.0
_MOST_NAMES = 4096
_ANY_CAPACITY_TOKENS = 1 << 20
"""To find out whether the setting would help; no figure comes of it."""

NEEDED = ("capacity_tokens", "active_tokens", "running")
"""What all advice stands on, of each rank."""

Fact = TypeVar("Fact")


@dataclass(frozen=True, slots=True)
class Looked(Generic[Fact]):
    """What one look brought: a value, or the error in its place. Neither: nobody looked."""

    value: Fact | None = None
    error: SourceError | None = None


@dataclass(frozen=True, slots=True)
class SidecarFacts:
    """What a sidecar serves, page by page."""

    advice: Looked[Json]
    observation: Looked[Json]
    metrics: Looked[bytes]

    def sources(self) -> list[Mapping[str, object]]:
        """How each of its sources is doing, as it says."""
        document = self.observation.value
        told = document.get("sources") if isinstance(document, Mapping) else None
        return [state for state in told if isinstance(state, Mapping)] if isinstance(told, list) else []

    def source(self, name: str) -> Mapping[str, object] | None:
        return next((state for state in self.sources() if state.get("source") == name), None)

    @property
    def lacks_figures(self) -> bool:
        """It reads an engine that does not tell it all that advice stands on."""
        document = self.observation.value
        engine = document.get("engine") if isinstance(document, Mapping) else None
        ranks = engine.get("ranks") if isinstance(engine, Mapping) else None
        listed = [rank for rank in ranks if isinstance(rank, Mapping)] if isinstance(ranks, list) else []
        return any(rank.get(name) is None for rank in listed for name in NEEDED)

    @property
    def engine(self) -> str | None:
        """The engine that it sees now, in words; None where it sees none."""
        state, document = self.source("engine"), self.observation.value
        engine = document.get("engine") if isinstance(document, Mapping) else None
        if state is None or state.get("up") is not True or not isinstance(engine, Mapping):
            return None
        return " ".join(filter(None, (words(engine.get("engine")), words(engine.get("version"))))) or None


@dataclass(frozen=True, slots=True)
class LocalFacts:
    """All of this pod."""

    devices: Looked[tuple[GpuReading, ...]]
    engine: Looked[EngineReading]
    model: Looked[ModelReading]
    agent: Looked[AgentReading]
    sidecar: SidecarFacts
    spool: str
    spool_is_named: bool
    ownership: Ownership
    spool_age_seconds: float | None = None
    """Of the newest file in the spool, by its modification time; None where there is none to be seen."""
    model_path: str | None = None
    """What was looked for."""
    neighbours: Neighbours = field(default_factory=Neighbours)
    with_a_capacity: EngineReading | None = None
    """The engine's reading were it told its capacity, which its pages lack; None where nobody has to tell it."""
    wall_seconds: float | None = None
    """Unix time at which the sidecar was asked."""


def look(settings: DoctorSettings, devices: Source[tuple[GpuReading, ...]] | None = None) -> LocalFacts:
    """All at once; the model after the engine, which may have to name it. Takes twice PROBE_SECONDS at most.
    `devices` stands in for the driver."""
    agent_source = AgentSource(settings.spool)
    spool = settings.spool or DEFAULT_SPOOL
    wall_seconds = time.time()
    deadline = time.monotonic() + PROBE_SECONDS
    driver = Look((devices or NvmlSource()).read)
    engine_look = None if settings.engine in PAGELESS else Look(_engine(settings).read)
    agent = Look(agent_source.read) if agent_source.is_expected else None
    advice = Look(lambda: _sidecar(settings).get_json("/v1/advice"))
    observation = Look(lambda: _sidecar(settings).get_json("/v1/observation"))
    metrics = Look(lambda: _sidecar(settings).get("/metrics"))
    seen = Look(lambda: neighbours(urlsplit(settings.address).port if is_local(settings.address) else None))
    newest = Look(lambda: _newest_age_seconds(spool))
    found: Looked[EngineReading] = Looked() if engine_look is None else engine_look.outcome(deadline)
    agents: Looked[AgentReading] = Looked() if agent is None else agent.outcome(deadline)
    reading = merged(found, agents)
    path = settings.model or (reading and (reading.model_path or reading.model)) or None
    later = time.monotonic() + PROBE_SECONDS
    model = Look(ModelSource(path).read) if path is not None or reading is not None else None
    wants = reading is not None and any(rank.capacity_tokens is None for rank in reading.ranks)
    told = Look(_engine(settings, _ANY_CAPACITY_TOKENS).read) if wants and engine_look is not None else None
    return LocalFacts(
        devices=driver.outcome(deadline),
        engine=found,
        model=Looked() if model is None else model.outcome(later),
        agent=agents,
        sidecar=SidecarFacts(advice.outcome(deadline), observation.outcome(deadline), metrics.outcome(deadline)),
        spool=spool,
        spool_is_named=settings.spool is not None,
        ownership=Ownership(settings.gpu_count, frozenset((settings.gpu_uuids or "").split(",")) - {""}),
        spool_age_seconds=newest.outcome(deadline).value,
        model_path=path,
        neighbours=seen.outcome(deadline).value or Neighbours(),
        with_a_capacity=None if told is None else merged(told.outcome(later), agents),
        wall_seconds=wall_seconds,
    )


def assigned(engine: Looked[EngineReading], agent: Looked[AgentReading]) -> AgentReading | None:
    """Whose processes these are, where that can be told: beside an engine, or where it is known to have no page."""
    if agent.value is None or engine.error is not None:
        return None
    return assign(agent.value, engine.value)


def lacking(names: Sequence[str], found: EngineReading | None) -> list[str]:
    """Those that some rank does not tell; all of them without a reading."""
    return [name for name in names if found is None or any(getattr(rank, name) is None for rank in found.ranks)]


def merged(engine: Looked[EngineReading], agent: Looked[AgentReading]) -> EngineReading | None:
    """The engine, with what its own processes know better, as the sidecar sees it."""
    agents = assigned(engine, agent)
    if agents is None or agents.instance is None:
        return engine.value
    return standing_in(agents) if engine.value is None else refined(engine.value, agents)


def _newest_age_seconds(folder: str) -> float | None:
    try:
        with os.scandir(folder) as entries:
            times = [entry.stat(follow_symlinks=False).st_mtime for entry in islice(entries, _MOST_NAMES)]
    except OSError:
        return None
    return max(time.time() - max(times), 0.0) if times else None


class Look(Generic[Fact]):
    """One read in a thread of its own, so that what hangs is left behind."""

    def __init__(self, read: Callable[[], Fact]) -> None:
        self._read = read
        self._looked: Looked[Fact] = Looked(error=SourceError("timeout", "no answer in time"))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def outcome(self, deadline: float) -> Looked[Fact]:
        """Waits until `deadline` (monotonic seconds) at most."""
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        return self._looked

    def _run(self) -> None:
        try:
            self._looked = Looked(self._read())
        except SourceError as error:
            self._looked = Looked(error=error)
        except Exception as error:
            # As in the sidecar: a source must not raise anything else, and if it does the rest goes on.
            self._looked = Looked(error=SourceError("internal", f"{type(error).__name__} while reading"))


def _engine(settings: DoctorSettings, capacity_tokens: int | None = None) -> EngineSource:
    key = settings.engine_api_key
    endpoint = Endpoint(
        settings.engine_url,
        timeout_seconds=min(settings.engine_timeout, PROBE_SECONDS),
        api_key=key.get_secret_value() if key is not None else None,
    )
    hints = Hints(
        capacity_tokens=settings.engine_capacity_tokens or capacity_tokens,
        kv_dtype=settings.engine_kv_dtype,
        max_model_len=settings.engine_max_model_len,
        parallel=settings.engine_parallel,
        kv_unified=settings.llamacpp_kv_unified,
        # Records that one look takes away would be missing at the sidecar.
        read_iteration_stats=False,
    )
    return EngineSource(endpoint, settings.engine, hints, settings.stalled_after)


def _sidecar(settings: DoctorSettings) -> Endpoint:
    return Endpoint(settings.address, timeout_seconds=_SIDECAR_TIMEOUT_SECONDS)
