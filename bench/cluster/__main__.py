"""What the cluster's parts cost and how fresh their figures are: `scripts/bench cluster [--only PART]`."""

import argparse
import importlib

from bench.table import Figure, report

PARTS = ("polling", "listing", "freshness", "injecting")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench cluster")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    only = parser.parse_args().only
    figures: list[Figure] = []
    for name in (only,) if only else PARTS:
        print(f"{name} ...", flush=True)
        figures.extend(importlib.import_module(f"bench.cluster.{name}").figures())
    report("cluster", figures)


if __name__ == "__main__":
    main()
