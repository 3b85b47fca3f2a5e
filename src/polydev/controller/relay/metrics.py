"""Metrics of the relay for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from polydev.controller.relay.viewer import Viewer


class RelayMetrics:
    """`open_viewers` returns the viewers that are connected: their bytes are not added up yet."""

    def __init__(
        self, registry: CollectorRegistry, open_viewers: Callable[[], Iterable[Viewer]]
    ) -> None:
        self._bytes = _Bytes(open_viewers)
        registry.register(self._bytes)
        viewers = Gauge("polydev_relay_viewers", "Viewers connected to VMs", registry=registry)
        viewers.set_function(lambda: sum(1 for _ in open_viewers()))
        self._refusals = Counter(
            "polydev_relay_refusals", "Viewers not let in, by cause", ["cause"], registry=registry
        )
        self._closings = Counter(
            "polydev_relay_closings",
            "Viewers that were let in, by end",
            ["cause"],
            registry=registry,
        )

    def refused(self, cause: str) -> None:
        self._refusals.labels(cause).inc()

    def closed(self, viewer: Viewer, cause: str) -> None:
        """Count a viewer that is not among the open ones any more."""
        self._bytes.to_viewers += viewer.bytes_to
        self._bytes.from_viewers += viewer.bytes_from
        self._closings.labels(cause).inc()


class _Bytes(Collector):
    """Each viewer counts its own bytes; they are summed up only when Prometheus asks."""

    def __init__(self, open_viewers: Callable[[], Iterable[Viewer]]) -> None:
        self._open_viewers = open_viewers
        self.to_viewers = 0
        self.from_viewers = 0

    def collect(self) -> Iterable[CounterMetricFamily]:
        viewers = list(self._open_viewers())
        family = CounterMetricFamily(
            "polydev_relay_bytes", "Bytes of RFB relayed", labels=["direction"]
        )
        to_viewers = self.to_viewers + sum(viewer.bytes_to for viewer in viewers)
        from_viewers = self.from_viewers + sum(viewer.bytes_from for viewer in viewers)
        family.add_metric(["to_viewer"], to_viewers)
        family.add_metric(["to_vm"], from_viewers)
        yield family
