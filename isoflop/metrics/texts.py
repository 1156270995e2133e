"""Metrics of a text against a reference: BLEU and chrF by sacrebleu, ROUGE by rouge_score.

BLEU: Papineni et al., 2002; chrF: Popovic, 2015; as sacrebleu defines them (Post, 2018, arXiv 1804.08771).
ROUGE: Lin, 2004.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np

from isoflop.errors import AdaptError
from isoflop.metrics.protocol import Array
from isoflop.metrics.sums import counted, ratio

# A character of Chinese or Japanese is a word, as is a run of other letters and digits
CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORDS = re.compile(rf"[{CJK}]|(?:(?![{CJK}])[^\W_])+")


class Bleu:
    name: ClassVar[str] = "bleu"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "points of 100"

    @property
    def says(self) -> str:
        return str(_sacrebleu("BLEU", tokenize="13a").get_signature())

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return _statistics(_sacrebleu("BLEU", tokenize="13a"), predictions, references)

    def value(self, sums: Array) -> Array:
        return _scores(_sacrebleu("BLEU", tokenize="13a"), sums)


class BleuChinese:
    """BLEU of Chinese characters: the only words that Chinese text shows."""

    name: ClassVar[str] = "bleu_zh"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "points of 100"

    @property
    def says(self) -> str:
        return str(_sacrebleu("BLEU", tokenize="zh").get_signature())

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return _statistics(_sacrebleu("BLEU", tokenize="zh"), predictions, references)

    def value(self, sums: Array) -> Array:
        return _scores(_sacrebleu("BLEU", tokenize="zh"), sums)


class ChrF:
    name: ClassVar[str] = "chrf"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "points of 100"

    @property
    def says(self) -> str:
        return str(_sacrebleu("CHRF").get_signature())

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return _statistics(_sacrebleu("CHRF"), predictions, references)

    def value(self, sums: Array) -> Array:
        return _scores(_sacrebleu("CHRF"), sums)


class Rouge1:
    name: ClassVar[str] = "rouge_1"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "mean F1 of words (rouge_score, no stemming)"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return _rouge("rouge1", predictions, references)

    def value(self, sums: Array) -> Array:
        return ratio(sums)


class Rouge2:
    name: ClassVar[str] = "rouge_2"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "mean F1 of pairs of words (rouge_score, no stemming)"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return _rouge("rouge2", predictions, references)

    def value(self, sums: Array) -> Array:
        return ratio(sums)


class RougeL:
    name: ClassVar[str] = "rouge_l"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "mean F1 of the longest common subsequence of words (rouge_score, no stemming)"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return _rouge("rougeL", predictions, references)

    def value(self, sums: Array) -> Array:
        return ratio(sums)


@cache
def _sacrebleu(kind: str, **options: Any) -> Any:
    """Its metric of one reference a text; the references of the signature are one empty text."""
    try:
        from sacrebleu import metrics
    except ImportError:
        raise AdaptError("sacrebleu is not installed", hint="pip install 'isoflop[adapt]'") from None
    return getattr(metrics, kind)(references=[[""]], **options)


def _statistics(metric: Any, predictions: Sequence[str], references: Sequence[str]) -> Array:
    """(n, k) counts of n-grams and lengths, which sacrebleu's own bootstrap sums too."""
    return np.asarray(metric._extract_corpus_statistics(list(predictions), [list(references)]), np.float64)


def _scores(metric: Any, sums: Array) -> Array:
    return np.array([metric._compute_score_from_stats(row).score for row in sums.tolist()])


class _Words:
    """Words of any script; for English those of rouge_score's own tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return WORDS.findall(text.lower())


def _rouge(kind: str, predictions: Sequence[str], references: Sequence[str]) -> Array:
    """(n, 2): F1, and 1."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise AdaptError("rouge_score is not installed", hint="pip install 'isoflop[adapt]'") from None
    scorer = RougeScorer([kind], tokenizer=_Words())
    made = [scorer.score(r, p)[kind].fmeasure for p, r in zip(predictions, references, strict=True)]
    return counted(made)
