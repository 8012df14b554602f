"""The API's numbers for Prometheus: requests by door and status, how many are open, the time to a first text."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.middleware.asgi import path_of

DOORS = {"/v1/captions": "captions", "/v1/chat/completions": "chat", "/v1/models": "models"}
BUCKETS_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "captioner_api_requests", "Requests answered", ("door", "status"), registry=self.registry
        )
        self.in_flight = Gauge("captioner_api_in_flight", "Requests being answered", registry=self.registry)
        self.first_text = Histogram(
            "captioner_api_first_text_seconds",
            "From a request to the first text of its stream",
            ("door",),
            buckets=BUCKETS_S,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """All of them as Prometheus reads them."""
        return generate_latest(self.registry)


class MetricsMiddleware:
    """ASGI middleware that counts what goes through the doors."""

    def __init__(self, app: ASGIApp, gauges: Metrics) -> None:
        self.app = app
        self.gauges = gauges

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not path_of(scope).startswith("/v1/"):
            return await self.app(scope, receive, send)
        path = path_of(scope)
        door = DOORS.get(path) or ("models" if path.startswith("/v1/models/") else "none")
        began, status, waiting = time.monotonic(), 500, False

        async def send_measured(message: Message) -> None:
            nonlocal status, waiting
            if message["type"] == "http.response.start":
                status = message["status"]
                waiting = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
            elif waiting:
                waiting = False
                self.gauges.first_text.labels(door).observe(time.monotonic() - began)
            await send(message)

        with self.gauges.in_flight.track_inprogress():
            try:
                await self.app(scope, receive, send_measured)
            finally:
                self.gauges.requests.labels(door, str(status)).inc()
