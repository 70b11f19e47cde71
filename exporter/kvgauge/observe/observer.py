"""Puts the sources together: one `Observation` a tick."""

import time
from dataclasses import replace

from kvgauge.observe.agent import STALE_SECONDS, AgentSource, fresh
from kvgauge.observe.engine import EngineSource
from kvgauge.observe.merging import Comparison, assign, refined, standing_in
from kvgauge.observe.model import ModelSource
from kvgauge.observe.owning import Ownership, owned
from kvgauge.observe.records import AgentReading, EngineReading, GpuReading, ModelReading, Observation, SourceState
from kvgauge.observe.watching import Source, Watcher

# A driver call that takes longer than this is stuck.
_DEVICE_PATIENCE_SECONDS = 2.0
# Headers of a few hundred shards on a network volume take a while, once.
_MODEL_PATIENCE_SECONDS = 60.0
_AGENT_PATIENCE_SECONDS = 2.0
NOTHING_SAID = Ownership()
_NO_PAGE = SourceState("engine", False, None, None, "no_agent", "this engine has no page, and no agent tells of it")


class Observer:
    """Watches the devices, the engine, the agents in its processes, and the model's files.

    `engine` None is one without a page (`merging.PAGELESS`): the agents alone tell of it. `engine_timeout_seconds`
    bounds one read of the engine; readings older than `stale_after_seconds` are dropped, agents' files older than
    STALE_SECONDS. Where no model was named, the path that the engine states is followed. An engine whose scheduler has
    requests and has not stepped for `stalled_after_seconds` counts as down, whatever its page says. Of the GPUs those
    are kept that are the engine's by `ownership`; where that cannot be told, none.
    """

    def __init__(
        self,
        devices: Source[tuple[GpuReading, ...]],
        engine: EngineSource | None,
        model: ModelSource,
        agent: AgentSource | None = None,
        *,
        engine_timeout_seconds: float,
        stale_after_seconds: float,
        stalled_after_seconds: float = 30.0,
        ownership: Ownership = NOTHING_SAID,
    ) -> None:
        self._model_source = model
        self._engine_source = engine
        self._agent_source = agent
        self._stalled_after_seconds = stalled_after_seconds
        self._ownership = ownership
        self._comparison = Comparison()
        self._follow_engine = model.path is None
        self._devices = Watcher(
            devices, patience_seconds=_DEVICE_PATIENCE_SECONDS, stale_after_seconds=stale_after_seconds
        )
        self._engine: Watcher[EngineReading] | None = None
        if engine is not None:
            self._engine = Watcher(
                engine,
                # An engine that has to be told from others is asked for a few pages in one go.
                patience_seconds=4 * engine_timeout_seconds,
                stale_after_seconds=stale_after_seconds,
                faults=lambda reading: {"bad_line": reading.bad_lines, "bad_value": reading.bad_values},
                standing_seconds=lambda reading: reading.standing_seconds,
            )
        self._agent: Watcher[AgentReading] | None = None
        if agent is not None:
            self._agent = Watcher(
                agent,
                patience_seconds=_AGENT_PATIENCE_SECONDS,
                stale_after_seconds=STALE_SECONDS,
                faults=lambda reading: reading.newly_skipped,
                standing_seconds=lambda reading: reading.file_age_seconds,
            )
        self._model: Watcher[ModelReading] = Watcher(
            model,
            patience_seconds=_MODEL_PATIENCE_SECONDS,
            stale_after_seconds=_MODEL_PATIENCE_SECONDS + stale_after_seconds,
        )

    def observe(self, budget_seconds: float) -> Observation:
        """Reads all sources, waiting for the slow ones `budget_seconds` at most; those answer at a later tick."""
        deadline = time.monotonic() + budget_seconds
        self._devices.request()
        if self._engine is not None:
            self._engine.request()
        agent_is_expected = self._agent_source is not None and self._agent_source.is_expected
        if self._agent is not None and agent_is_expected:
            self._agent.request()
        if self._engine is not None:
            self._engine.wait(deadline - time.monotonic())
        engine, engine_state = (None, _NO_PAGE) if self._engine is None else self._engine.latest()
        agent, agent_state = None, None
        if self._agent is not None and agent_is_expected:
            self._agent.wait(deadline - time.monotonic())
            agent, agent_state = self._agent.latest()
        if agent is not None:
            engine, engine_state, agent = self._merged(engine, engine_state, fresh(agent, time.monotonic()))
        if self._follow_engine and engine is not None:
            self._model_source.path = engine.model_path or engine.model or None
        self._model.request()
        self._devices.wait(deadline - time.monotonic())
        self._model.wait(deadline - time.monotonic())
        gpus, device_state = self._own_gpus(agent)
        model, model_state = self._model.latest()
        return Observation(
            wall_seconds=time.time(),
            monotonic_seconds=time.monotonic(),
            gpus=gpus,
            engine=engine,
            model=model,
            sources=(device_state, engine_state, *((agent_state,) if agent_state else ()), model_state),
            agent=agent,
        )

    def _own_gpus(self, agent: AgentReading | None) -> tuple[tuple[GpuReading, ...], SourceState]:
        visible, state = self._devices.latest()
        if visible is None:
            return (), state
        gpus, why_not = owned(visible, agent, self._ownership)
        if why_not is not None:
            state = replace(state, up=False, reason="ambiguous", message=why_not)
        return gpus, state

    def _merged(
        self, engine: EngineReading | None, state: SourceState, agent: AgentReading
    ) -> tuple[EngineReading | None, SourceState, AgentReading]:
        if engine is None and state.age_seconds is not None:
            # It has a page, which fails just now: another program must not take its place.
            return None, state, replace(agent, missing={**agent.missing, "instance": "the engine's page is down"})
        agent = assign(agent, engine)
        processes = agent.engine_processes
        if engine is None:
            engine = standing_in(agent)
            if engine is None:
                return None, state, agent
            age = max(time.monotonic() - process.monotonic_seconds for process in processes)
            state = SourceState("engine", True, age, state.read_seconds, None, None, state.errors_total)
        elif processes:
            agent = replace(agent, notes=self._comparison.notes(engine, agent))
            engine = refined(engine, agent)
        standing = max((process.standing_seconds for process in processes), default=0.0)
        if standing > self._stalled_after_seconds:
            message = f"requests run, and the scheduler has not stepped for {standing:.0f} s"
            return None, replace(state, up=False, reason="stalled", message=message), agent
        return engine, state, agent

    def close(self) -> None:
        """Lets go of the engine's connection."""
        if self._engine_source is not None:
            self._engine_source.close()
