"""The fleet's page in a real browser, over fleets made up by hand and beside a real aggregator with real sidecars."""

import json
import re
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvgauge.cluster.store import Store
from kvgauge.pages import composed
from tests.cluster.stocking import pod, put, reading
from tests.support.process import eventually

from . import fleets
from .browsing import Scheme, Visit, visiting
from .clusters import aggregated, deaf_port
from .fleets import Deployment, fleet, staged
from .serving import CAPTURES, sidecar_beside

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser

CHOSEN = "/#search/Deployment/embedding-rerank-8b"


def _api(url: str, query: str = "") -> Any:
    with urllib.request.urlopen(f"{url}/v1/fleet{query}", timeout=5) as answer:
        return json.loads(answer.read())


def _tiles(visit: Visit) -> dict[str, tuple[str, str]]:
    """Name -> (value, note)."""
    names, values, notes = (visit.texts(f"#tiles {part}") for part in ("dt", ".value", ".note"))
    return dict(zip(names, zip(values, notes, strict=True), strict=True))


def _rows(visit: Visit, table: str) -> list[list[str]]:
    """What a reader sees of each row, cell by cell."""
    rows = visit.page.locator(f"#{table} tbody tr").all()
    return [[cell.inner_text() for cell in row.locator("th, td").all()] for row in rows]


def _names(visit: Visit, table: str) -> list[str]:
    return visit.texts(f"#{table} .names")


def test_the_page_is_one_small_file_that_names_no_host_and_makes_no_markup_of_data() -> None:
    page = composed("kvgauge.cluster", "fleet.html")
    assert len(page.encode()) <= 60_000
    assert set(re.findall(r"https?://([^/\"' ]+)", page)) == {"www.w3.org"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|srcdoc", page)


def test_an_overloaded_fleet_says_who_why_for_how_long_and_what_to_do(browser: "Browser") -> None:
    store = fleet(*fleets.TROUBLED)
    with staged(store, fleets.a_past(store, fleets.TROUBLED)) as stage, visiting(browser, stage.url) as visit:
        visit.until_live()
        assert visit.text("h1") == "Over the limit"
        assert visit.page.title() == "Over the limit · kvgauge"
        who = r"llama-3.1-70b-instruct in chat for \d+ min: demand would fill 4.75 pods, 4 are ready."
        assert re.fullmatch(who, visit.text("#numbers"))
        assert visit.text("#advice") == "6 pods needed, 5 there, 1 of them starting: wait for it, or shed load."
        assert _tiles(visit) == {
            "Pods that tell": ("11", "of 13 ready; 1 starting"),
            "Silent pods": ("2", "ready and not heard: each counts as full"),
            "Load, in pods": ("9.61", "at the target 11 pods carry 9.3"),
            "Replicas needed": ("16", "14 there"),
            "Requests waiting": ("42", "419 running"),
            "Workloads": ("4", "1 over the limit, 1 with silent pods, 1 near the limit"),
        }
        assert visit.complaints == []


@pytest.mark.parametrize(
    ("deployments", "headline", "numbers", "advice"),
    [
        (fleets.HEALTHY, "Safe", "All 9 ready pods tell; demand would fill 4.04 of them.", "Nothing to do."),
        ((), "No answer", "No pod with a sidecar is known.", "Pods are found by the label or annotation kvgauge.dev"),
        (
            [Deployment("llm", "a", (0.2,), 3, silent=("timeout", "refused"))],
            "Some pods are silent",
            "a in llm: 2 of 3 ready pods are not heard.",
            "While a pod is silent it counts as full",
        ),
        (
            [Deployment("llm", "a", (), None, silent=("timeout",))],
            "No answer",
            "a in llm: 1 of 1 ready pod is not heard.",
            "While a pod is silent it counts as full",
        ),
        (
            [Deployment("llm", "a", (0.9, 0.9), 2), Deployment("llm", "b", (0.86,), 1)],
            "Near the limit",
            "a in llm: past the target of 0.85 for each pod. 1 other workload is near the limit too.",
            "Nothing to do yet",
        ),
        (
            [Deployment("llm", "a", (0.5, 0.5), 3, asked=2)],
            "Near the limit",
            "a in llm: 3 pods needed, 2 there.",
            "no autoscaler has asked for more",
        ),
        (
            [Deployment("llm", "a", (1.5, 1.5), 3, there=2, asked=3)],
            "Over the limit",
            "a in llm: demand would fill 3.00 pods, 2 are ready.",
            "why they do not come, kubectl -n llm get pods,events",
        ),
        (
            [Deployment("llm", "a", (1.001,), None)],
            "Over the limit",
            "a in llm: demand would fill 1.001 pods, 1 is ready.",
            "How many pods are needed is not known",
        ),
    ],
)
def test_the_answer_in_words(
    browser: "Browser", deployments: list[Deployment], headline: str, numbers: str, advice: str
) -> None:
    with staged(fleet(*deployments)) as stage, visiting(browser, stage.url) as visit:
        visit.until_live()
        assert visit.text("h1") == headline
        assert visit.text("#numbers") == numbers
        assert advice in visit.text("#advice")
        assert not re.search(r"null|undefined|NaN|Infinity", visit.text("body"))


def test_the_values_on_the_page_are_those_of_the_api(browser: "Browser") -> None:
    with staged(fleet(*fleets.TROUBLED)) as stage, visiting(browser, stage.url) as visit:
        visit.until_live()
        _page_is_api(visit, _api(stage.url))


def _page_is_api(visit: Visit, told: Any) -> None:
    assert _names(visit, "workloads") == [each["name"] for each in told["workloads"]]
    for each, (_, load, pods, requests) in zip(told["workloads"], _rows(visit, "workloads"), strict=True):
        if each["load_ratio_sum"] is not None:
            shown = re.match(r"([\d.]+) of (\d+) pods?", load.strip())
            assert shown is not None
            assert float(shown[1]) == pytest.approx(each["load_ratio_sum"], abs=0.005)
            assert int(shown[2]) == each["pods_telling"]
        assert pods.startswith(f"{each['required_replicas']} needed\n{each['actual_replicas']} there")
        assert requests.startswith(f"{each['waiting']} waiting\n{each['running']} running")
    assert _names(visit, "pods") == [each["name"] for each in told["pods"]]
    for each, (first, load, requests, kv) in zip(told["pods"], _rows(visit, "pods"), strict=True):
        if each["load_ratio"] is None:
            assert (load, requests, kv) == ("unknown", "–", "–")
            continue
        assert float(load.split()[0]) == pytest.approx(each["load_ratio"], abs=0.005)
        assert requests == f"{each['running']} running\n{each['waiting']} waiting, {each['safe_concurrency']} safe"
        assert float(kv.split()[0]) == pytest.approx(each["kv_usage_ratio"] * 100, abs=0.05)
        assert each["silent_reason"] is None or each["silent_reason"] in first


def test_a_load_that_falls_is_not_called_over_the_limit(browser: "Browser") -> None:
    store = fleet(Deployment("llm", "a", (1.2,), 1))
    one = next(store.pods()).pod
    put(store, one, reading(load_ratio=1.2, load_now_ratio=0.3))
    with staged(store) as stage, visiting(browser, stage.url) as visit:
        visit.until_live()
        assert visit.text("h1") == "Near the limit"
        falling = "a in llm: it was over the limit and is falling: demand would fill 0.30 of 1 pod now."
        assert visit.text("#numbers") == falling
        assert _rows(visit, "pods")[0][1].split("\n") == [
            "1.20",
            "0.30 now, falling",
            "bound by kv",
        ]
        assert "over its limit" not in visit.text("#pods")


def test_a_silent_pod_says_why_and_since_when_and_has_no_figures(browser: "Browser") -> None:
    with staged(fleet(*fleets.TROUBLED)) as stage, visiting(browser, stage.url + CHOSEN) as visit:
        visit.until_live()
        first, second, *_ = _rows(visit, "pods")
        assert "silent, last heard 4 min ago\nno answer in time" in first[0]
        assert "silent, last heard 95 s ago\nthe connection is refused" in second[0]
        assert first[1:] == second[1:] == ["unknown", "–", "–"]
        assert "kubectl -n search logs embedding-rerank-8b-" in visit.text("#pods > p")


def test_a_workload_is_chosen_by_keyboard_and_the_choice_is_a_link(browser: "Browser") -> None:
    with staged(fleet(*fleets.TROUBLED)) as stage, visiting(browser, stage.url) as visit:
        visit.until_live()
        for _ in range(3):
            visit.page.keyboard.press("Tab")
        assert visit.page.evaluate("document.activeElement.textContent") == "embedding-rerank-8b"
        visit.page.keyboard.press("Enter")
        visit.page.get_by_role("heading", name="Pods: embedding-rerank-8b in search").wait_for()
        assert visit.page.evaluate("document.activeElement.id") == "pods-head"
        assert visit.page.url == stage.url + CHOSEN
        assert visit.page.locator("[aria-current=true]").inner_text() == "embedding-rerank-8b"
        told = _api(stage.url, "?namespace=search&workload=embedding-rerank-8b&kind=Deployment")
        assert _names(visit, "pods") == [each["name"] for each in told["pods"]]
        assert visit.texts("#explanation li") == told["explanation"]
        visit.page.keyboard.press("Tab")
        visit.page.keyboard.press("Enter")
        visit.page.get_by_role("heading", name="Pods, the worst first").wait_for()
        assert visit.page.evaluate("document.activeElement.id") == "pods-head"
        assert len(_names(visit, "pods")) == 14


def test_skipping_to_the_answer_keeps_the_choice(browser: "Browser") -> None:
    with staged(fleet(*fleets.TROUBLED)) as stage, visiting(browser, stage.url + CHOSEN) as visit:
        visit.until_live()
        visit.page.keyboard.press("Tab")
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_event("requestfinished", lambda request: "workload=embedding-rerank-8b" in request.url)
        assert visit.page.evaluate("document.activeElement.id") == "answer"
        assert visit.text("#pods-head") == "Pods: embedding-rerank-8b in search"


@pytest.mark.parametrize(
    "fragment", ["#search/Deployment/nobody", "#nonsense", "#%E0%A4%A", "#/a/b", f"#{'x' * 300}/a/b"]
)
def test_a_link_to_what_is_not_there_does_no_harm(browser: "Browser", fragment: str) -> None:
    with staged(fleet(*fleets.HEALTHY)) as stage, visiting(browser, f"{stage.url}/{fragment}") as visit:
        visit.until_live()
        assert visit.text("h1") == "Safe"
        if fragment.endswith("nobody"):
            assert visit.text("#pods").startswith("There is no such workload")
        else:
            assert len(_names(visit, "pods")) == 9
        assert visit.complaints == []


def test_pods_of_no_known_workload_can_be_chosen_too(browser: "Browser") -> None:
    store = Store()
    for one in ("a", "b"):
        store.put_pod(pod(one, "lonely", workload=None))
    with staged(store) as stage, visiting(browser, stage.url) as visit:
        visit.until_live()
        visit.page.get_by_role("link", name="pods of no known workload").click()
        visit.page.get_by_role("heading", name="Pods: pods of no known workload in lonely").wait_for()
        assert _names(visit, "pods") == ["a", "b"]
        assert "the pods belong to no workload that is known" in visit.text("#workloads")


def test_an_aggregator_that_is_gone_makes_the_page_say_since_when_it_is_stale(browser: "Browser") -> None:
    with visiting(browser, "about:blank") as visit:
        with staged(fleet(*fleets.HEALTHY)) as stage:
            visit.page.goto(stage.url)
            visit.until_live()
            before = _tiles(visit)
        visit.until_stale()
        told = r"Stale since \d\d:\d\d:\d\d: the aggregator cannot be reached. All below is of then."
        assert re.fullmatch(told, visit.text("#freshness"))
        assert visit.text("h1") == "Stale: no fresh answer"
        assert "safe; All 9 ready pods tell" in visit.text("#numbers")
        assert _tiles(visit) == before
        assert "grayscale" in visit.page.evaluate("getComputedStyle(document.getElementById('main')).filter")


def test_a_clock_that_stands_still_is_stale_until_it_moves(browser: "Browser") -> None:
    with staged(fleet(*fleets.HEALTHY)) as stage:
        stage.frozen_wall_seconds = 1_790_000_000.0
        with visiting(browser, stage.url) as visit:
            visit.until_live()
            visit.until_stale()
            assert "stands still" in visit.text("#freshness")
            stage.now_seconds += 1
            stage.frozen_wall_seconds = None
            visit.page.wait_for_selector("#freshness:not(.stale)")
            assert visit.text("h1") == "Safe"


def test_an_aggregator_that_has_not_listed_the_pods_is_no_answer_and_not_an_empty_fleet(browser: "Browser") -> None:
    with staged(Store()) as stage:
        stage.ready = False
        with visiting(browser, stage.url) as visit:
            visit.until_stale()
            assert visit.text("h1") == "No answer yet"
            assert not visit.page.locator("#tiles").is_visible()


def test_an_api_server_that_is_away_is_told(browser: "Browser") -> None:
    with staged(fleet(*fleets.HEALTHY)) as stage:
        stage.api_server_age_seconds = 400.0
        with visiting(browser, stage.url) as visit:
            visit.until_live()
            assert "the Kubernetes API server has told nothing for 7 min" in visit.text("#advice")


def test_the_curve_is_the_load_in_pods_and_breaks_where_nothing_is_known(browser: "Browser") -> None:
    one = Deployment("llm", "a", (1.0, 1.0), 2)
    store = fleet(one)
    at = [partial(one.tell, store, factor) for factor in (0.25, 0.5, 0.5, 1.0)]
    looks: list[Callable[[], object]] = [*at[:2], lambda: store.replace_pods(()), *at[2:]]
    with staged(store, looks) as stage, visiting(browser, stage.url) as visit:
        visit.until_live()
        chart = visit.page.locator("#plot svg")
        points = re.findall(r"([ML])([\d.]+) ([\d.]+)", chart.locator("path.curve").get_attribute("d") or "")
        assert "".join(kind for kind, _, _ in points) == "MLML"
        heights = [float(y) for _, _, y in points]
        base = 240 - 24
        assert [(base - y) / (base - heights[-1]) for y in heights] == pytest.approx([0.25, 0.5, 0.5, 1.0], abs=0.01)
        spoken = chart.get_attribute("aria-label") or ""
        assert "demand would have filled 0.50 to 2.00 pods" in spoken
        assert "No load is known at 20 % of the looks" in spoken


def test_what_is_pointed_at_keeps_its_place(browser: "Browser") -> None:
    one, other = Deployment("llm", "one", (0.5,), 1), Deployment("llm", "other", (0.4,), 1)
    store = fleet(one, other)
    with staged(store) as stage, visiting(browser, stage.url) as visit:
        visit.until_live()
        assert _names(visit, "workloads") == ["one", "other"]
        visit.page.get_by_role("link", name="one").focus()
        stage.now_seconds += 1
        stage.change(lambda: other.tell(store, 2))
        visit.page.locator("#workloads td", has_text="0.80 of 1 pod").wait_for()
        assert _names(visit, "workloads") == ["one", "other"]
        visit.page.evaluate("document.activeElement.blur()")
        visit.page.locator("#workloads tbody tr:first-child", has_text="other").wait_for()


def test_2000_pods_are_a_short_page_and_small_updates(browser: "Browser") -> None:
    with staged(fleets.large()) as stage, visiting(browser, stage.url) as visit:
        session = visit.page.context.new_cdp_session(visit.page)
        session.send("Network.enable")
        wire: list[float] = []
        session.on("Network.loadingFinished", lambda event: wire.append(event["encodedDataLength"]))
        visit.until_live()
        assert visit.text("#subject") == "fleet · 200 workloads · 2,000 pods with a sidecar"
        assert "150 workloads that stand better are not shown." in visit.texts("#workloads .note")
        assert "1,970 pods that do better are not shown." in visit.texts("#pods .note")
        began = visit.page.evaluate("performance.now()")
        wire.clear()
        for _ in range(6):
            visit.page.wait_for_event("requestfinished", lambda request: request.url.endswith("/v1/fleet"))
        seconds = (visit.page.evaluate("performance.now()") - began) / 1000
        assert len(wire) >= 6
        assert sum(wire) / seconds <= 5000
        assert visit.complaints == []


def test_nothing_is_asked_of_others_and_nothing_goes_wrong(browser: "Browser") -> None:
    with staged(fleet(*fleets.TROUBLED)) as stage, visiting(browser, stage.url) as visit:
        visit.until_live()
        visit.page.wait_for_event("request", lambda request: request.url.endswith("/v1/fleet"))
        asked = {url.split("?")[0] for url in visit.requests if not url.startswith("data:")}
        assert asked == {f"{stage.url}/{path}" for path in ("", "v1/fleet", "v1/fleet/history")}
        assert visit.complaints == []


def test_names_from_outside_are_text_and_nothing_else(browser: "Browser") -> None:
    text = "<img src=x onerror=alert(1)>" + "x" * 120
    with staged(fleets.hostile(text)) as stage, visiting(browser, stage.url, width=360) as visit:
        visit.until_live()
        assert _names(visit, "workloads") == [text]
        assert _names(visit, "pods") == [f"{text}2", text]
        visit.page.get_by_role("link", name=text).click()
        visit.page.get_by_role("heading", name=f"Pods: {text}").wait_for()
        assert visit.texts("#explanation li") == [text]
        assert visit.page.locator("img").count() == 0
        assert visit.complaints == []
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_no_width_needs_scrolling_sideways(browser: "Browser", width: int) -> None:
    for store in (fleet(*fleets.TROUBLED), Store(), fleets.large(pods=100)):
        with staged(store) as stage, visiting(browser, stage.url, width=width) as visit:
            visit.until_live()
            assert visit.page.evaluate("document.documentElement.scrollWidth") == width


def test_a_reader_without_eyes_is_told_the_answer_once_and_every_chart_in_words(browser: "Browser") -> None:
    store = fleet(*fleets.TROUBLED)
    with staged(store, fleets.a_past(store, fleets.TROUBLED)) as stage, visiting(browser, stage.url) as visit:
        visit.until_live()
        live = visit.page.locator("[aria-live]")
        assert live.evaluate_all("nodes => nodes.map(node => [node.localName, node.ariaLive])") == [["h1", "polite"]]
        charts = visit.page.locator("[role=img]")
        assert charts.count() == 1 + 4 + 11
        assert all(chart.get_attribute("aria-label") for chart in charts.all())
        unnamed = "sections => sections.filter(part => !document.getElementById(part.getAttribute('aria-labelledby')))"
        assert visit.page.locator("section").evaluate_all(unnamed + ".length") == 0
        assert visit.page.get_by_role("main").count() == 1
        tables = visit.page.get_by_role("table")
        assert tables.locator("caption").all_inner_texts() == ["Workloads, the worst first", "Pods, the worst first"]
        visit.page.keyboard.press("Tab")
        assert visit.page.evaluate("document.activeElement.textContent") == "Skip to the answer"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("deployments", [fleets.HEALTHY, fleets.TROUBLED, ()], ids=["healthy", "troubled", "empty"])
def test_all_text_stands_out_from_its_ground(
    browser: "Browser", scheme: Scheme, deployments: tuple[Deployment, ...]
) -> None:
    store = fleet(*deployments)
    past = fleets.a_past(store, deployments)
    with staged(store, past) as stage, visiting(browser, stage.url + CHOSEN, scheme=scheme) as visit:
        visit.until_live()
        contrast, text = visit.least_contrast()
        assert contrast >= 4.5, text


def test_beside_a_real_aggregator_the_page_says_what_the_sidecars_say(browser: "Browser", tmp_path: Path) -> None:
    pages = sorted(CAPTURES.glob("*.prom"))[:2]
    with sidecar_beside(pages[0]) as one, sidecar_beside(pages[1]) as other, deaf_port() as port:
        pods = {"llama-1": one.port, "llama-2": other.port, "llama-3": port}
        with aggregated(tmp_path, {("llm", "llama"): pods}) as url:
            telling = {"telling": 2, "silent": 1, "starting": 0, "terminating": 0}
            eventually(lambda: _api(url)["totals"]["pods"] == telling and _needed(url), 30, "two pods that tell")
            with visiting(browser, f"{url}/#llm/Deployment/llama") as visit:
                visit.until_live()
                chosen = "?namespace=llm&workload=llama&kind=Deployment"
                eventually(lambda: _is_on_the_page(visit, _api(url, chosen)), what="the API's values on the page")
                for name, sidecar in (("llama-1", one), ("llama-2", other)):
                    advice = sidecar.json("/v1/advice")
                    (row,) = (row for row in _rows(visit, "pods") if row[0].startswith(name))
                    assert float(row[1].split()[0]) == pytest.approx(advice["load_ratio"], abs=0.02)
                    assert row[2].endswith(f"{advice['safe_concurrency']} safe")
                (row,) = (row for row in _rows(visit, "pods") if row[0].startswith("llama-3"))
                assert "silent, never heard" in row[0]
                assert "the connection is refused" in row[0]
                assert visit.complaints == []


def _needed(url: str) -> bool:
    return _api(url)["totals"]["required_replicas"] is not None


def _is_on_the_page(visit: Visit, told: Any) -> bool:
    try:
        _page_is_api(visit, told)
    except AssertionError:
        return False
    return True
