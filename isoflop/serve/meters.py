"""What Prometheus reads of a server: names and buckets are vLLM's where the meaning is the same.

A label has few values: templates of paths, kinds of errors, names of keys that exist, models that are loaded.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import psutil
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from isoflop.serve.calls import MASKING_FAILED, Call, call_of
from isoflop.serve.protocol import Engine

OURS, THEIRS = "isoflop:", "vllm:"
UNMATCHED = "unmatched"  # route of every path that is none
COUNTING = ("/tokenize", "/detokenize")  # routes that let the model compute nothing

# Seconds. vLLM's, and finer ones below: small models are faster than its smallest.
FIRST = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
    160, 640, 2560,
)  # fmt: skip
EACH = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5,
    7.5, 10, 20, 40, 80,
)  # fmt: skip
WHOLE = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120,
    240, 480, 960, 1920, 7680,
)  # fmt: skip
TOKENS = tuple(m * 10**e for e in range(5) for m in (1, 2, 5))
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)

SAME = frozenset((  # as vLLM means them
    "time_to_first_token_seconds", "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
    "request_queue_time_seconds", "request_prompt_tokens", "request_generation_tokens", "prompt_tokens",
    "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "request_success",
    "num_requests_running", "num_requests_waiting",
))  # fmt: skip


TEXT = {"schema": {"type": "string"}}
FORMATS: dict[int | str, dict[str, Any]] = {  # for the documentation
    200: {"content": {"text/plain": TEXT, "application/openmetrics-text": TEXT}, "description": "Metrics."}
}


class Loaded(Protocol):
    """A model that the server answers with now, and what the ledger knows of it."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def bits_per_byte(self) -> float | None: ...
    @property
    def bytes(self) -> int | None: ...


class Meters(Collector):
    """Counts calls (an Observer).

    `models` tells at every reading what is loaded, and `audit_writable` whether the audit log can be written,
    where there is one. With `vllm_names`, what vLLM measures too is also there as vllm:...
    """

    def __init__(
        self, models: Callable[[], Iterable[Loaded]], *, vllm_names: bool = False,
        audit_writable: Callable[[], bool] | None = None,
    ) -> None:  # fmt: skip
        self._models, self._vllm_names, self._audit_writable = models, vllm_names, audit_writable
        self._running: dict[str, tuple[Call, int]] = {}  # and how many ran when it began, by id
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._of_answers()
        self._of_calls()
        self.registry.register(_Now(self._now))

    def _of_answers(self) -> None:
        self.first = self._histogram("time_to_first_token_seconds", "Seconds to the first token.", FIRST)
        self.each = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean seconds a token of an answer, after its first.",
            EACH,
        )
        self.whole = self._histogram("e2e_request_latency_seconds", "Seconds of answered requests.", WHOLE)
        self.queue = self._histogram("request_queue_time_seconds", "Seconds in the engine's queue.", WHOLE)
        self.prompts = self._histogram("request_prompt_tokens", "Tokens of prompts.", TOKENS)
        self.answers = self._histogram("request_generation_tokens", "Tokens of answers.", TOKENS)
        self.batch = self._histogram(
            "request_batch_size", "Requests in progress when one began, itself counted.", BATCH
        )
        self.read = self._counter("prompt_tokens", "Prompt tokens.", "model_name")
        self.written = self._counter("generation_tokens", "Generated tokens.", "model_name")
        self.looked_up = self._counter("prefix_cache_queries", "Tokens looked up in the cache.", "model_name")
        self.found = self._counter("prefix_cache_hits", "Tokens found in the cache.", "model_name")
        self.success = self._counter(
            "request_success", "Answers that ended.", "model_name", "finished_reason"
        )

    def _of_calls(self) -> None:
        self.requests = self._counter("requests", "Requests.", "route", "status", "finish")
        self.errors = self._counter("errors", "Requests that went wrong, by kind.", "error")
        self.errors.labels(MASKING_FAILED)  # an alert's: its first is seen only where there was a zero
        self.failures = self._counter("request_failures", "Requests that the server failed.")
        self.key_tokens = self._counter("key_tokens", "Tokens of a key's requests.", "key", "kind")
        self.masked = self._counter("masked_items", "Masked items of personal data, by kind.", "kind")
        self.ratings = self._counter("feedback", "Ratings of answers.", "rating")

    def began(self, call: Call) -> None:
        self._running[call.id] = (call, len(self._running) + 1)

    def ended(self, call: Call) -> None:
        _, size = self._running.pop(call.id, (call, 0))
        self.requests.labels(call.route or UNMATCHED, str(call.status), call.finish).inc()
        if call.error:
            self.errors.labels(call.error).inc()
        if call.failed:
            self.failures.inc()
        for kind, count in call.masked.items():
            self.masked.labels(kind).inc(count)
        if call.key is not None and call.prompt_tokens + call.completion_tokens:
            self.key_tokens.labels(call.key.name, "prompt").inc(call.prompt_tokens)
            self.key_tokens.labels(call.key.name, "generation").inc(call.completion_tokens)
        if call.model and call.route not in COUNTING:
            self._answered(call, size)

    def rated(self, rating: str) -> None:
        self.ratings.labels(rating).inc()

    def _answered(self, call: Call, size: int) -> None:
        name = call.model
        if size:
            self.batch.labels(name).observe(size)
        if call.queued is not None:
            self.queue.labels(name).observe(call.queued)
        if call.first is not None and call.last is not None:
            self.first.labels(name).observe(call.first - call.began)
            if call.completion_tokens > 1:
                each = (call.last - call.first) / (call.completion_tokens - 1)
                self.each.labels(name).observe(each)
        self.read.labels(name).inc(call.prompt_tokens)
        self.written.labels(name).inc(call.completion_tokens)
        self.looked_up.labels(name).inc(call.prompt_tokens)
        self.found.labels(name).inc(call.cached_tokens)
        if not call.error and call.ended is not None:
            self.whole.labels(name).observe(call.ended - call.began)
            self.prompts.labels(name).observe(call.prompt_tokens)
            self.answers.labels(name).observe(call.completion_tokens)
            self.success.labels(name, call.finish).inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their content type, as the header Accept asks: Prometheus text or OpenMetrics."""
        encode, content_type = choose_encoder(accept)
        return encode(self), content_type

    def collect(self) -> Iterator[Metric]:
        for metric in self.registry.collect():
            # When each series began would be a series of its own.
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric
            if self._vllm_names and metric.name.removeprefix(OURS) in SAME:
                yield _theirs(metric)

    # -- what is so now -----------------------------------------------------------------------------------

    def _now(self) -> Iterator[Metric]:
        models = list(self._models())
        busy = Counts(call.model for call, _ in list(self._running.values()) if call.model)
        names = list(dict.fromkeys(model.name for model in models))
        slots = {name: sum(m.engine.slots for m in models if m.name == name) for name in names}
        label = ("model_name",)
        yield _gauge(
            "num_requests_running", "Requests in progress, as many as there are slots.", label,
            [((name,), min(busy[name], slots[name])) for name in names],
        )  # fmt: skip
        yield _gauge(
            "num_requests_waiting", "Requests in progress beyond the slots, which wait.", label,
            [((name,), max(0, busy[name] - slots[name])) for name in names],
        )  # fmt: skip
        yield _gauge(
            "slots", "Requests that can be computed at the same time.", label,
            [((name,), slots[name]) for name in names],
        )  # fmt: skip
        yield from self._of_models(models)
        yield _gauge("resident_memory_bytes", "Of this process and of its engines.", ("part",), _memory())
        if self._audit_writable is not None:
            writable = float(self._audit_writable())
            yield _gauge("audit_log_writable", "1: the audit log can be written.", (), [((), writable)])

    @staticmethod
    def _of_models(models: Sequence[Loaded]) -> Iterator[Metric]:
        which = ("model_name", "model_hash")
        models = list({(m.name, m.hash): m for m in models}.values())  # a canary may be of the same bytes
        yield _gauge(
            "model_info", "A loaded model.", (*which, "engine"),
            [((m.name, m.hash, m.engine.name), 1) for m in models],
        )  # fmt: skip
        yield _gauge(
            "model_bits_per_byte", "Measured on held-out text.", which,
            [((m.name, m.hash), m.bits_per_byte) for m in models if m.bits_per_byte is not None],
        )  # fmt: skip
        yield _gauge(
            "model_bytes", "On disk.", which,
            [((m.name, m.hash), m.bytes) for m in models if m.bytes is not None],
        )  # fmt: skip

    # -- names --------------------------------------------------------------------------------------------

    def _histogram(self, name: str, words: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(OURS + name, words, ("model_name",), registry=self.registry, buckets=buckets)

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(OURS + name, words, labels, registry=self.registry)


class _Now(Collector):
    """Metrics that are made when they are read."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def _gauge(
    name: str, words: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    made = GaugeMetricFamily(OURS + name, words, labels=labels)
    for names, value in values:
        made.add_metric(names, value)
    return made


def _theirs(metric: Metric) -> Metric:
    """Under vLLM's name, with its label of the engine's number."""
    made = Metric(THEIRS + metric.name.removeprefix(OURS), metric.documentation, metric.type)
    made.samples = [
        Sample(THEIRS + s.name.removeprefix(OURS), {**s.labels, "engine": "0"}, s.value)
        for s in metric.samples
    ]
    return made


def _memory() -> list[tuple[tuple[str], float]]:
    process, engines = psutil.Process(), 0
    for child in process.children(recursive=True):
        try:
            engines += child.memory_info().rss
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return [(("gateway",), process.memory_info().rss), (("engines",), engines)]


def metrics_router(meters: Meters) -> APIRouter:
    """The route /metrics."""
    router = APIRouter()

    # In a thread: looking for the engines' memory takes milliseconds, for which tokens would wait.
    @router.get("/metrics", response_class=Response, responses=FORMATS, tags=["operations"])
    def metrics(request: Request) -> Response:
        """Metrics in Prometheus text or OpenMetrics, as the header Accept says."""
        call_of(request.scope)  # now it has its route
        text, content_type = meters.render(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    return router
