"""Writes docs/metrics.md from the table of families: `python -m kvgauge.publish.reference > docs/metrics.md`."""

import sys

from kvgauge.publish.families import FAMILIES

_INTRODUCTION = """# Metrics

Every series on the sidecar's page. Base units; `_ratio` is 0..1 unless said. GPU series carry `gpu` (index in the
container) and `uuid`, engine series `model` and `rank` (the data-parallel engine, "0" when single; advice is the pod's
and has rank "all" when several engines answer together). What is not known has no series: nothing is ever 0 for want
of a fact. `pod` and `namespace` are for Prometheus to attach.

| name | type | labels | meaning |
|---|---|---|---|
"""


def reference() -> str:
    """The page, as Markdown."""
    rows = (
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |\n"
        for family in FAMILIES
    )
    return _INTRODUCTION + "".join(rows)


if __name__ == "__main__":
    sys.stdout.write(reference())
