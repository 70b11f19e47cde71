"""The pictures of docs/concepts.md: `python -m tests.docs.pictures` writes them. Every number in them is reckoned here,
by the program or by the memory model; a test keeps the files what this makes."""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from kvgauge.advise.residing import Footprint
from kvgauge.settings import Settings
from kvgauge.simulate.fleet import FleetResult
from kvgauge.simulate.running import ADVISED, run_signals
from kvgauge.simulate.scenario import LLM_D
from kvmodel import read_architecture
from kvmodel.engines.contract import EnginePlan
from kvmodel.engines.vllm import plan_pool
from tests.docs.drawing import WIDTH, Drawing
from tests.docs.example import BLOCK_TOKENS, BLOCKS, RUNNING, TICKS, WAITING, example
from tests.model.h100_startups import VLLM_019
from tests.model.known import LLAMA_8B, known_config
from tests.model.known_caches import known_caches
from tests.support.facts import GIB

DOCS = Path(__file__).parents[2] / "docs"
TARGET = 0.85


def gib(size: float, digits: int = 2) -> str:
    return f"{size / GIB:.{digits}f} GiB"


def pool() -> str:
    """A few blocks of a pool, slot by slot."""
    blocks = 12
    lengths = {"A": 39, "B": 20, "C": 55}
    reusable = 2
    footprint = Footprint(BLOCK_TOKENS)
    held = {name: round(footprint.slots_at(tokens)) for name, tokens in lengths.items()}
    active, live, slots = sum(held.values()), sum(lengths.values()), blocks * BLOCK_TOKENS
    reclaimable = reusable * BLOCK_TOKENS
    free = slots - active - reclaimable
    told = [
        ("live", f"live: {live} slots that hold a token"),
        ("hatched", f"tail waste: {active - live} slots of held blocks"),
        ("reuse", f"reclaimable: {reclaimable} slots, reusable prefix"),
        ("none", f"free: {free} slots"),
    ]
    drawing = Drawing(
        f"A pool of {blocks} blocks of {BLOCK_TOKENS} slots",
        "; ".join(words for _, words in told)
        + f"; active, live and tail together: {active}; all: {slots}. "
        + "; ".join(f"request {name} has {lengths[name]} tokens in {held[name]} slots" for name in lengths),
        436,
    )
    rows: list[tuple[str, int, str]] = []
    for name, tokens in lengths.items():
        starts = range(0, held[name], BLOCK_TOKENS)
        rows += [(name, min(tokens - start, BLOCK_TOKENS), "live") for start in starts]
    rows += [("", BLOCK_TOKENS, "reuse")] * reusable
    rows += [("", 0, "live")] * (blocks - len(rows))
    drawing.words(16, 26, f"{blocks} blocks, {BLOCK_TOKENS} slots each", "big")
    for place, (name, filled, kind) in enumerate(rows):
        top = 40 + 20 * place
        if name and (place == 0 or rows[place - 1][0] != name):
            drawing.words(16, top + 14, f"{name}: {lengths[name]} tokens", "strong")
        for slot in range(BLOCK_TOKENS):
            empty = "hatched" if name else "none"
            drawing.box(150 + 19.5 * slot, top, 18, 16, kind if slot < filled else empty)
    top = 40 + 20 * blocks + 22
    for place, (kind, words) in enumerate(told):
        drawing.box(16, top + 28 * place, 26, 16, kind)
        drawing.words(52, top + 28 * place + 14, words)
    drawing.words(52, top + 28 * 4 + 14, f"active = live + tail waste = {active} of {slots}", "strong")
    return drawing.document()


def kinds() -> str:
    """Bytes of one sequence against its length, for four kinds of cache."""
    longest = 32_768
    mamba = next(one for one in known_caches() if one.id == "tiiuae/falcon-mamba-7b").config
    gemma = next(one.config for one in VLLM_019 if one.model == "gemma-3-12b-it")
    shown = (
        ("one", "full attention", "Llama-3.1-8B", LLAMA_8B),
        ("two", "mostly windows", "gemma-3-12b", gemma),
        ("three", "latent (MLA)", "DeepSeek-V2-Lite", known_config("deepseek-ai/DeepSeek-V2-Lite")),
        ("four", "state only", "falcon-mamba-7b", mamba),
    )
    left, right, bottom, top, most = 54.0, 464.0, 300.0, 50.0, 4.5 * GIB
    found = []
    drawing = Drawing("What one sequence takes as it grows, by kind of cache", "", 496)
    drawing.words(16, 26, "Memory of one sequence, GiB", "big")
    for level in range(5):
        y = bottom - (bottom - top) * level * GIB / most
        drawing.line(left, y, right, y, "grid")
        drawing.words(left - 10, y + 5, str(level), anchor="end")
    for tokens in (0, 8192, 16384, 24576, 32768):
        x = left + (right - left) * tokens / longest
        drawing.words(
            x, bottom + 22, f"{tokens // 1024}k" if tokens else "0", anchor="end" if tokens == longest else "middle"
        )
    drawing.words(right, bottom + 44, "tokens of the sequence", anchor="end")
    lengths = [256 * step for step in range(longest // 256 + 1)]
    for place, (style, kind, name, config) in enumerate(shown):
        architecture = read_architecture(config)
        sizes = [float(architecture.bytes_at(max(tokens, 1), "auto")) for tokens in lengths]
        drawing.curve(
            [
                (left + (right - left) * tokens / longest, bottom - (bottom - top) * size / most)
                for tokens, size in zip(lengths, sizes, strict=True)
            ],
            style,
        )
        y = bottom + 72 + 27 * place
        drawing.curve([(16, y - 5), (44, y - 5)], style)
        drawing.words(54, y, f"{kind}: {name}")
        drawing.words(right, y, gib(sizes[-1]), "strong", "end")
        found.append(f"{kind}, {name}: {gib(sizes[-1])} at {longest:,} tokens")
    drawing.words(right, bottom + 72 + 27 * 4, "at 32k tokens", anchor="end")
    drawing.description = "; ".join(found)
    return drawing.document()


def memory() -> str:
    """One GPU's memory by part: what was predicted and what was measured."""
    gpu = example().assessment.gpus[0]
    kinds_of = {"weights": "rest", "activations": "reuse", "graphs": "bad", "context": "soft", "kv_pool": "live"}
    parts = {part.component: part for part in gpu.components if part.component in kinds_of}
    drawing = Drawing("Memory of one GPU, predicted and measured", "", 366)
    drawing.words(16, 26, "Llama-3.1-8B on an H100 of 79.19 GiB", "big")
    scale = (WIDTH - 32) / (example().assessment.observation.gpus[0].total_bytes or 1)
    told = []
    for row, (name, top) in enumerate((("predicted", 42), ("measured", 104))):
        drawing.words(16, top + 14, name, "strong")
        x = 16.0
        for component, kind in kinds_of.items():
            part = parts[component]
            size = part.expected_bytes if row == 0 else part.actual_bytes
            if size is None:
                continue
            drawing.box(x, top + 20, size * scale, 24, kind)
            x += size * scale
        drawing.box(16, top + 20, WIDTH - 32, 24, "edge")
    drawing.words(270, 190, "predicted", anchor="end")
    drawing.words(400, 190, "measured", anchor="end")
    for place, (component, kind) in enumerate(kinds_of.items()):
        part, y = parts[component], 216 + 26 * place
        drawing.box(16, y - 13, 18, 16, kind)
        drawing.words(44, y, component.replace("kv_pool", "KV pool"))
        drawing.words(270, y, gib(part.expected_bytes), "strong", "end")
        drawing.words(400, y, "not told" if part.actual_bytes is None else gib(part.actual_bytes), "strong", "end")
        actual = "not told" if part.actual_bytes is None else gib(part.actual_bytes)
        told.append(f"{component}: predicted {gib(part.expected_bytes)}, measured {actual}")
    drawing.words(16, 216 + 26 * 5 + 8, "blank: free, or nobody measures it")
    drawing.description = "; ".join(told)
    return drawing.document()


def _gemma_plan() -> EnginePlan:
    """34 layers, of which 5 keep every token: groups of 5, the last one of 4."""
    gemma = next(one.config for one in VLLM_019 if one.model == "gemma-3-4b-it")
    return plan_pool(
        read_architecture(gemma), kv_bytes=40 * GIB, block_tokens=16, max_model_len=8192, engine_version="0.19.0"
    )


def waste() -> str:
    """One strip for each kind, each with a true case."""
    drawing = Drawing("Five kinds of waste", "", 520)
    plan = _gemma_plan()
    lacks = max(plan.groups, key=lambda group: group.block_bytes - group.layers * group.page_bytes)
    unused = 1 - lacks.layers * lacks.page_bytes / lacks.block_bytes
    heads, gpus = 8, 16
    tail = round(Footprint(BLOCK_TOKENS).slots_at(39)) - 39
    static, used = 8192, 1000
    layers = round(lacks.block_bytes / lacks.page_bytes)
    strips: tuple[tuple[str, float, str], ...] = (
        ("block_tail", tail / (39 + tail), f"39 tokens in 3 blocks of 16: {tail} slots stay empty"),
        ("reservation", 1 - used / static, f"{used:,} tokens in a slot made for {static:,}"),
        ("group_padding", unused, f"{lacks.layers} layers in blocks made for {layers} (gemma-3-4b)"),
        ("head_replication", 1 - heads / gpus, f"{heads} KV heads on {gpus} GPUs: half are copies"),
        ("stranded", 0.025, f"1 block of {BLOCKS:,} is never given out (vLLM)"),
    )
    drawing.words(16, 26, "Taken, and holding nothing or a copy", "big")
    for place, (name, wasted, words) in enumerate(strips):
        top, wide = 46 + 86 * place, WIDTH - 32
        drawing.words(16, top + 14, name, "strong")
        drawing.box(16, top + 21, wide * (1 - wasted), 22, "live")
        drawing.box(16 + wide * (1 - wasted), top + 21, wide * wasted, 22, "hatched")
        drawing.words(16, top + 63, words)
    top = 46 + 86 * 5 + 8
    drawing.box(16, top, 26, 16, "live")
    drawing.words(50, top + 14, "in use")
    drawing.box(130, top, 26, 16, "hatched")
    drawing.words(164, top + 14, "waste (stranded: not to scale)")
    drawing.description = "; ".join(f"{name}: {words}" for name, _, words in strips)
    return drawing.document()


def limits() -> str:
    """The limits of the example, the least of which binds, and the load against it."""
    advice = example().snapshot.advice
    safe, load = advice.safe_concurrency or 0, advice.load_ratio or 0.0
    shown = [(name, number) for name, number in sorted(advice.limits.items(), key=lambda item: item[1])]
    drawing = Drawing("The limits on concurrency, and the load", "", 440)
    drawing.words(16, 26, "Requests that may run together", "big")
    most = 150.0
    left, wide = 150.0, 235.0
    for place, (name, number) in enumerate(shown):
        y = 42 + 34 * place
        kind = "live" if name == advice.binding_limit else "none" if name == "kv_worst_case" else "soft"
        width = wide * min(number / most, 1.0)
        drawing.words(16, y + 16, name, "strong" if kind == "live" else "")
        drawing.box(left, y, width, 22, kind)
        drawing.words(
            left + width + 8,
            y + 16,
            f"{number:,}" + (" binds" if kind == "live" else " ..." if number > most else ""),
            "strong",
        )
    drawing.words(16, 42 + 34 * 5 + 18, "kv_worst_case is for information: never binds")
    top = 282
    drawing.words(16, top, "Load ratio: all that is asked for", "big")
    scale = (WIDTH - 32) / 100
    drawing.box(16, top + 34, RUNNING * scale, 26, "live")
    drawing.box(16 + RUNNING * scale, top + 34, WAITING * scale, 26, "soft")
    edge = 16 + safe * scale
    drawing.line(edge, top + 26, edge, top + 68, "dash")
    drawing.words(edge - 6, top + 24, f"{safe} are safe: 1.0", "strong", "end")
    drawing.words(16, top + 84, f"{RUNNING} run", "strong")
    drawing.words(16 + RUNNING * scale, top + 84, f"{WAITING} wait", "strong")
    pods = math.ceil(load / TARGET - 1e-9)
    drawing.words(16, top + 112, f"load ratio {load:.2f}, not cut off at 1")
    drawing.words(16, top + 138, f"at a target of {TARGET}: {load:.2f} / {TARGET}, so {pods} pods")
    drawing.description = (
        "; ".join(f"{name}: {number}" for name, number in shown)
        + f". {advice.binding_limit} is the least and binds. {RUNNING} run and {WAITING} wait: load {load:.2f}; "
        + f"at a target of {TARGET} that takes {pods} pods."
    )
    return drawing.document()


def exhaustion() -> str:
    """The example's pool over time, and where its trend leads."""
    one = example().samples
    capacity, active = one["capacity_tokens"], one["active_tokens"]
    slope, seconds = one["trend_tokens_per_second"], one["kvgauge_kv_exhaustion_seconds"]
    left, right, top, bottom = 60.0, 464.0, 56.0, 250.0
    begin, end = -(TICKS - 1), 120

    def at(time: float, slots: float) -> tuple[float, float]:
        return left + (right - left) * (time - begin) / (end - begin), bottom - (bottom - top) * slots / 520_000

    drawing = Drawing("Time until the pool is full", "", 330)
    drawing.words(16, 26, "Active slots, thousand", "big")
    for level in (0, 100_000, 200_000, 300_000, 400_000):
        drawing.line(left, at(0, level)[1], right, at(0, level)[1], "grid")
        drawing.words(left - 10, at(0, level)[1] + 5, f"{level // 1000}", anchor="end")
    for time in (0, 30, 60, 90, 120):
        x = at(time, 0)[0]
        drawing.words(x, bottom + 22, "now" if not time else f"{time} s", anchor="end" if time == end else "middle")
    full = at(0, capacity)[1]
    drawing.line(left, full, right, full, "dash")
    drawing.words(left + 4, full - 8, f"the pool's end: {capacity / 1000:.0f}", "strong")
    drawing.curve([at(begin, active + begin * slope), at(0, active)], "one")
    drawing.curve([at(0, active), at(seconds, capacity)], "one ahead")
    x = at(seconds, 0)[0]
    drawing.line(x, full, x, bottom, "dash")
    drawing.words(at(0, 0)[0] + 12, at(0, active)[1] + 40, f"+{slope:,.0f} a second", "strong")
    drawing.words(
        16, 302, f"({capacity:,.0f} - {active:,.0f}) / {slope:,.0f} = {seconds:.0f} s until it is full", "strong"
    )
    drawing.description = (
        f"{active:,.0f} of {capacity:,.0f} slots are active and {slope:,.0f} more each second: {seconds:.0f} s"
    )
    return drawing.document()


@functools.cache
def _episode() -> FleetResult:
    (run,) = run_signals(LLM_D, [ADVISED], keep_samples=True)
    return run.result


def replicas() -> str:
    """What comes in the built-in episode, and the pods that the fleet rule asks for."""
    samples = _episode().samples
    end, left, right = samples[-1].seconds, 60.0, 464.0
    most_rate, most_pods = 12.0, 9.0
    drawing = Drawing("Requests that come, and pods that are asked for", "", 446)

    def at(seconds: float, share: float, bottom: float) -> tuple[float, float]:
        return left + (right - left) * seconds / end, bottom - 120 * share

    stretches = [(before, after) for before, after in zip(samples[::12], samples[12::12], strict=False)]
    rates = [(after.arrived - before.arrived) / (after.seconds - before.seconds) for before, after in stretches]
    for title, bottom, levels, most in (
        ("Requests that come each second", 160.0, (0, 5, 10), most_rate),
        ("Pods", 340.0, (0, 4, 8), most_pods),
    ):
        drawing.words(16, bottom - 134, title, "big")
        for level in levels:
            y = at(0, level / most, bottom)[1]
            drawing.line(left, y, right, y, "grid")
            drawing.words(left - 10, y + 5, str(level), anchor="end")
    drawing.curve(
        [at(one.seconds, rate / most_rate, 160) for (_, one), rate in zip(stretches, rates, strict=True)], "one"
    )
    drawing.curve([at(one.seconds, one.replicas / most_pods, 340) for one in samples], "two")
    drawing.curve([at(one.seconds, one.ready / most_pods, 340) for one in samples], "one")
    for minutes in (0, 10, 20, 30, 40):
        drawing.words(at(60 * minutes, 0, 340)[0], 362, str(minutes), anchor="middle")
    drawing.words(right, 384, "minutes", anchor="end")
    drawing.curve([(16, 403), (44, 403)], "two")
    drawing.words(54, 408, "asked for")
    drawing.curve([(190, 403), (218, 403)], "one")
    drawing.words(228, 408, "ready")
    kept = 100 * _episode().attainment_ratio
    told = f"{kept:.1f} % in time, {_episode().mean_replicas:.1f} pods on average"
    drawing.words(16, 434, told, "strong")
    drawing.description = (
        f"A simulated episode of {end / 60:.0f} minutes: up to {max(rates):.0f} requests come each second, and from "
        f"{min(one.replicas for one in samples)} to {max(one.replicas for one in samples)} pods are asked for; {told}."
    )
    return drawing.document()


def staleness() -> str:
    """What is shown of a source that fails after its last good reading."""
    stale = float(Settings.model_fields["stale_after"].default)
    left, right = 150.0, 464.0

    def at(time: float) -> float:
        return left + (right - left) * (time + 1) / 9

    drawing = Drawing("A source that fails", "", 300)
    drawing.words(16, 26, "The engine stops answering", "big")
    drawing.words(16, 76, "its figures")
    drawing.box(at(-1), 60, at(0) - at(-1), 24, "live")
    drawing.box(at(0), 60, at(stale) - at(0), 24, "soft")
    drawing.words((at(0) + at(stale)) / 2, 77, "repeated", "strong", "middle")
    drawing.box(at(stale), 60, at(8) - at(stale), 24, "none")
    drawing.words((at(stale) + at(8)) / 2, 77, "absent", "strong", "middle")
    drawing.words(16, 120, "source_up")
    drawing.curve([(at(-1), 106), (at(1), 106), (at(1), 124), (at(8), 124)], "one")
    drawing.words(at(-0.9), 124, "1", "strong")
    drawing.words(at(7.4), 118, "0", "strong")
    drawing.words(16, 164, "advice_valid")
    drawing.curve([(at(-1), 150), (at(stale), 150), (at(stale), 168), (at(8), 168)], "one")
    drawing.words(at(-0.9), 168, "1", "strong")
    drawing.words(at(7.4), 162, "0", "strong")
    drawing.line(left, 190, right, 190)
    for time in (0, 1, round(stale)):
        drawing.line(at(time), 186, at(time), 194)
        drawing.words(at(time), 212, f"{time} s", anchor="middle")
    drawing.words(16, 246, "age since the last good reading; a figure is")
    drawing.words(16, 268, f"repeated for {stale:g} s, then gone, and never 0")
    drawing.description = (
        f"After the last good reading the figures are repeated for {stale:g} s, then they are absent. "
        "kvgauge_source_up falls to 0 with the first failed read, kvgauge_advice_valid when the figures are gone."
    )
    return drawing.document()


PICTURES: Mapping[str, Callable[[], str]] = {
    "pool": pool,
    "kinds": kinds,
    "memory": memory,
    "waste": waste,
    "limits": limits,
    "exhaustion": exhaustion,
    "replicas": replicas,
    "staleness": staleness,
}


def path_of(name: str) -> Path:
    return DOCS / f"concepts-{name}.svg"


def main() -> None:
    for name, draw in PICTURES.items():
        path_of(name).write_text(draw(), encoding="utf-8")
        print(f"{path_of(name).name}: {path_of(name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
