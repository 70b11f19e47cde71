"""What can be said of the live page without a browser."""

import re

from kvgauge.pages import composed

PAGE = composed("kvgauge.publish", "live.html")


def test_the_page_is_one_small_file() -> None:
    assert len(PAGE.encode()) <= 60_000


def test_the_page_names_no_other_host() -> None:
    hosts = set(re.findall(r"https?://([^/\"' ]+)", PAGE))
    # The name of SVG's namespace, which nobody fetches.
    assert hosts == {"www.w3.org"}


def test_no_data_can_become_markup() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|srcdoc", PAGE)
