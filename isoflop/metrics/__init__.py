"""Metrics of tasks, each with an interval: to add one, write its class and a line in METRICS."""

from __future__ import annotations

from collections.abc import Mapping

from isoflop.metrics.bootstrap import compared, scored
from isoflop.metrics.labels import Accuracy, MacroF1
from isoflop.metrics.protocol import Comparison, Metric, Score

__all__ = ["METRICS", "Comparison", "Metric", "Score", "compared", "scored"]

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in (Accuracy(), MacroF1())}
