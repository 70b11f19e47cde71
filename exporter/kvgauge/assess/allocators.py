"""torch's allocators of several processes, put together GPU by GPU, and which GPU of the driver's each one is on."""

from collections.abc import Iterable, Sequence

from kvgauge.assess.records import AllocatorAssessment
from kvgauge.observe.records import AgentReading, AllocatorReading, GpuReading, ProcessReading

# The agent looks at the pieces once a minute, and not at all where that would take long.
SNAPSHOT_STALE_SECONDS = 180.0

Place = tuple[int | None, str]
"""(index as the driver counts, UUID); (None, UUID as torch says it) for a GPU that the driver does not show."""


def allocators(agent: AgentReading | None, gpus: Sequence[GpuReading]) -> tuple[AllocatorAssessment, ...]:
    """One record for each GPU on which a process with an agent holds memory."""
    found: dict[Place, list[AllocatorReading]] = {}
    for process in agent.processes if agent is not None else ():
        for allocator in process.allocators:
            found.setdefault(place_of(allocator.uuid, gpus), []).append(allocator)
    return tuple(
        _together(place, found[place])
        for place in sorted(found, key=lambda place: (place[0] is None, place[0] or 0, place[1]))
    )


def place_of(uuid: str, gpus: Sequence[GpuReading]) -> Place:
    """The driver's GPU of that UUID. Without one, the only GPU there is."""
    plain = _plain(uuid)
    for gpu in gpus:
        if plain and _plain(gpu.uuid) == plain:
            return gpu.gpu, gpu.uuid
    if not uuid and len(gpus) == 1:
        return gpus[0].gpu, gpus[0].uuid
    return None, uuid


def worker_place(process: ProcessReading, gpus: Sequence[GpuReading]) -> Place:
    """The GPU that a worker computes on: where it holds the most memory. Without an allocator, the only GPU."""
    largest = max(process.allocators, key=lambda each: each.reserved_bytes or 0, default=None)
    return place_of(largest.uuid if largest is not None else "", gpus)


def _plain(uuid: str) -> str:
    """Without the prefix that some versions of torch leave out."""
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")


def _together(place: Place, parts: Sequence[AllocatorReading]) -> AllocatorAssessment:
    pieces = [
        (part.largest_free_bytes, part.free_bytes)
        for part in parts
        if part.largest_free_bytes is not None
        and part.free_bytes is not None
        and part.largest_free_bytes <= part.free_bytes
        and (part.snapshot_age_seconds or 0.0) <= SNAPSHOT_STALE_SECONDS
    ]
    complete = len(pieces) == len(parts)
    free = sum(free for _, free in pieces)
    return AllocatorAssessment(
        gpu=place[0],
        uuid=place[1],
        processes=len(parts),
        allocated_bytes=_sum(part.allocated_bytes for part in parts),
        reserved_bytes=_sum(part.reserved_bytes for part in parts),
        inactive_split_bytes=_sum(part.inactive_split_bytes for part in parts),
        requested_bytes=_sum(part.requested_bytes for part in parts),
        largest_free_bytes=max(largest for largest, _ in pieces) if complete else None,
        fragmentation_ratio=1 - sum(largest for largest, _ in pieces) / free if complete and free else None,
    )


def _sum(values: Iterable[int | None]) -> int | None:
    """None where one is not known: a sum without it would be a smaller number, not an unknown one."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return sum(known) if len(known) == len(listed) else None
