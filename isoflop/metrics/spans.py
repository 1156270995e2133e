"""Metrics of short answers to questions, as SQuAD has them.

A reference is the list of answers that are right, or one; none means that the text has no answer, which the
empty string says. Answers are compared in lower case, without punctuation, without the words a, an and the,
and with single spaces (Rajpurkar et al., 2016, arXiv 1606.05250, section 6.1).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from isoflop.metrics.protocol import Array
from isoflop.metrics.sums import counted, ratio

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactMatch:
    """Share of questions whose answer is one of the right ones."""

    name: ClassVar[str] = "exact_match"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "share of answers that are a right one, in SQuAD's normal form"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return _best(lambda found, true: float(found == true), predictions, references)

    def value(self, sums: Array) -> Array:
        return ratio(sums)


class TokenF1:
    """Mean over questions of the F1 of an answer's words, that of the right answer that is nearest."""

    name: ClassVar[str] = "token_f1"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "mean F1 of the words of an answer, in SQuAD's normal form"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return _best(_word_f1, predictions, references)

    def value(self, sums: Array) -> Array:
        return ratio(sums)


def normal(answer: str) -> str:
    """SQuAD's normal form."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def _best(score: Callable[[str, str], float], predictions: Sequence[Any], references: Sequence[Any]) -> Array:
    """(n, 2): the best score over the right answers, and 1."""
    made = []
    for prediction, reference in zip(predictions, references, strict=True):
        right = [reference] if isinstance(reference, str) else list(reference) or [""]
        made.append(max(score(normal(prediction), normal(answer)) for answer in right))
    return counted(made)


def _word_f1(found: str, true: str) -> float:
    a, b = found.split(), true.split()
    if not a or not b:
        return float(a == b)
    return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))
