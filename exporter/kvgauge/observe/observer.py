"""Puts the sources together: one `Observation` a tick."""

import time

from kvgauge.observe.engine import EngineSource
from kvgauge.observe.model import ModelSource
from kvgauge.observe.records import EngineReading, GpuReading, ModelReading, Observation
from kvgauge.observe.watching import Source, Watcher

# A driver call that takes longer than this is stuck.
_DEVICE_PATIENCE_SECONDS = 2.0
# Headers of a few hundred shards on a network volume take a while, once.
_MODEL_PATIENCE_SECONDS = 60.0


class Observer:
    """Watches the devices, the engine and the model's files.

    `engine_timeout_seconds` bounds one read of the engine; readings older than `stale_after_seconds` are dropped.
    Where no model was named, the path that the engine states is followed.
    """

    def __init__(
        self,
        devices: Source[tuple[GpuReading, ...]],
        engine: EngineSource,
        model: ModelSource,
        *,
        engine_timeout_seconds: float,
        stale_after_seconds: float,
    ) -> None:
        self._model_source = model
        self._engine_source = engine
        self._follow_engine = model.path is None
        self._devices = Watcher(
            devices, patience_seconds=_DEVICE_PATIENCE_SECONDS, stale_after_seconds=stale_after_seconds
        )
        self._engine: Watcher[EngineReading] = Watcher(
            engine,
            # An engine that has to be told from others is asked for a few pages in one go.
            patience_seconds=4 * engine_timeout_seconds,
            stale_after_seconds=stale_after_seconds,
            faults=lambda reading: {"bad_line": reading.bad_lines, "bad_value": reading.bad_values},
            standing_seconds=lambda reading: reading.standing_seconds,
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
        self._engine.request()
        self._engine.wait(deadline - time.monotonic())
        engine, engine_state = self._engine.latest()
        if self._follow_engine and engine is not None:
            self._model_source.path = engine.model_path or engine.model or None
        self._model.request()
        self._devices.wait(deadline - time.monotonic())
        self._model.wait(deadline - time.monotonic())
        gpus, device_state = self._devices.latest()
        model, model_state = self._model.latest()
        return Observation(
            wall_seconds=time.time(),
            monotonic_seconds=time.monotonic(),
            gpus=gpus or (),
            engine=engine,
            model=model,
            sources=(device_state, engine_state, model_state),
        )

    def close(self) -> None:
        """Lets go of the engine's connection."""
        self._engine_source.close()
