"""Prometheus metrics of the API: requests by endpoint and status, errors by code, time to the first text."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.http_errors import ERROR_CODE
from frontend.middleware.asgi import match_route

STREAMS = (b"text/event-stream", b"application/x-ndjson")  # media types
BUCKETS_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The API's metrics, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "captioner_api_requests", "Requests answered", ("endpoint", "status"), registry=self.registry
        )
        self.refused = Counter(
            "captioner_api_refused", "Requests to any path answered with an error", ("code",), registry=self.registry
        )
        self.in_flight = Gauge("captioner_api_in_flight", "Requests in flight", registry=self.registry)
        self.first_text = Histogram(
            "captioner_api_first_text_seconds",
            "Time from the request to the first text of its stream",
            ("endpoint",),
            buckets=BUCKETS_S,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class MetricsMiddleware:
    """ASGI middleware that counts requests to `routes`, and the errors of all requests.

    The label `endpoint` is the route's name.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], metrics: Metrics) -> None:
        self.app = app
        self._routes = routes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._measured(scope, receive, send)
        finally:
            if ERROR_CODE in scope:
                self._metrics.refused.labels(scope[ERROR_CODE]).inc()

    async def _measured(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = match_route(self._routes, scope)
        if route is None:
            return await self.app(scope, receive, send)
        endpoint = str(getattr(route, "name", "none"))
        began, status, awaits_text = time.monotonic(), 500, False

        async def send_measured(message: Message) -> None:
            nonlocal status, awaits_text
            if message["type"] == "http.response.start":
                status = message["status"]
                awaits_text = any(value.startswith(STREAMS) for _, value in message["headers"])
            elif awaits_text:
                awaits_text = False
                self._metrics.first_text.labels(endpoint).observe(time.monotonic() - began)
            await send(message)

        with self._metrics.in_flight.track_inprogress():
            try:
                await self.app(scope, receive, send_measured)
            finally:
                self._metrics.requests.labels(endpoint, str(status)).inc()
