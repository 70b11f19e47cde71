"""The answers of `--fit` as a person reads them."""

from collections.abc import Iterator, Mapping, Sequence

from kvgauge.planner import tables
from kvgauge.planner.comparison import chosen
from kvgauge.planner.figures import count, figures, gib
from kvgauge.planner.fitting import Fit


def show(found: Sequence[tuple[Mapping[str, object], Fit]], varied: Sequence[str]) -> None:
    """Prints the answer of each case onto stdout. Raises InputError without rich."""
    screen = tables.console()
    for case, fit in found:
        if varied:
            screen.print(
                tables.heading(
                    ", ".join(f"{name} {value}" for name, value in zip(varied, chosen(case, varied), strict=True))
                )
            )
        for line in sentences(fit):
            screen.print(line)
        if len(fit.options) > 1:
            screen.print()
            rows = [[count(n) for n in (way.gpus, way.tp, way.replicas, way.concurrency)] for way in fit.options]
            screen.print(tables.table("Ways to carry it", ("GPUs", "tp", "replicas", "holds"), rows, left=()))
            screen.print()
        for warning in figures(fit.result).warnings:
            screen.print(f"Warning: {warning}")


def sentences(fit: Fit) -> Iterator[str]:
    """The answer, and the pool it stands on."""
    of = "of the longest length" if fit.tokens is None else f"of {count(fit.tokens)} tokens"
    found = figures(fit.result)
    if fit.value is None:
        load = "not one request" if fit.concurrency is None else f"{count(fit.concurrency)} requests"
        yield f"Nothing fits: {load} {'of any length' if fit.question == 'context' else of}."
        if not found.fits:
            yield "Weights and overheads leave nothing for the KV cache."
        return
    if fit.question == "context":
        yield f"{count(fit.value)} tokens is the largest context of which {count(fit.concurrency)} fit at once."
    elif fit.question == "concurrency":
        yield f"{count(fit.value)} requests {of} fit at once."
    else:
        best = fit.options[0]
        carry = "GPU carries" if best.gpus == 1 else "GPUs carry"
        yield f"{count(best.gpus)} {carry} {count(fit.concurrency)} requests {of}:"
        yield f"{count(best.replicas)} x tp {best.tp}, which hold {count(best.concurrency)}."
    yield f"KV pool {gib(found.pool_bytes)} on each GPU, {count(found.capacity_tokens)} tokens."
