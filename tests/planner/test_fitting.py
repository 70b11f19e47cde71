"""The inverse questions: answers hold, and nothing larger does."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.complaints import InputError
from kvgauge.planner.figures import concurrency_at, figures
from kvgauge.planner.fitting import fit_cards, fit_concurrency, fit_context, largest
from tests.planner.standin import LONGEST_TOKENS, plan

CASE: Mapping[str, object] = {"model": "a"}


def at_once(case: Mapping[str, object]) -> float:
    return figures(plan(case)).max_concurrency or 0


@given(st.integers(1, 10**9), st.integers(0, 2 * 10**9))
def test_bisection_finds_the_edge(most: int, edge: int) -> None:
    asked: list[int] = []

    def holds(value: int) -> bool:
        asked.append(value)
        return value <= edge

    assert largest(holds, most) == min(edge, most)
    assert all(1 <= value <= most for value in asked)
    assert len(asked) <= 2 * most.bit_length() + 2


@given(st.integers(1, 5000), st.floats(20, 200))
def test_the_largest_context_fits_and_one_token_more_does_not(concurrency: int, card_gib: float) -> None:
    case = {**CASE, "gpu_memory_gib": card_gib}
    fit = fit_context(plan, case, concurrency)
    seated = {**case, "max_num_seqs": concurrency}
    if fit.value is None:
        assert at_once({**seated, "max_model_len": 1}) < concurrency
    else:
        assert at_once({**seated, "max_model_len": fit.value}) >= concurrency
        longer = {**seated, "max_model_len": fit.value + 1}
        assert fit.value == LONGEST_TOKENS or at_once(longer) < concurrency


@given(st.integers(1, LONGEST_TOKENS), st.booleans())
def test_the_largest_concurrency_fits_and_one_request_more_does_not(tokens: int, usual: bool) -> None:
    case = {**CASE, "tokens_per_request" if usual else "max_model_len": tokens}

    def held(requests: int) -> float:
        seated = {**case, "max_num_seqs": requests}
        return (concurrency_at(plan, seated, plan(seated), tokens) or 0) if usual else at_once(seated)

    value = fit_concurrency(plan, case).value
    assert value is not None
    assert held(value) >= value
    assert held(value + 1) < value + 1


def test_given_seats_cap_the_concurrency() -> None:
    assert fit_concurrency(plan, {**CASE, "max_model_len": 100, "max_num_seqs": 7}).value == 7


def test_the_context_ends_at_a_given_length() -> None:
    assert fit_context(plan, {**CASE, "max_model_len": 1000}, 1).value == 1000


def test_the_fewest_cards_are_tried_with_valid_tp_only() -> None:
    fit = fit_cards(plan, {**CASE, "tokens_per_request": 8192, "gpu_memory_gib": 24}, 40, 16)
    assert [cards.tp for cards in fit.options if 32 % cards.tp] == []
    best = fit.options[0]
    assert fit.value == best.gpus == min(cards.gpus for cards in fit.options)
    assert all(cards.gpus == cards.tp * cards.replicas <= 16 for cards in fit.options)
    assert all(cards.concurrency >= 40 for cards in fit.options)
    seated = {"tp": best.tp, "max_num_seqs": best.concurrency // best.replicas}
    assert fit.result["memory"] == plan({**CASE, "gpu_memory_gib": 24, **seated})["memory"]


def test_too_few_cards_are_no_answer() -> None:
    fit = fit_cards(plan, {**CASE, "max_model_len": LONGEST_TOKENS, "gpu_memory_gib": 24}, 10_000, 4)
    assert (fit.value, fit.options) == (None, ())
    assert fit.to_json()["gpus"] is None


@pytest.mark.parametrize("bad", [{"tp": 3}, {"gpu_memory_gib": -1}, {"model": ""}])
def test_a_bad_case_is_named(bad: dict[str, object]) -> None:
    (field,) = bad
    with pytest.raises(InputError, match=f"^{field}: "):
        fit_context(plan, {**CASE, **bad}, 1)
    with pytest.raises(InputError, match=f"^{field}: "):
        fit_concurrency(plan, {**CASE, **bad})


def test_cards_of_a_bad_case_are_named() -> None:
    with pytest.raises(InputError, match=r"^gpu_memory_gib: "):
        fit_cards(plan, {**CASE, "gpu_memory_gib": -1}, 1, 4)


def test_a_model_that_does_not_fit_has_no_context() -> None:
    fit = fit_context(plan, {**CASE, "gpu_memory_gib": 8}, 1)
    assert fit.value is None
    assert fit.to_json()["max_model_len"] is None
