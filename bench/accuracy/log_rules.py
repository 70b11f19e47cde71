"""What a start-up log tells of our prediction: whether it can be compared, and what explains a difference.

A setting that the log does not print is taken at the engine's default. Where that misses, the other values it may have
had are tried, the fewest changes first; nothing here knows any single record.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product

from bench.accuracy.logs import (
    ROUNDING_GIB,
    Record,
    Settings,
    drafted_tokens,
    plan,
    printed_settings,
    tokens_of,
    versions_of,
)
from bench.accuracy.page import GIB
from kvmodel import Architecture, ModelError
from kvmodel.layers import ChunkedLocalAttention, FullAttention, LatentAttention

TOLERANCE = 0.005
_MOST_CHANGES = 3
_LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072, 262144, 1_048_576)
_BATCHES = (2048, 4096, 8192, 16384)
_USUAL_LENGTH = 8192

PRINTED = "all settings printed"
DEFAULTS = "defaults for what is not printed"
TRIED = "exact with a setting that is not printed"
RANKS = "another rank decides"
MISSED = "not explained"
NOT_COMPARED = "not compared"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One record judged."""

    record: Record
    kind: str
    line: str = ""
    """One short explanation; empty where the prediction holds and every setting is printed."""
    ours: int | None = None
    """Tokens under the printed settings and the engine's defaults."""
    unprinted: tuple[str, ...] = ()
    """Settings the log does not print and on which the tokens depend."""
    inside: bool = False
    """The printed tokens lie between the plans for both ends of the pool's rounding."""

    @property
    def error(self) -> float | None:
        """Relative; positive where ours is more."""
        if self.ours is None or not self.record.tokens:
            return None
        return self.ours / self.record.tokens - 1

    @property
    def holds(self) -> bool:
        return self.error is not None and abs(self.error) <= TOLERANCE


@dataclass(frozen=True, slots=True)
class Change:
    """One value that an unprinted setting may have had."""

    setting: str
    label: str
    fields: tuple[tuple[str, object], ...]

    def to(self, settings: Settings) -> Settings:
        return replace(settings, **dict(self.fields))  # type: ignore[arg-type]


def why_not_compared(record: Record, architecture: Architecture | None) -> str | None:
    """Why tokens cannot be predicted from the record; None where they can."""
    if record.model_id is None:
        return "names no model"
    if record.engine != "vllm":
        return "prints sizes in place of a pool: see the table above" if record.sizes_mib else "prints no bytes"
    if record.pool_gib is None and record.tokens is None:
        return f"prints neither pool nor tokens ({_outcome(record)})"
    if record.pool_gib is None:
        return "prints no pool"
    if record.pool_gib <= 0:
        return "no memory was left for a pool"
    if architecture is None:
        return "no facts on the model's layers at hand"
    if record.needed_gib is not None:
        return "prints the bytes of one request: see the table above"
    if record.tokens is None:
        return f"prints no tokens ({_outcome(record)})"
    if record.speculative is not None and drafted_tokens(record.speculative) is None:
        return "drafts with a model whose layers are not printed"
    return None


def _outcome(record: Record) -> str:
    return {
        "ok": "an excerpt of a start",
        "failed": "the start failed",
        "max_len_exceeds_kv": "one request does not fit",
        "no_kv_memory": "no memory left",
        "oom_after_kv": "out of memory later",
    }.get(record.outcome, record.outcome)


def judge(record: Record, architecture: Architecture | None) -> Verdict:
    """The record's verdict."""
    reason = why_not_compared(record, architecture)
    if reason is not None or architecture is None or record.pool_gib is None or record.tokens is None:
        return Verdict(record, NOT_COMPARED, reason or "")
    base = starting_settings(record, architecture)
    ours = tokens_of(architecture, base, record.pool_gib)
    changes = possible_changes(record, architecture, base)
    unprinted = _that_matter(changes, architecture, base, record.pool_gib, ours)
    verdict = Verdict(
        record, MISSED, "no value of what is not printed fits", ours, unprinted, _inside(record, architecture, base)
    )
    if verdict.holds:
        return replace(verdict, kind=DEFAULTS if unprinted else PRINTED, line=_not_printed(unprinted))
    if not unprinted and record.ranks <= record.ranks_printed:
        line = _refusal(architecture, base, record.pool_gib) or (
            "within the rounding of the pool" if verdict.inside else "every setting is printed"
        )
        return replace(verdict, kind=PRINTED, line=line)
    fits = partial(_fits, record, architecture)
    fitting = explained(changes, base, fits, 1) or _by_ranks(record, ours) or explained(changes, base, fits)
    if fitting is None:
        return verdict if unprinted else replace(verdict, kind=PRINTED)
    return replace(verdict, kind=RANKS if fitting.startswith("pool of") else TRIED, line=fitting)


def _refusal(architecture: Architecture, settings: Settings, pool_gib: float) -> str:
    """Why there is no plan under these settings; empty where there is one."""
    try:
        plan(architecture, settings, int(pool_gib * GIB))
    except ModelError as error:
        return f"refused: {error}"
    return ""


def starting_settings(record: Record, architecture: Architecture) -> Settings:
    """The printed settings, with the model's own limit where no length is printed."""
    base = printed_settings(record, architecture)
    if base.max_model_len is not None:
        return base
    return replace(base, max_model_len=architecture.max_position_embeddings or _USUAL_LENGTH)


def _not_printed(unprinted: Sequence[str]) -> str:
    return f"not printed: {', '.join(unprinted)}" if unprinted else ""


def possible_changes(record: Record, architecture: Architecture, base: Settings) -> list[Change]:
    """Values other than the default that the settings missing in the log may have had, the likeliest first."""
    versions = () if record.generation == "V0" else versions_of(record.generation)
    has_states = architecture.state_bytes_per_sequence() > 0 and architecture.state_dtype is None
    # The log's line of the KV dtype would tell of the allocator too.
    may_differ = record.kv_dtype is None and record.hybrid is None and not _is_plain(architecture)
    chunked = any(isinstance(group.layer, ChunkedLocalAttention) for group in architecture.groups)
    allocator = f"hybrid allocator {'on' if chunked else 'off'}"
    tables: list[tuple[bool, str, Iterable[Change]]] = [
        (record.kv_dtype is None, "KV dtype", [_change("an fp8 cache", kv_dtype="fp8")]),
        (True, "drafts", map(_drafting, _possible_drafts(record, architecture, base))),
        (record.engine_version is None, "version", (_change(f"the rules of {v}", version=v) for v in versions)),
        (record.max_model_len is None, "length", (_change(f"{n:,} tokens", max_model_len=n) for n in _LENGTHS)),
        (record.tp is None, "TP", (_change(f"TP {ranks}", tp=ranks) for ranks in (2, 4, 8))),
        (record.prefix_caching is None, "prefix caching", map(_caching, (True, False))),
        (record.max_num_batched_tokens is None, "tokens a step", map(_batch, _BATCHES)),
        (record.state_dtype is None and has_states, "state dtype", map(_states, ("float32", "float16"))),
        (may_differ, "hybrid allocator", [_change(allocator, hybrid=chunked)]),
    ]
    return [replace(change, setting=name) for missing, name, changes in tables if missing for change in changes]


def _change(label: str, **fields: object) -> Change:
    return Change("", label, tuple(fields.items()))


def _drafting(tokens: int) -> Change:
    label = f"MTP drafting {tokens} token{'s' if tokens > 1 else ''}"
    return _change(label, draft_layers=1, drafted_tokens=tokens)


def _caching(on: bool) -> Change:
    return _change(f"prefix caching {'on' if on else 'off'}", prefix_caching=on)


def _batch(tokens: int) -> Change:
    return _change(f"{tokens:,} tokens a step", max_num_batched_tokens=tokens)


def _states(dtype: str) -> Change:
    return _change(f"{dtype} states", state_dtype=dtype)


def _possible_drafts(record: Record, architecture: Architecture, base: Settings) -> tuple[int, ...]:
    """Numbers of drafted tokens that the log leaves open. The line that prints the KV dtype prints drafting too."""
    if record.speculative is not None:
        return () if "n=" in record.speculative else tuple(n for n in (1, 2, 3, 4) if n != base.drafted_tokens)
    if record.kv_dtype is not None or not _predicts(architecture):
        return ()
    return (1, 2, 3, 4)


def _predicts(architecture: Architecture) -> bool:
    """Whether the family's checkpoints bring layers for multi-token prediction."""
    return architecture.draft_layers > 0 or architecture.model_type.startswith(("qwen3_5", "qwen3_next", "deepseek_v3"))


def _is_plain(architecture: Architecture) -> bool:
    return all(isinstance(group.layer, FullAttention | LatentAttention) for group in architecture.groups)


def _that_matter(
    changes: Sequence[Change], architecture: Architecture, base: Settings, pool_gib: float, ours: int | None
) -> tuple[str, ...]:
    """Settings of which some value moves the tokens by more than the tolerance."""
    found: dict[str, None] = {}
    for change in changes:
        if change.setting in found:
            continue
        tokens = tokens_of(architecture, change.to(base), pool_gib)
        if tokens is not None and (ours is None or abs(tokens / ours - 1) > TOLERANCE):
            found[change.setting] = None
    return tuple(found)


def _inside(record: Record, architecture: Architecture, settings: Settings) -> bool:
    if record.pool_gib is None or record.tokens is None:
        return False
    ends = [tokens_of(architecture, settings, record.pool_gib + off) for off in (-ROUNDING_GIB, ROUNDING_GIB)]
    return ends[0] is not None and ends[1] is not None and ends[0] <= record.tokens <= ends[1]


def explained(
    changes: Sequence[Change], base: Settings, fits: Callable[[Settings], bool], most: int = _MOST_CHANGES
) -> str | None:
    """The fewest changes under which what is printed comes out, in words; None where none do."""
    for number in range(1, most + 1):
        fitting = [chosen for chosen in _choices(changes, number) if fits(_changed(base, chosen))]
        if fitting:
            return f"exact with {_described(fitting)}"
    return None


def _changed(settings: Settings, chosen: Sequence[Change]) -> Settings:
    for change in chosen:
        settings = change.to(settings)
    return settings


def _choices(changes: Sequence[Change], number: int) -> Iterator[tuple[Change, ...]]:
    by_setting: dict[str, list[Change]] = {}
    for change in changes:
        by_setting.setdefault(change.setting, []).append(change)
    for settings in combinations(by_setting, number):
        yield from product(*(by_setting[setting] for setting in settings))


def _fits(record: Record, architecture: Architecture, settings: Settings) -> bool:
    """Whether the printed tokens, and a printed block size, come out."""
    if record.pool_gib is None or not record.tokens:
        return False
    try:
        found = plan(architecture, settings, int(record.pool_gib * GIB))
    except ModelError:
        return False
    if record.block_tokens is not None and found.block_tokens != record.block_tokens:
        return False
    return abs(found.capacity_tokens / record.tokens - 1) <= TOLERANCE


def _described(fitting: Sequence[tuple[Change, ...]]) -> str:
    """The first choice; of those that differ from it in one setting only, the range of that setting's values."""
    first = fitting[0]
    words = []
    for place, change in enumerate(first):
        alike = [chosen[place] for chosen in fitting if _same_but(chosen, first, place)]
        words.append(change.label if len(alike) == 1 else f"{change.label} (or {alike[-1].label})")
    return " and ".join(words)


def _same_but(one: tuple[Change, ...], other: tuple[Change, ...], place: int) -> bool:
    return one[place].setting == other[place].setting and all(
        mine == theirs for index, (mine, theirs) in enumerate(zip(one, other, strict=True)) if index != place
    )


def _by_ranks(record: Record, ours: int | None) -> str | None:
    """The engine takes the smallest pool of all ranks: fewer tokens than the printed pool holds tell of another."""
    if ours is None or not record.tokens or record.pool_gib is None:
        return None
    if record.tokens >= ours or record.ranks_printed >= record.ranks:
        return None
    needed_gib = record.pool_gib * record.tokens / ours
    return (
        f"pool of {record.ranks_printed} of {record.ranks} ranks printed; the smallest decides: "
        f"{needed_gib:.2f} GiB would give these tokens"
    )
