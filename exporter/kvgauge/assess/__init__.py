"""What memory is against what it should be: an `Observation` and the memory model become an `Assessment`."""

from kvgauge.assess.assessing import EngineFlags, assess
from kvgauge.assess.forecasting import Memo
from kvgauge.assess.past import Past, compared
from kvgauge.assess.records import (
    AllocatorAssessment,
    Assessment,
    ComponentPrediction,
    Drift,
    GpuAssessment,
    Knob,
    PoolAssessment,
    Waste,
)

__all__ = [
    "AllocatorAssessment",
    "Assessment",
    "ComponentPrediction",
    "Drift",
    "EngineFlags",
    "GpuAssessment",
    "Knob",
    "Memo",
    "Past",
    "PoolAssessment",
    "Waste",
    "assess",
    "compared",
]
