"""What tells a canary or a shadow from the model that it is beside, for Prometheus.

Labels are the model's name and its role: which artifact has the role, isoflop:role_info says.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from isoflop.serve.calls import FAILED, GOOD, REFUSED, SHADOW, Call
from isoflop.serve.gateway import Gateway
from isoflop.serve.meters import COUNTING, FIRST, OURS, WHOLE, Meters
from isoflop.serve.shadowing import RESULTS

ROLE = ("model_name", "role")


class ByRole(Collector):
    """Counts calls by the role of what answered (an Observer), and what came of copies, beside `meters`."""

    def __init__(self, gateway: Gateway, meters: Meters) -> None:
        self._gateway, registry = gateway, meters.registry
        self.requests = Counter(
            OURS + "role_requests", "Requests by what became of them.", (*ROLE, "outcome"), registry=registry
        )
        self.seconds = Histogram(
            OURS + "role_request_seconds", "Seconds of answers.", ROLE, registry=registry, buckets=WHOLE
        )
        self.first = Histogram(
            OURS + "role_first_token_seconds", "Seconds to the first token.", ROLE, registry=registry,
            buckets=FIRST,
        )  # fmt: skip
        self.copies = Counter(
            OURS + "shadow_copies", "Requests that a shadow was to get too, by what came of it.",
            ("model_name", "result"), registry=registry,
        )  # fmt: skip
        registry.register(self)

    def began(self, call: Call) -> None: ...

    def ended(self, call: Call) -> None:
        if not call.model or call.route in COUNTING:
            return
        outcome = FAILED if call.failed else REFUSED if call.status >= 400 else GOOD
        self.requests.labels(call.model, call.role, outcome).inc()
        if call.first is not None:
            self.first.labels(call.model, call.role).observe(call.first - call.began)
        if not call.error and call.ended is not None:
            self.seconds.labels(call.model, call.role).observe(call.ended - call.began)

    def copied(self, name: str, result: str) -> None:
        """A copy came to one of RESULTS; the others are there as well, from zero."""
        for each in RESULTS:
            self.copies.labels(name, each).inc(each == result)

    def collect(self) -> Iterator[Metric]:
        gateway = self._gateway
        shadows = [(SHADOW, shadow.model) for shadow in gateway.shadows.values()]
        made = GaugeMetricFamily(
            OURS + "role_info", "Which artifact has a role.", labels=(*ROLE, "model_hash")
        )
        for role, model in (*gateway.loaded(), *shadows):
            made.add_metric((model.name, role, model.hash), 1)
        yield made
