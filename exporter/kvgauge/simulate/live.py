"""`kvgauge simulate --serve`: one engine under a scenario's load, in real time, until a signal ends it."""

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kvgauge.complaints import InputError
from kvgauge.simulate.running import Served, served_load
from kvgauge.simulate.scenario import Scenario
from kvgauge.simulate.serving import EngineServer, ServedModel
from kvgauge.simulate.spec import EngineSpec, Request

_MOST_SPEED = 1000.0
_ENGINE_VERSION = "0.32.0"
"""The one whose page this is, for an engine that is not planned for another."""
_GPU_MEMORY_UTILIZATION = 0.9
_SHORTEST_ROUND_SECONDS = 1.0
_LOOK_SECONDS = 0.1


def serve(scenario: Scenario, *, host: str, port: int, speed: float) -> None:
    """Serves until SIGTERM or SIGINT, with the engine's clock `speed` times as fast as the wall's.

    Says on stderr where it answers, and what was odd about the load. Raises InputError for what the scenario, the
    address or the speed cannot be.
    """
    if not 0 < speed <= _MOST_SPEED:
        raise InputError(f"speed: should be above 0 and at most {_MOST_SPEED:g}, not {speed:g}")
    if not 0 <= port <= 65535:
        raise InputError(f"port: should be from 0 to 65535, not {port}")
    spec = scenario.spec()
    served = served_load(scenario, spec)
    server = EngineServer(
        _model(scenario, spec),
        repeated(served),
        host=host,
        port=port,
        clock=lambda: speed * time.monotonic(),
    )
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        url = server.start()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"port: cannot serve on {host}:{port}: {reason}") from None
    for warning in served.warnings:
        _say(f"warning: {warning}")
    _say(f"one engine of {scenario.name} at {speed:g} x real time answers at {url}/metrics")
    # A signal may reach another thread, which does not wake this one: its handler runs when this one next looks.
    while not stopping.wait(_LOOK_SECONDS):
        pass
    server.stop()


def repeated(served: Served) -> Iterator[Request]:
    """The load over and over, each time beginning where it ended."""
    begin = 0.0
    period = max(served.duration_seconds, _SHORTEST_ROUND_SECONDS)
    latest = -math.inf
    while True:
        for request in served.requests:
            # Rounding must not send time backwards.
            latest = max(latest, begin + request.arrival_seconds)
            yield replace(request, arrival_seconds=latest)
        begin += period


def _model(scenario: Scenario, spec: EngineSpec) -> ServedModel:
    engine = scenario.engine
    path = None if engine.model is None else Path(engine.model).resolve()
    return ServedModel(
        spec=spec,
        name=scenario.name if path is None else path.stem if path.suffix == ".gguf" else _folder(path).name,
        root=scenario.name if path is None else str(_folder(path)),
        engine_version=engine.engine_version or _ENGINE_VERSION,
        gpu_memory_utilization=engine.gpu_memory_utilization or _GPU_MEMORY_UTILIZATION,
    )


def _folder(path: Path) -> Path:
    """Where the model's files lie, of a path to its config too; that is what an engine is given."""
    return path.parent if path.name == "config.json" else path


def _say(text: str) -> None:
    print(f"kvgauge simulate: {text}", file=sys.stderr, flush=True)  # noqa: T201
