"""What the server has done and is doing, in Prometheus' form. Knows no dialect.

What costs is counted once for each answer, and what can be looked up is looked up when it is asked for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mdl.engine.request import Usage

_REQUEST_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Standing(Protocol):
    """What is the case at this moment."""

    @property
    def running(self) -> int:
        """Requests that wait for an answer or get one."""

    @property
    def waiting(self) -> int:
        """Those whose model is being loaded."""

    @property
    def died(self) -> int:
        """Workers that ended though nobody ended them, so far."""

    def engines(self) -> Iterable[tuple[str, str, int]]:
        """Model, state and bytes of memory of each."""


class Metrics:
    """All figures of one server."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=registry)

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(name, about, labels, registry=registry)

        def seconds(name: str, about: str, label: str, steps: tuple[float, ...]) -> Histogram:
            return Histogram(name, about, (label,), buckets=steps, registry=registry)

        self._requests = counter("mdl_requests", "Requests.", "route", "status")
        self._seconds = seconds("mdl_request_seconds", "Up to its end.", "route", _REQUEST_SECONDS)
        self._first = seconds("mdl_first_token_seconds", "Up to the first token.", "model", _REQUEST_SECONDS)
        self._next = seconds("mdl_next_token_seconds", "Mean of an answer.", "model", _TOKEN_SECONDS)
        self._tokens = counter("mdl_tokens", "Tokens.", "model", "kind")
        self._running = gauge("mdl_requests_running", "Requests in flight.")
        self._waiting = gauge("mdl_requests_waiting", "Of those, the ones whose model is being loaded.")
        self._deaths = counter("mdl_engine_deaths", "Engines that ended though nobody ended them.")
        self._died = 0
        self._engines = gauge("mdl_engines", "Models that are loaded.", "state")
        self._memory = gauge("mdl_engine_memory_bytes", "What a loaded model takes, as estimated.", "model")

    def request(self, route: str, status: int, seconds: float) -> None:
        """It has been answered; status 0: nobody waited for that."""
        self._requests.labels(route, str(status or "gone")).inc()
        self._seconds.labels(route).observe(seconds)

    def answer(self, model: str) -> "Watch":
        """For one request for text."""
        return Watch(self, model, monotonic())

    def told(self, model: str, usage: Usage) -> None:
        """An answer has ended."""
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("completion", usage.completion_tokens),
        ):
            self._tokens.labels(model, kind).inc(count)
        if usage.completion_tokens > 1:
            self._next.labels(model).observe(usage.completion_seconds / (usage.completion_tokens - 1))

    def read(self, model: str, tokens: int) -> None:
        """So many tokens, to which no answer was written."""
        self._tokens.labels(model, "prompt").inc(tokens)

    def began(self, model: str, seconds: float) -> None:
        """The first token came after so long."""
        self._first.labels(model).observe(seconds)

    def text(self, standing: Standing) -> bytes:
        """All of it, as Prometheus reads it."""
        self._running.set(standing.running)
        self._waiting.set(standing.waiting)
        died = standing.died
        self._deaths.inc(died - self._died)
        self._died = died
        self._engines.clear()
        self._memory.clear()
        for model, state, size in standing.engines():
            self._engines.labels(state).inc()
            self._memory.labels(model).set(size)
        return generate_latest(self.registry)


@dataclass(slots=True)
class Watch:
    """Hears of the pieces of an answer."""

    metrics: Metrics
    model: str
    asked: float
    begun: bool = False

    def piece(self, usage: Usage | None) -> None:
        """One has come; the last one has the usage."""
        if not self.begun:
            self.begun = True
            self.metrics.began(self.model, monotonic() - self.asked)
        if usage is not None:
            self.metrics.told(self.model, usage)


@dataclass(frozen=True, slots=True)
class Page:
    """GET /metrics."""

    metrics: Metrics
    standing: Standing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = Response(self.metrics.text(self.standing), headers={"content-type": CONTENT_TYPE_LATEST})
        await response(scope, receive, send)
