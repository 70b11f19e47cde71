"""What changed between vLLM's versions in how it plans its KV pool. Each row was read in that version's source."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from kvmodel.errors import ModelError, show


@dataclass(frozen=True, slots=True)
class Profile:
    """The planning rules of a range of versions (`v1/core/kv_cache_utils.py`, `v1/kv_cache_interface.py`)."""

    name: str
    since: tuple[int, int, int]
    minor: int = 0
    """The minor version asked for, where a rule of one kind of layer hangs on it."""
    specs: bool = True
    """Layers are described one by one (V1); V0 gives all attention layers one geometry and a full length."""
    kinds: bool = True
    """Layers of different kinds have block tables of their own; without it windows are kept at full length."""
    whole_blocks: bool = True
    """Concurrency counts whole blocks per request; before, tokens of the pool over tokens of a request."""
    summed_blocks: bool = True
    """Blocks of all groups are summed; before, their bytes, in blocks of the first group."""
    widest_ratio: tuple[int, int] | None = None
    """Groups take the size of the most numerous kind while it is under this multiple of the least numerous."""
    sparse_fp8: bool = False
    """Sparse MLA is kept in its own fp8 rows unless 16 bits are asked for."""
    deals_layers: bool = True
    """A kind's layers are dealt out to its groups in turn; before, each group took the next ones."""
    mixed_sizes: bool = True
    """Layers of one kind and several row widths share a group whose page is their sum."""
    scales_pages: bool = True
    """Smaller pages get more tokens per block until they are as large as the largest."""
    pads_pages: bool = True
    """A page that divides no larger one is padded (non-MLA attention)."""
    pads_states: bool = True
    """State pages smaller than the largest page are padded to it when pages are unified."""
    shares_pages: bool = True
    """A pipeline stage counts its own layers of a group of several widths; before, all stages' layers."""
    packing: str = "groups"
    """How pages of several sizes lie in a block (DeepSeek-V4): `tuples` of all, by `sizes`, or the widest `groups`."""
    tokens_from_concurrency: bool = True
    """`GPU KV cache size` is the concurrency times `max_model_len`; before, blocks over groups times block size."""
    counts_in_flight: bool = True
    """Windows reserve for every batch in flight; before, for one."""
    retains_for_drafts: bool = True
    """Windows keep the tokens that several prediction layers may read again."""
    async_scheduling: bool = True
    """The default of `--async-scheduling`."""
    async_with_pipeline: bool = True
    """Async scheduling adds a batch to those of the pipeline."""
    caches_states: bool = True
    """Prefix caching is on by default for models with state layers."""
    mamba_mode: str = "align"
    """How Mamba states are kept with prefix caching: `none` (it is turned off), of `all` blocks, or `align`."""
    linear_mode: str = "align"
    """The same for other state layers: linear attention, gated delta nets, short convolutions."""
    drafts_hold_states: bool = True
    """Without prefix caching too, a state keeps one block per speculative token."""
    checkpoints: tuple[str, ...] = ()
    """State kinds that keep one more block with prefix caching."""
    latent_block_multiple: int = 128
    """Blocks of MLA models with state layers are a multiple of this."""
    keeps_larger_blocks: bool = False
    """A block size from the user that is larger than a hybrid needs is kept; after, it is the unit to round up by."""
    counts_null_block: bool = True
    """One request must fit beside the null block for the engine to start."""
    gpu_memory_utilization: float = 0.92
    largest_cards: bool = True
    """Cards of 160 GiB and more have defaults of their own."""
    small_batch_cards: tuple[str, ...] = ()
    """Cards that keep the defaults of small ones whatever their memory."""


def _profiles() -> tuple[Profile, ...]:
    rows = [
        Profile(
            "vllm-v0",
            (0, 0, 0),
            specs=False,
            kinds=False,
            whole_blocks=False,
            summed_blocks=False,
            deals_layers=False,
            mixed_sizes=False,
            scales_pages=False,
            pads_pages=False,
            pads_states=False,
            shares_pages=False,
            packing="tuples",
            tokens_from_concurrency=False,
            counts_in_flight=False,
            retains_for_drafts=False,
            async_scheduling=False,
            async_with_pipeline=False,
            caches_states=False,
            mamba_mode="none",
            linear_mode="none",
            drafts_hold_states=False,
            latent_block_multiple=64,
            keeps_larger_blocks=True,
            counts_null_block=False,
            gpu_memory_utilization=0.9,
            largest_cards=False,
        )
    ]

    def then(minor: int, patch: int = 0, **changes: Any) -> None:
        name = f"vllm-0.{minor}.{patch}" if patch else f"vllm-0.{minor}"
        rows.append(replace(rows[-1], name=name, since=(0, minor, patch), **changes))

    then(8, specs=True)
    then(9, small_batch_cards=("a100",))
    then(9, 1, kinds=True, whole_blocks=True)
    then(11, mixed_sizes=True, deals_layers=True, sparse_fp8=True)
    then(11, 1, sparse_fp8=False)
    then(12, widest_ratio=(5, 4), scales_pages=True, mamba_mode="all")
    then(14, async_scheduling=True)
    then(15, linear_mode="align", drafts_hold_states=True)
    then(17, shares_pages=True)
    then(18, widest_ratio=(3, 2))
    then(20, gpu_memory_utilization=0.92, latent_block_multiple=16, keeps_larger_blocks=False)
    then(20, 1, tokens_from_concurrency=True)
    then(24, pads_pages=True, async_with_pipeline=True, packing="sizes")
    then(26, counts_in_flight=True, caches_states=True, pads_states=True)
    then(27, latent_block_multiple=128)
    then(28, largest_cards=True, mamba_mode="align", retains_for_drafts=True)
    then(29, packing="groups", counts_null_block=True)
    then(30, summed_blocks=True)
    then(32, checkpoints=("Mamba2State",))
    then(33, checkpoints=("Mamba2State", "GatedDeltaNetState"), small_batch_cards=("a100", "gb10"))
    return tuple(rows)


PROFILES = _profiles()
"""Oldest first; each holds up to the next one's `since`."""

_ANY = 9999
"""Stands for the last patch or minor version where the text leaves it open ("0.20", "0.20.x")."""


@lru_cache(maxsize=256)
def profile_of(engine_version: str | None) -> Profile:
    """The rules of an engine version ("0.19.0", "v0.21", "0.20.x"); None is the newest known.

    Raises ModelError (field `engine_version`) for text that does not begin with a version.
    """
    if engine_version is None:
        return replace(PROFILES[-1], minor=PROFILES[-1].since[1])
    version = _version(engine_version) if isinstance(engine_version, str) else None
    if version is None:
        raise ModelError("engine_version", f"{show(engine_version)} is not a version of vLLM")
    profile = next(profile for profile in reversed(PROFILES) if profile.since <= version)
    return replace(profile, minor=_ANY if version[0] else version[1])


def _version(text: str) -> tuple[int, int, int] | None:
    """Major, minor and patch version that the text begins with. Whatever follows the patch is left aside."""
    parts = text.removeprefix("v").split(".", 3)
    if text.startswith("0.1.dev"):
        # What builds from a checkout without tags call themselves.
        return 0, _ANY, _ANY
    if len(parts) < 2:
        return None
    major, minor = _leading_number(parts[0]), _ANY if parts[1] == "x" else _leading_number(parts[1])
    patch = _leading_number(parts[2]) if len(parts) > 2 else None
    return None if major is None or minor is None else (major, minor, _ANY if patch is None else patch)


def _leading_number(text: str) -> int | None:
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    return int(digits) if digits.isascii() and 0 < len(digits) < 5 else None
