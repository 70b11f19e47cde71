"""One headless Chromium, Debian's or another that is installed, driven by Playwright."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Scheme = Literal["light", "dark"]
_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Root has no sandbox in a container; the others keep Chromium from talking to anybody but the page's server.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# Text against the nearest ancestor's painted background, WCAG 2.2's formula.
_LEAST_CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => numbers(colour).slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return (numbers(colour)[3] ?? 1) > 0 ? colour : ground(node.parentElement);
  };
  const worst = [...document.querySelectorAll('body *')]
    .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()))
    .filter((node) => node.getClientRects().length && !node.closest('script, style, noscript'))
    .map((node) => {
      const own = getComputedStyle(node);
      const pair = [light(node.closest('svg') ? own.fill : own.color), light(ground(node))].sort((a, b) => b - a);
      return [(pair[0] + 0.05) / (pair[1] + 0.05), node.textContent.slice(0, 40)];
    });
  return worst.sort((a, b) => a[0] - b[0])[0];
}"""


class BrowserMissingError(Exception):
    """There is no browser to drive. The message is one line."""


@contextlib.contextmanager
def launched() -> Iterator["Browser"]:
    """A running browser. Raises BrowserMissingError."""
    executable = next((path for path in map(shutil.which, _NAMES) if path is not None), None)
    if executable is None:
        raise BrowserMissingError(f"no browser: none of {', '.join(_NAMES)} is installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise BrowserMissingError("no browser driver: Python's playwright package is not installed") from None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True, slots=True)
class Visit:
    """A page that was opened, and what it did since."""

    page: "Page"
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings on the console, and exceptions nobody caught."""
    requests: list[str] = field(default_factory=list)
    """Addresses that were asked for."""

    def text(self, selector: str) -> str:
        """What a reader sees of the one element."""
        return self.page.locator(selector).inner_text()

    def texts(self, selector: str) -> list[str]:
        """What a reader sees of each element."""
        return self.page.locator(selector).all_inner_texts()

    def until_live(self) -> None:
        """Waits for the first figures."""
        self.page.wait_for_selector("main:not(.empty)")

    def until_stale(self) -> None:
        self.page.wait_for_selector("#freshness.stale")

    def least_contrast(self) -> tuple[float, str]:
        """Of all text that is shown, and where it begins."""
        contrast, text = self.page.evaluate(_LEAST_CONTRAST)
        return float(contrast), str(text)


@contextlib.contextmanager
def visiting(browser: "Browser", url: str, *, width: int = 1280, scheme: Scheme = "light") -> Iterator[Visit]:
    """The page at `url` in a window of its own, `width` CSS pixels wide."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    visit = Visit(context.new_page())
    visit.page.on(
        "console",
        lambda message: visit.complaints.append(message.text) if message.type in {"error", "warning"} else None,
    )
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.on("request", lambda request: visit.requests.append(request.url))
    try:
        visit.page.goto(url)
        yield visit
    finally:
        context.close()
