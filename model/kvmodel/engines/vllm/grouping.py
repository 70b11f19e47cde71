"""How vLLM gathers layers into groups that share a block table, and makes their blocks equally large."""

from __future__ import annotations

from collections.abc import Sequence

from kvmodel.engines.vllm.packing import pack, pack_in_tuples
from kvmodel.engines.vllm.profiles import Profile
from kvmodel.engines.vllm.specs import CHUNKED, LATENT, SLIDING, SLIDING_LATENT, STATE, UNIFORM, Spec
from kvmodel.engines.vllm.tables import Bucket, Gathered
from kvmodel.errors import ModelError


def gather(layers: Sequence[Spec], profile: Profile, hybrid: bool) -> tuple[list[Gathered], list[str]]:
    """The groups of a model's layers, with warnings (`get_kv_cache_groups`).

    Without `hybrid` (`--disable-hybrid-kv-cache-manager`) windows are kept whole where full attention is present too.
    Raises ModelError (field `architecture` or `hybrid_kv_cache`) where the engine refuses the model.
    """
    buckets = _bucketed(layers)
    if not (hybrid and profile.kinds):
        buckets = _kept_whole(buckets, profile)
    if len(buckets) == 1:
        return [Gathered(buckets[0].spec.kind, (buckets[0],))], []
    if _one_family(buckets, profile):
        return [Gathered(UNIFORM, tuple(buckets))], []
    if any(bucket.spec.kind == SLIDING_LATENT for bucket in buckets):
        return (pack if profile.packing == "groups" else pack_in_tuples)(buckets), []
    unified = _equal_pages(buckets, profile)
    if unified is None:
        whole = _whole_beside_latent(buckets)
        if whole is None or not profile.pads_pages:
            raise ModelError("architecture", "vLLM cannot bring the pages of its layers to one size")
        return [Gathered(UNIFORM, tuple(whole))], ["windows are kept at full length: their pages fit no common size"]
    return _split(_merged(unified), profile)


def _bucketed(layers: Sequence[Spec]) -> list[Bucket]:
    places: dict[Spec, list[int]] = {}
    for place, spec in enumerate(layers):
        places.setdefault(spec, []).append(place)
    return [Bucket(spec, found) for spec, found in places.items()]


def _merged(buckets: Sequence[Bucket]) -> list[Bucket]:
    places: dict[Spec, list[int]] = {}
    for bucket in buckets:
        known = places.get(bucket.spec)
        places[bucket.spec] = bucket.layers if known is None else sorted(known + bucket.layers)
    return [Bucket(spec, found) for spec, found in places.items()]


def _one_family(buckets: Sequence[Bucket], profile: Profile) -> bool:
    return profile.mixed_sizes and len({bucket.spec.family for bucket in buckets}) == 1


def _kept_whole(buckets: list[Bucket], profile: Profile) -> list[Bucket]:
    if len(buckets) == 1 or _one_family(buckets, profile):
        return buckets
    before = buckets
    sizes = {bucket.spec.block_tokens for bucket in buckets if bucket.spec.is_full}
    if sizes:
        common = sizes.pop() if len(sizes) == 1 else None
        buckets = _merged([_whole(bucket, common) if bucket.spec.is_local else bucket for bucket in buckets])
    compressed = any(bucket.spec.kind == SLIDING_LATENT for bucket in before) and len(before) > 1
    if compressed:
        raise ModelError("hybrid_kv_cache", "compressed rows without the hybrid allocator are not planned")
    if len(buckets) > 1 and not _one_family(buckets, profile):
        # Before groups of several widths came, layers of several widths were refused whatever the flag.
        field = "hybrid_kv_cache" if profile.mixed_sizes else "architecture"
        raise ModelError(field, "vLLM refuses this model without block tables of their own for its kinds of layers")
    return buckets


def _whole(bucket: Bucket, block_tokens: int | None) -> Bucket:
    return Bucket(bucket.spec.kept_whole(block_tokens or bucket.spec.block_tokens), bucket.layers)


def _equal_pages(buckets: list[Bucket], profile: Profile) -> list[Bucket] | None:
    """All pages brought to the largest, or None where one cannot be (`unify_kv_cache_spec_page_size`)."""
    largest = max(bucket.spec.page_bytes for bucket in buckets)
    unified = []
    for bucket in buckets:
        spec = bucket.spec
        if spec.page_bytes != largest:
            if spec.kind == STATE and profile.pads_states:
                spec = spec.padded_to(largest)
            elif spec.padded and largest % spec.page_bytes == 0:
                raise ModelError(
                    "kv_dtype_skip_layers", "vLLM cannot bring its padded windows to a skipped layer's page"
                )
            elif profile.scales_pages and spec.kind != STATE and largest % spec.page_bytes == 0:
                spec = spec.of_block(spec.block_tokens * (largest // spec.page_bytes))
            elif profile.pads_pages and spec.kind not in (LATENT, STATE):
                spec = spec.padded_to(largest)
            else:
                return None
        unified.append(Bucket(spec, bucket.layers))
    return unified


def _whole_beside_latent(buckets: list[Bucket]) -> list[Bucket] | None:
    """Windows next to MLA, kept whole (`_try_get_full_allocation_fallback_groups`)."""
    kinds = {bucket.spec.kind for bucket in buckets}
    if not (LATENT in kinds and SLIDING in kinds) or kinds & {SLIDING_LATENT, CHUNKED, STATE}:
        return None
    block = next(bucket.spec.block_tokens for bucket in buckets if bucket.spec.is_full)
    return [_whole(bucket, block) if bucket.spec.is_local else bucket for bucket in buckets]


def _split(buckets: list[Bucket], profile: Profile) -> tuple[list[Gathered], list[str]]:
    """Each kind cut into groups of one size; the last of a kind is filled up with empty places, which cost."""
    counts = [len(bucket.layers) for bucket in buckets]
    size = min(counts)
    if profile.widest_ratio is not None:
        above, below = profile.widest_ratio
        if max(counts) * below < min(counts) * above:
            size = max(counts)
    groups: list[Gathered] = []
    empty = 0
    for bucket, count in zip(buckets, counts, strict=True):
        number = -(-count // size)
        empty += number * size - count
        for at in range(number):
            dealt = slice(at, None, number) if profile.deals_layers else slice(at * size, (at + 1) * size)
            groups.append(Gathered(bucket.spec.kind, (Bucket(bucket.spec, bucket.layers[dealt]),)))
    warnings = [f"{empty} of {size * len(groups)} layer places are empty and cost all the same"] if empty else []
    return groups, warnings
