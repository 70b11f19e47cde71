"""A layer's cache as vLLM describes it to its planner: what a block of it weighs and how many a request may hold."""

from __future__ import annotations

from dataclasses import dataclass

FULL = "FullAttentionSpec"
LATENT = "MLAAttentionSpec"
SLIDING = "SlidingWindowSpec"
SLIDING_LATENT = "SlidingWindowMLASpec"
CHUNKED = "ChunkedLocalAttentionSpec"
STATE = "MambaSpec"
CROSS = "CrossAttentionSpec"
UNIFORM = "UniformTypeKVCacheSpecs"

_FULL = frozenset({FULL, LATENT})
_SLIDING = frozenset({SLIDING, SLIDING_LATENT})
_LOCAL = frozenset({SLIDING, SLIDING_LATENT, CHUNKED})


@dataclass(frozen=True, slots=True)
class Spec:
    """One layer's cache (`v1/kv_cache_interface.py`). Layers of equal specs share a group."""

    kind: str
    block_tokens: int
    page_bytes: int
    """Bytes of a block in this layer, padding included."""
    row: tuple[object, ...] = ()
    """Heads, widths and element types: layers of equal pages and different rows do not share a group."""
    span: int = 0
    """Window, chunk or encoder's output in tokens; for state the blocks a request holds."""
    padded: bool = False
    content_bytes: int = 0
    """Bytes of a padded block without its padding, where they are known."""

    @property
    def family(self) -> tuple[object, ...]:
        """Layers of one family hold the same token slots: they can share one block table whatever their widths."""
        if self.kind in _FULL:
            return FULL, self.block_tokens
        if self.kind == STATE:
            return STATE, self.block_tokens, self.span, self.page_bytes
        return self.kind, self.block_tokens, self.span

    @property
    def is_full(self) -> bool:
        """Whether every token is kept to the end."""
        return self.kind in _FULL

    @property
    def is_local(self) -> bool:
        """Whether older tokens are dropped."""
        return self.kind in _LOCAL

    def of_block(self, block_tokens: int) -> Spec:
        """The same rows in blocks of another size."""
        page = self.page_bytes if self.padded else self.page_bytes * block_tokens // self.block_tokens
        return Spec(self.kind, block_tokens, page, self.row, self.span, self.padded, self.content_bytes)

    def padded_to(self, page_bytes: int) -> Spec:
        """The same block in a larger page."""
        content = self.content_bytes or self.page_bytes
        return Spec(self.kind, self.block_tokens, page_bytes, self.row, self.span, True, content)

    def kept_whole(self, block_tokens: int) -> Spec:
        """A window's layer whose blocks are kept for all tokens, as without the hybrid allocator."""
        kind = LATENT if self.kind == SLIDING_LATENT else FULL
        # A padded page grows only where its rows no longer fit.
        content = self.content_bytes * block_tokens // self.block_tokens
        page = max(self.of_block(block_tokens).page_bytes, content)
        return Spec(kind, block_tokens, page, self.row, 0, self.padded, content)


@dataclass(frozen=True, slots=True)
class Demand:
    """What one request may hold: the longest length, and the tokens a window keeps beside itself."""

    max_model_len: int
    in_flight_tokens: int
    retained_tokens: int = 0
    """Tokens below a window that several draft modules may read again."""
    context_ranks: int = 1
    """Ranks that share the tokens of full attention (decode context parallelism)."""

    def blocks(self, spec: Spec) -> int:
        """Blocks of one layer a request of `max_model_len` tokens holds at most."""
        length, block = self.max_model_len, spec.block_tokens
        kind = spec.kind
        if kind in _FULL:
            on_rank = -(-length // self.context_ranks)
            return -(-on_rank // block)
        if kind in _SLIDING:
            # One more for a window that does not begin where a block does.
            return -(-min(spec.span - 1 + self.retained_tokens + self.in_flight_tokens, length) // block) + 1
        if kind == CROSS:
            return -(-spec.span // block)
        if kind == CHUNKED:
            return -(-min(spec.span + self.in_flight_tokens, length) // block)
        return spec.span
