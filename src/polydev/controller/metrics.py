"""Metrics for Prometheus, with a registry for each application."""

from __future__ import annotations

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

import polydev

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# From an answer from memory to a request that waits for a VM.
LATENCY_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)


class Metrics:
    def __init__(self, release: str | None, started: float) -> None:
        # These would be one more series for each metric.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        build = Gauge(
            "polydev_controller_build_info",
            "Version and release, as labels",
            ["version", "release"],
            registry=self.registry,
        )
        build.labels(polydev.__version__, release or "").set(1)
        uptime = Gauge(
            "polydev_controller_uptime_seconds", "Since the start", registry=self.registry
        )
        uptime.set_function(lambda: time.monotonic() - started)
        self.database_up = Gauge(
            "polydev_controller_database_up",
            "1 if the database answers and has this release's schema",
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "polydev_http_requests_in_flight", "Requests under way", registry=self.registry
        )
        self.requests = Counter(
            "polydev_http_requests",
            "Requests answered; status is 0 where the answer was never begun",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.latency = Histogram(
            "polydev_http_request_duration_seconds",
            "From the request's header to the end of the answer",
            ["method", "route"],
            buckets=LATENCY_BUCKETS_SECONDS,
            registry=self.registry,
        )

        self.connections_refused = Counter(
            "polydev_http_connections_refused",
            "Connections closed before or instead of a request, by the limit that they exceeded",
            ["reason"],
            registry=self.registry,
        )
        self.connections_unfinished = Gauge(
            "polydev_http_connections_unfinished",
            "Open connections without a complete request",
            registry=self.registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. `route` is the template, not the path: labels must stay few."""
        method = method if method in METHODS else "other"
        self.requests.labels(method, route, str(status)).inc()
        self.latency.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
