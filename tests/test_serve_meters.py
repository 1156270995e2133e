"""Metrics of the server: what Prometheus reads after calls of known times and sizes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from called import KEY, Model, made
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain
from prometheus_client.samples import Sample
from serving import Echo

from isoflop.serve.calls import Call
from isoflop.serve.meters import Meters, metrics_router


def meters(*models: Model, vllm_names: bool = False) -> Meters:
    return Meters(lambda: models or (Model(),), vllm_names=vllm_names)


def passed(found: Meters, *calls: Call) -> Meters:
    for call in calls:
        found.began(call)
        found.ended(call)
    return found


def samples(found: Meters) -> list[Sample]:
    text, _ = found.render("")
    return [sample for family in plain(text.decode()) for sample in family.samples]


def value(found: Meters, name: str, **labels: str) -> float:
    """The sum over all series of that name and these labels."""
    fitting = [s.value for s in samples(found) if s.name == name and labels.items() <= s.labels.items()]
    assert fitting, f"no series {name} with {labels}"
    return sum(fitting)


def below(found: Meters, name: str, bound: str) -> float:
    return value(found, f"isoflop:{name}_bucket", le=bound)


def test_times_and_sizes_of_answers() -> None:
    found = passed(meters(), made(first=0.03, seconds=0.4, queued=0.2), made(first=2.0, seconds=3.0))
    assert value(found, "isoflop:time_to_first_token_seconds_count", model_name="tiny") == 2
    assert below(found, "time_to_first_token_seconds", "0.04") == 1
    assert value(found, "isoflop:time_to_first_token_seconds_sum") == pytest.approx(2.03)
    assert value(found, "isoflop:request_time_per_output_token_seconds_sum") == pytest.approx(2 * 0.01)
    assert value(found, "isoflop:e2e_request_latency_seconds_sum") == pytest.approx(3.4)
    assert below(found, "e2e_request_latency_seconds", "0.5") == 1
    assert value(found, "isoflop:request_queue_time_seconds_sum") == pytest.approx(0.21)
    assert value(found, "isoflop:request_prompt_tokens_sum") == 10
    assert below(found, "request_generation_tokens", "10.0") == 0
    assert below(found, "request_generation_tokens", "20.0") == 2


def test_an_answer_that_came_as_one_began_before() -> None:
    call = made(first=0.5, seconds=0.5)
    call.last = call.first
    call.wrote(0.3)
    assert call.first == pytest.approx(call.began + 0.2)
    call.wrote(0.1)  # another of its answers, which began later
    assert call.first == pytest.approx(call.began + 0.2)
    call.wrote(9.0)
    assert call.first == call.began
    nothing = made(first=None)
    nothing.wrote(0.3)
    assert nothing.first is None


def test_tokens_cache_keys_and_masks() -> None:
    call = made(cached_tokens=3)
    call.masked.update({"email": 2, "phone": 1})
    found = passed(meters(), call, made(key=None))
    assert value(found, "isoflop:prompt_tokens_total") == 10
    assert value(found, "isoflop:generation_tokens_total") == 22
    assert value(found, "isoflop:prefix_cache_hits_total") == 3
    assert value(found, "isoflop:prefix_cache_queries_total") == 10
    assert value(found, "isoflop:key_tokens_total", key=KEY.name, kind="prompt") == 5
    assert {s.labels["key"] for s in samples(found) if s.name == "isoflop:key_tokens_total"} == {KEY.name}
    assert value(found, "isoflop:masked_items_total", kind="email") == 2


def refused(path: str) -> Call:
    return Call(path=path, status=404, error="not_found")


def test_unknown_paths_are_one_series() -> None:
    found = meters()
    for number in range(50):
        found.ended(refused(f"/wp-admin/{number}"))
    assert value(found, "isoflop:requests_total", route="unmatched", status="404") == 50
    assert len([s for s in samples(found) if s.name == "isoflop:requests_total"]) == 1


def test_errors_by_kind_and_whose_fault() -> None:
    found = passed(
        meters(), made(), made(error="disconnected"), made(error="engine_failed"),
        made(status=503, error="engine_failed"), made(status=429, error="rate_limit_exceeded"),
    )  # fmt: skip
    assert value(found, "isoflop:errors_total", error="engine_failed") == 2
    assert value(found, "isoflop:errors_total", error="rate_limit_exceeded") == 1
    assert value(found, "isoflop:errors_total", error="masking_failed") == 0
    assert value(found, "isoflop:request_failures_total") == 2  # one of them after its answer had begun
    assert value(found, "isoflop:request_success_total", finished_reason="stop") == 1
    assert value(found, "isoflop:e2e_request_latency_seconds_count") == 1


def test_running_waiting_and_batch_sizes() -> None:
    found, calls = meters(), [made() for _ in range(6)]
    for call in calls:
        found.began(call)
    found.began(Call(path="/v1/models"))  # asks no model
    assert value(found, "isoflop:num_requests_running", model_name="tiny") == Echo.slots
    assert value(found, "isoflop:num_requests_waiting") == 2
    for call in calls:
        found.ended(call)
    assert value(found, "isoflop:num_requests_running") == 0
    assert value(found, "isoflop:request_batch_size_sum") == 1 + 2 + 3 + 4 + 5 + 6


def test_models_of_now() -> None:
    loaded = [Model()]
    found = Meters(lambda: loaded)
    assert value(found, "isoflop:model_info", model_name="tiny", model_hash="abc", engine="echo") == 1
    assert value(found, "isoflop:model_bits_per_byte") == 1.25
    loaded[:] = [Model(), Model(hash="new", bits_per_byte=None)]  # a canary of the same name
    assert {s.labels["model_hash"] for s in samples(found) if s.name == "isoflop:model_info"} == {
        "abc",
        "new",
    }
    assert value(found, "isoflop:slots", model_name="tiny") == 2 * Echo.slots
    assert value(found, "isoflop:resident_memory_bytes", part="gateway") > 1e6


def test_audit_log_is_watched_where_there_is_one() -> None:
    writable = True
    found = Meters(lambda: (), audit_writable=lambda: writable)
    assert value(found, "isoflop:audit_log_writable") == 1
    writable = False
    assert value(found, "isoflop:audit_log_writable") == 0
    assert "audit_log_writable" not in meters().render("")[0].decode()


def test_the_same_under_the_names_of_vllm() -> None:
    found = passed(meters(vllm_names=True), made())
    ours = [s for s in samples(found) if s.name.startswith("isoflop:")]
    theirs = [s for s in samples(found) if s.name.startswith("vllm:")]
    by_name = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in ours}
    for s in theirs:
        labels = {k: v for k, v in s.labels.items() if k != "engine"}
        assert s.labels["engine"] == "0"
        assert by_name["isoflop:" + s.name.removeprefix("vllm:"), tuple(sorted(labels.items()))] == s.value
    names = {s.name for s in theirs}
    assert names >= {"vllm:time_to_first_token_seconds_bucket", "vllm:prompt_tokens_total"}
    assert names >= {"vllm:num_requests_running", "vllm:request_success_total"}
    bounds = {s.labels["le"] for s in theirs if s.name == "vllm:e2e_request_latency_seconds_bucket"}
    assert bounds >= {"0.3", "0.8", "1.5", "60.0", "7680.0", "+Inf"}
    assert "vllm:" not in meters().render("")[0].decode()


@pytest.mark.parametrize(
    ("accept", "kind", "parse"),
    [
        ("", "text/plain", plain),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", open_metrics),
    ],
)
def test_route(accept: str, kind: str, parse: object) -> None:
    found = passed(meters(vllm_names=True), made())
    app = FastAPI()
    app.include_router(metrics_router(found))
    with TestClient(app) as client:
        answer = client.get("/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith(kind)
    assert callable(parse)
    families: Iterable[object] = list(parse(answer.text))
    assert {"isoflop:time_to_first_token_seconds", "process_cpu_seconds"} <= {f.name for f in families}  # type: ignore[attr-defined]
    assert not any("_created" in line for line in answer.text.splitlines())
