"""The engines that are understood. A new one is a file beside `vllm.py` and a line in `ENGINES`."""

from kvgauge.observe.engines import vllm
from kvgauge.observe.engines.contract import Engine

ENGINES: tuple[Engine, ...] = (vllm.ENGINE,)
NAMES: tuple[str, ...] = tuple(engine.name for engine in ENGINES)


def by_name(name: str) -> Engine:
    """The engine called `name`. Raises KeyError."""
    return {engine.name: engine for engine in ENGINES}[name]
