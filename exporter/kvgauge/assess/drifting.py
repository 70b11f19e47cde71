"""The rules by which memory drifts from where it had settled: a leak, another process, changed flags.

None is looked for before the engine's memory has settled, nor while the engine is down or asleep; a restart begins
anew. Figures are sampled every few seconds by `kvgauge.assess.settling`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kvgauge.assess.engine_settings import CAPACITY, FIRM_SECONDS, POOL_TOLERANCE_RATIO, Change
from kvgauge.assess.records import Drift
from kvmodel.errors import show

GIB = 1 << 30
MIB = 1 << 20

LEAK, FOREIGN_PROCESS, FLAGS = "leak", "foreign_process", "flags"

FLOOR_SECONDS = 600.0
"""A leak is looked for in the lowest figures of ten minutes each: what a request takes for a while is not in them."""
LEAK_RISES = 6
"""So many floors in a row, each above the one before, and ..."""
LEAK_BYTES = 256 * MIB
"""... so many bytes together. Caching allocators grow by steps and then stand still: with warm-up, CUDA graphs, the
first long prompts."""
_NOISE_BYTES = MIB
FOREIGN_BYTES = 512 * MIB
"""More than drivers, contexts and lazily loaded kernels account for."""
FLAGS_SHOWN_SECONDS = 3600.0

WATCHED: Mapping[str, str] = {
    "engine": "what the engine's processes hold",
    "reserved": "what torch reserves for the engine",
    "allocated": "what the engine's tensors hold",
    "used": "the memory in use, the engine's or another process's,",
}
"""Figures that a leak shows in, and what they are called."""


@dataclass(frozen=True, slots=True)
class DriftKind:
    """One kind, for docs/metrics.md."""

    meaning: str
    rule: str


KINDS: Mapping[str, DriftKind] = {
    LEAK: DriftKind(
        "how much more the engine holds than where the climb began",
        f"the lowest figure of each {FLOOR_SECONDS / 60:.0f} minutes was above the one before {LEAK_RISES} times in a "
        f"row, by {LEAK_BYTES // MIB} MiB or more together; until half of that is given back. Looked at are the "
        "driver's figure of the engine's processes and torch's reserved and allocated bytes (the agent), of which the "
        "one that grew most counts; where none is known, the GPU's memory in use. A caching allocator that grows by "
        "steps and then stands still does not leak",
    ),
    FOREIGN_PROCESS: DriftKind(
        "bytes that are not the engine's",
        f"over the last minute, {FOREIGN_BYTES // MIB} MiB or more of the memory in use were neither the engine's "
        "processes', by the driver's account, nor the driver's own; or the memory in use has grown by so much more "
        "than what the engine's processes, or torch in them, hold, since it settled",
    ),
    FLAGS: DriftKind(
        "what the pool on each GPU gained or, negative, lost by other settings than before",
        f"a setting, or the pool by more than {POOL_TOLERANCE_RATIO:.0%}, has been told to be another for "
        f"{FIRM_SECONDS:.0f} s; shown for {FLAGS_SHOWN_SECONDS / 60:.0f} minutes, and then taken for normal",
    ),
}


class Climb:
    """The floors of one figure, and whether they climb."""

    __slots__ = ("_bin", "_floor", "_last", "_rises", "_start", "leaking")

    def __init__(self) -> None:
        self._bin = 0
        self._floor: int | None = None
        self._last: int | None = None
        self._start = 0
        self._rises = 0
        self.leaking = False

    def add(self, seconds: float, value: int) -> None:
        """One look, `seconds` after the memory settled."""
        number = int(seconds // FLOOR_SECONDS)
        if number != self._bin and self._floor is not None:
            self._close(self._floor)
            self._floor = None
        self._bin = number
        self._floor = value if self._floor is None else min(self._floor, value)

    def _close(self, floor: int) -> None:
        if self.leaking:
            # What has leaked stays lost until it is given back.
            self.leaking = floor - self._start >= LEAK_BYTES // 2
        if self._last is not None and floor > self._last + _NOISE_BYTES:
            self._rises += 1
            self.leaking = self.leaking or (self._rises >= LEAK_RISES and floor - self._start >= LEAK_BYTES)
        elif not self.leaking:
            self._start, self._rises = floor, 0
        self._last = floor

    @property
    def start_bytes(self) -> int:
        """Where the climb began."""
        return self._start

    @property
    def grown_bytes(self) -> int:
        """How far it has come by now."""
        return max((self._last or 0) - self._start, 0)


def leak(gpu: int, climbs: Mapping[str, Climb]) -> Drift:
    """The figure that has grown most. The GPU's memory in use is looked at only where nothing of the engine's own
    is known."""
    leaking = {name: climb for name, climb in climbs.items() if climb.leaking and (name != "used" or len(climbs) == 1)}
    if not leaking:
        return Drift(LEAK, 0)
    name = max(leaking, key=lambda each: leaking[each].grown_bytes)
    climb = leaking[name]
    grown, now = climb.grown_bytes, climb.start_bytes + climb.grown_bytes
    return Drift(
        LEAK,
        grown,
        f"GPU {gpu}: {WATCHED[name]} has grown by {gib(grown)}, from {gib(climb.start_bytes)} to {gib(now)}, and rose "
        f"without a pause for an hour: a leak.",
    )


def foreign_process(gpu: int, settled: Mapping[str, int], now: Mapping[str, int]) -> Drift | None:
    """By the driver's account of the engine's processes, else by what the rest has grown beside torch's memory. None
    where neither is known."""
    used, own = now.get("used"), now.get("engine", now.get("reserved"))
    if used is None or own is None:
        return None
    beside = now.get("beside")
    if beside is not None and beside >= FOREIGN_BYTES:
        return Drift(
            FOREIGN_PROCESS,
            beside,
            f"GPU {gpu}: {gib(beside)} of the {gib(used)} in use are not the engine's, whose processes hold "
            f"{gib(own)}: another process is on the GPU.",
        )
    before_used, before_own = settled.get("used"), settled.get("engine" if "engine" in now else "reserved")
    if before_used is None or before_own is None:
        return Drift(FOREIGN_PROCESS, 0) if beside is not None else None
    grown = (used - own) - (before_used - before_own)
    if grown < FOREIGN_BYTES:
        return Drift(FOREIGN_PROCESS, 0)
    return Drift(
        FOREIGN_PROCESS,
        grown,
        f"GPU {gpu}: the memory in use has grown by {gib(grown)} more than what the engine holds, to {gib(used)} with "
        f"{gib(own)} of its own: another process is on the GPU.",
    )


def flags(change: Change | None, pool_bytes: int | None, now: float) -> Drift:
    """The change for an hour after it was noticed; then it is how the engine runs."""
    if change is None or now - change.seconds > FLAGS_SHOWN_SECONDS:
        return Drift(FLAGS, 0)
    before = change.pool_bytes_before
    gained = None if before is None or pool_bytes is None else pool_bytes - before
    listed = ", ".join(
        f"a pool of {after} tokens (before: {was})"
        if name == CAPACITY
        else f"{name} {show(after)} (before: {show(was)})"
        for name, (was, after) in change.settings.items()
    )
    return Drift(FLAGS, gained, f"The engine runs with other settings than before: {listed}.")


def gib(size: int) -> str:
    """For people."""
    return f"{size / GIB:.2f} GiB"
