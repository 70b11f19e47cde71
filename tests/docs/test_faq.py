"""docs/faq.md: the numbers in its answers are those of the program, and the answers are short."""

import re

import pytest

from kvgauge.advise import fleet
from kvgauge.advise.learning import ENOUGH
from kvgauge.cluster.injector.annotations import GPU_MODES
from kvgauge.settings import Settings
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
ANSWERS = {
    question: " ".join(answer.split())
    for question, answer in re.findall(r'^### (".+")\n\n((?:.+\n)+)', PAGE, re.MULTILINE)
}
MOST_WORDS = 90


def test_each_question_has_a_short_answer() -> None:
    assert len(ANSWERS) == len(re.findall("^### ", PAGE, re.MULTILINE)) > 25
    assert {question for question, answer in ANSWERS.items() if len(answer.split()) > MOST_WORDS} == set()


@pytest.mark.parametrize("question", ANSWERS)
def test_an_answer_names_what_to_look_at(question: str) -> None:
    """A metric, a command or a page."""
    assert re.search(r"`[^`]+`|\]\(", ANSWERS[question])


def test_numbers_are_those_of_the_program() -> None:
    said = " ".join(ANSWERS.values())
    modes = {5: "five"}[len(GPU_MODES)]
    for words in (
        f"at most {fleet.MOST_AHEAD:g} times the present level",
        f"Before {ENOUGH:.0f} requests have finished",
        f"{fleet.LEAST_FINISHED} finished requests",
        f"older than {Settings.model_fields['stale_after'].default:g} s is dropped",
        f"there are {modes} ways",
    ):
        assert words in said, words
