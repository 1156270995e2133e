"""Metrics of tasks, each with an interval: to add one, write its class and a line in METRICS."""

from __future__ import annotations

from collections.abc import Mapping

from isoflop.metrics.bootstrap import compared, scored, value_of
from isoflop.metrics.code import ParseRate
from isoflop.metrics.labels import Accuracy, MacroF1
from isoflop.metrics.modelling import CalibrationError, Perplexity
from isoflop.metrics.multi import MacroF1Labels, MicroF1
from isoflop.metrics.numbers import Pearson, RootMeanSquare, Spearman
from isoflop.metrics.protocol import Comparison, Metric, Score
from isoflop.metrics.ranks import MeanReciprocalRank, RecallAt1
from isoflop.metrics.spans import ExactMatch, TokenF1
from isoflop.metrics.speech import CharacterErrorRate, WordErrorRate
from isoflop.metrics.tags import EntityF1, TokenAccuracy
from isoflop.metrics.texts import Bleu, BleuChinese, ChrF, Rouge1, Rouge2, RougeL

__all__ = ["METRICS", "Comparison", "Metric", "Score", "compared", "scored", "value_of"]

KNOWN: tuple[Metric, ...] = (
    Accuracy(), MacroF1(), CalibrationError(),
    MicroF1(), MacroF1Labels(),
    RootMeanSquare(), Pearson(), Spearman(),
    EntityF1(), TokenAccuracy(),
    ExactMatch(), TokenF1(),
    Bleu(), BleuChinese(), ChrF(), Rouge1(), Rouge2(), RougeL(),
    WordErrorRate(), CharacterErrorRate(),
    Perplexity(), MeanReciprocalRank(), RecallAt1(), ParseRate(),
)  # fmt: skip
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in KNOWN}
