"""The scheduler's defaults, by card and version, and what they keep in flight (`arg_utils.py: get_batch_defaults`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvmodel.engines.contract import optional_whole, whole
from kvmodel.engines.vllm.profiles import Profile

if TYPE_CHECKING:
    from kvmodel.gpus import Gpu

_GIB = 2**30
_UNKNOWN_CARD_BATCHED_TOKENS = 8192
"""What servers take on the cards of 70 to 160 GiB."""


@dataclass(frozen=True, slots=True)
class Batches:
    """How much is scheduled at once."""

    max_num_batched_tokens: int
    max_num_seqs: int | None
    """None where neither a flag nor a card says."""
    assumed: bool
    """Whether the tokens are a guess: neither a flag nor a card says."""


def usual_batches(profile: Profile, total_bytes: int, name: str = "") -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) of the OpenAI server by default, on a card of this size and name."""
    if not profile.specs:
        # V0 batched without chunking unless a model was longer than 32768 tokens.
        return 2048, 256
    if profile.largest_cards and total_bytes >= 160 * _GIB:
        return 16384, 1024
    if total_bytes >= 70 * _GIB and not any(small in name.lower() for small in profile.small_batch_cards):
        return 8192, 1024
    return 2048, 256


def batches(
    profile: Profile,
    gpu: Gpu | None,
    *,
    max_model_len: int,
    max_num_batched_tokens: int | None,
    max_num_seqs: int | None,
) -> Batches:
    """The flags, or the defaults in their place. Raises ModelError naming a flag that is no positive number."""
    seqs = optional_whole("max_num_seqs", max_num_seqs)
    usual = None if gpu is None or gpu.usable_bytes is None else usual_batches(profile, gpu.usable_bytes, gpu.name)
    if max_num_batched_tokens is not None:
        tokens = whole("max_num_batched_tokens", max_num_batched_tokens)
        return Batches(tokens, seqs or (min(usual[1], tokens) if usual else None), False)
    if usual is None:
        return Batches(_UNKNOWN_CARD_BATCHED_TOKENS, seqs, True)
    tokens = min(usual[0], (seqs or usual[1]) * max_model_len)
    return Batches(tokens, seqs or min(usual[1], tokens), False)


def batches_in_flight(profile: Profile, async_scheduling: bool | None, pp: int) -> int:
    """Batches in flight at once, as far as this version's window reserve counts them."""
    if not profile.counts_in_flight:
        return 1
    overlapped = profile.async_scheduling if async_scheduling is None else async_scheduling
    if pp == 1:
        return 2 if overlapped else 1
    return pp + 1 if overlapped and profile.async_with_pipeline else pp
