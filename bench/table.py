"""The table that every bench prints: figure, bound, result."""

import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure that must not exceed its bound."""

    name: str
    unit: str
    bound: float
    measured: float

    @property
    def met(self) -> bool:
        return self.measured <= self.bound


def report(title: str, figures: list[Figure], notes: list[str] | None = None) -> None:
    """Prints the table and a summary line; exits 1 where a figure is missed."""
    width = max(len(figure.name) for figure in figures)
    print(f"{title}\n\n{'figure':{width}}  {'bound':>12}  {'measured':>12}  result")
    for figure in figures:
        bound, measured = (f"{value:.4g} {figure.unit}" for value in (figure.bound, figure.measured))
        print(f"{figure.name:{width}}  {'<= ' + bound:>12}  {measured:>12}  {'met' if figure.met else 'MISSED'}")
    for note in notes or []:
        print(note)
    missed = sum(not figure.met for figure in figures)
    print(f"\n{title}: {len(figures) - missed} of {len(figures)} figures met")
    sys.exit(1 if missed else 0)
