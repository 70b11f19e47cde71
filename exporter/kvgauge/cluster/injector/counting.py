"""What the injector counts of itself."""

from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from kvgauge import __version__

_BOUNDS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)


class Counts:
    """Injections by result (injected, skipped, failed) and reason (a fixed set of words), and how long answers take."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._injections = Counter(
            "kvgauge_injections_total", "Pods looked at.", ("result", "reason"), registry=self.registry
        )
        self._seconds = Histogram(
            "kvgauge_injection_seconds", "Time to answer a review.", buckets=_BOUNDS_SECONDS, registry=self.registry
        )
        self._native = Gauge(
            "kvgauge_injector_native_sidecars",
            "1 where sidecars become init containers that keep running.",
            registry=self.registry,
        )
        build = Gauge("kvgauge_build_info", "1, by version.", ("version",), registry=self.registry)
        build.labels(__version__).set(1)
        for result, reason in (("injected", "new"), ("skipped", "present"), ("failed", "internal")):
            self._injections.labels(result, reason)

    def count(self, result: str, reason: str) -> None:
        self._injections.labels(result, reason).inc()

    def timed(self) -> AbstractContextManager[object]:
        return self._seconds.time()

    def set_native(self, native: bool) -> None:
        self._native.set(native)

    def page(self) -> bytes:
        """The Prometheus page, text format 0.0.4."""
        return generate_latest(self.registry)
