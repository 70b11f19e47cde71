"""What changed in SGLang from version to version.

Read: 0.4.2, 0.4.6, 0.4.8, 0.4.10, 0.5.3, 0.5.5, 0.5.9, 0.5.15, 0.5.23.
A boundary between two versions read lies at the first one that shows the change.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvmodel.architecture import Architecture
from kvmodel.errors import ModelError, show


@dataclass(frozen=True, slots=True)
class Profile:
    """The rules of one span of versions."""

    name: str
    reserve: str
    """How `mem_fraction_static` is chosen where no flag says: `table` by ranks, `card` by card, `parts` by what is
    reserved for."""
    piecewise: bool = False
    """Whether prefill graphs are reserved for."""
    two_pools: frozenset[str] = frozenset()
    """`architectures` with a pool of their own for windows; other models keep every layer at full length."""
    split_from_tokens: bool = False
    """Whether the two pools are cut from a whole number of tokens, not from bytes."""
    state_padding: int = 0
    """Slots of recurrent state beyond those handed out."""
    later_cards: bool = False
    """Whether cards below 35 GiB get the larger defaults, and a cap on requests shortens the decode graphs."""
    sized_windows: bool = False
    """Whether the windows' pool is sized by need where requests are capped and no prefixes are kept."""
    default_state_slots: int | None = None
    """Slots without prefix cache and without a cap on requests; None where they follow the budget."""


_LLAMA4 = frozenset({"Llama4ForConditionalGeneration"})
_HYBRID_059 = _LLAMA4 | {
    "GptOssForCausalLM",
    "MiMoV2FlashForCausalLM",
    "MiMoV2MTP",
    "Step3p5ForCausalLM",
    "Step3p5MTP",
}
_HYBRID_0515 = _HYBRID_059 | {
    "Gemma4ForCausalLM",
    "Gemma4ForConditionalGeneration",
    "Gemma4UnifiedForConditionalGeneration",
    "LagunaForCausalLM",
    "MiMoV2ForCausalLM",
    "Step3p7ForConditionalGeneration",
    "UnlimitedOCRForCausalLM",
}
_HYBRID_0523 = _HYBRID_0515 | {
    "BeamForCausalLM",
    "DiffusionGemmaForBlockDiffusion",
    "EmbeddingGemma2Model",
    "GraniteMoeSWAForCausalLM",
    "GraniteSWAForCausalLM",
    "IQuestQ1ForCausalLM",
    "InklingForConditionalGeneration",
    "MellumForCausalLM",
    "MuseGlimmerForCausalLM",
    "MuseGlimmerForConditionalGeneration",
}

_PROFILES: tuple[tuple[tuple[int, ...], Profile], ...] = (
    ((0, 4), Profile("0.4.2", "table", default_state_slots=512)),
    ((0, 4, 8), Profile("0.4.8", "card", default_state_slots=512)),
    ((0, 5, 3), Profile("0.5.3", "parts", default_state_slots=512)),
    ((0, 5, 9), Profile("0.5.9", "parts", two_pools=_HYBRID_059, split_from_tokens=True)),
    ((0, 5, 15), Profile("0.5.15", "parts", piecewise=True, two_pools=_HYBRID_0515)),
    (
        (0, 5, 23),
        Profile(
            "0.5.23",
            "parts",
            piecewise=True,
            two_pools=_HYBRID_0523,
            state_padding=1,
            later_cards=True,
            sized_windows=True,
        ),
    ),
)


def profile_of(version: str | None) -> Profile:
    """The rules of a version, the newest ones where none is given. Raises ModelError with field `version`."""
    if version is None:
        return _PROFILES[-1][1]
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version) if isinstance(version, str) else None
    if match is None:
        raise ModelError("version", f"{show(version)} is not a version")
    number = tuple(int(part or 0) for part in match.groups())
    known = [profile for first, profile in _PROFILES if number >= first]
    if not known:
        raise ModelError("version", f"{show(version)} is older than 0.4: not planned")
    return known[-1]


def has_two_pools(architecture: Architecture, profile: Profile) -> bool:
    """Whether this version gives the model's windows a pool of their own."""
    return any(name in profile.two_pools for name in architecture.architectures)
