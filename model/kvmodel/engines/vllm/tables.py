"""Layers that share a block table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

from kvmodel.engines.vllm.specs import UNIFORM, Demand, Spec


@dataclass(frozen=True, slots=True)
class Bucket:
    """Layers of one spec, by their places among all caches."""

    spec: Spec
    layers: list[int]


@dataclass(frozen=True, slots=True)
class Gathered:
    """A group of layers with one block table: the distinct specs in it and each one's layers."""

    kind: str
    members: tuple[Bucket, ...]

    @property
    def layers(self) -> int:
        """Caches in the group."""
        return sum(len(member.layers) for member in self.members)

    @property
    def page_bytes(self) -> int:
        """A layer's page; the sum over all layers where widths differ (the engine's own `page_size_bytes`)."""
        return self.block_bytes if self.kind == UNIFORM else self.members[0].spec.page_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes a block takes in the group's own layers."""
        return sum(member.spec.page_bytes * len(member.layers) for member in self.members)

    def blocks(self, demand: Demand) -> int:
        """Blocks one request of the longest length holds."""
        return max(demand.blocks(member.spec) for member in self.members)

    def page_counts(self) -> Counter[int]:
        """Layers by the size of their page."""
        counts: Counter[int] = Counter()
        for member in self.members:
            counts[member.spec.page_bytes] += len(member.layers)
        return counts

    def within(self, places: Container[int]) -> Gathered:
        """The group's share of some of the layers, such as a pipeline stage's."""
        members = (Bucket(m.spec, [place for place in m.layers if place in places]) for m in self.members)
        return Gathered(self.kind, tuple(member for member in members if member.layers))


def bytes_per_block(groups: list[Gathered], packing: str) -> int:
    """Bytes of the pool one block takes: it runs through all layers of the largest group.

    Before 0.29 a block of pages of several sizes (only DeepSeek-V4) had room for every size as often as the most
    numerous had it in the full group (`tuples`), later as often as any group had it (`sizes`).
    """
    if len(groups) > 1 and packing != "groups" and all(group.kind == UNIFORM for group in groups):
        counts = [group.page_counts() for group in groups]
        if packing == "tuples":
            return sum(counts[0]) * max(max(count.values()) for count in counts)
        sizes: Counter[int] = Counter()
        for count in counts:
            sizes |= count
        return sum(page * number for page, number in sizes.items())
    return max(group.block_bytes for group in groups)
