"""The dashboard and the alert rules: Prometheus reads them, and what they name is measured."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from called import Model, made
from prometheus_client.parser import text_string_to_metric_families

from isoflop.errors import FitError
from isoflop.serve.by_role import ByRole
from isoflop.serve.dashboards import DASHBOARD, RULES, write
from isoflop.serve.gateway import Gateway
from isoflop.serve.meters import Meters
from isoflop.serve.objectives import Objectives, objectives
from isoflop.serve.settings import Settings

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool, Prometheus's checker, is not installed"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "new", Objectives(first_token=0.5))
    return tmp_path / "new"


def promtool(*words: str | Path) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expressions(folder: Path) -> list[str]:
    """What the dashboard asks Prometheus, its variables filled in."""
    panels = json.loads((folder / DASHBOARD).read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    return [text.replace("$__rate_interval", "1m").replace("$model", ".*") for text in asked]


def test_whatever_they_name_is_measured(folder: Path) -> None:
    meters = Meters(lambda: [Model()], audit_writable=lambda: True)
    call = made(cached_tokens=1)
    call.masked["email"] += 1
    meters.began(call)
    meters.ended(call)
    meters.rated("up")
    by_role = ByRole(Gateway({}, Settings(open=True)), meters)
    by_role.ended(call)
    by_role.copied("tiny", "same")
    measured = {
        sample.name for family in text_string_to_metric_families(meters.render("")[0].decode())
        for sample in family.samples
    }  # fmt: skip
    named = set(re.findall(r"isoflop:\w+", " ".join(expressions(folder)) + (folder / RULES).read_text()))
    assert len(named) > 15
    assert named <= measured


@needs_promtool
def test_prometheus_reads_rules_and_panels(folder: Path, tmp_path: Path) -> None:
    assert "8 rules found" in promtool("check", "rules", folder / RULES)
    asked = expressions(folder)
    recorded = [{"record": f"panel{i}", "expr": text} for i, text in enumerate(asked)]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": recorded}]}))
    assert f"{len(asked)} rules found" in promtool("check", "rules", tmp_path / "panels.yml")


# Series of Prometheus, a value a minute.
LABELS = 'job="isoflop", instance="a:1", model_name="tiny"'
ONE = 'job="isoflop", instance="a:1"'


def fast(bound: str, le: str) -> dict[str, str]:
    return {"series": f'isoflop:time_to_first_token_seconds_bucket{{{LABELS}, le="{le}"}}', "values": bound}


def canary(outcome: str, values: str) -> dict[str, str]:
    series = f'isoflop:role_requests_total{{{LABELS}, role="canary", outcome="{outcome}"}}'
    return {"series": series, "values": values}


QUIET = [  # sixty requests a minute, all well
    fast("0+60x60", "0.25"), fast("0+60x60", "+Inf"),
    {"series": f"isoflop:request_failures_total{{{ONE}}}", "values": "0x60"},
    {"series": f'isoflop:requests_total{{{ONE}, status="200"}}', "values": "0+60x60"},
    {"series": f"isoflop:num_requests_waiting{{{LABELS}}}", "values": "0x60"},
    {"series": f"isoflop:num_requests_running{{{LABELS}}}", "values": "2x60"},
    {"series": f"isoflop:slots{{{LABELS}}}", "values": "8x60"},
    {"series": f"isoflop:e2e_request_latency_seconds_count{{{LABELS}}}", "values": "0+60x60"},
    {"series": f'isoflop:errors_total{{{ONE}, error="masking_failed"}}', "values": "0x60"},
    {"series": f"isoflop:audit_log_writable{{{ONE}}}", "values": "1x60"},
    canary("answered", "0+60x60"), canary("failed", "0x60"), canary("refused", "0+5x60"),
]  # fmt: skip

BREAKS = {  # what makes an alert fire, in place of the quiet series of the same name and labels
    "IsoflopFirstTokenSlow": [fast("0+50x60", "0.25"), fast("0+60x60", "2.5")],
    "IsoflopErrors": [{"series": QUIET[2]["series"], "values": "0+2x60"}],
    "IsoflopCanaryFails": [canary("failed", "0+2x60")],
    "IsoflopQueueGrowing": [{"series": QUIET[4]["series"], "values": "0+1x60"}],
    "IsoflopSaturated": [{"series": QUIET[5]["series"], "values": "8x60"}],
    "IsoflopNoTraffic": [{"series": QUIET[7]["series"], "values": "60x60"}],
    "IsoflopMaskingFailed": [{"series": QUIET[8]["series"], "values": "0x55 1x5"}],
    "IsoflopAuditLogUnwritable": [{"series": QUIET[9]["series"], "values": "0x60"}],
}


def unit(rules: Path, series: list[dict[str, str]], firing: str | None) -> dict[str, Any]:
    """A test of promtool: after an hour this alert fires, and no other."""
    expected = [{"labels": f'{{alertname="{firing}"}}', "value": 1}] if firing else []
    asked = 'count by (alertname) (ALERTS{alertstate="firing"})'
    told = [{"eval_time": "58m", "expr": asked, "exp_samples": expected}]
    replaced = {one["series"] for one in series}
    kept = [one for one in QUIET if one["series"] not in replaced]
    return {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": [*kept, *series], "promql_expr_test": told}],
    }


@needs_promtool
@pytest.mark.parametrize("alert", [None, *BREAKS])
def test_each_alert_fires_alone_when_its_objective_is_broken(
    folder: Path, tmp_path: Path, alert: str | None
) -> None:
    series = BREAKS[alert] if alert else []
    (tmp_path / "unit.yml").write_text(json.dumps(unit(folder / RULES, series, alert)))
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "unit.yml")


def test_every_rule_is_tested(folder: Path) -> None:
    assert set(re.findall(r"alert: (\w+)", (folder / RULES).read_text())) == set(BREAKS)


def test_objectives_as_typed() -> None:
    found = objectives({"first_token": "300ms", "errors": "0.5%"})
    assert found == Objectives(first_token=0.3, errors=0.005)
    with pytest.raises(FitError, match="no objective 'latency'"):
        objectives({"latency": "1s"})
    with pytest.raises(FitError, match="--objective busy is 'much'"):
        objectives({"busy": "much"})
    with pytest.raises(FitError, match="--objective errors is 0, not above zero"):
        objectives({"errors": "0"})


def test_objectives_are_in_the_rules_and_on_the_panels(folder: Path) -> None:
    assert "> 0.5\n" in (folder / RULES).read_text()
    panels = json.loads((folder / DASHBOARD).read_text())["panels"]
    (panel,) = [panel for panel in panels if panel["title"] == "Time to first token"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"] == 0.5
    assert len({panel["id"] for panel in panels}) == len(panels)
