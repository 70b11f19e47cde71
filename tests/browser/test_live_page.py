"""The live page in a real browser, beside a real sidecar and over ticks that were made by hand."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvgauge.assess import Knob
from kvgauge.publish.board import Board
from kvgauge.publish.families import Snapshot
from tests.support.facts import GIB
from tests.support.process import Sidecar, demo

from . import scenes
from .browsing import Scheme, Visit, visiting
from .serving import CAPTURES, served, sidecar_beside

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

pytestmark = pytest.mark.browser

TILES = ("safe_concurrency", "running", "waiting")


def _tiles(visit: Visit) -> dict[str, tuple[str, str]]:
    """Name -> (value, note)."""
    names, values, notes = (visit.texts(f"#tiles {part}") for part in ("dt", ".value", ".note"))
    return dict(zip(names, zip(values, notes, strict=True), strict=True))


def _board(*ticks: Snapshot) -> Board:
    """A board that never withdraws its last tick."""
    board = Board(stale_after_seconds=float("inf"))
    for tick in ticks:
        board.publish(tick)
    return board


@pytest.mark.parametrize("page", sorted(CAPTURES.glob("*.prom")), ids=lambda page: page.stem)
def test_the_headline_and_the_numbers_are_those_of_the_advice(browser: "Browser", page: Path) -> None:
    with sidecar_beside(page) as sidecar, visiting(browser, sidecar.url) as visit:
        visit.until_live()
        advice = sidecar.json("/v1/advice")
        load = advice["load_ratio"]
        near = load >= 0.85 or advice["running"] + advice["waiting"] > advice["safe_concurrency"]
        present = min(advice["terms"]["load_now_ratio"], load)
        assert visit.text("h1") == ("Over the limit" if present > 1 else "Near the limit" if near else "Safe")
        assert visit.page.title().startswith(visit.text("h1"))
        line = f"{advice['running']} running, {advice['waiting']} waiting; {advice['safe_concurrency']} may safely run"
        assert visit.text("#numbers").replace(",", "").startswith(line.replace(",", ""))
        tiles = _tiles(visit)
        shown = [int(tiles[name][0].replace(",", "")) for name in ("Safe concurrency", "Running", "Waiting")]
        assert shown == [advice[name] for name in TILES]
        assert float(tiles["Load ratio"][0]) == pytest.approx(load, abs=0.005)
        # The last sentence is the trend's, which is another one once the trend is known.
        assert visit.texts("#why li")[:-1] == advice["explanation"][:-1]


@pytest.mark.parametrize(
    ("load_ratio", "word", "shown"),
    [
        (0.849, "Safe", "0.849"),
        (0.85, "Near the limit", "0.85"),
        (0.999, "Near the limit", "0.999"),
        (1.0, "Near the limit", "1.00"),
        (1.001, "Over the limit", "1.001"),
        (None, "No advice", "unknown"),
    ],
)
def test_the_word_changes_at_the_target_and_beyond_all_that_is_safe(
    browser: "Browser", load_ratio: float | None, word: str, shown: str
) -> None:
    with served(_board(scenes.several_gpus_and_ranks(load_ratio=load_ratio))) as url, visiting(browser, url) as visit:
        visit.until_live()
        assert visit.text("h1") == word
        assert _tiles(visit)["Load ratio"][0] == shown


def test_a_load_that_is_falling_is_near_the_limit_while_the_load_ratio_follows(browser: "Browser") -> None:
    scene = scenes.several_gpus_and_ranks(load_ratio=1.29)
    advice = replace(scene.advice, terms={**scene.advice.terms, "load_now_ratio": 0.68})
    with served(_board(replace(scene, advice=advice))) as url, visiting(browser, url) as visit:
        visit.until_live()
        assert visit.text("h1") == "Near the limit"
        assert visit.text("#advice").startswith("It was over the limit and is falling: 0.68 now")
        assert _tiles(visit)["Load ratio"][0] == "1.29"


def test_more_than_is_promised_is_near_the_limit_however_little_they_hold(browser: "Browser") -> None:
    with served(_board(scenes.nothing_finished_yet())) as url, visiting(browser, url) as visit:
        visit.until_live()
        assert visit.text("h1") == "Near the limit"
        assert visit.text("#numbers") == "10 running, 0 waiting; 1 may safely run together. Load ratio 0.53"
        assert visit.text("#advice").startswith("Fine so far, but more are here than is safe")


def test_each_limit_is_shown_and_the_one_that_binds_is_marked(browser: "Browser", sidecar: Sidecar) -> None:
    with visiting(browser, sidecar.url) as visit:
        visit.until_live()
        advice = sidecar.json("/v1/advice")
        rows = visit.page.locator("#why > table tbody tr").all()
        cells = [[cell.inner_text() for cell in row.locator("th, td").all()] for row in rows]
        assert {name.split()[-1]: int(number) for name, number, _ in cells} == advice["limits"]
        assert [name.split()[-1] for name, _, mark in cells if "binds" in mark] == [advice["binding_limit"]]


def test_nothing_is_asked_of_others_and_nothing_goes_wrong(browser: "Browser", sidecar: Sidecar) -> None:
    with visiting(browser, sidecar.url) as visit:
        visit.until_live()
        visit.page.wait_for_event("request", lambda request: request.url.endswith("/v1/advice"))
        asked = {url.split("?")[0] for url in visit.requests if not url.startswith("data:")}
        paths = ("", "v1/advice", "v1/assessment", "v1/observation", "v1/history")
        assert asked == {f"{sidecar.url}/{path}" for path in paths}
        assert visit.complaints == []


def test_missing_facts_of_a_recorded_page_are_unknown_with_the_reason(browser: "Browser", sidecar: Sidecar) -> None:
    with visiting(browser, sidecar.url) as visit:
        visit.until_live()
        assert re.fullmatch(r"unknown \(.*libnvidia-ml.*\)|GPU 0.*", visit.text("#gpus"), re.DOTALL)
        rows = list(zip(visit.texts("#kv tbody th"), visit.texts("#kv tbody td:nth-child(2)"), strict=True))
        unknown = ("reclaimable prefix cache\nvLLM counts reusable prefix blocks as free", "unknown")
        assert [row for row in rows if "reclaimable prefix cache\n" in row[0] or row[1] == "unknown"] == [unknown]
        assert visit.page.locator("#kv .stack span").count() == len(("live", "tail", "free"))
        assert "unknown (the model is not a local path" in visit.text("#facts")
        assert "predicted_capacity_tokens" in visit.text("#missing")


def test_with_nothing_known_every_figure_is_unknown_and_none_is_zero(browser: "Browser") -> None:
    with served(_board(scenes.nothing_known())) as url, visiting(browser, url) as visit:
        visit.until_live()
        assert visit.text("h1") == "No advice"
        why = "The engine's figures are missing or too old to advise from."
        assert set(_tiles(visit).values()) == {("unknown", why)}
        assert visit.text("#kv") == "unknown (engine cannot be reached)"
        assert visit.text("#gpus") == "unknown (nvml cannot be reached)"
        assert visit.text("#waste").startswith("unknown (")
        assert not re.search(r"\b(0|null|undefined|NaN|Infinity)\b", visit.text("#answer") + visit.text("#tiles"))
        assert visit.complaints == []


def test_a_killed_sidecar_makes_the_page_say_since_when_it_is_stale(browser: "Browser") -> None:
    page = CAPTURES / "smallcache_under_pressure.prom"
    with sidecar_beside(page) as sidecar, visiting(browser, sidecar.url) as visit:
        visit.until_live()
        before = _tiles(visit)["Safe concurrency"]
        colour = "getComputedStyle(document.querySelector('#tiles .value')).color"
        fresh_colour = visit.page.evaluate(colour)
        sidecar.process.kill()
        visit.until_stale()
        told = r"Stale since \d\d:\d\d:\d\d: the sidecar cannot be reached. All below is of then."
        assert re.fullmatch(told, visit.text("#freshness"))
        assert visit.text("h1") == "Stale: no fresh answer"
        assert "near the limit; 7 running, 1 waiting" in visit.text("#numbers")
        assert _tiles(visit)["Safe concurrency"] == before
        assert visit.page.evaluate(colour) != fresh_colour
        assert "grayscale" in visit.page.evaluate("getComputedStyle(document.getElementById('main')).filter")


def test_figures_that_do_not_advance_are_stale_until_they_do(browser: "Browser") -> None:
    board = _board(scenes.several_gpus_and_ranks())
    with served(board) as url, visiting(browser, url) as visit:
        visit.until_live()
        assert visit.text("h1") == "Over the limit"
        visit.until_stale()
        assert "stands still" in visit.text("#freshness")
        board.publish(scenes.several_gpus_and_ranks(wall_seconds=scenes.START_SECONDS + 1, load_ratio=0.5))
        visit.page.wait_for_selector("#freshness:not(.stale)")
        assert visit.text("h1") == "Safe"


def test_a_sidecar_without_a_tick_is_no_answer_and_not_an_empty_pod(browser: "Browser") -> None:
    with served(Board(stale_after_seconds=5.0)) as url, visiting(browser, url) as visit:
        visit.until_stale()
        assert visit.text("h1") == "No answer yet"
        assert "no fresh figures (503)" in visit.text("#freshness")
        assert not visit.page.locator("#kv").is_visible()


def test_nothing_is_asked_while_nobody_looks(browser: "Browser") -> None:
    hide = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    with served(_board(scenes.several_gpus_and_ranks())) as url, visiting(browser, "about:blank") as visit:
        visit.page.clock.install()
        visit.page.goto(url)
        visit.until_live()
        visit.page.evaluate(hide, True)
        asked = len(visit.requests)
        visit.page.clock.run_for(20_000)
        assert len(visit.requests) == asked
        with visit.page.expect_request("**/v1/advice"):
            visit.page.evaluate(hide, False)
        assert visit.page.locator("#freshness.stale").count() == 0


def test_every_gpu_has_its_two_bars_and_its_error(browser: "Browser") -> None:
    with served(_board(scenes.several_gpus_and_ranks(gpus=4))) as url, visiting(browser, url) as visit:
        visit.until_live()
        cards = visit.page.locator("#gpus .cards > div")
        assert cards.locator("h3").all_inner_texts() == [f"GPU {gpu} · NVIDIA H200" for gpu in range(4)]
        errors = cards.locator("p strong").all_inner_texts()
        assert errors[2::3] == ["Error −0.8 %", "Error 0.0 %", "Error +0.8 %", "Error +1.6 %"]
        assert errors[0::3] == ["127.00 GiB"] * 4
        assert errors[1::3] == [f"{126 + gpu}.00 GiB" for gpu in range(4)]
        actual = cards.nth(1).locator(".stack").nth(1)
        assert actual.get_attribute("aria-label") == "Actual on GPU 1: KV pool 50.00 GiB, not attributed 77.00 GiB"
        pool, rest, room = (
            box["width"] for part in actual.locator("span").all() if (box := part.bounding_box()) is not None
        )
        assert [rest / pool, room / pool] == pytest.approx([77 / 50, 13 / 50], rel=0.02)
        cards.nth(1).locator("summary").press("Enter")
        assert "page tables" in cards.nth(1).locator("table").inner_text()


def test_every_rank_has_its_bar_of_kv_states(browser: "Browser") -> None:
    with served(_board(scenes.several_gpus_and_ranks(ranks=2))) as url, visiting(browser, url) as visit:
        visit.until_live()
        assert visit.texts("#kv h3") == ["Rank 0: 48 running, 24 waiting", "Rank 1: 48 running, 0 waiting"]
        table = visit.page.locator("#kv table").first
        rows = [row.locator("th, td").all_inner_texts() for row in table.locator("tbody tr").all()]
        assert rows == [
            ["active: live tokens (measured)", "95,200", "14.53 GiB", "79.3 %"],
            ["active: empty block tail (measured)", "800", "125.0 MiB", "0.7 %"],
            ["reclaimable prefix cache", "14,000", "2.14 GiB", "11.7 %"],
            ["free", "10,000", "1.53 GiB", "8.3 %"],
            ["capacity, as the engine states it", "120,000", "18.31 GiB", "100 %"],
        ]
        assert "123,600 tokens; the engine has −3.0 % against that" in visit.text("#kv .cards > div:first-child .note")
        waste = visit.page.locator("#waste tbody tr").all_inner_texts()
        assert [row.split("\t")[1:] for row in waste] == [["125.0 MiB", "measured"], ["768.0 MiB", "estimated"]] * 2


def test_the_load_curve_stands_against_its_limits_and_breaks_where_nothing_is_known(browser: "Browser") -> None:
    loads = (0.4, 0.85, 1.0, None, 1.5)
    ticks = [
        scenes.several_gpus_and_ranks(wall_seconds=scenes.START_SECONDS + second, load_ratio=load)
        for second, load in enumerate(loads)
    ]
    with served(_board(*ticks)) as url, visiting(browser, url) as visit:
        visit.until_live()
        chart = visit.page.locator("#plot svg")
        path = chart.locator("path.curve").get_attribute("d") or ""
        points = re.findall(r"([ML])([\d.]+) ([\d.]+)", path)
        assert "".join(kind for kind, _, _ in points) == "MLLM"
        one, target = (float(chart.locator(f"line.{kind}").get_attribute("y1") or "nan") for kind in ("one", "target"))
        heights = [float(y) for _, _, y in points]
        assert heights[1:3] == [pytest.approx(target, abs=0.1), pytest.approx(one, abs=0.1)]
        assert heights[0] > target > one > heights[3]
        spoken = chart.get_attribute("aria-label") or ""
        assert "least 0.40, most 1.50, above 1.0 for 25 % of the time" in spoken
        assert "No advice at 20 % of the looks" in spoken


def test_the_pools_states_over_time_are_stacked_and_break_where_nothing_is_known(browser: "Browser") -> None:
    told = [
        scenes.several_gpus_and_ranks(wall_seconds=scenes.START_SECONDS + second, active_tokens=active)
        for second, active in enumerate((60_000, 90_000, None, 30_000))
    ]
    with served(_board(*told)) as url, visiting(browser, url) as visit:
        visit.until_live()
        chart = visit.page.locator("#kv-past svg")
        edges = {}
        for kind in ("live", "tail", "reusable"):
            path = chart.locator(f"path.b-{kind}").get_attribute("d") or ""
            assert path.count("Z") == 2, "one area before the gap and one behind it"
            edges[kind] = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", path.split("Z")[0])]
        full, empty = (float(line.get_attribute("y1") or "nan") for line in _ends(chart.locator("line.grid")))
        # Each area goes forth along its upper edge and back along its lower one, which is the one below's upper.
        upper = {kind: ys[:2] for kind, ys in edges.items()}
        lower = {kind: ys[:1:-1] for kind, ys in edges.items()}
        assert lower == {"live": [empty, empty], "tail": upper["live"], "reusable": upper["tail"]}
        share = [(empty - y) / (empty - full) for y in upper["tail"]]
        assert share == pytest.approx([60_000 / 120_000, 90_000 / 120_000], abs=0.002)
        assert (empty - upper["reusable"][0]) / (empty - full) == pytest.approx(74_000 / 120_000, abs=0.002)
        spoken = chart.get_attribute("aria-label") or ""
        assert "Active now: 25.0 %. In the last 3.0 s: least 25.0 %, most 75.0 %" in spoken
        assert "Not told at 25 % of the looks" in spoken
        legend = visit.texts("#kv-past .legend li")
        assert legend == [
            "active, holding live tokens",
            "active, empty block tails",
            "reclaimable prefix cache",
            "free",
        ]


def _ends(lines: "Locator") -> tuple["Locator", "Locator"]:
    """The uppermost and the lowest line."""
    by_height = sorted(lines.all(), key=lambda line: float(line.get_attribute("y1") or "nan"))
    return by_height[0], by_height[-1]


def test_the_flags_that_would_free_memory_are_told_with_what_they_gain(browser: "Browser") -> None:
    scene = scenes.several_gpus_and_ranks(ranks=2)
    found = (
        Knob("--kv-cache-dtype fp8", 20 * GIB, 247_200, None, "a cached token takes half"),
        Knob("--max-num-seqs 32", GIB, 130_000, 32, "the sampler's buffers grow with it"),
    )
    scene = replace(scene, assessment=replace(scene.assessment, knobs=found))
    with served(_board(scene)) as url, visiting(browser, url) as visit:
        visit.until_live()
        rows = [row.locator("th, td").all_inner_texts() for row in visit.page.locator("#knobs tbody tr").all()]
        assert [row[1:] for row in rows] == [["20.00 GiB", "247,200\n+100.0 %"], ["1.00 GiB", "130,000\n+5.2 %"]]
        assert rows[0][0] == "--kv-cache-dtype fp8\na cached token takes half"
        # Two ranks of 32 are fewer than the 96 that fit.
        assert rows[1][0].endswith("It would cap the batch below the 96 that the KV cache holds.")
        assert visit.text("#knobs p.note").startswith("The KV cache binds: each of these raises")


def test_a_running_demo_tells_the_planners_flags(browser: "Browser") -> None:
    with demo() as running, visiting(browser, running.url) as visit:
        visit.until_live()
        knobs = running.json("/v1/assessment")["knobs"]
        assert knobs
        assert [text.split("\n")[0] for text in visit.texts("#knobs tbody th")] == [knob["change"] for knob in knobs]


def test_names_from_outside_are_text_and_nothing_else(browser: "Browser") -> None:
    text = "<img src=x onerror=alert(1)>" + "x" * 120
    with served(_board(scenes.hostile_names(text))) as url, visiting(browser, url, width=360) as visit:
        visit.until_live()
        assert visit.text("#why li") == text
        assert visit.page.locator("img").count() == 0
        assert visit.complaints == []
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("width", [320, 360, 768])
def test_no_width_needs_scrolling_sideways(browser: "Browser", sidecar: Sidecar, width: int) -> None:
    with served(_board(scenes.several_gpus_and_ranks(8, 8))) as url:
        for address in (sidecar.url, url):
            with visiting(browser, address, width=width) as visit:
                visit.until_live()
                visit.page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
                assert visit.page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("width", [360, 1280])
def test_a_new_tick_moves_nothing(browser: "Browser", width: int) -> None:
    places = "[...document.querySelectorAll('section')].map(part => part.getBoundingClientRect().top + scrollY)"
    quiet = scenes.several_gpus_and_ranks(load_ratio=0.5)
    # The shortest words there are for it, against the longest.
    board = _board(replace(quiet, advice=replace(quiet.advice, kv_exhaustion_seconds=None)))
    with served(board) as url, visiting(browser, url, width=width) as visit:
        visit.until_live()
        before = visit.page.evaluate(places)
        board.publish(scenes.several_gpus_and_ranks(wall_seconds=scenes.START_SECONDS + 1, load_ratio=12.345))
        visit.page.get_by_role("heading", name="Over the limit").wait_for()
        assert visit.page.evaluate(places) == before


def test_a_reader_without_eyes_is_told_the_answer_once_and_every_chart_in_words(browser: "Browser") -> None:
    with served(_board(scenes.several_gpus_and_ranks())) as url, visiting(browser, url) as visit:
        visit.until_live()
        live = visit.page.locator("[aria-live]")
        assert live.evaluate_all("nodes => nodes.map(node => [node.localName, node.ariaLive])") == [["h1", "polite"]]
        charts = visit.page.locator("[role=img]")
        assert charts.count() == 2 + 2 + 2 * 4
        assert all(chart.get_attribute("aria-label") for chart in charts.all())
        assert visit.page.get_by_role("main").count() == 1
        unnamed = "sections => sections.filter(part => !document.getElementById(part.getAttribute('aria-labelledby')))"
        assert visit.page.locator("section").evaluate_all(unnamed + ".length") == 0
        visit.page.keyboard.press("Tab")
        assert visit.page.evaluate("document.activeElement.textContent") == "Skip to the answer"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("load_ratio", [0.5, 0.9, 1.25, None])
def test_all_text_stands_out_from_its_ground(browser: "Browser", scheme: Scheme, load_ratio: float | None) -> None:
    board = _board(scenes.several_gpus_and_ranks(load_ratio=load_ratio))
    with served(board) as url, visiting(browser, url, scheme=scheme) as visit:
        visit.until_live()
        contrast, text = visit.least_contrast()
        assert contrast >= 4.5, text
