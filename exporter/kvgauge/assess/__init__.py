"""What memory is against what it should be: an `Observation` and the memory model become an `Assessment`."""

from kvgauge.assess.assessing import EngineFlags, assess
from kvgauge.assess.records import (
    AllocatorAssessment,
    Assessment,
    ComponentPrediction,
    GpuAssessment,
    PoolAssessment,
    Waste,
)

__all__ = [
    "AllocatorAssessment",
    "Assessment",
    "ComponentPrediction",
    "EngineFlags",
    "GpuAssessment",
    "PoolAssessment",
    "Waste",
    "assess",
]
