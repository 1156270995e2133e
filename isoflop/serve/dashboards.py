"""A Grafana dashboard and Prometheus alert rules for what meters.py measures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from isoflop.serve.calls import CANARY, FAILED, MASKING_FAILED, REFUSED
from isoflop.serve.objectives import Objectives
from isoflop.store import atomic_write, disk_errors

TEMPLATES = Path(__file__).parent / "templates"
DASHBOARD, RULES = "isoflop-dashboard.json", "isoflop-alerts.yml"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 12, 8  # of a panel, in Grafana's grid of 24 columns
MODEL = 'model_name=~"$model"'


def write(folder: Path, promised: Objectives) -> list[Path]:
    """Writes both files into a folder, which is made. Raises ProjectError where it cannot be."""
    with disk_errors(f"the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    texts = {DASHBOARD: json.dumps(dashboard(promised), indent=1) + "\n", RULES: rules(promised)}
    for name, text in texts.items():
        atomic_write(folder / name, text)
    return [folder / name for name in texts]


def rules(promised: Objectives) -> str:
    """Alert rules in YAML."""
    made = jinja2.Environment(  # Prometheus has the curly brackets
        loader=jinja2.FileSystemLoader(TEMPLATES), variable_start_string="<<", variable_end_string=">>",
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    values = {
        **promised.model_dump(), "idle": f"{promised.idle:.0f}s", "masking_failed": MASKING_FAILED,
        "canary": CANARY, "failed": FAILED, "refused": REFUSED,
    }  # fmt: skip
    return made.get_template("alerts.yml").render(values)


def dashboard(promised: Objectives) -> dict[str, Any]:
    """Grafana's document; it asks for a data source and a model at its top."""
    return {
        "uid": "isoflop-serve",
        "title": "isoflop serve",
        "tags": ["isoflop"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
            {
                "name": "model", "label": "Model", "type": "query", "datasource": SOURCE, "refresh": 2,
                "query": "label_values(isoflop:model_info, model_name)", "includeAll": True, "multi": True,
                "current": {"text": "All", "value": "$__all"},
            },
        ]},
        "panels": [
            {**panel, "id": i + 1, "datasource": SOURCE, "gridPos": {
                "x": i % 2 * WIDTH, "y": i // 2 * HEIGHT, "w": WIDTH, "h": HEIGHT,
            }}
            for i, panel in enumerate(_panels(promised))
        ],
    }  # fmt: skip


def _panels(promised: Objectives) -> list[dict[str, Any]]:
    return [
        _table("Models", "isoflop:model_bits_per_byte", "isoflop:model_bytes", "isoflop:slots"),
        _lines("Requests a second", "reqps", {
            "{{route}} {{status}}": "sum by (route, status) (rate(isoflop:requests_total[$__rate_interval]))",
        }),
        _quantiles("Time to first token", "time_to_first_token_seconds", promised.first_token),
        _quantiles("Time a token, after the first", "request_time_per_output_token_seconds"),
        _quantiles("Time of a request", "e2e_request_latency_seconds"),
        _quantiles("Time in the queue", "request_queue_time_seconds"),
        _lines("Tokens a second", "short", {
            "prompt": _rate("prompt_tokens_total", MODEL),
            "generated": _rate("generation_tokens_total", MODEL),
        }),
        _lines("Requests: running, waiting, slots", "short", {
            "running {{model_name}}": _sum("num_requests_running"),
            "waiting {{model_name}}": _sum("num_requests_waiting"),
            "slots {{model_name}}": _sum("slots"),
        }),
        _quantiles("Requests in progress when one begins", "request_batch_size", unit="short"),
        _lines("Prompt tokens found in the cache", "percentunit", {
            "found again": _rate("prefix_cache_hits_total", MODEL) + " / "
            + _rate("prefix_cache_queries_total", MODEL),
        }),
        _quantiles("Tokens of a prompt", "request_prompt_tokens", unit="short"),
        _quantiles("Tokens of an answer", "request_generation_tokens", unit="short"),
        _lines("Errors a second, by kind", "reqps", {
            "{{error}}": "sum by (error) (rate(isoflop:errors_total[$__rate_interval]))",
        }),
        _lines("Share of requests that the server fails", "percentunit", {
            "failed": _rate("request_failures_total") + " / " + _rate("requests_total", 'status!~"4.."'),
        }, promised.errors),
        _lines("Tokens a second, by key", "short", {
            "{{key}} {{kind}}": "sum by (key, kind) (rate(isoflop:key_tokens_total[$__rate_interval]))",
        }),
        _lines("How answers end", "reqps", {
            "{{finished_reason}}": "sum by (finished_reason) "
            f"(rate(isoflop:request_success_total{{{MODEL}}}[$__rate_interval]))",
        }),
        _lines("Masked items a minute", "short", {
            "{{kind}}": "60 * sum by (kind) (rate(isoflop:masked_items_total[$__rate_interval]))",
        }),
        _lines("Ratings an hour", "short", {
            "{{rating}}": "sum by (rating) (increase(isoflop:feedback_total[1h]))",
        }),
        _lines("Requests a second, by role", "reqps", {
            "{{model_name}} {{role}} {{outcome}}": _by_role("role_requests_total", "outcome"),
        }),
        _lines("Share of requests that the server fails, by role", "percentunit", {
            "{{model_name}} {{role}}": _by_role("role_requests_total", where=f'{MODEL}, outcome="{FAILED}"')
            + " / " + _by_role("role_requests_total", where=f'{MODEL}, outcome!="{REFUSED}"'),
        }, promised.errors),
        _lines("95% have their first token within, by role", "s", {
            "{{model_name}} {{role}}":
            f"histogram_quantile(0.95, {_by_role('role_first_token_seconds_bucket', 'le')})",
        }, promised.first_token),
        _lines("What a shadow answers, beside the model", "reqps", {
            "{{model_name}} {{result}}": "sum by (model_name, result) "
            f"(rate(isoflop:shadow_copies_total{{{MODEL}}}[$__rate_interval]))",
        }),
        _lines("Resident memory", "bytes", {
            "{{instance}} {{part}}": "sum by (instance, part) (isoflop:resident_memory_bytes)",
        }),
        _lines("Audit log can be written", "bool", {"{{instance}}": "isoflop:audit_log_writable"}),
    ]  # fmt: skip


def _rate(name: str, where: str = "") -> str:
    labels = f"{{{where}}}" if where else ""
    return f"sum(rate(isoflop:{name}{labels}[$__rate_interval]))"


def _by_role(name: str, *labels: str, where: str = MODEL) -> str:
    by = ", ".join(("model_name", "role", *labels))
    return f"sum by ({by}) (rate(isoflop:{name}{{{where}}}[$__rate_interval]))"


def _sum(name: str) -> str:
    return f"sum by (model_name) (isoflop:{name}{{{MODEL}}})"


def _quantiles(title: str, name: str, objective: float | None = None, *, unit: str = "s") -> dict[str, Any]:
    buckets = f"sum by (le) (rate(isoflop:{name}_bucket{{{MODEL}}}[$__rate_interval]))"
    shares = {"half": 0.5, "95%": 0.95, "99%": 0.99}
    return _lines(
        title, unit, {f"{words} below": f"histogram_quantile({share}, {buckets})"
                      for words, share in shares.items()}, objective,
    )  # fmt: skip


def _lines(
    title: str, unit: str, series: Mapping[str, str], objective: float | None = None
) -> dict[str, Any]:
    """A panel of lines; the objective is a line too."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if objective is not None:
        steps.append({"color": "red", "value": objective})
    style = {"thresholdsStyle": {"mode": "off" if objective is None else "line"}}
    return {
        "type": "timeseries",
        "title": title,
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, "thresholds": {"steps": steps}, "custom": style},
            "overrides": [],
        },
        "targets": [
            {"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
            for i, (legend, expression) in enumerate(series.items())
        ],
    }


def _table(title: str, *names: str) -> dict[str, Any]:
    """Values of now, a row a model."""
    return {
        "type": "table",
        "title": title,
        "targets": [
            {"refId": chr(ord("A") + i), "expr": f"{name}{{{MODEL}}}", "format": "table", "instant": True,
             "datasource": SOURCE}
            for i, name in enumerate(names)
        ],
        "transformations": [{"id": "merge", "options": {}}],
    }  # fmt: skip
