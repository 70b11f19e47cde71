"""Ideal bytes of one sequence against published layer facts, model by model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.model.known import known_models

from bench.accuracy.configs import Config, Library, spread_layers
from bench.accuracy.page import Section, paragraphs, table, whole
from bench.table import Figure
from kvmodel import ModelError, read_architecture

_LONGEST = 131_072
_FOLDERS = {"configs": "written out", "published_configs": "as published"}
_TESTS = "tests"
_SOURCES = {**_FOLDERS, _TESTS: "of the project's tests"}


@dataclass(frozen=True, slots=True)
class Bytes:
    """What one sequence takes, in bytes; `totals` by length in tokens."""

    growth: float
    window: float
    state: float
    state_16_bit: float
    totals: Mapping[int, float]

    def off(self, other: "Bytes") -> float:
        """The most that any of the figures differs."""
        pairs = [(self.growth, other.growth), (self.window, other.window), (self.state, other.state)]
        pairs.append((self.state_16_bit, other.state_16_bit))
        pairs += [(self.totals[tokens], total) for tokens, total in other.totals.items()]
        return max(abs(one - another) for one, another in pairs)


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One row of the vectors."""

    id: str
    family: str
    truth: Bytes
    layers: tuple[tuple[str, int], ...]
    """Kinds that keep a cache, with the number of their layers."""
    source: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row against one config."""

    model: KnownModel
    folder: str
    ours: Bytes | None
    reason: str = ""
    """Why it is not exact, or not compared."""
    input_error: bool = False
    """The config describes other layers than the row, and with the row's layers the result is exact."""

    @property
    def off(self) -> float | None:
        return None if self.ours is None else self.ours.off(self.model.truth)


def read_models(vectors: Path) -> list[KnownModel]:
    rows = json.loads((vectors / "kv_vectors.json").read_text())["models"]
    return [_model(row) for row in rows]


def _model(row: Mapping[str, Any]) -> KnownModel:
    size = row["bf16"]
    states = size["state_bytes_per_sequence"]
    return KnownModel(
        id=row["id"],
        family=row["family"],
        truth=Bytes(
            growth=size["growth_bytes_per_token"],
            window=sum(part["bytes_per_token"] * part["window"] for part in size["windowed"]),
            state=states["conv16_recurrent32"],
            state_16_bit=states["all16"],
            totals={int(tokens): total for tokens, total in size["ideal_bytes_per_sequence"].items()},
        ),
        layers=tuple((group["t"], group.get("n", 0)) for group in row["layer_groups"] if group["t"] != "shared"),
        source=row["expected_source"],
    )


def our_bytes(config: Config, lengths: list[int]) -> Bytes:
    """The memory model's figures. Raises ModelError."""
    read = read_architecture(config)
    return Bytes(
        growth=read.growth_bytes_per_token(),
        window=read.window_bytes_per_sequence(),
        state=read.state_bytes_per_sequence(),
        state_16_bit=read.state_bytes_as(conv_bytes=2, recurrent_bytes=2),
        totals={tokens: read.bytes_at(tokens) for tokens in lengths},
    )


def compare(model: KnownModel, folder: str, config: Config) -> Comparison:
    """The row against a config; a difference is explained where the config describes other layers than the row."""
    lengths = list(model.truth.totals)
    try:
        ours = our_bytes(config, lengths)
    except ModelError as error:
        return Comparison(model, folder, None, f"refused: {error}")
    if not ours.off(model.truth):
        return Comparison(model, folder, ours)
    mended = with_layers_of(config, model.layers)
    if mended is None or our_bytes(mended, lengths).off(model.truth):
        return Comparison(model, folder, ours, "not explained")
    listed = config["layer_types"].count("full_attention")
    total = len(config["layer_types"])
    wanted = " + ".join(f"{count} {kind}" for kind, count in model.layers)
    reason = f"the file lists {listed} full + {total - listed} other layers, the row {wanted}; with those, exact"
    return Comparison(model, folder, ours, reason, input_error=True)


def with_layers_of(config: Config, layers: tuple[tuple[str, int], ...]) -> Config | None:
    """The config with as many full layers as the row has; None where its list of layers is not of two kinds."""
    listed = config.get("layer_types", [])
    others = set(listed) - {"full_attention"}
    full = sum(count for kind, count in layers if kind in ("full", "mla"))
    if len(others) != 1 or sum(count for _, count in layers) != len(listed):
        return None
    return {**config, "layer_types": spread_layers(full, len(listed), others.pop())}


def compare_all(models: list[KnownModel], library: Library) -> list[Comparison]:
    """Each row against every config there is for it; the tests' own only where there is no file."""
    own = {model.id: model.config for model in known_models()}
    found = []
    for model in models:
        configs = {folder: library.file(folder, model.id) for folder in _FOLDERS}
        if not any(configs.values()):
            configs[_TESTS] = own.get(model.id)
        found += [compare(model, folder, config) for folder, config in configs.items() if config is not None]
    return found


def section(models: list[KnownModel], comparisons: list[Comparison]) -> Section:
    rows = [_row(model, [one for one in comparisons if one.model is model]) for model in models]
    compared = {one.model.id for one in comparisons}
    wrong = [one for one in comparisons if one.off != 0]
    exceptions = [
        [one.model.id, _SOURCES[one.folder], whole(one.off), one.reason or "not explained"] for one in wrong
    ] + [[model.id, "-", "-", "no config in the set"] for model in models if model.id not in compared]
    summary = [
        _summary(name, [one for one in comparisons if one.folder == folder]) for folder, name in _SOURCES.items()
    ]
    return Section(
        "The cache of one sequence, model by model",
        paragraphs(
            _EXPLANATION,
            table(["config", ">compared", ">exact", ">other layers in the file", ">off"], summary),
            "What is not exact or not compared:",
            table(["model", "config", ">most bytes off", "reason"], exceptions),
            "All rows; where one figure stands for growth, windows or state, ours is the truth to the byte:",
            table(
                [
                    "model",
                    "family",
                    ">growth, B/token",
                    ">windows, B",
                    ">state, B",
                    f">{_LONGEST:,} tokens: ours, B",
                    ">truth, B",
                    ">off, written out",
                    ">off, as published",
                ],
                rows,
            ),
        ),
        (Figure("models: most bytes off", "B", 0, _most_off(comparisons)),),
    )


def _most_off(comparisons: list[Comparison]) -> float:
    """Most bytes off where the input is the row's; infinite where a config is refused."""
    return max(
        (float("inf") if one.off is None else one.off for one in comparisons if not one.input_error), default=0.0
    )


def _summary(name: str, held: list[Comparison]) -> list[str]:
    exact = sum(one.off == 0 for one in held)
    input_errors = sum(one.input_error for one in held)
    return [name, str(len(held)), str(exact), str(input_errors), str(len(held) - exact - input_errors)]


def _row(model: KnownModel, found: list[Comparison]) -> list[str]:
    by_folder = {one.folder: one for one in found}
    ours = next((one.ours for one in found if one.ours is not None), None)
    truth = model.truth
    offs = [whole(by_folder[folder].off) if folder in by_folder else "-" for folder in _FOLDERS]
    return [
        model.id,
        model.family,
        _pair(None if ours is None else ours.growth, truth.growth),
        _pair(None if ours is None else ours.window, truth.window),
        _pair(None if ours is None else ours.state, truth.state),
        whole(None if ours is None else ours.totals[_LONGEST]),
        whole(truth.totals[_LONGEST]),
        *offs,
    ]


def _pair(ours: float | None, truth: float) -> str:
    if ours is None:
        return f"truth {whole(truth)}"
    return whole(truth) if ours == truth else f"ours {whole(ours)}, truth {whole(truth)}"


_EXPLANATION = """
Bytes of K and V (or what stands in their place) of one sequence in 16 bits, on one GPU, without any rounding to blocks:
what each further token adds, what windows hold once they are full, and the state that does not depend on the length
(convolution in 16 bits and recurrence in 32; both in 16 bits is compared too). Totals are compared at 1, 1,024, 8,192,
32,768 and 131,072 tokens; `off` is the largest difference of any of these figures. The truth is arithmetic on the
layers' published facts, checked for most rows against the cache shapes of Hugging Face transformers 5.23. Each model's
config is read twice where both forms are at hand: as its authors published it, and with every default written out.
"""
