"""A planner's case: plain values in, checked ones out. The one table of fields serves flags, batch and API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from kvmodel.errors import ModelError, show
from kvmodel.expected import LONGEST_TOKENS, Lengths

Kind = Literal["text", "int", "number", "flag", "object", "ints", "texts", "lengths"]

DEFAULT_LENGTHS = (1, 1024, 8192, 32768, 131072)
_MOST = 2**60
_MOST_LENGTHS = 1000
_LEFT_ALONE = frozenset({"id", "name", "note", "source"})
"""Keys that people put beside a case for themselves."""


@dataclass(frozen=True, slots=True)
class CaseField:
    """One field of a case: how it is read and what it means."""

    kind: Kind
    help: str


FIELDS: Mapping[str, CaseField] = {
    "model": CaseField("text", "config.json, a folder that holds one (weights are read beside it), or a .gguf file"),
    "config": CaseField("object", "an inline config.json object, instead of a path"),
    "engine": CaseField("text", "the inference engine (default vllm)"),
    "engine_version": CaseField("text", "its version, such as 0.19.0; left out, the newest rules apply"),
    "gpu": CaseField("text", "the card, such as h100-80gb"),
    "gpu_memory_gib": CaseField("number", "memory of the card in GiB, where it is not in the catalogue"),
    "tp": CaseField("int", "tensor parallelism (default 1)"),
    "pp": CaseField("int", "pipeline parallelism (default 1)"),
    "dp": CaseField("int", "data parallelism (default 1)"),
    "dcp": CaseField("int", "decode context parallelism (default 1)"),
    "max_model_len": CaseField("int", "the longest request in tokens (default: the model's own limit)"),
    "max_num_seqs": CaseField("int", "requests batched at once"),
    "max_num_batched_tokens": CaseField("int", "tokens in one step"),
    "gpu_memory_utilization": CaseField("number", "share of the card that the engine may take"),
    "block_size": CaseField("int", "tokens in one KV block"),
    "weights_dtype": CaseField("text", "dtype or format of the weights, where it is not the checkpoint's"),
    "kv_dtype": CaseField("text", "dtype of the KV cache (default auto: the model's)"),
    "kv_dtype_skip_layers": CaseField("texts", "layers that keep the model's dtype: numbers, or sliding_window (vLLM)"),
    "state_dtype": CaseField("text", "dtype of recurrent states (default auto: the model's)"),
    "speculative_tokens": CaseField("int", "tokens that a draft proposes in a step"),
    "draft_layers": CaseField("int", "the model's own prediction layers that are loaded as a draft (MTP, EAGLE)"),
    "hybrid_kv_cache": CaseField("flag", "groups of their own for window and state layers"),
    "async_scheduling": CaseField("flag", "schedule a step ahead"),
    "prefix_caching": CaseField("flag", "keep blocks of finished requests for reuse"),
    "enforce_eager": CaseField("flag", "run without CUDA graphs"),
    "available_kv_bytes": CaseField("int", "bytes for the KV cache on each GPU, instead of a prediction"),
    "available_kv_gib": CaseField("number", "the same in GiB"),
    "tokens_per_request": CaseField("int", "prompt and output of a usual request"),
    "lengths": CaseField("lengths", "lengths of running requests and how often: 512:3,4096:1, or PROMPT+OUTPUT:WEIGHT"),
    "params": CaseField("int", "number of parameters, where no weights are at hand"),
    "weights_bytes_per_gpu": CaseField("int", "bytes of weights on each GPU, where they are known"),
    "at_tokens": CaseField("ints", "lengths at which the ideal is given"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One set-up to plan, checked. None: not given; the engine version's own default is taken."""

    model: str | None = None
    config: Mapping[str, object] | None = None
    engine: str = "vllm"
    engine_version: str | None = None
    gpu: str | None = None
    gpu_memory_gib: float | None = None
    tp: int = 1
    pp: int = 1
    dp: int = 1
    dcp: int = 1
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    block_size: int | None = None
    weights_dtype: str | None = None
    kv_dtype: str = "auto"
    kv_dtype_skip_layers: tuple[str, ...] | None = None
    state_dtype: str | None = None
    speculative_tokens: int | None = None
    draft_layers: int | None = None
    hybrid_kv_cache: bool | None = None
    async_scheduling: bool | None = None
    prefix_caching: bool | None = None
    enforce_eager: bool = False
    available_kv_bytes: int | None = None
    available_kv_gib: float | None = None
    tokens_per_request: int | None = None
    lengths: Lengths | None = None
    params: int | None = None
    weights_bytes_per_gpu: int | None = None
    at_tokens: tuple[int, ...] = DEFAULT_LENGTHS

    @property
    def given_kv_bytes(self) -> int | None:
        """The pool's bytes on each GPU, if the case states them."""
        if self.available_kv_bytes is not None:
            return self.available_kv_bytes
        return None if self.available_kv_gib is None else int(self.available_kv_gib * 2**30)


def read_case(values: Mapping[str, object]) -> tuple[Case, list[str]]:
    """(the case, a warning for each key that is not known). Raises ModelError naming the field at fault.

    A value of None means that the field was left out.
    """
    if not isinstance(values, Mapping):
        raise ModelError("case", f"{show(values)} is not an object")
    unknown = [
        f"{show(key)}: no such field, left aside" for key in values if key not in FIELDS and key not in _LEFT_ALONE
    ]
    checked: dict[str, Any] = {
        key: _checked(key, FIELDS[key].kind, value)
        for key, value in values.items()
        if value is not None and key in FIELDS
    }
    case = Case(**checked)
    if case.model is None and case.config is None:
        raise ModelError("model", "is missing: a path is needed, or an object in config")
    if case.available_kv_bytes is not None and case.available_kv_gib is not None:
        raise ModelError("available_kv_gib", "is given beside available_kv_bytes: only one can be meant")
    if case.gpu_memory_utilization is not None and case.gpu_memory_utilization > 1:
        raise ModelError("gpu_memory_utilization", f"{show(case.gpu_memory_utilization)} is more than 1")
    return case, unknown


def _checked(name: str, kind: Kind, value: object) -> object:
    if kind == "text":
        if not isinstance(value, str) or not value or len(value) > 4096:
            raise ModelError(name, f"{show(value)} is not a text")
        return value
    if kind == "int":
        return _whole(name, value)
    if kind == "number":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MOST:
            raise ModelError(name, f"{show(value)} is not a number above 0")
        return float(value)
    if kind == "flag":
        if not isinstance(value, bool):
            raise ModelError(name, f"{show(value)} is not true or false")
        return value
    if kind == "object":
        if not isinstance(value, Mapping):
            raise ModelError(name, f"{show(value)} is not an object")
        return value
    return _list(name, kind, value)


def _list(name: str, kind: Kind, value: object) -> object:
    if not isinstance(value, list | tuple) or not value or len(value) > _MOST_LENGTHS:
        what = "layers" if kind == "texts" else "lengths"
        raise ModelError(name, f"{show(value)} is not a list of {what}")
    if kind == "texts":
        return tuple(str(item) if type(item) is int else str(_checked(name, "text", item)) for item in value)
    if kind == "lengths":
        return _lengths(name, value)
    return tuple(_whole(name, length) for length in value)


def _lengths(name: str, entries: Sequence[object]) -> Lengths:
    """Entries are {"tokens", "weight"} or [tokens, weight], or all of them {"prompt", "output", "weight"}."""
    found = tuple(_length(name, entry) for entry in entries)
    if len({output > 0 for _, output, _ in found}) > 1:
        # The ones are shares of the time, the others of arrivals.
        raise ModelError(name, "mixes lengths that stand with prompts and outputs: all must be of one kind")
    return found


def _length(name: str, entry: object) -> tuple[int, int, float]:
    if isinstance(entry, list | tuple) and len(entry) == 2:
        entry = dict(zip(("tokens", "weight"), entry, strict=True))
    if not isinstance(entry, Mapping):
        raise ModelError(name, f"{show(entry)} is no pair of tokens and weight, nor an object that names them")
    keys = entry.keys() - {"weight"}
    if keys not in ({"tokens"}, {"prompt", "output"}):
        raise ModelError(name, f"{show(', '.join(map(str, entry)))} are not tokens, or prompt and output, and weight")
    weight = _checked(name, "number", entry.get("weight", 1))
    prompt = _whole(name, entry["tokens" if "tokens" in keys else "prompt"])
    output = _whole(name, entry["output"]) if "output" in keys else 0
    if prompt + output > LONGEST_TOKENS:
        raise ModelError(name, f"{show(prompt + output)} tokens are more than {LONGEST_TOKENS}")
    return prompt, output, cast("float", weight)


def _whole(name: str, value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _MOST:
        raise ModelError(name, f"{show(value)} is not a positive whole number")
    return value
