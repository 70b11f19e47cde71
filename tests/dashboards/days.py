"""A simulated engine through hours of virtual time, seen by the sidecar's own code, as series that Prometheus reads.

The figures are those that the reader of vLLM's page makes of the simulated page (a test of the simulation holds the two
equal); everything behind it is what runs in a sidecar: history, assessment, drift, advice, page. Nothing sleeps.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kvgauge.advise import History, advise
from kvgauge.assess import EngineFlags, Memo, Past, assess, compared
from kvgauge.observe.records import EngineReading, GpuReading, Observation, SourceState
from kvgauge.publish.families import Snapshot
from kvgauge.publish.metrics import render
from kvgauge.simulate.device import H100_LLAMA_31_8B
from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.load import Lengths, Phase, SyntheticLoad
from kvgauge.simulate.reading import reading_of
from kvgauge.simulate.spec import EngineSpec, Request
from tests.support.facts import GPU, model

LOOK_SECONDS = 10.0
SCRAPE_SECONDS = 30.0
MINUTE, HOUR = 60.0, 3600.0

_DEVICE = H100_LLAMA_31_8B
SPEC = replace(_DEVICE.spec, num_blocks=7_501)
"""The embedded H100 with a quarter of its pool: a day of its load is a quarter of the requests."""
USED_BYTES = _DEVICE.used_bytes - (_DEVICE.spec.num_blocks - SPEC.num_blocks) * SPEC.bytes_per_block
TARGET = 'namespace="a",pod="p",job="kvgauge",instance="p:9838"'


def card(used_bytes: int = USED_BYTES, engine_bytes: int | None = None) -> GpuReading:
    """The GPU with so much in use, all of it the engine's unless said otherwise."""
    return replace(
        GPU,
        total_bytes=_DEVICE.total_bytes,
        used_bytes=used_bytes,
        free_bytes=_DEVICE.total_bytes - used_bytes,
        reserved_bytes=0,
        engine_bytes=used_bytes if engine_bytes is None else engine_bytes,
    )


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with it, by the seconds since the beginning; by default nothing."""

    gpu: Callable[[float], GpuReading] = lambda _: card()
    engine_answers: Callable[[float], bool] = lambda _: True
    asleep: Callable[[float], bool] = lambda _: False


def diurnal(mean_per_second: float, *, seed: int = 1, spec: EngineSpec = SPEC) -> SyntheticLoad:
    """A day: a quiet night, a peak in the afternoon of 1.7 times the mean, rates that change every ten minutes."""
    phases = [
        Phase(600, mean_per_second * (1 - 0.7 * math.cos(2 * math.pi * (index / 144 - 1 / 8)))) for index in range(144)
    ]
    return SyntheticLoad(
        seed, spec.max_model_len, tuple(phases), Lengths(1400, 0.8), Lengths(420, 0.7), spread_ratio=0.15
    )


def watched(
    requests: Iterable[Request],
    seconds: float,
    *,
    spec: EngineSpec = SPEC,
    faults: Faults | None = None,
) -> dict[str, list[str]]:
    """Every series of the sidecar's page over that time, a value each SCRAPE_SECONDS as promtool writes them."""
    faults = faults or Faults()
    engine, coming = PagedEngine(spec), iter(requests)
    waiting = next(coming, None)
    history, memo, past = History(), Memo(), Past()
    found = _Scrapes()
    for tick in range(round(seconds / LOOK_SECONDS) + 1):
        now = tick * LOOK_SECONDS
        while waiting is not None and waiting.arrival_seconds <= now:
            engine.submit(waiting)
            waiting = next(coming, None)
        engine.advance(now)
        observation = _observation(engine, spec, now, faults)
        history.remember(observation)
        assessment = assess(observation, EngineFlags(tp=1), memo)
        past.remember(assessment)
        assessment = compared(assessment, past)
        advice = advise(
            assessment,
            history,
            max_num_seqs=assessment.max_num_seqs,
            slo_ttft_seconds=None,
            slo_tpot_seconds=None,
        )
        if now % SCRAPE_SECONDS == 0:
            found.take(render(Snapshot(assessment, advice))[0].decode())
    return found.series()


def _observation(engine: PagedEngine, spec: EngineSpec, now: float, faults: Faults) -> Observation:
    up = faults.engine_answers(now)
    # The boot lies a while back, so that no clock is at 0.
    return Observation(
        wall_seconds=1_700_000_000 + now,
        monotonic_seconds=1_000 + now,
        gpus=(faults.gpu(now),),
        engine=_reading(engine, spec, asleep=faults.asleep(now)) if up else None,
        model=model(),
        sources=(
            SourceState("nvml", True, 0.0, 0.01, None, None),
            SourceState("engine", up, 0.0, 0.01, None if up else "refused", None if up else "no connection"),
            SourceState("model", True, 0.0, 0.01, None, None),
        ),
    )


def _reading(engine: PagedEngine, spec: EngineSpec, *, asleep: bool) -> EngineReading:
    reading = reading_of(engine.state(), spec, "llama")
    if not asleep:
        return reading
    ranks = tuple(
        replace(rank, used_blocks=None, active_tokens=None, free_tokens=None, usage_ratio=None)
        for rank in reading.ranks
    )
    return replace(reading, asleep=True, ranks=ranks)


class _Scrapes:
    """Pages, turned into series that have a value, a gap or a stale mark at every scrape."""

    def __init__(self) -> None:
        self._values: dict[str, list[str]] = {}
        self._number = 0

    def take(self, page: str) -> None:
        for line in itertools.chain(page.splitlines(), ["up 1"]):
            if line.startswith("#"):
                continue
            name, _, value = line.rpartition(" ")
            bare, _, labels = name.rstrip("}").partition("{")
            values = self._values.setdefault(f"{bare}{{{TARGET}{',' if labels else ''}{labels}}}", [])
            self._fill(values)
            values.append(value.replace("+Inf", "Inf"))
        self._number += 1

    def _fill(self, values: list[str]) -> None:
        missing = self._number - len(values)
        if missing and values:
            values += ["stale", *["_"] * (missing - 1)]
        else:
            values += ["_"] * missing

    def series(self) -> dict[str, list[str]]:
        for values in self._values.values():
            self._fill(values)
        return self._values


def shortened(values: Sequence[str]) -> Iterator[str]:
    """Values in promtool's notation, runs of equal ones told once."""
    for value, run in itertools.groupby(values):
        number = len(list(run))
        if value in {"stale", "Inf"} or number == 1:
            yield from itertools.repeat(value, number)
        elif value == "_":
            yield f"_x{number}"
        else:
            yield f"{value}x{number - 1}"
