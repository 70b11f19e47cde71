"""Charts of the advice's document, and what is drawn in them."""

import re
import xml.etree.ElementTree as ET

import pytest
from bench.advice.drawing import Line, Mark, Panel, document
from bench.advice.pictures import explained, held_together

SVG = "{http://www.w3.org/2000/svg}"


def panel(*lines: Line, marks: tuple[Mark, ...] = ()) -> Panel:
    return Panel("Requests & replicas", "minutes", lines, most_x=10, most_y=4, marks=marks)


def drawn(*panels: Panel) -> ET.Element:
    return ET.fromstring(document("A <title>", "what it shows", panels))  # noqa: S314 - just drawn


def test_a_line_reaches_from_edge_to_edge() -> None:
    root = drawn(panel(Line("one", "one", [(0, 0), (10, 4)])))
    (line,) = root.iter(f"{SVG}polyline")
    (left, bottom), (right, top) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    (inside,) = root.iterfind(f"{SVG}clipPath/{SVG}rect")
    x, y, width = (float(inside.attrib[name]) for name in ("x", "y", "width"))
    assert (left, right, top) == (x, x + width, y)
    assert bottom > top


def test_points_on_one_level_are_thinned() -> None:
    root = drawn(panel(Line("one", "one", [(0, 1), (1, 1), (2, 1), (3, 1), (4, 3)])))
    (line,) = root.iter(f"{SVG}polyline")
    assert len(line.attrib["points"].split()) == 3


def test_dots_above_the_panel_are_left_out() -> None:
    root = drawn(panel(Line("seen", "three", [(1, 1), (2, 4), (3, 4.5)], dots=True)))
    assert len(list(root.iter(f"{SVG}circle"))) == 2


def test_marks_and_words_are_escaped_and_shown() -> None:
    root = drawn(panel(Line("one", "one", [(0, 0), (1, 1)]), marks=(Mark("a < b", 5), Mark("most", 2, upright=False))))
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"a < b", "most", "Requests & replicas", "minutes"} <= set(words)
    marks = [line for line in root.iter(f"{SVG}line") if line.attrib["class"] == "mark"]
    assert marks[0].attrib["x1"] == marks[0].attrib["x2"]
    assert marks[1].attrib["y1"] == marks[1].attrib["y2"]


def test_only_several_lines_need_a_key() -> None:
    one, two = Line("first", "one", [(0, 0), (1, 1)]), Line("second", "two", [(0, 0), (1, 1)])
    assert "first" not in document("t", "d", [panel(one)])
    assert re.search("first.*second", document("t", "d", [panel(one, two)]), re.DOTALL)


def test_panels_stand_one_above_the_other() -> None:
    line = Line("one", "one", [(0, 0), (1, 1)])
    places = [group.attrib["transform"] for group in drawn(panel(line), panel(line)).iter(f"{SVG}g")]
    assert len(set(places)) == 2


def test_what_is_held_counts_requests_by_their_time() -> None:
    """Half of the requests have an output of 1, half of 999: what runs is nearly always one of the long ones, half way
    on average."""
    held = held_together([(16, 1), (16, 999)], requests=10, draws=400)
    assert held == sorted(held)
    assert sum(held) / len(held) == pytest.approx(10 * (16 + 499 + 7.5) / 1000, rel=0.03)


def test_the_episode_is_explained() -> None:
    said = explained(300)
    lines = said.words
    assert lines[0] == "a pod:"
    assert "the fleet:" in lines
    assert any("requests may run together" in line for line in lines)
    assert lines[-1] == "  3 pods"
    assert any(term.startswith("replicas_by_replay ") for term in said.terms)


def test_no_explanation_after_the_end() -> None:
    with pytest.raises(ValueError, match="lasts 2430 s"):
        explained(4000)
