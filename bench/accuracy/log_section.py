"""The page's part on public start-up logs."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.accuracy.log_rules import (
    DEFAULTS,
    MISSED,
    NOT_COMPARED,
    PRINTED,
    RANKS,
    TOLERANCE,
    TRIED,
    Verdict,
    explained,
    judge,
    possible_changes,
    starting_settings,
)
from bench.accuracy.logs import Record, Settings, needed_bytes
from bench.accuracy.page import GIB, Section, paragraphs, percent, table, whole
from bench.table import Figure
from kvmodel import Architecture, ModelError
from kvmodel.engines.llama_cpp import plan as plan_llama_cpp

_MIB = 2**20
_KINDS = {
    PRINTED: "every setting on which the tokens depend is printed",
    DEFAULTS: "something is not printed; the engine's default gives the printed tokens",
    TRIED: "the default misses; another value of what is not printed gives the printed tokens",
    RANKS: "the pool of some ranks only is printed, and fewer tokens than it holds",
    MISSED: "no value of what is not printed fits",
    NOT_COMPARED: "not enough is printed, or nothing is known of the model",
}


@dataclass(frozen=True, slots=True)
class SizeCheck:
    """A size that a log prints, beside ours."""

    record: Record
    what: str
    ours_mib: float | None
    printed_mib: float
    note: str = ""


def section(records: Sequence[Record], architecture_of: Callable[[str], Architecture | None]) -> Section:
    """The part, with models looked up by name."""
    architectures = {
        record.model_id: architecture_of(record.model_id) for record in records if record.model_id is not None
    }
    verdicts = [judge(record, architectures.get(record.model_id or "")) for record in records]
    compared = [verdict for verdict in verdicts if verdict.kind != NOT_COMPARED]
    printed = [verdict for verdict in verdicts if verdict.kind == PRINTED]
    defaulted = [verdict for verdict in compared if verdict.kind != PRINTED]
    outside = sum(not verdict.holds for verdict in printed)
    checks = [check for record in records for check in _sizes(record, architectures.get(record.model_id or ""))]
    return Section(
        "Public start-up logs",
        paragraphs(
            f"{len(records)} records of start-ups from public repositories and issues; a record links to its source "
            "where the address is known.",
            _EXPLANATION,
            f"Of {len(printed)} records that print everything {len(printed) - outside} hold "
            f"({100 * (1 - outside / max(len(printed), 1)):.1f} %). With the engine's defaults for what is not printed "
            f"{sum(verdict.holds for verdict in defaulted)} of {len(defaulted)} others hold.",
            table(["kind", ">records", "meaning"], _counts(verdicts)),
            "Compared:",
            table(
                [
                    "record",
                    "engine",
                    "model",
                    ">TP x PP",
                    ">pool, GiB",
                    ">ours, tokens",
                    ">printed",
                    ">error",
                    "within the pool's rounding",
                    "explanation",
                ],
                map(_compared_row, compared),
            ),
            "Bytes and sizes that are printed in place of tokens:",
            table(
                ["record", "engine", "model", "what", ">ours, MiB", ">printed, MiB", ">error", "explanation"],
                map(_check_row, checks),
            ),
            "Not compared:",
            table(
                ["record", "engine", "model", "reason"],
                [
                    [_link(one.record), _engine(one.record), one.record.model_id or "-", one.line]
                    for one in verdicts
                    if one.kind == NOT_COMPARED
                ],
            ),
        ),
        (
            Figure(
                "start-up logs that print every setting: more than 0.5 % off",
                "%",
                5,
                100 * outside / len(printed) if printed else 100,
            ),
        ),
    )


def _counts(verdicts: Sequence[Verdict]) -> list[list[str]]:
    number = Counter(verdict.kind for verdict in verdicts)
    return [[kind, str(number[kind]), meaning] for kind, meaning in _KINDS.items()]


def _compared_row(verdict: Verdict) -> list[str]:
    record = verdict.record
    return [
        _link(record),
        _engine(record),
        record.model_id or "-",
        f"{record.tp or '?'} x {record.pp or 1}",
        f"{record.pool_gib:.2f}",
        whole(verdict.ours),
        whole(record.tokens),
        "-" if verdict.error is None else percent(verdict.error),
        "yes" if verdict.inside else "no",
        verdict.line,
    ]


def _link(record: Record) -> str:
    return f"[{record.id}]({record.source})" if record.source else record.id


def _engine(record: Record) -> str:
    """Engine and version without the build's hash."""
    version = re.sub(r"\+g[0-9a-f]+$", "", record.engine_version or record.generation or "")
    return f"{record.engine} {version}".strip()


def _check_row(check: SizeCheck) -> list[str]:
    error = "-" if check.ours_mib is None else percent(check.ours_mib / check.printed_mib - 1)
    ours = "-" if check.ours_mib is None else f"{check.ours_mib:,.2f}"
    record = check.record
    return [
        _link(record),
        _engine(record),
        record.model_id or "-",
        check.what,
        ours,
        f"{check.printed_mib:,.2f}",
        error,
        check.note,
    ]


def _sizes(record: Record, architecture: Architecture | None) -> list[SizeCheck]:
    """What a record prints in bytes, where its model is known."""
    if architecture is None:
        return []
    found = []
    if record.engine == "vllm" and record.needed_gib is not None and record.needed_for_tokens is not None:
        found.append(_needed(record, architecture, record.needed_for_tokens, record.needed_gib))
    if record.engine == "sglang" and record.tokens is not None:
        held = architecture.bytes_at(record.tokens, record.kv_dtype or "auto", record.tp or 1)
        found += [SizeCheck(record, name, held / _MIB, size) for name, size in record.sizes_mib]
    if record.engine == "llama.cpp":
        found += _llama_cpp(record, architecture)
    return found


def _needed(record: Record, architecture: Architecture, tokens: int, printed_gib: float) -> SizeCheck:
    """vLLM's check that one request of the longest length fits."""
    base = starting_settings(record, architecture)

    def needed(settings: Settings) -> float | None:
        try:
            return needed_bytes(architecture, settings, tokens) / GIB
        except ModelError:
            return None

    def fits(settings: Settings) -> bool:
        size = needed(settings)
        return size is not None and abs(size / printed_gib - 1) <= TOLERANCE

    ours = needed(base)
    note = ""
    if not fits(base):
        whole_model = replace(base, pp=1)
        if base.pp > 1 and fits(whole_model):
            note = "exact for the layers of all stages, which this log counted"
        else:
            changes = possible_changes(record, architecture, base)
            note = explained(changes, base, fits) or "no value of what is not printed fits"
    what = f"one request of {tokens:,} tokens"
    return SizeCheck(record, what, None if ours is None else 1024 * ours, 1024 * printed_gib, note)


def _llama_cpp(record: Record, architecture: Architecture) -> list[SizeCheck]:
    try:
        plan = plan_llama_cpp(
            architecture,
            n_ctx=record.context_tokens,
            n_parallel=record.max_num_seqs or 1,
            unified=record.one_stream,
            n_ubatch=record.micro_batch or 512,
            cache_type_k=record.kv_dtype or "f16",
            cache_type_v=record.kv_dtype or "f16",
            rollback=record.rollback,
        )
    except ModelError as error:
        return [SizeCheck(record, name, None, size, f"refused: {error}") for name, size in record.sizes_mib]
    sizes = Counter[str]()
    for group in plan.groups:
        sizes[group.kind] += group.block_bytes * (group.num_blocks or 0)
    found = [SizeCheck(record, name, sizes[name] / _MIB, size) for name, size in record.sizes_mib]
    if architecture.model_type.startswith("gemma4"):
        note = "the listed facts leave out the KV heads of full layers"
        found = [replace(check, ours_mib=None, note=note) if check.what == "full" else check for check in found]
    return found


_EXPLANATION = """
Given the pool that a vLLM log prints, how many tokens does it hold? A prediction within 0.5 % holds; logs round the
pool to 0.01 GiB, and the last but one column says whether the printed tokens lie between the plans for both ends of
that rounding. Of several ranks' pools the least counts, as in vLLM. A model's shape is that of its published config, or
of a list of its facts; of Qwen3.5's relatives such a list leaves out the type of the states, and the family's published
configs fill it in.

A setting counts as not printed where some other value of it would move the tokens by more than 0.5 %. A log that
prints the KV dtype is taken to print drafting, pipeline and allocator too where they are not the default, and one
without a pipeline to have one stage. GPU blocks count where no tokens are printed.
Where a default misses, other values of what is not printed are tried, at most three at once and the fewest first, and a
printed block size must come out too: the more that has to be tried, the less such a fit proves. `or` names the last of
the values that do as well.
"""
