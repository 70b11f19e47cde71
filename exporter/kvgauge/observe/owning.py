"""Which of the GPUs that this container sees are the engine's. A container that was shown all GPUs of a node must not
pass other pods' memory off as its own: what cannot be told apart is not shown."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvgauge.observe.records import AgentReading, GpuReading


@dataclass(frozen=True, slots=True)
class Ownership:
    """What somebody said of the engine's GPUs. Nothing said: all that are visible are its."""

    count: int | None = None
    """GPUs, or MIG instances, that the engine was given."""
    uuids: frozenset[str] = frozenset()
    """Their UUIDs as the driver writes them."""


def owned(
    gpus: tuple[GpuReading, ...], agent: AgentReading | None, ownership: Ownership
) -> tuple[tuple[GpuReading, ...], str | None]:
    """(the engine's GPUs, None), or (none, why they cannot be told).

    By UUID where they were named. Else all, where no more are visible than it was given; else those on which torch in
    the engine's processes holds memory, or whose driver lists a process of this container's.
    """
    if ownership.uuids:
        named = {_plain(uuid) for uuid in ownership.uuids}
        found = tuple(gpu for gpu in gpus if _plain(gpu.uuid) in named)
        return found, None if found or not gpus else "none of the GPUs that were named is visible"
    if ownership.count is None or len(gpus) <= ownership.count:
        return gpus, None
    for evidence in (_with_torch(gpus, agent), tuple(gpu for gpu in gpus if gpu.engine_bytes is not None)):
        if 0 < len(evidence) <= ownership.count:
            return evidence, None
    return (), f"{len(gpus)} GPUs are visible, the engine was given {ownership.count}, and nothing tells which"


def _with_torch(gpus: Sequence[GpuReading], agent: AgentReading | None) -> tuple[GpuReading, ...]:
    processes = agent.processes if agent is not None else ()
    used = {
        _plain(each.uuid) for process in processes for each in process.allocators if each.uuid and each.reserved_bytes
    }
    return tuple(gpu for gpu in gpus if gpu.uuid and _plain(gpu.uuid) in used)


def _plain(uuid: str) -> str:
    """Some versions of torch leave the prefix out."""
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")
