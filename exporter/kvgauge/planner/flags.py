"""The planner's command line, made from the fields of a case; comma lists become the product of their values."""

import argparse
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kvgauge.complaints import InputError, OneLineParser

MOST_CASES = 10_000
"""Plans of one command line; more than that belongs into a batch."""

_WHOLE = re.compile(r"[+-]?\d{1,30}")
_ON = frozenset({"on", "true", "yes", "1"})
_OFF = frozenset({"off", "false", "no", "0"})
_NUMBERS = frozenset({"int", "number"})

_DESCRIPTION = """\
What a model needs on a GPU and what the engine makes of it: offline, no GPU. A flag left out takes the engine
version's own default. Any flag may hold a comma list (--tp 1,2,4 --kv-dtype auto,fp8): all combinations are planned
and compared."""


class FieldLike(Protocol):
    """One field of a case, as `kvmodel` describes it."""

    @property
    def kind(self) -> str:
        """`text`, `int`, `number`, `flag`, `object`, `ints`, `texts` or `lengths`."""

    @property
    def help(self) -> str:
        """What the field means."""


Fields = Mapping[str, FieldLike]
Case = dict[str, object]


@dataclass(frozen=True, slots=True)
class Option:
    """A field of our own, beside those of a case."""

    kind: str
    help: str


TRAINING: Fields = {
    "batch_size": Option("int", "sequences of one micro-batch on each GPU (default 1)"),
    "seq_len": Option("int", "tokens of one sequence (default 2048)"),
    "optimizer": Option("text", "adamw, adamw_8bit, sgd_momentum or sgd (default adamw)"),
    "precision": Option("text", "bf16-mixed, fp16-mixed, bf16 or fp32 (default bf16-mixed)"),
    "zero": Option("int", "ZeRO stage 0..3 over --dp (default 0)"),
    "recompute": Option("text", "activations: none, selective or full (default none)"),
    "sequence_parallel": Option("flag", "cut what tensor parallelism leaves whole along the sequence"),
    "lora_rank": Option("int", "train LoRA adapters of this rank, the base frozen"),
    "qlora": Option("flag", "LoRA on a 4-bit base (rank 16 where --lora-rank is left out)"),
}
MEASURING = ("prompt_tokens", "new_tokens", "device")
FITTING = ("concurrency", "gpus_max")


def parser(fields: Fields) -> OneLineParser:
    """The command line of `kvgauge plan`. Fields come out as the text that was typed, under their own names."""
    made = OneLineParser(
        prog="kvgauge plan",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    set_up = made.add_argument_group("the set-up")
    for name, field in fields.items():
        _add_field(set_up, name, field)
    _add_modes(made)
    training = made.add_argument_group("training (--train)")
    for name, field in TRAINING.items():
        _add_field(training, name, field)
    _add_measuring(made)
    return made


def cases(fields: Fields, typed: Mapping[str, object]) -> list[Case]:
    """All combinations of what was typed, the flag named last in `fields` varying fastest.

    Fields that were not typed are absent. Raises InputError naming the field.
    """
    lists = {name: _values(name, field, typed[name]) for name, field in fields.items() if typed.get(name) is not None}
    count = math.prod(len(values) for values in lists.values())
    if count > MOST_CASES:
        raise InputError(f"the lists make {count} combinations, the most is {MOST_CASES}: use --batch")
    return [dict(zip(lists, chosen, strict=True)) for chosen in itertools.product(*lists.values())]


def varied(found: Sequence[Case]) -> list[str]:
    """The fields in which the cases differ, in the order of the flags; a config differs as its model does."""
    names = [name for name in found[0] if name != "config"] if found else []
    return [name for name in names if any(case[name] != found[0][name] for case in found)]


def _add_field(group: "argparse._ArgumentGroup", name: str, field: FieldLike) -> None:
    flag = "--" + name.replace("_", "-")
    text = field.help.replace("%", "%%")
    if field.kind == "flag":
        group.add_argument(flag, dest=name, nargs="?", const="on", metavar="on,off", help=text)
        negated = "--no-" + name.replace("_", "-")
        group.add_argument(negated, dest=name, action="store_const", const="off", help=argparse.SUPPRESS)
        return
    if field.kind == "object":
        text += " (JSON)"
    group.add_argument(flag, dest=name, metavar="N" if field.kind in _NUMBERS else name.upper(), help=text)


def _add_modes(made: OneLineParser) -> None:
    modes = made.add_argument_group("what to do with it")
    modes.add_argument(
        "--hub",
        action="store_true",
        help="--model is a repository of the Hugging Face Hub: its config and weights' headers are fetched",
    )
    modes.add_argument("--json", action="store_true", help="the plan as JSON; a list where flags hold lists")
    modes.add_argument(
        "--fit",
        action="store_true",
        help="search what fits: the largest context for --concurrency; with --gpus-max the fewest cards for it; "
        "without either the largest concurrency for --tokens-per-request or --max-model-len",
    )
    modes.add_argument("--concurrency", metavar="N", help="requests that run together, for --fit")
    modes.add_argument("--gpus-max", metavar="N", help="the most cards that --fit may take")
    modes.add_argument(
        "--batch", metavar="CASES.jsonl", help="plan each line's case, - for stdin; other flags fill what a line omits"
    )
    modes.add_argument("--plot", metavar="OUT.svg", help="draw memory against concurrency")
    modes.add_argument("--train", action="store_true", help="memory of training instead of serving")
    modes.add_argument(
        "--measure-cache",
        action="store_true",
        help="generate with and without KV cache by torch and Transformers, and compare",
    )


def _add_measuring(made: OneLineParser) -> None:
    group = made.add_argument_group("measuring (--measure-cache)")
    group.add_argument("--prompt-tokens", metavar="N", help="tokens of the prompt (default 128)")
    group.add_argument("--new-tokens", metavar="N", help="tokens to generate (default 128)")
    group.add_argument("--device", metavar="NAME", help="auto, cpu or cuda (default auto)")


def _values(name: str, field: FieldLike, typed: object) -> list[object]:
    text = str(typed)
    if field.kind == "object":
        return [_object(name, text)]
    if field.kind == "ints":
        return [[_whole(name, item) for item in _items(name, text)]]
    if field.kind == "texts":
        return [_items(name, text)]
    if field.kind == "lengths":
        return [[_length(name, item) for item in _items(name, text)]]
    if field.kind == "text":
        # A path may hold a comma of its own.
        return [text] if "," in text and _exists(text) else list(_items(name, text))
    convert = {"int": _whole, "number": _number, "flag": _flag}[field.kind]
    return [convert(name, item) for item in _items(name, text)]


def _items(name: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise InputError(f"{name}: {text[:80]!r} has an empty value")
    return items


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def _object(name: str, text: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{name}: {text[:80]!r} is not a JSON object") from None
    if not isinstance(value, dict):
        raise InputError(f"{name}: {text[:80]!r} is not a JSON object")
    return value


def _whole(name: str, text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise InputError(f"{name}: {text[:80]!r} is not a whole number")
    return int(text)


def _length(name: str, item: str) -> dict[str, object]:
    """`TOKENS:WEIGHT` or `PROMPT+OUTPUT:WEIGHT`; the weight may be left out."""
    tokens, colon, weight = item.partition(":")
    prompt, plus, output = tokens.partition("+")
    found: dict[str, object] = {"weight": _number(name, weight) if colon else 1}
    if plus:
        return {"prompt": _whole(name, prompt.strip()), "output": _whole(name, output.strip()), **found}
    return {"tokens": _whole(name, tokens.strip()), **found}


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{name}: {text[:80]!r} is not a number")
    return value


def _flag(name: str, text: str) -> bool:
    if text.lower() in _ON | _OFF:
        return text.lower() in _ON
    raise InputError(f"{name}: {text[:80]!r} is not on or off")


def whole(name: str, typed: str | None, default: int | None = None, least: int = 1) -> int | None:
    """A flag that is not a case's, as a whole number of at least `least`. Raises InputError naming it."""
    if typed is None:
        return default
    value = _whole(name, typed)
    if value < least:
        raise InputError(f"{name}: {value} is less than {least}")
    return value
