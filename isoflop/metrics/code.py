"""Metrics of programs that a model writes."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

from isoflop.metrics.protocol import Array
from isoflop.metrics.sums import counted, ratio


class ParseRate:
    """Share of texts that are Python to the parser of this Python; none is run."""

    name: ClassVar[str] = "parse_rate"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "share of programs that parse"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        right = [_parses(text) for text in predictions]
        return counted(right)

    def value(self, sums: Array) -> Array:
        return ratio(sums)


def _parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that a string has no need of
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # nested too deeply: the last two
            return False
    return True
