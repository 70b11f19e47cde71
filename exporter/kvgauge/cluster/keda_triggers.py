"""What a person asks of the external scaler: the metadata of a ScaledObject's trigger, read and checked."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from kvgauge.cluster.keda_messages import Reference
from kvgauge.cluster.names import REQUIRED_REPLICAS, WORKLOAD_KINDS
from kvgauge.cluster.records import WorkloadKey
from kvgauge.complaints import InputError

LOAD_RATIO = "kvgauge_load_ratio"
DEFAULT_TARGET_MILLI = {REQUIRED_REPLICAS: 1000, LOAD_RATIO: 850}
"""The metrics that can be followed, and what each pod should have of it where the trigger does not say; thousandths."""
MAX_KEYS = 64

_KEYS = ("workload", "metric", "target", "activation")
_KINDS = {kind.kind.lower(): kind for kind in WORKLOAD_KINDS}
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_NUMBER = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,3}))?")
_INDEX = re.compile(r"s[0-9]{1,4}-")
_MISSPELT = 0.65
"""Likeness from which a key is taken for one of ours: `activationThreshold` has 0.69, and KEDA's own keys less."""
_LONGEST_MISSPELT = 40


@dataclass(frozen=True, slots=True)
class Trigger:
    """One trigger of type `external` or `external-push`."""

    workload: str
    """As the trigger names it, for messages."""
    keys: tuple[WorkloadKey, ...]
    """What that may be: one, or one of each kind where no kind is told."""
    metric: str
    target_milli: int
    activation_milli: int
    """Active above it, not at it."""


def read_trigger(reference: Reference) -> Trigger:
    """Raises InputError, which names the key."""
    metadata = reference.metadata
    if len(metadata) > MAX_KEYS:
        raise InputError(f"scalerMetadata: {len(metadata)} keys, more than {MAX_KEYS}")
    _refuse_misspelt(metadata)
    metric = metadata.get("metric", REQUIRED_REPLICAS).strip()
    if metric not in DEFAULT_TARGET_MILLI:
        raise InputError(f"metric: should be one of {', '.join(DEFAULT_TARGET_MILLI)}, got {_cut(metric)}")
    workload = metadata.get("workload", "").strip()
    target = _milli(metadata, "target", DEFAULT_TARGET_MILLI[metric])
    if target == 0:
        raise InputError("target: should be above 0")
    return Trigger(workload, _keys(reference.namespace, workload), metric, target, _milli(metadata, "activation", 0))


def check_metric_name(trigger: Trigger, name: str) -> None:
    """KEDA asks by the name that it got from the scaler. Some releases leave the `s0-` before it that tells triggers of
    one ScaledObject apart. Raises InputError."""
    if _INDEX.sub("", name, count=1) != trigger.metric:
        raise InputError(f"metricName: should be {trigger.metric}, got {_cut(name)}")


def _keys(namespace: str, workload: str) -> tuple[WorkloadKey, ...]:
    if not _NAME.fullmatch(namespace):
        raise InputError(f"namespace: should be the ScaledObject's, got {_cut(namespace)}")
    if not workload:
        raise InputError(
            "workload: must be given in the trigger's metadata, such as deployment/NAME; KEDA does not tell it"
        )
    kind, slash, name = workload.rpartition("/")
    kind = kind.lower().removesuffix("s")
    if (slash and kind not in _KINDS) or not _NAME.fullmatch(name):
        kinds = ", ".join(f"{kind}/NAME" for kind in _KINDS)
        raise InputError(f"workload: should be NAME or one of {kinds}, got {_cut(workload)}")
    kinds_meant = [_KINDS[kind]] if slash else _KINDS.values()
    return tuple(WorkloadKey(namespace, meant.group, meant.resource, name) for meant in kinds_meant)


def _milli(metadata: Mapping[str, str], key: str, default: int) -> int:
    """Thousandths, which is as fine as Kubernetes reckons."""
    if key not in metadata:
        return default
    match = _NUMBER.fullmatch(metadata[key].strip())
    if match is None:
        raise InputError(f"{key}: should be a number such as 0.85, got {_cut(metadata[key])}")
    return int(match[1]) * 1000 + int((match[2] or "").ljust(3, "0"))


def _refuse_misspelt(metadata: Mapping[str, str]) -> None:
    """Keys of KEDA's own are among ours, so not every unknown one is an error; one that is nearly ours is, or else it
    would be a default that nobody asked for."""
    for key in metadata:
        if key not in _KEYS and len(key) <= _LONGEST_MISSPELT:
            near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=_MISSPELT)
            if near:
                raise InputError(f"{key[:_LONGEST_MISSPELT]}: no such key in the trigger's metadata, is it {near[0]}?")


def _cut(text: str) -> str:
    return repr(text[:100])
