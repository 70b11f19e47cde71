"""Frames of `kvgauge top`: what was seen in, lines of text out. Nothing here asks, waits or knows a terminal."""

import textwrap
from collections.abc import Iterator, Sequence

from rich.text import Text

from kvgauge.top.asking import Seen
from kvgauge.top.reading import GpuView, PodView, PoolView

_GIB, _MIB = 1 << 30, 1 << 20
NARROW = 60
"""Below so many columns bars are left out, and figures stand below one another."""
_WIDEST_BAR = 60
_UNKNOWN = "-"
_TIGHT = "\N{NO-BREAK SPACE}"
"""Between a figure and its unit, until lines are broken."""
_LABEL = 9
_FRESHNESS = len("  STALE, 99 min old")
_PLAIN: dict[str, str | int | None] = {"█": "#", "▒": "+", "·": ".", "…": "~"}


def frame(seen: Sequence[Seen], chosen: int, width: int, height: int | None = None) -> Text:
    """One screen. Several sidecars: a line for each, then the chosen one whole. `height` None: all of them whole, as
    long as it gets."""
    if height is None:
        lines = [line for each in seen for line in (*details(each, width), Text())][:-1]
    elif len(seen) == 1:
        lines = list(details(seen[0], width))
    else:
        # The list never takes all of the screen; it moves with the choice.
        room = max(min(len(seen), height // 2 - 1), 1)
        first = min(max(chosen - room + 1, 0), len(seen) - room)
        listed = [_row(each, first + place == chosen, width) for place, each in enumerate(seen[first : first + room])]
        lines = [_heading(width), *listed, Text(), *details(seen[chosen], width)]
    if height is not None:
        keys = "q ends" if len(seen) == 1 else "q ends, up and down choose"
        beyond = len(lines) - (height - 1)
        if beyond > 0:
            keys += f"; {beyond} more lines in a larger window"
        lines = [*lines[: height - 1], *[Text()] * max(-beyond, 0), Text(keys, style="dim")]
    return Text("\n").join(_cut(line, width) for line in lines)


def fitted(frame: Text, encoding: str) -> Text:
    """With plain marks in the place of those that the terminal's encoding lacks."""
    try:
        "".join(map(str, _PLAIN)).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return Text(frame.plain.translate(str.maketrans(_PLAIN)), style=frame.style, spans=frame.spans)
    return frame


def details(seen: Seen, width: int) -> Iterator[Text]:
    """One sidecar whole."""
    name, state = Text(seen.name, style="bold"), _state(seen)
    # Where there is no room for both, how fresh it is comes first.
    cut = name.cell_len + _FRESHNESS > width
    yield Text("  ").join([state, name] if cut else [name, state])
    view = seen.view
    if view is None:
        return
    yield Text(" ".join(filter(None, (view.engine, view.version, view.model))) or "no engine is seen")
    yield from _load(view, width)
    for pool in view.pools:
        yield from _pool(pool, len(view.pools) > 1, width)
    if view.pools:
        yield from _told("full", _exhaustion(view), width)
    yield from _sources(view, width)
    for gpu in view.gpus:
        yield from _gpu(gpu, width)
    if view.waste:
        yield from _told("waste", _waste(view), width)
    for warning in view.warnings:
        yield from _wrapped(warning, width, "yellow")
    for sentence in view.explanation:
        yield from _wrapped(sentence, width)


def _state(seen: Seen) -> Text:
    """How fresh it is, said before anything else."""
    if seen.view is None:
        return Text(f"unreachable: {seen.trouble}", style="bold red") if seen.trouble else Text("asked", style="dim")
    age = _span(seen.age_seconds)
    if seen.stale:
        return Text(f"STALE, {age} old: {seen.trouble or 'it stands still'}", style="bold red")
    if seen.trouble is not None:
        return Text(f"{age} old, then {seen.trouble}", style="yellow")
    if not seen.view.valid:
        return Text(f"advice is not valid, {age} old", style="yellow")
    return Text(f"{age} old", style="green")


def _load(view: PodView, width: int) -> Iterator[Text]:
    ratio = view.load_ratio
    said = _UNKNOWN if ratio is None else f"{ratio:.2f}"
    style = "" if ratio is None else "red" if ratio > 1 else "yellow" if ratio > 0.85 else "green"
    yield _labelled("load", said, *_bar([(ratio, "█", style)], 1.0, width))
    safe = f"safe {_count(view.safe_concurrency)}"
    if view.binding_limit:
        safe += f", {view.binding_limit} binds"
    yield from _told("requests", f"{_count(view.running)} running, {_count(view.waiting)} waiting; {safe}", width)
    if view.limits:
        marks = [f"{name} {_count(limit)}" + "*" * (name == view.binding_limit) for name, limit in view.limits.items()]
        yield from _told("limits", ", ".join(marks), width)


def _pool(pool: PoolView, several: bool, width: int) -> Iterator[Text]:
    parts = [
        (pool.active_tokens, "█", "green"),
        (pool.reclaimable_tokens, "▒", "cyan"),
    ]
    used = _UNKNOWN
    if pool.active_tokens is not None and pool.capacity_tokens:
        used = f"{pool.active_tokens / pool.capacity_tokens:4.0%}"
    name = f"kv {pool.rank}" if several else "kv"
    yield _labelled(name, used, *_bar(parts, pool.capacity_tokens, width))
    states = ("active", pool.active_tokens), ("reclaimable", pool.reclaimable_tokens), ("free", pool.free_tokens)
    told = ", ".join(f"{_tokens(tokens)} {state}" for state, tokens in states)
    yield from _told("", f"{told} of {_tokens(pool.capacity_tokens)} tokens", width)


def _gpu(gpu: GpuView, width: int) -> Iterator[Text]:
    predicted = gpu.total.predicted_bytes if gpu.total is not None else None
    actual = gpu.total.actual_bytes if gpu.total is not None and gpu.total.actual_bytes is not None else gpu.used_bytes
    # No minus before what rounds to nothing.
    off = f", off by {round((actual - predicted) / actual, 3) or 0.0:+.1%}" if actual and predicted is not None else ""
    yield from _told(f"gpu {gpu.gpu}", f"{gpu.name}, {_size(gpu.card_bytes)}{off}", width)
    for label, size in (("predicted", predicted), ("actual", actual)):
        yield _labelled(label, f"{_size(size):>8}", *_bar([(size, "█", "blue")], gpu.card_bytes, width))
    told = [
        f"{part.name} {_size(part.predicted_bytes)}"
        + (f" (actual {_size(part.actual_bytes)})" if part.actual_bytes is not None else "")
        for part in gpu.parts
        if part.predicted_bytes
    ]
    if told:
        yield from _told("", ", ".join(told), width)


def _waste(view: PodView) -> str:
    ordered = sorted((each for each in view.waste if each.waste_bytes), key=lambda each: -each.waste_bytes)
    listed = [
        f"{each.kind} {_size(each.waste_bytes)}" + (" (estimated)" if each.method == "estimated" else "")
        for each in ordered
    ]
    return ", ".join(listed) or "none"


def _exhaustion(view: PodView) -> str:
    if view.kv_exhaustion_seconds is not None:
        return f"in {_span(view.kv_exhaustion_seconds)} at this trend"
    return "not heading there" if view.trend_known else "not known"


def _sources(view: PodView, width: int) -> Iterator[Text]:
    told = []
    for source in view.sources:
        reason = f" ({source.reason})" if source.reason else ""
        told.append(f"{source.name} {_span(source.age_seconds)}" if source.up else f"{source.name} DOWN{reason}")
    down = any(not source.up for source in view.sources)
    yield from _told("sources", ", ".join(told) or "not told", width, "yellow" if down else "")


def _heading(width: int) -> Text:
    if width < NARROW:
        return Text(f"  {'sidecar':18} {'load':>5} {'age':>7}", style="dim")
    titles = f"{'load':>5} {'kv':>5} {'running':>7} {'waiting':>7} {'safe':>6}  {'binds':13} age"
    return Text(f"  {'sidecar':22} {titles}", style="dim")


def _row(seen: Seen, chosen: bool, width: int) -> Text:
    mark, view = ("> " if chosen else "  "), seen.view
    style = "red" if seen.stale else "bold" if chosen else ""
    narrow = width < NARROW
    head = f"{mark}{seen.name[:18]:18}" if narrow else f"{mark}{seen.name[:22]:22}"
    if view is None:
        return Text(f"{head} {'unreachable' if seen.trouble else 'asked'}", style=style)
    age = _span(seen.age_seconds)
    ratio = _UNKNOWN if view.load_ratio is None else f"{view.load_ratio:.2f}"
    if narrow:
        return Text(f"{head} {ratio:>5} {age:>7}{' STALE' if seen.stale else ''}", style=style)
    usage = _UNKNOWN if view.kv_usage_ratio is None else f"{view.kv_usage_ratio:.0%}"
    running, waiting, safe = map(_count, (view.running, view.waiting, view.safe_concurrency))
    binds = "STALE" if seen.stale else view.binding_limit[:13]
    return Text(f"{head} {ratio:>5} {usage:>5} {running:>7} {waiting:>7} {safe:>6}  {binds:13} {age}", style=style)


def _labelled(label: str, *more: str | Text) -> Text:
    return Text.assemble((f"{label:{_LABEL}} ", "dim"), *more)


def _bar(parts: Sequence[tuple[float | None, str, str]], whole: float | None, width: int) -> Iterator[Text]:
    """A bar to scale, in letters that can be told apart without colours; nothing where there is no room or no whole."""
    cells = min(width - _LABEL - 14, _WIDEST_BAR)
    if width < NARROW or not whole:
        return
    yield Text("  ")
    left = cells
    for size, letter, style in parts:
        used = min(round((size or 0.0) / whole * cells), left)
        left -= used
        yield Text(letter * used, style=style)
    yield Text("·" * left, style="dim")


def _told(label: str, told: str, width: int, style: str = "") -> Iterator[Text]:
    """Words behind a label, on as many lines as they need."""
    indent = _LABEL + 1 if width >= NARROW else 2
    first = True
    for wrapped in textwrap.wrap(told, max(width - _LABEL - 1, 20)) or [""]:
        line = wrapped.replace(_TIGHT, " ")
        yield _labelled(label, Text(line, style)) if first else Text(" " * indent + line, style)
        first = False


def _wrapped(sentence: str, width: int, style: str = "") -> Iterator[Text]:
    for line in textwrap.wrap(sentence, max(width, 20), subsequent_indent="  "):
        yield Text(line, style)


def _cut(line: Text, width: int) -> Text:
    plain = line.plain.replace(_TIGHT, " ")
    line = Text(plain, style=line.style, spans=line.spans)
    line.truncate(width, overflow="ellipsis")
    return line


def _count(number: float | None) -> str:
    return _UNKNOWN if number is None else f"{number:.0f}"


def _tokens(number: float | None) -> str:
    if number is None:
        return _UNKNOWN
    return f"{number / 1000:.1f}k" if number >= 10_000 else f"{number:.0f}"


def _size(number: float | None) -> str:
    if number is None:
        return _UNKNOWN
    return f"{number / _GIB:.1f}{_TIGHT}GiB" if number >= _GIB / 10 else f"{number / _MIB:.0f}{_TIGHT}MiB"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return _UNKNOWN
    if seconds < 10:
        return f"{seconds:.1f} s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
