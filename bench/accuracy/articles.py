"""Figures of four introductory articles on inference memory, computed again, and how their roundings stand for them."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.model.known import LLAMA_8B, known_config
from tests.model.test_seeds import LLAMA_13B_CONFIG, OPT_175B_CONFIG

from bench.accuracy.page import Section, paragraphs, table, whole
from bench.table import Figure
from kvmodel import Architecture, read_architecture
from kvmodel.gpus import GpusNeeded, gpus_needed
from kvmodel.latency import PhaseTime, phase_time
from kvmodel.rounding import recognise_printed
from kvmodel.training import activation_bytes, lora_parameters, training_memory
from kvmodel.weight_formats import weight_format

GB, GIB, MIB = 10**9, 2**30, 2**20
_UNITS = {"GB": GB, "GiB": GIB, "MiB": MIB}
_PRINTED = re.compile(r"(\d[\d,]*(?:\.\d+)?)\s*(bytes|[KMGT]i?B?)\b")
_MEASURED = frozenset({"s", "ms_per_token"})
"""Seconds that an article measured: nothing to compute."""

Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ArticleFigure:
    """One figure: what the article prints, the exact value, ours."""

    id: str
    what: str
    printed: str | None
    exact: Mapping[str, object]
    ours: Mapping[str, object] | None

    @property
    def differs(self) -> list[str]:
        """Names of exact values that ours are not, to the digits given."""
        if self.ours is None:
            return list(self.exact)
        return [name for name, value in self.exact.items() if not _same(self.ours.get(name), value)]


def read_figures(vectors: Path) -> list[ArticleFigure]:
    """All figures that have an exact value to compute."""
    found = []
    for row in json.loads((vectors / "seed_vectors.json").read_text())["vectors"]:
        exact = {name: value for name, value in _flat(row["exact"] or {}) if name not in _MEASURED}
        if exact:
            compute = _OURS.get(row["id"])
            ours = None if compute is None else dict(_with_units(dict(_flat(compute()))))
            what = row["what"].replace("the seed", "the article")
            found.append(ArticleFigure(row["id"], what, row["seed_says"], exact, ours))
    return found


def section(figures: list[ArticleFigure]) -> Section:
    wrong = sum(bool(figure.differs) for figure in figures)
    return Section(
        "Figures of introductory articles",
        paragraphs(
            "Four introductory articles on the memory of inference print the figures below (S0: the KV cache of "
            "Llama 3; S1: memory of training and inference; S2: serving a model and the cards it needs; S3: GPT-2 with "
            "and without a cache). Every exact value is computed again, by the memory model where it is its affair. "
            "A printed size is recognised where some unit and rounding turns the exact bytes into it; one that is not "
            "does not follow from the exact value: it was summed from rounded terms, or mixes GB and GiB.",
            f"{len(figures)} figures, {wrong} of which differ.",
            table(
                ["figure", "what", "the article prints", "ours", "the printed size", "differs"],
                [
                    [
                        figure.id,
                        figure.what,
                        figure.printed or "-",
                        _shown(figure),
                        "; ".join(recognised(figure)) or "-",
                        ", ".join(figure.differs) or "nothing",
                    ]
                    for figure in figures
                ],
            ),
        ),
        (Figure("introductory articles: exact values that differ", "figures", 0, wrong),),
    )


def recognised(figure: ArticleFigure) -> Iterator[str]:
    """How each printed size stands for an exact one."""
    if figure.ours is None or figure.printed is None:
        return
    sizes = [value for name, value in figure.ours.items() if name.rpartition(" ")[2] == "bytes"]
    exact = [size for size in sizes if isinstance(size, int)]
    for number, unit in _PRINTED.findall(figure.printed):
        if exact:
            yield f"{number} {unit}: {_recognise(number.replace(',', ''), unit, exact)}"


def _recognise(number: str, unit: str, exact: list[int]) -> str:
    for size in exact:
        if unit == "bytes":
            if float(number) == size:
                return "exact"
            continue
        found = recognise_printed(size, f"{number} {unit}")
        if found is not None:
            return f"{found.unit}, {'exact' if found.rounding == 'exact' else f'rounded {_way(found.rounding)}'}"
    return "not recognised"


def _way(rounding: str) -> str:
    return "to the nearest" if rounding == "nearest" else rounding


def _shown(figure: ArticleFigure) -> str:
    if figure.ours is None:
        return "-"
    names = [name for name in figure.ours if name.rpartition(" ")[2] not in _UNITS or name == "GB"]
    return ", ".join(f"{name} {_number(figure.ours[name])}" for name in names if name in figure.exact)


def _number(value: object) -> str:
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.6g}"
    return whole(value) if isinstance(value, int | float) else str(value)


def _flat(values: Values) -> Iterator[tuple[str, object]]:
    """Nested values with their names joined by a blank."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {inner}", held) for inner, held in _flat(value))
        else:
            yield name, value


def _with_units(values: Values) -> Iterator[tuple[str, object]]:
    """Each value, and for one in bytes the same in GB, GiB and MiB."""
    for name, value in values.items():
        yield name, value
        place, _, last = name.rpartition(" ")
        if last == "bytes" and isinstance(value, int | float):
            yield from ((f"{place} {unit}".strip(), value / size) for unit, size in _UNITS.items())


def _same(ours: object, exact: object) -> bool:
    if isinstance(ours, int | float) and isinstance(exact, int | float):
        decimals = len(str(exact).partition(".")[2]) if isinstance(exact, float) and "e" not in str(exact) else 0
        return abs(ours - exact) <= 0.500001 * 10**-decimals if decimals else ours == exact
    return ours == exact


_LLAMA_8B = read_architecture({**LLAMA_8B, "max_position_embeddings": 8192})
_LLAMA_70B = read_architecture(known_config("meta-llama/Meta-Llama-3-70B"))
_LLAMA_7B = read_architecture(known_config("meta-llama/Llama-2-7b-hf"))
_LLAMA_13B = read_architecture(LLAMA_13B_CONFIG)
_OPT_175B = read_architecture(OPT_175B_CONFIG)
_GPT2 = read_architecture(known_config("openai-community/gpt2"))
_A100_FLOPS, _A100_BANDWIDTH = 312e12, 1.515e12
_A100_40GB_BYTES = 40 * GB


def _cached(architecture: Architecture, tokens: int, requests: int = 1) -> Values:
    return {"bytes": int(requests * architecture.bytes_at(tokens))}


def _activations(tokens: int, hidden: int, layers: int, heads: int) -> Values:
    size = activation_bytes(
        sequence_tokens=tokens, micro_batch=1, hidden_size=hidden, num_layers=layers, num_attention_heads=heads
    )
    return {"bytes": int(size)}


def _phase(tokens: int) -> PhaseTime:
    return phase_time(
        flop=2 * 7e9 * tokens, traffic_bytes=14e9, flop_per_second=_A100_FLOPS, bytes_per_second=_A100_BANDWIDTH
    )


def _times(tokens: int) -> Values:
    phase = _phase(tokens)
    seconds = {
        "compute_ms": phase.compute_seconds,
        "memory_ms": phase.memory_seconds,
        "sum_ms": phase.sum_seconds,
        "max_ms": phase.max_seconds,
    }
    return {name: 1e3 * value for name, value in seconds.items()}


def _serving(weights_bytes: int, cache_bytes: int, heads: int) -> tuple[int, int, GpusNeeded]:
    """(overhead of a tenth, total, cards of 40 GB)."""
    overhead = (weights_bytes + cache_bytes) // 10
    total = weights_bytes + cache_bytes + overhead
    return overhead, total, gpus_needed(total, _A100_40GB_BYTES, heads)


def _cards(needed: GpusNeeded) -> Values:
    return {"gpus": needed.by_memory, "tp_valid": list(needed.tensor_parallel), "practical": needed.practical}


def _share_of_a_card() -> Values:
    cached = _LLAMA_8B.bytes_at(8191)
    return {"of_24e9": cached / (24 * GB), "of_24GiB": cached / (24 * GIB), "of_1p1_over_24": 1.1 / 24}


def _elements() -> Values:
    """Bytes of an element, the scales of integers left aside."""
    formats = {"fp32": "float32", "fp16": "float16", "int8": "int8", "int4": "int4"}
    return {name: round(weight_format(stored).bits) / 8 for name, stored in formats.items()}


def _lora() -> Values:
    adapters = lora_parameters(8, [(5120, 5120)] * 2, 40)
    return {"lora_params": adapters, "share": adapters / 13e9}


def _serving_13b() -> tuple[int, int, GpusNeeded]:
    return _serving(26 * GB, int(10 * _LLAMA_13B.bytes_at(8192)), 40)


def _serving_175b() -> tuple[int, int, GpusNeeded]:
    return _serving(350 * GB, int(_OPT_175B.bytes_at(8192)), 96)


def _gpt2() -> Values:
    return {
        "per_token_fp32": _GPT2.growth_bytes_per_token("float32"),
        "per_token_fp16": _GPT2.growth_bytes_per_token("float16"),
        "at_1005_tokens": {"bytes": int(_GPT2.bytes_at(1005, "float32"))},
    }


_OURS: Mapping[str, Callable[[], Values]] = {
    "S0-1": lambda: {"bytes": _LLAMA_8B.growth_bytes_per_token()},
    "S0-2": lambda: _cached(_LLAMA_8B, 8191),
    "S0-3": _share_of_a_card,
    "S0-4": lambda: {"bytes": _LLAMA_70B.growth_bytes_per_token()},
    "S0-5": lambda: _cached(_LLAMA_70B, 8191),
    "S0-6": lambda: _cached(_LLAMA_8B, 8191, 32),
    "S0-7": lambda: {"tokens": 8192 - 1},
    "S1-1": _elements,
    "S1-2": lambda: {"bytes": int(training_memory(GB, precision="float32").weights_bytes)},
    "S1-3": lambda: {"bytes": int(training_memory(GB, precision="float32").gradients_bytes)},
    "S1-4": lambda: {"bytes": int(training_memory(GB).optimizer_bytes)},
    # As the article has it: four bytes once more, and the paper's factor of five left out.
    "S1-5": lambda: {"bytes": 4 * 2048 * 4096 * 32 * (34 + 2048 * 32 // 4096)},
    "S1-5b": lambda: _activations(2048, 4096, 32, 32),
    "S1-7": lambda: {"bytes": 2 * 1024 * 5120 * 2},
    "S1-8": lambda: {"bytes": int(training_memory(13 * GB).weights_bytes)},
    "S1-9": lambda: {"bytes": int(training_memory(13 * GB).optimizer_bytes)},
    "S1-10": lambda: _activations(1024, 5120, 40, 40),
    "S1-11": lambda: {"bytes": int(training_memory(13 * GB, activations_bytes=15_518_924_800).total_bytes)},
    "S1-12": _lora,
    "S1-13": lambda: {"flop": _phase(1024).compute_seconds * _A100_FLOPS},
    "S1-14": lambda: {"flop": _phase(1).compute_seconds * _A100_FLOPS},
    "S1-15": lambda: _times(1024),
    "S1-16": lambda: _times(1),
    "S1-17": lambda: {"weights": {"bytes": 14 * GB}, "kv": _cached(_LLAMA_7B, 1024)},
    "S2-1": lambda: {"bytes": _LLAMA_13B.growth_bytes_per_token()},
    "S2-2": lambda: _cached(_LLAMA_13B, 2000),
    "S2-3": lambda: {"bytes": int(training_memory(13 * GB).weights_bytes)},
    "S2-4": lambda: _cached(_LLAMA_13B, 8192, 10),
    "S2-5": lambda: {"bytes": _serving_13b()[0]},
    "S2-6": lambda: {"bytes": _serving_13b()[1]},
    "S2-7": lambda: _cards(_serving_13b()[2]),
    "S2-8": lambda: {"GB": 40 * 2 // 10},
    "S2-9": lambda: {"bytes": int(training_memory(175 * GB).weights_bytes)},
    "S2-10": lambda: _cached(_OPT_175B, 8192),
    "S2-11": lambda: {"bytes": _serving_175b()[0]},
    "S2-12": lambda: {"bytes": _serving_175b()[1], **_cards(_serving_175b()[2])},
    "S3-2": lambda: {"speedup": 56.197 / 11.885},
    "S3-3": _gpt2,
}
"""The computation behind each figure, by its id."""
