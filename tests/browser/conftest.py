"""Fixtures of the tests in a browser: one browser for a module, one sidecar beside a recorded page."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.process import Sidecar

from .browsing import BrowserMissingError, launched
from .serving import CAPTURES, sidecar_beside

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    try:
        with launched() as running:
            yield running
    except BrowserMissingError as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    """For all tests that leave it alone."""
    with sidecar_beside(CAPTURES / "smallcache_under_pressure.prom") as running:
        yield running
