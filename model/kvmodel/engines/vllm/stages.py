"""Pipeline stages: which layers each has, and which one decides how many blocks there are."""

from __future__ import annotations

from dataclasses import dataclass

from kvmodel.engines.contract import whole
from kvmodel.engines.vllm.layout import Layout
from kvmodel.engines.vllm.profiles import Profile
from kvmodel.engines.vllm.specs import UNIFORM
from kvmodel.engines.vllm.tables import Gathered, bytes_per_block
from kvmodel.errors import ModelError


def stage_sizes(layers: int, pp: int) -> list[int]:
    """Layers of each stage: what does not divide goes to the stages before the last (`get_pp_indices`)."""
    stages = whole("pp", pp)
    if stages > layers:
        raise ModelError("pp", f"{stages} stages are more than {layers} layers")
    sizes = [layers // stages] * stages
    for stage in range(2, layers % stages + 2):
        sizes[-stage] += 1
    return sizes


@dataclass(frozen=True, slots=True)
class WidestStage:
    """What the stage with the most cache has: all stages get as many blocks as it."""

    bytes_per_block: int
    bytes_per_token: float


def widest_stage(groups: list[Gathered], described: Layout, layers: int, pp: int, profile: Profile) -> WidestStage:
    """The stage with the largest block. Caches past the last decoder layer (drafts) lie on the last stage."""
    blocks, rows = described.blocks, described.token_bytes
    if pp == 1:
        return WidestStage(bytes_per_block(groups, profile.packing), sum(rows.values()))
    widest, first = WidestStage(0, 0), 0
    sizes = stage_sizes(layers, pp)
    for stage, size in enumerate(sizes):
        last = first + size if stage + 1 < len(sizes) else max(layers, *blocks) + 1
        places = {place for place, block in enumerate(blocks) if first <= block < last}
        shares = [share for group in groups if (share := group.within(places)).members]
        if not shares:
            raise ModelError("pp", f"stage {stage} of {len(sizes)} would have no cache of its own")
        own = profile.shares_pages or all(group.kind != UNIFORM for group in groups)
        block_bytes = bytes_per_block(shares if own else groups, profile.packing)
        if block_bytes > widest.bytes_per_block:
            widest = WidestStage(block_bytes, sum(row for block, row in rows.items() if first <= block < last))
        first += size
    return widest
