"""Pipeline stages: which layers each has, and which one decides how many blocks there are."""

from __future__ import annotations

from kvmodel.engines.contract import whole
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


def widest_stage(groups: list[Gathered], blocks: tuple[int, ...], layers: int, pp: int, packing: str) -> int:
    """Bytes of one block on the stage where it is largest: all stages have as many blocks as that one.

    `blocks` is the decoder layer of each cache; caches past the last layer (drafts) lie on the last stage.
    """
    largest, first = 0, 0
    sizes = stage_sizes(layers, pp)
    for stage, size in enumerate(sizes):
        last = first + size if stage + 1 < len(sizes) else max(layers, *blocks) + 1
        places = {place for place, block in enumerate(blocks) if first <= block < last}
        shares = [share for group in groups if (share := group.within(places)).members]
        if not shares:
            raise ModelError("pp", f"stage {stage} of {len(sizes)} would have no cache of its own")
        largest = max(largest, bytes_per_block(shares, packing))
        first += size
    return largest
