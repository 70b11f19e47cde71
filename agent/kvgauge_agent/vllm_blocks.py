"""How many blocks of vLLM's pool no request holds although their contents can still be reused."""

from __future__ import annotations

import time
from typing import Any

# Blocks looked at in one go: about 0.25 ms of the GIL.
CHUNK_BLOCKS = 8192


class CachedBlocks:
    """Counts a pool by chunks, one at a time, so that a large pool costs no more at once than a small one.

    vLLM keeps no such count: its map of cached blocks holds those in use too, and one entry for all blocks of the same
    contents. A pool of one chunk is counted whole each time; a larger one over as many scans as it has chunks.
    """

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._steps: list[int] = []
        self._at: list[float] = []
        self._next = 0

    def scan(self, pool: Any, step: int) -> bool:
        """Counts the next chunk as it is at `step`; False where every chunk has been counted at that step."""
        if not self._counts:
            chunks = -(-len(pool.blocks) // CHUNK_BLOCKS) if pool.enable_caching else 0
            # Nothing is cached in a new pool.
            self._counts, self._steps, self._at = [0] * chunks, [step - 1] * chunks, [time.monotonic()] * chunks
        if all(counted == step for counted in self._steps):
            return False
        chunk = self._next
        self._next = (chunk + 1) % len(self._counts)
        blocks = pool.blocks[chunk * CHUNK_BLOCKS : (chunk + 1) * CHUNK_BLOCKS]
        # The property `block_hash` would double the time.
        self._counts[chunk] = sum([1 for block in blocks if not block.ref_cnt and block._block_hash is not None])
        self._steps[chunk] = step
        self._at[chunk] = time.monotonic()
        return True

    def facts(self, step: int, unheld_blocks: int) -> dict[str, object]:
        """`cached_blocks` and `free_blocks` of those that no request holds, and the age of the oldest chunk's count."""
        # Chunks counted at different steps may together come to more than there is.
        cached = min(sum(self._counts), unheld_blocks)
        oldest = min((at for at, counted in zip(self._at, self._steps) if counted != step), default=None)
        return {
            "cached_blocks": cached,
            "free_blocks": unheld_blocks - cached,
            "cached_blocks_age_seconds": 0.0 if oldest is None else round(time.monotonic() - oldest, 6),
        }
