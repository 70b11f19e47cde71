"""Simulated engines: the one that stands in for a GPU in the demo, and what it is made of."""

from kvgauge.simulate.device import H100_LLAMA_31_8B, EmbeddedDevice
from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.load import Lengths, Phase, SyntheticLoad
from kvgauge.simulate.model_folder import write_model_folder
from kvgauge.simulate.serving import EmbeddedEngine
from kvgauge.simulate.spec import EngineSpec, FinishedRequest, Request
from kvgauge.simulate.state import EngineState

__all__ = [
    "H100_LLAMA_31_8B",
    "EmbeddedDevice",
    "EmbeddedEngine",
    "EngineSpec",
    "EngineState",
    "FinishedRequest",
    "Lengths",
    "PagedEngine",
    "Phase",
    "Request",
    "SyntheticLoad",
    "write_model_folder",
]
