"""Cards by name: memory the engine can use, bandwidth and peak rates.

A card that is present should be asked (NVML, CUDA): its driver knows better. This table is for planning without one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from kvmodel.errors import ModelError, show

_GIB = 2**30

_USABLE_SHARE = {
    # Of the label, in GiB. Seen: H100 0.990, A100 0.987, B200 0.991.
    "hbm": 0.99,
    # GeForce and workstation cards, ECC off. Seen: RTX 3090 0.983, RTX 5090 0.981.
    "gddr": 0.983,
    # ECC kept in the memory itself takes a sixteenth. Seen: L40S 0.925, A10G 0.919.
    "gddr_ecc": 0.922,
    "amd": 0.999,
}
_VENDOR_WORDS = ("nvidia", "geforce", "tesla", "amd", "instinct", "radeon", "quadro")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of card, as one device of the driver: a die where a board holds several."""

    name: str
    aliases: tuple[str, ...]
    """Other names, among them NVML's."""
    memory_gb: int
    """The label's figure."""
    usable_bytes: int | None
    """What CUDA or HIP calls the total; None where memory is shared with a CPU and nobody has told."""
    usable_measured: bool
    """Whether a driver reported `usable_bytes`; else it is derived from the label, good to about one percent."""
    usable_source: str | None
    bandwidth_bytes_per_second: float
    architecture: str
    """NVIDIA's `sm` number or AMD's `gfx` one."""
    dense_flop_per_second: Mapping[str, float]
    """Peak by dtype (`bfloat16`, `fp8`, ...), tensor cores, without sparsity; a dtype no source gives is absent."""
    source: str

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """CUDA's, such as (9, 0); None for other vendors' cards."""
        if not self.architecture.startswith("sm"):
            return None
        digits = self.architecture.removeprefix("sm")
        return int(digits[:-1]), int(digits[-1])


@dataclass(frozen=True, slots=True)
class GpusNeeded:
    """How many cards hold a given number of bytes."""

    by_memory: int
    """The bytes alone."""
    tensor_parallel: tuple[int, ...]
    """Group sizes that divide the attention heads, ascending."""
    practical: int | None
    """The smallest of these that is enough; None where even the largest is not."""


def gpus() -> tuple[Gpu, ...]:
    """All cards of the table."""
    return tuple(_table()[0].values())


def find_gpu(name: str) -> Gpu:
    """The card of this name: its own (`h100-80gb`) or an alias, NVML's spelling included, in any case.

    Raises ModelError (field `gpu`) for a card the table does not have; MIG slices are not in it.
    """
    cards, names = _table()
    card = names.get(_normal(name)) if isinstance(name, str) else None
    if card is None:
        raise ModelError("gpu", f"unknown card {show(name)}; give its memory instead, or one of {', '.join(cards)}")
    return cards[card]


def card_of(name: str | None, usable_bytes: int | None) -> Gpu | None:
    """The card of a name, with `usable_bytes` in place of the table's; of these alone where there is no name.

    Raises ModelError (field `gpu`) for a name the table does not have.
    """
    if name is not None:
        found = find_gpu(name)
        return found if usable_bytes is None else replace(found, usable_bytes=usable_bytes)
    if usable_bytes is None:
        return None
    return Gpu("", (), 0, usable_bytes, False, "given", 0.0, "", MappingProxyType({}), "given")


def gpus_needed(total_bytes: int, gpu_bytes: int, num_attention_heads: int) -> GpusNeeded:
    """Cards of `gpu_bytes` for `total_bytes`, and tensor-parallel sizes that divide the heads.

    Raises ModelError naming the argument at fault.
    """
    for name, value, most in (
        ("total_bytes", total_bytes, 2**70),
        ("gpu_bytes", gpu_bytes, 2**70),
        ("num_attention_heads", num_attention_heads, 2**20),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ModelError(name, f"{show(value)} is not a whole number in 1..{most}")
    least = -(-total_bytes // gpu_bytes)
    sizes = tuple(size for size in range(1, num_attention_heads + 1) if num_attention_heads % size == 0)
    return GpusNeeded(least, sizes, next((size for size in sizes if size >= least), None))


@cache
def _table() -> tuple[Mapping[str, Gpu], Mapping[str, str]]:
    # Here, not above: few plans need them, and both are a tenth of the package's import time.
    import tomllib
    from pathlib import Path

    with Path(__file__).with_name("data").joinpath("gpus.toml").open("rb") as opened:
        cards = {name: _card(name, entry) for name, entry in tomllib.load(opened).items()}
    names = {_normal(alias): card.name for card in cards.values() for alias in (card.name, *card.aliases)}
    return MappingProxyType(cards), MappingProxyType(names)


def _card(name: str, entry: dict[str, Any]) -> Gpu:
    measured = "usable_gib" in entry
    share = _USABLE_SHARE.get(entry["memory_kind"])
    usable: float | None = entry.get("usable_gib")
    source = entry.get("usable_source")
    if usable is None and share is not None:
        usable = entry["memory_gb"] * share
        source = f"{share} of the label, as cards of its kind report"
    return Gpu(
        name=name,
        aliases=tuple(entry["aliases"]),
        memory_gb=entry["memory_gb"],
        usable_bytes=None if usable is None else int(usable * _GIB),
        usable_measured=measured,
        usable_source=source,
        bandwidth_bytes_per_second=entry["bandwidth_gb_per_second"] * 1e9,
        architecture=entry["architecture"],
        dense_flop_per_second=MappingProxyType({k: v * 1e12 for k, v in entry["dense_tflops"].items()}),
        source=entry["source"],
    )


def _normal(name: str) -> str:
    """Lower case, letters and digits alone, without the vendor's words."""
    lowered = name.lower()
    for word in _VENDOR_WORDS:
        lowered = lowered.replace(word, " ")
    return "".join(character for character in lowered if character.isalnum())
