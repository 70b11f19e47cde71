"""docs/concepts.md: its pictures are what the program makes, can be read, and its numbers are the example's."""

import math
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

from kvgauge.advise.fleet_history import SILENT_SECONDS
from kvgauge.advise.learning import ENOUGH
from kvgauge.advise.loading import HORIZON_SECONDS
from kvgauge.assess.waste import KINDS
from kvgauge.simulate.scenario import LLM_D
from tests.browser.browsing import Scheme, launched, visiting
from tests.docs.drawing import WIDTH
from tests.docs.example import OUTPUT, PROMPT, RUNNING, TOKEN_BYTES, WAITING, example
from tests.docs.pictures import DOCS, PICTURES, path_of
from tests.docs.working import bare_sums

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

PAGE = (DOCS / "concepts.md").read_text(encoding="utf-8")
SENTENCES = " ".join(PAGE.split())
LEAST_CONTRAST = 4.5
PHONE_PIXELS, LEAST_LETTER_PIXELS = 360 - 2 * 16, 10.9

# Text that leaves the drawing, and the least contrast of words against the ground, which no box but pale ones covers.
_SEEN = """() => {
  const [, , width, height] = document.documentElement.getAttribute('viewBox').split(' ').map(Number);
  const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const boxes = [...document.querySelectorAll('rect')].filter((each) => !each.closest('pattern'));
  const found = {outside: [], crossing: [], faint: []};
  const words = [...document.querySelectorAll('text')];
  words.forEach((text, index) => {
    const at = text.getBBox();
    if (at.x < 0 || at.y < 0 || at.x + at.width > width || at.y + at.height > height)
      found.outside.push(text.textContent);
    words.slice(index + 1).forEach((other) => {
      const its = other.getBBox();
      if (at.x < its.x + its.width && its.x < at.x + at.width
          && at.y + 4 < its.y + its.height && its.y + 4 < at.y + at.height)
        found.crossing.push(text.textContent + ' / ' + other.textContent);
    });
    const middle = at.y + at.height / 2, centre = at.x + at.width / 2;
    const under = boxes.filter((each) => {
      const its = each.getBBox();
      return getComputedStyle(each).fill !== 'none' && its.x <= centre && centre <= its.x + its.width
        && its.y <= middle && middle <= its.y + its.height;
    }).pop();
    const pair = [getComputedStyle(text).fill, getComputedStyle(under).fill].map(light).sort((a, b) => b - a);
    found.faint.push([(pair[0] + 0.05) / (pair[1] + 0.05), text.textContent]);
  });
  found.faint.sort((a, b) => a[0] - b[0]);
  return found;
}"""


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_the_program_draws(name: str) -> None:
    assert path_of(name).read_text(encoding="utf-8") == PICTURES[name](), "python -m tests.docs.pictures"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_stands_alone_and_says_what_it_shows(name: str) -> None:
    text = path_of(name).read_text(encoding="utf-8")
    root = ET.fromstring(text)  # noqa: S314 - our own file
    assert root.attrib["role"] == "img"
    for tag, least in (("title", 10), ("desc", 40)):
        said = root.find(f"{{http://www.w3.org/2000/svg}}{tag}")
        assert said is not None
        assert len(said.text or "") >= least
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"href|@import|url\((?!#)|<script|<image", text)


@pytest.mark.parametrize("name", PICTURES)
def test_the_words_of_a_picture_can_be_read_on_a_phone(name: str) -> None:
    text = path_of(name).read_text(encoding="utf-8")
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:600 )?(\d+)px", text)]
    assert sizes
    assert min(sizes) * PHONE_PIXELS / WIDTH >= LEAST_LETTER_PIXELS


def test_the_page_shows_each_picture_with_words_for_it() -> None:
    shown = re.findall(r"!\[([^\]]{15,})\]\(concepts-(\w+)\.svg\)", PAGE)
    assert sorted(name for _, name in shown) == sorted(PICTURES)


def test_sums_in_sentences_are_right() -> None:
    sums = list(bare_sums(PAGE))
    assert len(sums) >= 2
    for each in sums:
        assert each.holds(each.worked_out()), each


def test_the_numbers_are_those_of_the_example() -> None:
    samples = example().samples
    worst = samples['kvgauge_concurrency_limit{limit="kv_worst_case"}']
    mean = samples["usable_tokens"] / samples["tokens_per_request"]
    empty = 1 - worst / mean
    assert 1 / 3 < empty < 0.45
    for said in (
        f"{RUNNING} requests run, {WAITING} wait",
        f"{PROMPT:,} prompt and {OUTPUT:,} output tokens",
        f"= {TOKEN_BYTES:,} bytes, {TOKEN_BYTES // 1024} KiB",
        f"{PROMPT + OUTPUT:,} tokens holds {(PROMPT + OUTPUT) * TOKEN_BYTES // 2**20} MiB",
        f"`kv` binds at {samples['kvgauge_safe_concurrency']:.0f}",
        f"gives {worst:.0f} and leaves over a third",
        f"on average gives {math.floor(mean)}",
        f"= {samples['kvgauge_load_ratio']:.2f}",
        f"Until {ENOUGH:.0f} requests have finished",
        f"nothing valid for {SILENT_SECONDS:.0f} s",
        f"a pod takes {LLM_D.start_up_seconds:.0f} s to start",
        f"within {LLM_D.slo_ttft_seconds:.0f} s to the first token and {1000 * LLM_D.slo_tpot_seconds:.0f} ms for each",
    ):
        assert said in SENTENCES, said
    assert HORIZON_SECONDS == 3600
    assert "within an hour" in SENTENCES


def test_every_limit_and_every_kind_of_waste_is_told() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert set(example().snapshot.advice.limits) <= told
    assert set(KINDS) == set(re.findall(r"^\| \*\*(\w+_\w+|reservation|stranded)\*\* \|", PAGE, re.MULTILINE))


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with launched() as running:
        yield running


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PICTURES)
def test_words_lie_inside_apart_and_stand_out(browser: "Browser", name: str, scheme: Scheme) -> None:
    with visiting(browser, path_of(name).as_uri(), scheme=scheme) as visit:
        seen = visit.page.evaluate(_SEEN)
    assert seen["outside"] == []
    assert seen["crossing"] == []
    assert seen["faint"][0][0] >= LEAST_CONTRAST, seen["faint"][0]
