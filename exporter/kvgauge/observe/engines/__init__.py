"""The engines that are understood. A new one is a file beside `vllm.py` and a line in `ENGINES`."""

from kvgauge.observe.engines import (
    dynamo,
    llamacpp,
    lmdeploy,
    nim,
    ollama,
    sglang,
    tensorrt_llm,
    tgi,
    transformers,
    triton_tensorrt_llm,
    vllm,
)
from kvgauge.observe.engines import max as modular_max
from kvgauge.observe.engines.contract import Engine

ENGINES: tuple[Engine, ...] = (
    vllm.ENGINE,
    sglang.ENGINE,
    tensorrt_llm.ENGINE,
    triton_tensorrt_llm.ENGINE,
    # Of the two that pass others' series through, the first that fits is taken.
    dynamo.ENGINE,
    nim.ENGINE,
    tgi.ENGINE,
    llamacpp.ENGINE,
    ollama.ENGINE,
    lmdeploy.ENGINE,
    modular_max.ENGINE,
)
PAGELESS: tuple[Engine, ...] = (transformers.ENGINE,)
"""Engines without any page: the agent is all there is to read."""
NAMES: tuple[str, ...] = tuple(engine.name for engine in (*ENGINES, *PAGELESS))


def by_name(name: str) -> Engine:
    """The engine called `name`. Raises KeyError."""
    return {engine.name: engine for engine in (*ENGINES, *PAGELESS)}[name]
