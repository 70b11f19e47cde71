"""Step costs against measured latencies: `python -m bench.advice.latency_anchors [POINTS.csv]`.

The points come from three kinds of machine, and each kind has one set of constants, none of them a model's:

- vLLM of today (`kvmodel.latency.VLLM`), also for any source not named here;
- Llama-3.1-8B in SageServe's data: the same engine, GPUs joined through the host;
- the 2023 stack of splitwise-sim: eager launches, which a step waits for layer by layer, and host work per sequence.
  Launches take a different time on the hosts of A100 and H100 boards.

The constants of the last two were fitted to these very points. Fitted to Llama-2-70B alone (within 0.15 but for the two
batches of 64 at two GPUs), the 2023 stack predicted all 38 points of Bloom-176B within 0.15. These two batches cannot
have run together: their prefill takes less than a sixth of that of 32. The two prompts of 8192 tokens in SageServe's
data have twice and thrice the latency of 4096 at batch 1, which no term here explains.
"""

import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.table import Figure, report
from kvmodel.architecture import Architecture, read_architecture
from kvmodel.gpus import find_gpu
from kvmodel.latency import NVLINK, PCIE, VLLM, Link, Stack, StepCost, step_cost
from kvmodel.parameters import count_parameters

POINTS = Path(__file__).parents[3] / "shared" / "reference" / "latency_points.csv"
TOLERANCE = 0.15

_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
CONFIGS: Mapping[str, Mapping[str, object]] = {
    "bloom-176b": {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        "n_layer": 70,
        "hidden_size": 14336,
        "n_head": 112,
        "vocab_size": 250880,
    },
    "llama2-70b": {
        **_LLAMA,
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "llama-3.1-8b": {
        **_LLAMA,
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
"""Public shapes, as in each model's config.json."""


@dataclass(frozen=True, slots=True)
class Machine:
    """How the points of one source were made."""

    stack: Stack
    link: Link
    mixed: bool = False
    """Whether `batch` requests kept coming one after another, so that a request waits for the others' prefills between
    its own tokens; else all prefilled before any decoded."""


_NCCL = Link("nvlink, NCCL of 2023", 12e-6, 12e-6, 200e9, shared=False)
_EAGER = {"compute_efficiency": 0.6, "bandwidth_efficiency": 0.85, "step_seconds": 0.0, "sequence_seconds": 0.21e-3}
_MACHINES_2023 = {
    "a100-80gb": Machine(Stack("eager 2023, A100 host", layer_seconds=0.215e-3, **_EAGER), _NCCL),
    "h100-80gb": Machine(Stack("eager 2023, H100 host", layer_seconds=0.132e-3, **_EAGER), _NCCL),
}


@dataclass(frozen=True, slots=True)
class Anchor:
    """One measured point beside its prediction; medians in milliseconds."""

    model: str
    gpu: str
    tp: int
    prompt_tokens: int
    batch: int
    output_tokens: int
    measured_ms: float
    """Per output token."""
    predicted_ms: float
    measured_prefill_ms: float
    predicted_prefill_ms: float

    @property
    def error_ratio(self) -> float:
        """Of the time per output token, signed: above 0 the prediction is too slow."""
        return self.predicted_ms / self.measured_ms - 1

    @property
    def prefill_error_ratio(self) -> float:
        """Of the prefill, signed."""
        return self.predicted_prefill_ms / self.measured_prefill_ms - 1


def anchors(path: Path = POINTS) -> list[Anchor]:
    """All points of the file, in order. Raises KeyError for a model whose shape is not in `CONFIGS`."""
    with path.open(newline="") as file:
        return [_anchor(row) for row in csv.DictReader(file)]


def machine_of(source: str, gpu: str) -> Machine:
    """The machine behind a source: the newest where nothing is known of it."""
    if "splitwise" in source:
        return _MACHINES_2023[gpu]
    if "SageServe" in source:
        return Machine(VLLM, PCIE, mixed=True)
    return Machine(VLLM, NVLINK)


def _anchor(row: Mapping[str, str]) -> Anchor:
    model, gpu, tp = row["model"], row["gpu"], int(row["tensor_parallel"])
    prompt, batch, output = (int(row[name]) for name in ("prompt_tokens", "batch", "output_tokens"))
    machine = machine_of(row["source"], gpu)
    cost = _cost(model, gpu, tp, machine)
    seconds = cost.seconds(batch * (prompt + output / 2), batch, sequences=batch)
    if machine.mixed:
        # In the life of one request each of the others begins once; its prefill rides on steps that decode anyway.
        others = prompt * cost.token_seconds + prompt**2 / 2 * cost.pair_seconds
        seconds += (batch - 1) * others / output
    return Anchor(
        model,
        gpu,
        tp,
        prompt,
        batch,
        output,
        measured_ms=float(row["per_token_ms_median"]),
        predicted_ms=1e3 * seconds,
        measured_prefill_ms=float(row["prefill_ms_median"]),
        predicted_prefill_ms=1e3 * cost.seconds(0, prompt, prompt**2 / 2),
    )


@cache
def _shape(model: str) -> tuple[Architecture, int]:
    return read_architecture(CONFIGS[model]), count_parameters(CONFIGS[model]).total


def _cost(model: str, gpu: str, tp: int, machine: Machine) -> StepCost:
    architecture, parameters = _shape(model)
    card = find_gpu(gpu)
    return step_cost(
        architecture,
        active_parameters=parameters,
        weights_bytes_per_gpu=2 * parameters // tp,
        flop_per_second=card.dense_flop_per_second["bfloat16"],
        bytes_per_second=card.bandwidth_bytes_per_second,
        tp=tp,
        stack=machine.stack,
        link=machine.link,
    )


def share_within(errors: Iterable[float], tolerance: float = TOLERANCE) -> float:
    """Share of the errors no larger than `tolerance` either way."""
    found = [abs(error) <= tolerance for error in errors]
    return sum(found) / len(found)


def main(arguments: list[str]) -> None:
    """Prints the points by model and card, those that are missed, and the share that is met."""
    path = Path(arguments[0]) if arguments else POINTS
    if not path.is_file():
        sys.exit(f"latency_anchors: {path}: there is no such file")
    found = anchors(path)
    groups: defaultdict[tuple[str, str, int], list[Anchor]] = defaultdict(list)
    for anchor in found:
        groups[anchor.model, anchor.gpu, anchor.tp].append(anchor)
    print(
        f"{'model':14}{'gpu':12}{'tp':>3}{'points':>8}{'within':>8}{'median':>9}{'worst':>9}   (time per output token)"
    )
    for (model, gpu, tp), members in groups.items():
        errors = [member.error_ratio for member in members]
        print(
            f"{model:14}{gpu:12}{tp:3}{len(members):8}{share_within(errors):8.0%}"
            f"{statistics.median(errors):+9.1%}{max(errors, key=abs):+9.1%}"
        )
    missed = sorted(
        (anchor for anchor in found if abs(anchor.error_ratio) > TOLERANCE), key=lambda a: -abs(a.error_ratio)
    )
    for anchor in missed:
        print(
            f"missed: {anchor.model} {anchor.gpu} tp {anchor.tp}, prompt {anchor.prompt_tokens}, batch {anchor.batch}: "
            f"{anchor.measured_ms:.1f} ms measured, {anchor.predicted_ms:.1f} predicted ({anchor.error_ratio:+.0%})"
        )
    # Larger batches' prefill times count the wait for the others of the batch, in ways that differ by source.
    alone = [anchor.prefill_error_ratio for anchor in found if anchor.batch == 1]
    errors = [anchor.error_ratio for anchor in found]
    report(
        "latency anchors",
        [
            Figure(f"points of {len(found)} beyond 15 % per output token", "%", 5, 100 * (1 - share_within(errors))),
            Figure("median error per output token, either way", "%", 10, 100 * statistics.median(map(abs, errors))),
            Figure(
                f"median error of {len(alone)} lone prefills, either way",
                "%",
                20,
                100 * statistics.median(map(abs, alone)),
            ),
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
