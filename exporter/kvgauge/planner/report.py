"""One plan as a person reads it: the verdict first, then where the memory goes and what could be changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kvgauge.planner import bars, tables
from kvgauge.planner.figures import (
    GIB,
    Figures,
    Plan,
    count,
    figures,
    gib,
    number,
    part,
    requests,
    seconds,
    tokens_per_request,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDEST_BAR = 100
_SHOWN = (
    "gpu",
    "gpu_memory_gib",
    "tp",
    "pp",
    "dp",
    "dcp",
    "max_model_len",
    "max_num_seqs",
    "weights_dtype",
    "kv_dtype",
)
_GROUP_COLUMNS = (
    ("kind", "kind"),
    ("layers", "layers"),
    ("block_tokens", "block"),
    ("window_tokens", "window"),
    ("page_bytes", "page"),
    ("block_bytes", "bytes/block"),
    ("num_blocks", "blocks"),
    ("blocks_per_request", "per request"),
)


def show(plan: Plan, case: Mapping[str, object], result: Mapping[str, object]) -> None:
    """Prints the plan onto stdout. Raises InputError without rich."""
    screen = tables.console()
    found = figures(result)
    screen.print(tables.heading(_title(case, found)))
    for line in verdict(found, tokens_per_request(plan, case, result)):
        screen.print(line)
    for line in expected(result):
        screen.print(line)
    screen.print()
    _show_memory(screen, found, card_bytes(case, result))
    screen.print(_ideal_against_plan(found))
    screen.print()
    if len(found.groups) > 1:
        screen.print(_groups(found))
        screen.print()
    if found.ttft_seconds is not None or found.tpot_seconds is not None:
        ttft, tpot = seconds(found.ttft_seconds), seconds(found.tpot_seconds)
        screen.print(f"Latency without a queue: first token {ttft}, each further token {tpot}")
    if found.advice:
        rows = [(item.change, gib(item.frees_bytes), item.why) for item in found.advice]
        screen.print()
        screen.print(tables.table("What would free memory", ("change", "frees", "why"), rows, left=(0, 2)))
    for warning in found.warnings:
        screen.print(f"Warning: {warning}")


def verdict(found: Figures, at_tokens: tuple[int, float | None] | None = None) -> Iterator[str]:
    """What fits, in sentences. `at_tokens` is a request's length and how many of that length fit."""
    if found.pool_bytes is None:
        yield "The KV pool is not sized: --gpu, --gpu-memory-gib, --available-kv-gib or the weights' size is needed."
        return
    if not found.fits:
        yield f"Does not fit: nothing is left for the KV cache beside {gib(_beside(found))} of weights and overheads."
        return
    pool, capacity = gib(found.pool_bytes), count(found.capacity_tokens)
    most = found.max_concurrency
    if most is not None and most < 1:
        yield f"Does not fit: the pool of {pool} ({capacity} tokens) holds {most:.2f} of one request of the longest"
        yield "length; lower --max-model-len (--fit --concurrency 1 finds how far)."
    else:
        yield f"Fits: a KV pool of {pool} on each GPU holds {capacity} tokens,"
        yield f"  {requests(most)} requests of the longest length at once"
    if at_tokens is not None:
        yield f"  {requests(at_tokens[1])} requests of {count(at_tokens[0])} tokens at once"
    if found.max_requests is not None and most is not None and most > found.max_requests:
        yield f"  The engine itself runs no more than {count(found.max_requests)} at once."


def expected(result: Mapping[str, object]) -> Iterator[str]:
    """What one request holds while it runs, where the case names lengths."""
    found = part(result, "expected")
    if not found:
        return
    ideal, plan = number(found.get("ideal_bytes")), number(found.get("plan_bytes"))
    yield f"A running request of {count(number(found.get('mean_tokens')))} tokens on average holds {gib(ideal)} ideally"
    if plan is not None:
        yield f"  and {gib(plan)} of each GPU's pool: {requests(number(found.get('concurrency')))} at once"


def card_bytes(case: Mapping[str, object], result: Mapping[str, object]) -> float | None:
    """The card's memory: as the plan states it, else as the case does."""
    stated = number(part(result, "memory").get("gpu_bytes"))
    if stated:
        return stated
    given, name = number(case.get("gpu_memory_gib")), case.get("gpu")
    if given is not None:
        return given * GIB
    if not isinstance(name, str):
        return None
    from kvmodel.errors import ModelError
    from kvmodel.gpus import find_gpu

    try:
        return find_gpu(name).usable_bytes
    except ModelError:
        return None


def _title(case: Mapping[str, object], found: Figures) -> str:
    set_up = ", ".join(f"{key} {case[key]}" for key in _SHOWN if case.get(key) is not None)
    engine = " ".join(filter(None, (found.engine, found.engine_version)))
    rules = f" (rules: {found.profile})" if found.profile and found.profile != engine else ""
    return f"{found.model or 'model'} on {engine}{rules}{', ' if set_up else ''}{set_up}"


def _beside(found: Figures) -> float:
    return sum(size for name, size in found.memory if name != "kv_pool")


def _show_memory(screen: Console, found: Figures, card: float | None) -> None:
    from rich.text import Text

    pieces = bars.segments(found.memory, card, min(screen.width, _WIDEST_BAR) - 2)
    if not pieces:
        return
    bar = Text("[", no_wrap=True)
    for piece in pieces:
        bar.append(piece.letter * piece.cells, style=bars.COLOURS.get(piece.letter, ""))
    bar.append("]")
    whole = sum(piece.size_bytes for piece in pieces)
    of = f"{gib(card)} card" if card is not None else "what is planned; the card's size is unknown"
    screen.print(tables.heading(f"Memory of each GPU ({of})"))
    screen.print(bar)
    for piece in pieces:
        share = f"{100 * piece.size_bytes / whole:5.1f} %"
        screen.print(f"  {piece.letter}  {piece.name.replace('_', ' '):16}{gib(piece.size_bytes):>12}  {share}")
    if found.total_bytes is not None:
        between = ""
        if found.low_bytes is not None and found.high_bytes is not None:
            between = f" (between {gib(found.low_bytes)} and {gib(found.high_bytes)})"
        screen.print(f"     {'in use':16}{gib(found.total_bytes):>12}{between}")
    if card is not None and found.total_bytes is not None and found.total_bytes > card:
        screen.print(f"  The card is exceeded by {gib(found.total_bytes - card)}.")
    screen.print()


def _ideal_against_plan(found: Figures) -> Table:
    crossed = found.cross_bytes_per_sequence
    rows = [
        ("each further token", gib(found.growth_bytes_per_token), gib(found.kv_bytes_per_token_per_gpu)),
        ("full windows of one sequence", gib(found.window_bytes_per_sequence), ""),
        ("constant state of one sequence", gib(found.state_bytes_per_sequence), ""),
        *([("what one encoder input takes besides", gib(crossed), "")] if crossed else []),
        *((f"one sequence of {count(tokens)} tokens", gib(size), "") for tokens, size in found.bytes_at),
        ("tokens of a block", "", count(found.block_tokens)),
        ("bytes of a block", "", gib(found.bytes_per_block)),
        ("blocks", "", count(found.num_blocks)),
    ]
    return tables.table("KV cache", ("", "ideal, TP 1", "engine, each GPU"), rows)


def _groups(found: Figures) -> Table:
    columns = [
        (key, title) for key, title in _GROUP_COLUMNS if any(group.get(key) is not None for group in found.groups)
    ]
    rows = [[_cell(key, group.get(key)) for key, _ in columns] for group in found.groups]
    return tables.table("Layer groups", [title for _, title in columns], rows)


def _cell(key: str, value: object) -> str:
    size = number(value)
    if size is None:
        return "-" if value is None else str(value)
    return gib(size) if key.endswith("_bytes") else count(size)
