"""docs/computing.md: each of its sums is right, and is what the program says of the example."""

import re

import pytest

from kvgauge.assess.waste import KINDS
from kvgauge.publish.families import FAMILIES
from tests.docs.example import example
from tests.docs.pictures import DOCS
from tests.docs.working import Sum, bare_sums, named_sums

PAGE = (DOCS / "computing.md").read_text(encoding="utf-8")
SUMS = list(named_sums(PAGE))
LINES = [
    line for block in re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]


@pytest.mark.parametrize("one", SUMS, ids=lambda one: one.name)
def test_a_sum_is_right(one: Sum) -> None:
    assert one.holds(one.worked_out()), f"{one.expression} is {one.worked_out()!r}"


@pytest.mark.parametrize("one", SUMS, ids=lambda one: one.name)
def test_a_sum_is_what_the_program_says(one: Sum) -> None:
    assert one.holds(example().samples[one.name]), f"{one.name} is {example().samples[one.name]!r}"


def test_no_line_of_a_block_is_left_out() -> None:
    assert len(SUMS) == len(LINES) > 30


def test_sums_in_sentences_are_right() -> None:
    sums = list(bare_sums(PAGE))
    assert len(sums) >= 4
    for each in sums:
        assert each.holds(each.worked_out()), each


def test_every_family_has_its_rule() -> None:
    told = set(re.findall(r"`(kvgauge_\w+)`", PAGE))
    assert {family.name for family in FAMILIES} <= told


def test_no_other_names_are_told() -> None:
    of_the_aggregator = {"kvgauge_required_replicas"}
    assert set(re.findall(r"\bkvgauge_\w+", PAGE)) <= {family.name for family in FAMILIES} | of_the_aggregator


def test_every_component_limit_and_kind_of_waste_has_its_rule() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    gpu = example().assessment.gpus[0]
    assert {part.component for part in gpu.components} <= told
    assert set(example().snapshot.advice.limits) <= told
    assert set(KINDS) <= told


@pytest.mark.parametrize(("claim", "holds"), [("12 x 3 = 36", True), ("1,000 / 3 = 333.3", True), ("2 x 2 = 5", False)])
def test_a_wrong_sum_would_be_seen(claim: str, holds: bool) -> None:
    (one,) = bare_sums(f"It is {claim} in all.")
    assert one.holds(one.worked_out()) is holds
