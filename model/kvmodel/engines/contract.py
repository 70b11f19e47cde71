"""What every engine's plan has in common: the pool it makes of one GPU's memory, and how many requests that holds.

A plan is the engine's own arithmetic at start-up. It is neither the ideal (`Architecture.bytes_at`) nor what is live
(`kvmodel.expected`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kvmodel.errors import ModelError, show


@dataclass(frozen=True, slots=True)
class PlanGroup:
    """Layers whose cache the engine hands out together."""

    kind: str
    """`full`, `window`, `chunk`, `index` (keys of a sparse-attention indexer), `state` or `cross`."""
    layers: int
    block_tokens: int | None
    """Tokens of one block; None for state, which a request holds whatever its length."""
    page_bytes: int
    """Bytes of one block in one layer (the largest, where layers differ)."""
    block_bytes: int
    """Bytes one block takes of the pool in all layers of the group: engines that pad pay more than the pages."""
    num_blocks: int | None = None
    """Blocks of the group's own pool; None where groups share one."""
    window_tokens: int | None = None
    blocks_per_request: int | None = None
    """Blocks the engine counts for one request of the longest length."""

    @property
    def capacity_tokens(self) -> int | None:
        """Tokens of the group's own pool."""
        if self.num_blocks is None or self.block_tokens is None:
            return None
        return self.num_blocks * self.block_tokens

    def held_bytes(self, tokens: int) -> int:
        """Bytes of the blocks that `tokens` tokens of one request hold.

        Blocks wholly before the window are free. Cross-attention depends on the input and is held from the start.
        """
        if self.block_tokens is None or self.kind in ("state", "cross"):
            return self.block_bytes * (1 if self.blocks_per_request is None else self.blocks_per_request)
        blocks = -(-tokens // self.block_tokens)
        if self.window_tokens is not None:
            blocks -= max(0, tokens - self.window_tokens) // self.block_tokens
        return blocks * self.block_bytes


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """The cache one engine allocates on one GPU. Figures are those of one rank."""

    engine: str
    profile: str
    """The rules' version, and the layout where the engine has several."""
    block_tokens: int | None
    """Tokens of the unit that is handed out; None where a request reserves its whole length."""
    bytes_per_block: int | None
    """Bytes of that unit in all layers; None where groups have pools of their own."""
    num_blocks: int | None
    capacity_tokens: int
    """Tokens of the pool that grows with the sequences, as the engine itself counts."""
    max_concurrency: float
    """Requests of the longest length that fit at once, before any cap on running requests."""
    kv_bytes_per_token_per_gpu: int | float
    """Bytes of one token in all layers while it is kept."""
    pool_bytes: int
    """Bytes the engine allocates for the cache, its padding included."""
    groups: tuple[PlanGroup, ...]
    max_requests: int | None = None
    """The cap on running requests; None where the engine derives none."""
    limit: str = "kv"
    """What binds first when every request is of the longest length: a group's kind, `max_requests`, ..."""
    reserves: bool = False
    """Whether a request takes the blocks of its whole length when it is admitted."""
    outside_bytes: int = 0
    """Bytes the engine allocates for book-keeping of the cache, outside its budget."""
    transient_bytes: int = 0
    """Bytes that live for a moment while the cache is updated."""
    warnings: tuple[str, ...] = ()
    sources: tuple[str, ...] = field(default=())

    @property
    def safe_requests(self) -> int:
        """Whole requests of the longest length that run at once: the pool and the cap together."""
        fitting = int(self.max_concurrency)
        return fitting if self.max_requests is None else min(fitting, self.max_requests)

    def held_bytes(self, tokens: int) -> int:
        """Bytes of pool one request of `tokens` tokens holds, block-rounded, windows and state included."""
        return sum(group.held_bytes(tokens) for group in self.groups)


def whole(name: str, value: object, least: int = 1) -> int:
    """`value` as a whole number of at least `least`; ModelError naming the argument otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        what = "a positive whole number" if least == 1 else f"a whole number of at least {least}"
        raise ModelError(name, f"{show(value)} is not {what}")
    return value


def optional_whole(name: str, value: object, least: int = 1) -> int | None:
    """`whole`, or None where none was given."""
    return None if value is None else whole(name, value, least)


def share(name: str, value: object) -> float:
    """`value` as a number above 0 and up to 1; ModelError naming the argument otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ModelError(name, f"{show(value)} is not a number above 0 and up to 1")
    return float(value)


def one_of(name: str, value: object, known: Iterable[str]) -> str:
    """`value` where it is one of the names; ModelError naming the argument otherwise."""
    names = sorted(known)
    if not isinstance(value, str) or value not in names:
        raise ModelError(name, f"{show(value)} is not one of {', '.join(names)}")
    return value


def round_up(value: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-value // unit) * unit
