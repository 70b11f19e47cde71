"""Asks sidecars for what they see: each in a thread of its own, so that one that hangs only grows old itself."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from kvgauge.observe.fetching import Endpoint
from kvgauge.observe.records import SourceError
from kvgauge.top.reading import PodView, pod_view

STALE_SECONDS = 5.0
"""What is older is still shown, and said to be old."""
_TIMEOUT_SECONDS = 2.0
_MOST_BYTES = 2 * 1024 * 1024
_PAGES = ("/v1/advice", "/v1/assessment", "/v1/observation")


@dataclass(frozen=True, slots=True)
class Seen:
    """One sidecar: the last that it showed, how old that is, and why there is nothing newer."""

    url: str
    view: PodView | None = None
    age_seconds: float | None = None
    """Since it came, and its own age before that."""
    trouble: str | None = None
    """None without a view: the first answer is awaited."""

    @property
    def name(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def stale(self) -> bool:
        return self.age_seconds is None or self.age_seconds > STALE_SECONDS


class Asked:
    """One sidecar, asked again and again. `clock` is monotonic seconds."""

    def __init__(self, url: str, interval_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.url = url
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._endpoint = Endpoint(url, timeout_seconds=_TIMEOUT_SECONDS, max_body_bytes=_MOST_BYTES)
        self._view: PodView | None = None
        self._came_seconds = 0.0
        self._trouble: str | None = None
        self._stopping = threading.Event()
        self.first = threading.Event()
        """The first answer came, or did not."""
        self._thread = threading.Thread(target=self._run, name=f"kvgauge-top {url}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """A read in flight is left behind."""
        self._stopping.set()

    def seen(self) -> Seen:
        view = self._view
        if view is None:
            return Seen(self.url, trouble=self._trouble)
        age = self._clock() - self._came_seconds + (view.age_seconds or 0.0)
        return Seen(self.url, view, age, self._trouble)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                view = pod_view(*(self._page(path) for path in _PAGES))
                self._came_seconds, self._view, self._trouble = self._clock(), view, None
            except SourceError as error:
                self._trouble = f"{error.message} ({error.reason})"
            except Exception as error:
                self._trouble = f"the answer cannot be read ({type(error).__name__})"
            self.first.set()
            self._stopping.wait(self._interval_seconds)

    def _page(self, path: str) -> Mapping[str, object]:
        answer = self._endpoint.get_json(path)
        if not isinstance(answer, Mapping):
            raise SourceError("not_json", f"GET {path} answered no JSON object")
        return answer


def ask_once(urls: list[str], seconds: float) -> list[Seen]:
    """Each once, all at a time, within `seconds`."""
    asked = [Asked(url, interval_seconds=3600.0) for url in urls]
    for each in asked:
        each.start()
    deadline = time.monotonic() + seconds
    for each in asked:
        each.first.wait(max(deadline - time.monotonic(), 0.0))
        each.stop()
    return [
        each.seen() if each.first.is_set() else Seen(each.url, trouble=f"no answer within {seconds:g} s")
        for each in asked
    ]
