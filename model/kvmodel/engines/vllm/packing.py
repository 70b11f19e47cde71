"""Pages of several sizes side by side in one block: DeepSeek-V4's compressed rows, windows and compressor state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from kvmodel.engines.vllm.specs import UNIFORM, Spec
from kvmodel.engines.vllm.tables import Bucket, Gathered


def pack(buckets: Sequence[Bucket]) -> list[Gathered]:
    """Groups whose blocks lie packed (`_get_packed_kv_cache_groups`, vLLM 0.29 and later).

    Layers of one family go together. A family with one layer of each page size per repeat is cut into groups of as
    many repeats as fill all families best; others stay whole.
    """
    families = _families(buckets)
    counts = [[len(bucket.layers) for bucket in family] for family in families]
    balanced = [len(set(count)) == 1 for count in counts]
    floor = max(
        (max(count) for count, even in zip(counts, balanced, strict=True) if even and len(count) > 1), default=0
    )
    repeats = _best_repeats([max(count) for count, even in zip(counts, balanced, strict=True) if even], floor)
    groups = []
    for family, count, even in zip(families, counts, balanced, strict=True):
        number = -(-max(count) // repeats) if even and floor else 1
        groups.extend(_cut(family, number))
    return groups


def pack_in_tuples(buckets: Sequence[Bucket]) -> list[Gathered]:
    """Groups of tuples, one layer of each page size (`_get_kv_cache_groups_uniform_groups`, vLLM 0.22 to 0.28).

    Pages of windows are padded to the next page size of the full group.
    """
    full = [bucket for bucket in buckets if bucket.spec.is_full]
    pages = sorted({bucket.spec.page_bytes for bucket in full})
    families = _families([bucket for bucket in buckets if not bucket.spec.is_full])
    counts = [max(len(bucket.layers) for bucket in family) for family in families]
    most = max(len(bucket.layers) for bucket in full)
    repeats = _best_repeats([most, *counts], most)
    groups = [Gathered(UNIFORM, tuple(full))]
    for family, count in zip(families, counts, strict=True):
        padded = [Bucket(_next_page(bucket.spec, pages), bucket.layers) for bucket in family]
        groups.extend(_cut(padded, -(-count // repeats)))
    return groups


def _families(buckets: Sequence[Bucket]) -> list[list[Bucket]]:
    found: dict[tuple[object, ...], list[Bucket]] = defaultdict(list)
    for bucket in buckets:
        found[bucket.spec.family].append(bucket)
    return list(found.values())


def _cut(family: Sequence[Bucket], number: int) -> list[Gathered]:
    return [
        Gathered(UNIFORM, tuple(Bucket(bucket.spec, bucket.layers[at::number]) for bucket in family))
        for at in range(number)
    ]


def _next_page(spec: Spec, pages: Sequence[int]) -> Spec:
    page = next((page for page in pages if page >= spec.page_bytes), spec.page_bytes)
    return spec if page == spec.page_bytes else spec.padded_to(page)


def _best_repeats(values: Sequence[int], floor: int) -> int:
    """The group size from `floor` up that leaves the fewest empty places; the largest of equals."""
    least = max(1, floor)
    most = max(values, default=least)
    if least > most:
        return least
    return max(range(least, most + 1), key=lambda size: (-sum(-value % size for value in values), size))
