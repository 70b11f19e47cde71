"""`--hub`: models by the names of their repositories on the Hugging Face Hub; each one's headers are fetched once."""

from collections.abc import Mapping
from functools import lru_cache

from kvgauge.complaints import InputError
from kvgauge.planner.figures import Plan
from kvgauge.planner.flags import Case
from kvmodel.architecture import read_architecture
from kvmodel.cases import read_case
from kvmodel.errors import ModelError
from kvmodel.remote_weights import read_config_from_hub, read_weights_from_hub
from kvmodel.weights import weights_bytes_per_gpu

_SIZED = ("weights_bytes_per_gpu", "weights_dtype", "params")
"""Fields that tell the size of the weights: beside them none are fetched."""

_config = lru_cache(maxsize=64)(read_config_from_hub)
_weights = lru_cache(maxsize=64)(read_weights_from_hub)


def with_configs(found: list[Case]) -> list[Case]:
    """The cases with their models' configs. Raises InputError where one cannot be fetched."""
    try:
        return [_with_config(case) for case in found]
    except ModelError as error:
        raise InputError(f"{error.field}: {_message(error)}") from None


def training_cases(found: list[Case]) -> list[Case]:
    """The same with the parameters that are stored, where one element is one parameter."""
    cases = with_configs(found)
    try:
        return [{**case, **_parameters(case)} for case in cases]
    except ModelError as error:
        raise InputError(f"{error.field}: {_message(error)}") from None


def planner(plan: Plan) -> Plan:
    """`plan` for models of the Hub: config and weights come from there where a case does not tell them."""

    def planned(case: Mapping[str, object]) -> dict[str, object]:
        try:
            filled = _with_config(case)
            filled |= _weights_bytes(filled)
        except ModelError as error:
            return {**plan({}), "warnings": [], "error": {"field": error.field, "message": _message(error)}}
        return plan(filled)

    return planned


def _with_config(case: Mapping[str, object]) -> Case:
    model = case.get("model")
    if case.get("config") is not None:
        return dict(case)
    if not isinstance(model, str):
        raise ModelError("model", "is missing: --hub needs the name of a repository")
    return {**case, "config": _config(model)}


def _weights_bytes(case: Case) -> Case:
    checked, _ = read_case(case)
    if checked.model is None or checked.config is None or any(case.get(name) is not None for name in _SIZED):
        return {}
    architecture, weights = read_architecture(checked.config), _weights(checked.model)
    return {"weights_bytes_per_gpu": weights_bytes_per_gpu(weights, architecture, checked.tp, pp=checked.pp)}


def _parameters(case: Case) -> Case:
    model, config = case.get("model"), case["config"]
    if case.get("params") is not None or not isinstance(model, str) or not isinstance(config, Mapping):
        return {}
    # Quantized formats pack several parameters into one element.
    packed = read_architecture(config).quantization is not None
    return {"params": None if packed else _weights(model).parameters}


def _message(error: ModelError) -> str:
    return error.message if error.file is None else f"{error.message} (in {error.file})"
