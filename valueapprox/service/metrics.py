"""Prometheus metrics of one application: its requests, and the service's own counts when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from valueapprox.service.schemas import Served

__all__ = ["Metrics"]

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Prometheus metrics of one application: its requests, and the service's counts when they are asked for."""

    def __init__(self, service: Served, paths: tuple[str, ...]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "valueapprox_requests", "Requests answered", ("path", "method", "status"), registry=self.registry
        )
        seconds = Histogram(
            "valueapprox_request_seconds", "From the head of a request to the end of its answer", ("path",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.seconds = {path: seconds.labels(path) for path in (*paths, "other")}
        self.by_class = dict.fromkeys(("none", "1xx", "2xx", "3xx", "4xx", "5xx"), 0)  # requests, by kind of status
        self._children: dict[tuple[str, str, int], Any] = {}
        self.registry.register(_ServiceCollector(service))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def observe(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.by_class[f"{status // 100}xx" if status else "none"] += 1
        if path not in self.seconds:
            path = "other"  # a label per address that somebody tries would grow without end
        if method not in ("GET", "HEAD", "POST", "PUT"):
            method = "other"
        child = self._children.get((path, method, status))
        if child is None:
            child = self._children[path, method, status] = self.requests.labels(path, method, str(status))
        child.inc()
        self.seconds[path].observe(seconds)


class _ServiceCollector(Collector):
    """What the service says of itself."""

    def __init__(self, service: Served) -> None:
        self.service = service

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        health = self.service.health()
        transitions = CounterMetricFamily(
            "valueapprox_transitions", "Transitions since the start, by what became of them", labels=("status",)
        )
        for status in ("learned", "duplicates", "rejected", "diverged", "refused"):
            if status in health:
                transitions.add_metric((status,), health[status])
        yield transitions
        gauges = {
            "ready": "Values are served",
            "learning": "Transitions are learned",
            "version": "Changes that the weights have had",
            "queued": "Transitions that wait to be learned",
            "queue_limit": "Transitions that may wait",
            "n_streams": "Streams whose sequence numbers are known",
            "n_traces": "Streams that have a trace",
            "n_updates": "Updates of the weights",
            "journal_bytes": "Size of the journal",
            "journal_segments": "Files of the journal",
            "checkpoint_version": "Version of the weights in the last checkpoint",
            "checkpoint_age_seconds": "Age of the last checkpoint",
            "uptime_seconds": "Since the service started",
        }
        for name, text in gauges.items():
            number = health.get(name)
            if number is not None:
                yield GaugeMetricFamily(f"valueapprox_{name}", text, value=float(number))
        families: dict[str, GaugeMetricFamily] = {}
        for tag, number in self.service.diagnostics().items():
            name, _, rest = tag.partition("/")
            label = "layer"
            if name == "td_error":  # td_error/rms, or td_error/rms/NAME with several predictions
                kind, _, rest = rest.partition("/")
                name, label = f"td_error_{kind}", "prediction"
            family = families.get(name)
            if family is None:
                text = f"{name.replace('_', ' ')}, averaged over the last second with learning"
                family = families[name] = GaugeMetricFamily(f"valueapprox_{name}", text, labels=(label,))
            family.add_metric((rest or (self.service.names[0] if self.service.names else ""),), number)
        yield from families.values()
