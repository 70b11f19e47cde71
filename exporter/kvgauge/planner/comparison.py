"""Several plans side by side: what differs between the cases, and what comes of it."""

from collections.abc import Mapping, Sequence

from kvgauge.planner import tables
from kvgauge.planner.figures import GIB, Plan, count, figures, requests, seconds, tokens_per_request

Row = tuple[Mapping[str, object], Mapping[str, object]]
"""A case and its result."""

_HEADINGS = ("weights GiB", "KV pool GiB", "KV tokens", "longest at once", "usual at once", "per token")
_UNKNOWN = "-"


def show(plan: Plan, rows: Sequence[Row], varied: Sequence[str]) -> None:
    """Prints one table onto stdout. Raises InputError without rich."""
    screen = tables.console()
    figured = [_cells(plan, case, result) for case, result in rows]
    told = [index for index in range(len(_HEADINGS)) if any(cells[index] != _UNKNOWN for cells in figured)]
    headings = [*(name.replace("_", " ") for name in varied), *(_HEADINGS[index] for index in told)]
    cells = [
        [*chosen(case, varied), *(found[index] for index in told)]
        for (case, _), found in zip(rows, figured, strict=True)
    ]
    models = dict.fromkeys(filter(None, (figures(result).model for _, result in rows)))
    screen.print(tables.table(" and ".join(models), headings, cells, left=range(len(varied))))
    screen.print()
    for case, result in rows:
        error = figures(result).error
        if error is not None:
            names = " ".join(f"{name} {value}" for name, value in zip(varied, chosen(case, varied), strict=True))
            screen.print(f"Not planned: {names}: {': '.join(error)}")
    for warning in dict.fromkeys(warning for _, result in rows for warning in figures(result).warnings):
        screen.print(f"Warning: {warning}")


def chosen(case: Mapping[str, object], varied: Sequence[str]) -> list[str]:
    """The values of the fields that differ, as they were typed."""
    switches = {True: "on", False: "off"}
    values = (case[name] for name in varied)
    return [switches[value] if isinstance(value, bool) else str(value) for value in values]


def _cells(plan: Plan, case: Mapping[str, object], result: Mapping[str, object]) -> list[str]:
    found = figures(result)
    if found.error is not None:
        return [_UNKNOWN] * len(_HEADINGS)
    usual = tokens_per_request(plan, case, result)
    return [
        _gib(dict(found.memory).get("weights")),
        _gib(found.pool_bytes),
        count(found.capacity_tokens),
        requests(found.max_concurrency),
        requests(usual[1] if usual else None),
        seconds(found.tpot_seconds),
    ]


def _gib(size: float | None) -> str:
    return _UNKNOWN if size is None else f"{size / GIB:,.2f}"
