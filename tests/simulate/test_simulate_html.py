"""The page of a simulation: nothing outside it, nothing unescaped, curves that keep what they are drawn from."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgauge.simulate import html
from kvgauge.simulate.curves import BINS, Curve, course, plot, ticks
from kvgauge.simulate.fleet import Sample
from kvgauge.simulate.running import Run, run_signals
from kvgauge.simulate.scenario import LLM_D

SAMPLES = st.lists(
    st.builds(
        lambda arrived, ready, replicas, running, waiting, kv: (arrived, ready, replicas, running, waiting, kv),
        *([st.integers(0, 1000)] * 5),
        st.floats(0, 1),
    ),
    min_size=1,
    max_size=3 * BINS,
)


class Outline(HTMLParser):
    """Checks that tags are closed in turn, and keeps texts and attributes."""

    VOID = frozenset({"meta", "line", "polyline", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    scenario = replace(LLM_D, duration_seconds=600.0)
    return run_signals(scenario, ["static:3", "queue-or-running:1,16"], keep_samples=True)


def test_the_page_needs_nothing_else(runs: list[Run]) -> None:
    text = html.page(runs)
    outline = Outline(text)
    assert text.startswith("<!doctype html>")
    assert not {"script", "link", "img", "iframe", "object"} & set(outline.tags)
    assert not [pair for pair in outline.attributes if pair[0] in {"src", "href", "xlink:href"}]
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text


def test_the_page_has_each_signal_with_its_figures_and_curves(runs: list[Run]) -> None:
    outline = Outline(html.page(runs))
    said = " ".join(outline.texts)
    for run in runs:
        # In the table, beside its bar, above its curves.
        assert outline.texts.count(run.result.signal) == 3
        assert f"{run.result.mean_replicas:.2f}" in said
    labels = [value for name, value in outline.attributes if name == "aria-label"]
    assert [label.partition(":")[0] for label in labels] == [
        "arrivals per second",
        *["replicas", "requests", "KV cache in use"] * 2,
    ]
    assert labels[0] == "arrivals per second: arrivals up to 4"


def test_names_from_outside_are_text(runs: list[Run]) -> None:
    scenario = replace(LLM_D, name="<script>alert('x')</script>&")
    warned = replace(runs[0].served, warnings=("<b>odd</b>",))
    outline = Outline(html.page([replace(runs[0], scenario=scenario, served=warned)]))
    assert not {"script", "b"} & set(outline.tags)
    assert "<b>odd</b>" in "".join(outline.texts)


def test_a_run_without_samples_is_a_page_too(runs: list[Run]) -> None:
    bare = replace(runs[0], result=replace(runs[0].result, samples=()))
    assert "Too short to draw." in Outline(html.page([bare])).texts


def samples(rows: Sequence[tuple[int, int, int, int, int, float]]) -> list[Sample]:
    arrived, found = 0, []
    for index, (more, ready, replicas, running, waiting, kv) in enumerate(rows):
        arrived += more
        found.append(Sample(5.0 * (index + 1), arrived, ready, replicas, running, waiting, kv))
    return found


@given(SAMPLES)
def test_a_course_keeps_peaks_and_requests(rows: list[tuple[int, int, int, int, int, float]]) -> None:
    given_samples = samples(rows)
    passed = course(given_samples)
    assert 1 <= len(passed.seconds) <= BINS
    assert passed.seconds[-1] == given_samples[-1].seconds
    for kept, name in (
        (passed.ready, "ready"),
        (passed.wanted, "replicas"),
        (passed.running, "running"),
        (passed.waiting, "waiting"),
        (passed.kv_ratio, "kv_ratio"),
    ):
        assert max(kept) == max(getattr(one, name) for one in given_samples)
    spans = [end - begin for begin, end in zip((0.0, *passed.seconds), passed.seconds, strict=False)]
    came = sum(rate * span for rate, span in zip(passed.arrivals_per_second, spans, strict=True))
    assert came == pytest.approx(given_samples[-1].arrived)


@given(st.lists(st.floats(0, 1e7), min_size=2, max_size=30), st.floats(0.001, 1e6))
def test_points_lie_inside_the_picture(values: list[float], step: float) -> None:
    seconds = [step * (index + 1) for index in range(len(values))]
    text = plot("x", seconds, [Curve("x", "one", tuple(values))])
    box = re.search(r'viewBox="0 0 (\d+) (\d+)"', text)
    points = re.search(r'points="([^"]+)"', text)
    assert box is not None
    assert points is not None
    pairs = [tuple(map(float, pair.split(","))) for pair in points[1].split()]
    assert len(pairs) == len(values)
    assert all(0 <= x <= int(box[1]) and 0 <= y <= int(box[2]) for x, y in pairs)


@given(st.floats(1e-6, 1e9), st.integers(3, 10))
def test_ticks_are_round_few_and_within(most: float, count: int) -> None:
    found = ticks(most, count)
    assert found[0] == 0
    assert 1 <= len(found) <= count + 1
    assert found[-1] <= most * (1 + 1e-6)
    assert len(found) > 1


def test_ticks_of_a_few_replicas() -> None:
    assert ticks(8.64, 5) == [0, 2, 4, 6, 8]
    assert ticks(1.0, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
