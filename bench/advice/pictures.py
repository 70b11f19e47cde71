"""The pictures of docs/advice.md, and the example in it: `python -m bench.advice.pictures` writes them.

With `--explain SECONDS` it prints what the advice says at that time of the llm-d episode instead.

No trace is needed: the episode is built in, and the other loads are drawn.
"""

import argparse
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.advice import knee
from bench.advice.__main__ import DOCUMENT, written
from bench.advice.drawing import Line, Mark, Panel, Style, document
from kvgauge.advise import Advice
from kvgauge.advise.attaining import Attainment
from kvgauge.advise.demand import thinned
from kvgauge.advise.fleet import LATE_RATIO, SLOW_RATIO, FleetAdvice
from kvgauge.advise.lengths import Lengths, whole_lengths
from kvgauge.advise.residing import Footprint, Resident, resident
from kvgauge.advise.safety import PREEMPTED_RATIO, safe_requests
from kvgauge.simulate.advised import Advised
from kvgauge.simulate.baselines import Static
from kvgauge.simulate.fleet import Fleet, FleetPlan, FleetView, Sample
from kvgauge.simulate.running import ADVISED, fleet_plan, run_signals, served_load
from kvgauge.simulate.scenario import LLM_D
from kvgauge.simulate.spec import EngineSpec, Request

RIVAL = "slo-aware"
EXAMPLE_SECONDS = 1200

POOL_TOKENS = 350_000
LONGEST_TOKENS = 40_960
BLOCK_TOKENS = 16
DRAWS = 24_000
"""Moments at which what requests hold is added up."""
BARS = 100

ENGINES = 4
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
"""Of the rate at which an engine saturates: where misses are simulated."""


def episode() -> str:
    """llm-d's episode: what comes, and the fleets of kvgauge and of llm-d's own law."""
    runs = run_signals(LLM_D, [ADVISED, RIVAL], keep_samples=True)
    results = [run.result for run in runs]
    names = [
        f"{one.signal}: {100 * one.attainment_ratio:.1f} % in time, {one.mean_replicas:.2f} replicas" for one in results
    ]
    end = runs[0].served.duration_seconds / 60

    def lines(value: Callable[[Sample], float]) -> list[Line]:
        styles: tuple[Style, ...] = ("one", "two")
        return [
            Line(name, style, [(one.seconds / 60, value(one)) for one in run.result.samples])
            for name, style, run in zip(names, styles, runs, strict=True)
        ]

    ready, waiting = lines(lambda one: float(one.ready)), lines(lambda one: float(one.waiting))
    longest = max(y for line in waiting for _, y in line.points)
    panels = [
        Panel("Requests per second", "minutes", [Line("", "one", _rates(runs[0].result.samples))], end, 11),
        Panel("Ready replicas", "minutes", ready, end, LLM_D.max_replicas + 0.5),
        Panel("Requests that wait, all replicas together", "minutes", waiting, end, 1.08 * max(longest, 1)),
    ]
    return document("The llm-d episode", "; ".join(names), panels)


def _rates(samples: Sequence[Sample], seconds: float = 30.0) -> list[tuple[float, float]]:
    """(minutes, arrivals per second) over stretches of at least that time."""
    found, before = [], samples[0]
    for one in samples:
        if one.seconds - before.seconds >= seconds:
            found.append((one.seconds / 60, (one.arrived - before.arrived) / (one.seconds - before.seconds)))
            before = one
    return found


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Requests of 500 prompt tokens whose outputs have a heavy tail, and what one holds while it runs."""

    lengths: Sequence[tuple[int, int]]
    held: Resident

    @staticmethod
    def drawn(requests: int = 3000) -> "Reasoning":
        draw = random.Random(1)
        outputs = [max(round(min(draw.lognormvariate(math.log(1500), 1.2), 32_000)), 1) for _ in range(requests)]
        lengths = [(500, output) for output in outputs]
        return Reasoning(lengths, resident(_known([500]), _known(outputs), Footprint(BLOCK_TOKENS)))


def _known(tokens: Sequence[int]) -> Lengths:
    found = whole_lengths(tokens)
    assert found is not None
    return thinned(found)


def held_together(lengths: Sequence[tuple[int, int]], requests: int, draws: int = DRAWS) -> list[float]:
    """Thousands of tokens that `requests` hold, at so many random moments, in rising order. A request is met in
    proportion to the time that it stays, at any of its steps alike."""
    draw = random.Random(requests)
    footprint = Footprint(BLOCK_TOKENS)
    weights = list(itertools.accumulate(output for _, output in lengths))
    met = draw.choices(lengths, cum_weights=weights, k=draws * requests)
    slots = [footprint.slots_at(prompt + draw.randrange(output)) for prompt, output in met]
    return sorted(math.fsum(slots[begin : begin + requests]) / 1000 for begin in range(0, len(slots), requests))


def pool() -> str:
    """How much n requests hold, for three n, and the pool's end."""
    mix = Reasoning.drawn()
    usable = float(POOL_TOKENS - BLOCK_TOKENS)
    longest = Footprint(BLOCK_TOKENS).most_slots(LONGEST_TOKENS)
    advised = safe_requests(mix.held, usable, longest).requests
    worst = math.floor(usable / longest)
    usual = math.floor(usable * len(mix.lengths) / sum(map(sum, mix.lengths)))
    end, lines, said = 700.0, [], []
    shown: Sequence[tuple[int, Style, str]] = (
        (worst, "two", "fit at max_model_len"),
        (advised, "one", f"advised: {100 * PREEMPTED_RATIO:g} % lose their place"),
        (usual, "three", "pool over mean length"),
    )
    for requests, style, words in shown:
        held = held_together(mix.lengths, requests)
        over = sum(each > usable / 1000 for each in held) / len(held)
        said.append(f"{requests} requests ({words}) hold more than the pool for {over:.1%} of the time")
        lines.append(Line(f"{requests}: {words}", style, _density(held, end)))
    top = max(y for _, y in lines[1].points)
    panel = Panel(
        "What n running requests hold together, and how likely",
        "thousand tokens",
        lines,
        end,
        1.25 * top,
        [Mark("the pool's end", POOL_TOKENS / 1000)],
        most_y_told=False,
    )
    return document("What n requests hold", "; ".join(said), [panel])


def _density(values: Sequence[float], end: float) -> list[tuple[float, float]]:
    """Shares of the values by place, each an average over three bars."""
    counts = [0] * (BARS + 2)
    for value in values:
        counts[min(int(value / end * BARS), BARS) + 1] += 1
    return [((place + 0.5) * end / BARS, sum(counts[place : place + 3]) / 3 / len(values)) for place in range(BARS)]


def misses() -> str:
    """Shares of requests that miss against the load of an engine: the model's, and what simulated fleets did."""
    code = knee.Case("code", knee.TWO_H100, knee.CODE)
    chat = knee.Case("chat", knee.ONE_H100, knee.CONVERSATION)
    slow, late = _course(code, lambda one: one[0]), _course(chat, lambda one: one[1])
    below = "requests per second and engine"
    panels = [
        Panel(
            "Code on two H100: % of requests over 80 ms per output token",
            below,
            [replace(slow[0], name="the model"), replace(slow[1], name=f"simulated, {ENGINES} engines")],
            slow[0].points[-1][0],
            60,
            [Mark("as much as the model may see", 100 * SLOW_RATIO, upright=False)],
        ),
        Panel(
            "Chat on one H100: % of requests over 2 s to the first token",
            below,
            [replace(late[0], name="the model"), replace(late[1], name=f"simulated, {ENGINES} engines")],
            late[0].points[-1][0],
            20,
            [Mark("as much as the model may see", 100 * LATE_RATIO, upright=False)],
        ),
    ]
    return document("Misses against load", "The model's misses rise with the load as simulated ones do.", panels)


def _course(case: knee.Case, which: Callable[[tuple[float, float]], float]) -> tuple[Line, Line]:
    """(the model, dots of what was simulated), in percent; `which` of (slow, late)."""
    lengths, gaps = knee.drawn(case, 1, 12_000)
    demand = replace(knee.demand_of(case.spec, lengths), slo_ttft_seconds=2.0, slo_tpot_seconds=0.08)
    model = Attainment(demand)
    most = model.saturation_per_second()
    rates = [most * step / 100 for step in range(96)]
    told = [model.misses(rate, ENGINES) for rate in rates]
    curve = [(rate, 100 * which((one.slow, one.late))) for rate, one in zip(rates, told, strict=True)]
    dots = [
        (share * most, 100 * which(_simulated(case.spec, lengths, [gap / (share * most * ENGINES) for gap in gaps])))
        for share in SHARES
    ]
    return Line("", "one", curve), Line("", "three", dots, dots=True)


def _simulated(spec: EngineSpec, lengths: Sequence[tuple[int, int]], gaps: Sequence[float]) -> tuple[float, float]:
    """(slow, late) shares behind a router, with a fixed number of engines."""
    times = list(itertools.accumulate(gaps))
    requests = [Request(at, *each) for at, each in zip(times, lengths, strict=True)]
    plan = FleetPlan(spec, 2.0, 0.08, initial_replicas=ENGINES, max_replicas=ENGINES)
    found = Fleet(plan, Static("static", None)).run(requests, math.nextafter(times[-1], math.inf))
    return 1 - found.tpot_attainment_ratio, 1 - found.ttft_attainment_ratio


class _Asked(Advised):
    """kvgauge's signal, which notes what it and its oldest pod say at one time."""

    def __init__(self, plan: FleetPlan, at_seconds: float) -> None:
        super().__init__(plan)
        self._at_seconds = at_seconds
        self.pod: Advice | None = None
        self.fleet: FleetAdvice | None = None

    def replicas(self, view: FleetView) -> int:
        found = super().replicas(view)
        if self.fleet is None and view.now_seconds >= self._at_seconds:
            self.fleet = self.last
            self.pod = next((one.advice for one in self._sidecars.values() if one.advice is not None), None)
        return found


@dataclass(frozen=True, slots=True)
class Said:
    """What a pod and the fleet rule say, in lines."""

    words: Sequence[str]
    terms: Sequence[str]


def explained(at_seconds: float) -> Said:
    """What the oldest pod and the fleet rule say at that time of the episode. Raises ValueError for a time that is not
    in it."""
    plan = fleet_plan(LLM_D)
    served = served_load(LLM_D, plan.spec)
    signal = _Asked(plan, at_seconds)
    Fleet(plan, signal).run(served.requests, served.duration_seconds)
    pod, fleet = signal.pod, signal.fleet
    if pod is None or fleet is None:
        raise ValueError(f"the episode lasts {served.duration_seconds:.0f} s")
    limits = ", ".join(f"{name} {requests}" for name, requests in pod.limits.items())
    return Said(
        [
            "a pod:",
            *_indented([*pod.explanation, f"limits: {limits}"]),
            "the fleet:",
            *_indented([*fleet.explanation, f"{fleet.replicas} pods"]),
        ],
        [
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in fleet.terms.items()
        ],
    )


def _indented(sentences: Sequence[str]) -> list[str]:
    return [f"  {sentence}" for sentence in sentences]


PICTURES: Mapping[str, Callable[[], str]] = {"episode": episode, "pool": pool, "misses": misses}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.advice.pictures")
    parser.add_argument("--only", action="append", choices=tuple(PICTURES), help="only this one (several times)")
    parser.add_argument("--explain", type=float, metavar="SECONDS", help="print what is said at that time instead")
    options = parser.parse_args()
    if options.explain is not None:
        try:
            said = explained(options.explain)
        except ValueError as error:
            parser.error(f"--explain: {error}")
        print("\n".join([*said.words, "its terms:", *_indented(said.terms)]))
        return
    for name in options.only or PICTURES:
        path = DOCUMENT.parent / f"advice-{name}.svg"
        path.write_text(PICTURES[name]())
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    if not options.only:
        example = ["```", *explained(EXAMPLE_SECONDS).words, "```"]
        DOCUMENT.write_text(written(DOCUMENT.read_text(), "example", example))


if __name__ == "__main__":
    main()
