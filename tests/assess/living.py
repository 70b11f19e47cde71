"""An engine watched for simulated hours: facts tick by tick through `assess`, `Past` and `compared`. Nothing sleeps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kvgauge.assess import Assessment, Drift, EngineFlags, Memo, Past, assess, compared
from kvgauge.observe.records import AgentReading, EngineReading, GpuReading, ModelReading
from tests.support.facts import ENGINE, GPU, model, observation

FLAGS = EngineFlags(max_num_seqs=1024, max_num_batched_tokens=8192)
MINUTE, HOUR = 60.0, 3600.0

Gpus = tuple[GpuReading, ...]
Told = Callable[[float], Any]
"""What is told, by the seconds since this part of the engine's life began."""


def using(used_bytes: int, **changes: Any) -> Gpus:
    """The one GPU with so much in use."""
    return (replace(GPU, used_bytes=used_bytes, **changes),)


class Life:
    """What the loop remembers, and its clock."""

    def __init__(self, past: Past | None = None, with_model: ModelReading | None = None, flags: EngineFlags = FLAGS):
        self.past = past or Past()
        self.now = 1000.0
        self._model = with_model or model()
        self._flags = flags
        self._memo = Memo()
        self.seen: list[Assessment] = []

    def lives(
        self,
        seconds: float,
        *,
        engine: Callable[[float], EngineReading | None] | EngineReading | None = ENGINE,
        gpus: Callable[[float], Gpus] | Gpus = (GPU,),
        agent: Callable[[float], AgentReading | None] | None = None,
        step: float = 5.0,
    ) -> Assessment:
        """The last assessment of this part of its life; all of them are in `seen`."""
        began = self.now
        while self.now - began < seconds:
            elapsed = self.now - began
            told = observation(
                at=self.now,
                engine=engine(elapsed) if callable(engine) else engine,
                gpus=gpus(elapsed) if callable(gpus) else gpus,
                with_model=self._model,
            )
            told = replace(told, agent=agent(elapsed) if agent is not None else None)
            assessment = assess(told, self._flags, self._memo)
            self.past.remember(assessment)
            self.seen.append(compared(assessment, self.past))
            self.now += step
        return self.seen[-1]

    @property
    def warnings(self) -> list[str]:
        """All that was ever warned of."""
        return list(dict.fromkeys(warning for assessment in self.seen for warning in assessment.warnings))


def drift(assessment: Assessment, kind: str, gpu: int = 0) -> Drift | None:
    return next((each for each in assessment.gpus[gpu].drifts if each.kind == kind), None)


def drift_bytes(assessment: Assessment, kind: str, gpu: int = 0) -> int | None:
    found = drift(assessment, kind, gpu)
    return found.drift_bytes if found is not None else None


def sizes(assessment: Assessment) -> dict[str, tuple[int, int | None]]:
    """(predicted, calibrated) by component, of the first GPU."""
    gpu = assessment.gpus[0]
    parts = (*gpu.components, *((gpu.total,) if gpu.total is not None else ()))
    return {part.component: (part.expected_bytes, part.calibrated_bytes) for part in parts}
