"""`kvgauge plan --train`: where the memory of training goes, on each GPU."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from kvgauge.complaints import InputError
from kvgauge.planner import tables
from kvgauge.planner.comparison import chosen
from kvgauge.planner.figures import GIB, count, gib
from kvgauge.planner.flags import varied
from kvmodel.architecture import Architecture, load_architecture, read_architecture
from kvmodel.errors import ModelError
from kvmodel.gpus import card_of, gpus_needed
from kvmodel.layers import HeadsLayer
from kvmodel.parameters import count_parameters
from kvmodel.training import TrainingMemory, activation_bytes, lora_parameters, training_memory, zero_gpus_needed
from kvmodel.weights import read_weights

PRECISIONS = {"bf16-mixed": "bfloat16", "fp16-mixed": "float16", "bf16": "bfloat16_pure", "fp32": "float32"}
NF4_BITS = 4.127
"""Bits of a parameter under NF4 with double quantization: 4 + 8/64 + 32/(64*256) (arXiv 2305.14314, section 3)."""
_QLORA_RANK = 16
_RENAMED = {
    "recomputation": "recompute",
    "zero_stage": "zero",
    "sequence_tokens": "seq_len",
    "micro_batch": "batch_size",
}


@dataclass(frozen=True, slots=True)
class Training:
    """One training set-up and what it takes of each GPU."""

    model: str
    parameters: int
    memory: TrainingMemory
    warnings: tuple[str, ...]
    needed: "Needed | None" = None
    """None where no card is named."""

    def to_json(self) -> dict[str, object]:
        """The breakdown as JSON."""
        memory = self.memory
        return {
            "model": self.model,
            "parameters": self.parameters,
            "trained_parameters": memory.trained_parameters,
            "memory": {
                "weights_bytes": memory.weights_bytes,
                "gradients_bytes": memory.gradients_bytes,
                "optimizer_bytes": memory.optimizer_bytes,
                "activations_bytes": memory.activations_bytes,
                "total_bytes": memory.total_bytes,
            },
            "gpus_needed": None if self.needed is None else asdict(self.needed),
            "warnings": list(self.warnings),
            "error": None,
        }


@dataclass(frozen=True, slots=True)
class Needed:
    """Cards of one kind that hold the training, None where no number does."""

    gpu_bytes: int
    by_memory: int
    """The bytes alone, of one replica that nothing is cut of."""
    tensor_parallel: int | None
    """The smallest group that divides the attention heads and is enough."""
    zero_stages: dict[str, int | None]
    """By ZeRO stage: data-parallel ranks of the case's `tp * pp` cards each."""


def run(cases: Sequence[Mapping[str, object]], *, as_json: bool) -> None:
    """Prints the breakdown of each case. Raises InputError naming the field at fault."""
    found = [breakdown(case) for case in cases]
    names = varied(list(map(dict, cases)))
    if as_json:
        listed = [
            {"case": {name: case[name] for name in names}, **made.to_json()}
            for case, made in zip(cases, found, strict=True)
        ]
        sys.stdout.write(json.dumps(listed if len(listed) > 1 else found[0].to_json(), indent=2) + "\n")
    else:
        _show(cases, found, names)


def breakdown(case: Mapping[str, object]) -> Training:
    """Memory of one GPU that trains the case's model. Raises InputError naming the field at fault."""
    try:
        return _breakdown(case)
    except ModelError as error:
        field = _RENAMED.get(error.field, error.field)
        if error.file is not None:
            field = f"model: {field}"
        raise InputError(f"{field}: {error.message}" + (f" ({error.file})" if error.file else "")) from None


def _breakdown(case: Mapping[str, object]) -> Training:
    warnings: list[str] = []
    architecture = _architecture(case)
    parameters = _parameters(case, architecture)
    tp, pp, dp = _whole(case, "tp", 1), _whole(case, "pp", 1), _whole(case, "dp", 1)
    precision = str(case.get("precision", "bf16-mixed"))
    if precision not in PRECISIONS:
        raise InputError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    qlora = bool(case.get("qlora", False))
    rank = _whole(case, "lora_rank", _QLORA_RANK) if qlora or case.get("lora_rank") is not None else None
    if pp > 1:
        warnings.append(f"activations: one micro-batch; the first of {pp} pipeline stages holds up to {pp} of them")

    def activations(tp: int, pp: int) -> int:
        return activation_bytes(
            sequence_tokens=_whole(case, "seq_len", 2048),
            micro_batch=_whole(case, "batch_size", 1),
            hidden_size=architecture.hidden_size,
            num_layers=-(-architecture.num_layers // pp),
            num_attention_heads=architecture.num_attention_heads,
            recomputation=str(case.get("recompute", "none")),
            tp=tp,
            sequence_parallel=bool(case.get("sequence_parallel", False)),
        )

    if architecture.experts is not None:
        warnings.append("activations: the formula is that of dense layers; experts add their routed copies")
    uncut = partial(
        training_memory,
        parameters,
        precision=PRECISIONS[precision],
        optimizer=str(case.get("optimizer", "adamw")),
        trained_parameters=None if rank is None else _adapters(architecture, rank),
        base_bits_per_parameter=NF4_BITS if qlora else None,
    )
    memory = uncut(activations_bytes=activations(tp, pp), zero_stage=_whole(case, "zero", 0), dp=dp, tp=tp, pp=pp)
    card = _card_bytes(case)
    needed = None
    if card is not None:
        whole = uncut(activations_bytes=activations(1, 1))
        group = gpus_needed(whole.total_bytes, card, architecture.num_attention_heads)
        one_rank = uncut(activations_bytes=activations(tp, pp), tp=tp, pp=pp)
        ranks = {str(stage): zero_gpus_needed(one_rank, card, stage) for stage in range(4)}
        stages = {stage: None if number is None else number * tp * pp for stage, number in ranks.items()}
        needed = Needed(card, group.by_memory, group.practical, stages)
    model = str(case.get("model", architecture.model_type))
    return Training(model, parameters, memory, tuple(warnings), needed)


def _card_bytes(case: Mapping[str, object]) -> int | None:
    """Of the card the case names, or of the size it states."""
    given, name = case.get("gpu_memory_gib"), case.get("gpu")
    size = int(given * GIB) if isinstance(given, int | float) else None
    card = card_of(name if isinstance(name, str) else None, size)
    return None if card is None else card.usable_bytes


def _architecture(case: Mapping[str, object]) -> Architecture:
    config, model = case.get("config"), case.get("model")
    if isinstance(config, Mapping):
        return read_architecture(config)
    if not isinstance(model, str):
        raise InputError("model: is missing: a path is needed, or an object in config")
    return load_architecture(model)


def _parameters(case: Mapping[str, object], architecture: Architecture) -> int:
    """As given, else of the checkpoint's headers (quantized ones pack several into one element), else of the config."""
    if case.get("params") is not None:
        return _whole(case, "params", 1)
    model = case.get("model")
    if isinstance(model, str) and architecture.quantization is None and _has_weights(Path(model)):
        return read_weights(model).parameters
    try:
        return count_parameters(_config(case)).total
    except ModelError as error:
        raise InputError(f"params: is needed, the config does not tell it ({error})") from None


def _has_weights(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*.safetensors"))


def _config(case: Mapping[str, object]) -> Mapping[str, object]:
    given = case.get("config")
    if isinstance(given, Mapping):
        return given
    path = Path(str(case["model"]))
    # load_architecture has read and refused it before.
    loaded: Mapping[str, object] = json.loads((path / "config.json" if path.is_dir() else path).read_bytes())
    return loaded


def _adapters(architecture: Architecture, rank: int) -> int:
    """Parameters of adapters on the attention's projections and, in dense models, on the MLP's three."""
    hidden, heads = architecture.hidden_size, architecture.num_attention_heads
    if sum(group.count for group in architecture.groups) != architecture.num_layers:
        raise InputError("lora_rank: adapters of layers without a cache of their own are not known")
    total = 0
    for group in architecture.groups:
        layer = group.layer
        if not isinstance(layer, HeadsLayer):
            raise InputError(f"lora_rank: adapters of {type(layer).__name__} layers are not known")
        keys, values = layer.kv_heads * layer.head_dim_k, layer.kv_heads * layer.head_dim_v
        matrices = [(hidden, heads * layer.head_dim_k), (hidden, keys), (hidden, values)]
        matrices.append((heads * layer.head_dim_v, hidden))
        if architecture.experts is None:
            wide = architecture.intermediate_size
            matrices += [(hidden, wide), (hidden, wide), (wide, hidden)]
        total += lora_parameters(rank, matrices, group.count)
    return total


def _whole(case: Mapping[str, object], name: str, default: int) -> int:
    value = case.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name}: {str(value)[:80]!r} is not a whole number")
    return value


def _show(cases: Sequence[Mapping[str, object]], found: Sequence[Training], names: Sequence[str]) -> None:
    screen = tables.console()
    headings = (
        *(name.replace("_", " ") for name in names),
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "total",
    )
    rows = []
    for case, made in zip(cases, found, strict=True):
        memory = made.memory
        sizes = (
            memory.weights_bytes,
            memory.gradients_bytes,
            memory.optimizer_bytes,
            memory.activations_bytes,
            memory.total_bytes,
        )
        rows.append([*chosen(case, names), *map(gib, sizes)])
    title = f"Training {found[0].model}: {count(found[0].parameters)} parameters, bytes on each GPU"
    screen.print(tables.table(title, headings, rows, left=range(len(names))))
    trained = sorted({made.memory.trained_parameters for made in found})
    screen.print(f"Trained parameters: {', '.join(map(count, trained))}")
    for case, made in zip(cases, found, strict=True):
        if made.needed is not None:
            where = ", ".join(f"{name} {value}" for name, value in zip(names, chosen(case, names), strict=True))
            screen.print(f"GPUs of {gib(made.needed.gpu_bytes)}{f' ({where})' if where else ''}: {_ways(made.needed)}")
    screen.print("CUDA's context, communication buffers and fragmentation come on top.")
    for warning in dict.fromkeys(warning for made in found for warning in made.warnings):
        screen.print(f"Warning: {warning}")


def _ways(needed: Needed) -> str:
    """By how it is cut, the cards it takes."""
    ways = {"tensor parallel": needed.tensor_parallel}
    ways |= {f"ZeRO {stage}": number for stage, number in needed.zero_stages.items() if stage != "0"}
    return ", ".join(f"{way} {'does not fit' if number is None else count(number)}" for way, number in ways.items())
