"""Python that goes on from its beginning."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping, Sequence
from textwrap import dedent
from typing import TYPE_CHECKING, Any, ClassVar

from isoflop.errors import AdaptError
from isoflop.tasks.protocol import BOTH, DECODER, Base, Role, Spec
from isoflop.tasks.sequences import FromTextToText, Pair, filled, written

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

TEXT = Role("text", ("text", "code", "function", "content", "source"), "text", optional=True)
PROMPT = Role("prompt", ("prompt", "header", "signature", "docstring"), "text", optional=True)
COMPLETION = Role("completion", ("completion", "body", "target", "solution"), "text", optional=True)


class Code(FromTextToText):
    """Rows are a `prompt` and its `completion`, or a `text`, which `parted` divides into the two."""

    name: ClassVar[str] = "code"
    roles: ClassVar[tuple[Role, ...]] = (TEXT, PROMPT, COMPLETION)
    metrics: ClassVar[tuple[str, ...]] = ("parse_rate", "chrf")
    kinds: ClassVar[tuple[str, ...]] = (DECODER, BOTH)
    keeps_end: ClassVar[bool] = True

    def template(self, base: Base) -> str:
        return "{}"

    def pairs(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> list[Pair]:
        return filled(spec.source, *_columns(rows))

    def answered(self, rows: Dataset, texts: Sequence[str]) -> Dataset:
        from datasets import Dataset

        return Dataset.from_dict({"prompt": list(_columns(rows[:])[0]), "completion": list(texts)})

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """Without the indentation of all its lines, so that a function's body parses by itself."""
        return [dedent(text) for text in written(model, base, spec, batch)]

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        return [dedent(str(text)) for text in _columns(rows[:])[1] or ()]


def parted(text: str) -> tuple[str, str]:
    """A function's header with its docstring, and its body.

    Of a longer text, the first function that has both, wherever it is; of a text without one, the first and
    the second half of its lines.
    """
    function = next(
        (node for node in _functions(text) if ast.get_docstring(node) and len(node.body) > 1), None
    )
    lines = text.splitlines(keepends=True)
    if function is None:
        start, middle, end = 0, (len(lines) + 1) // 2, len(lines)
    else:
        start = min(node.lineno for node in (function, *function.decorator_list)) - 1
        middle, end = int(function.body[0].end_lineno or 0), int(function.end_lineno or 0)
    indent = len(lines[start]) - len(lines[start].lstrip()) if function else 0
    kept = [line[indent:] if not line[:indent].strip() else line for line in lines[start:end]]
    return "".join(kept[: middle - start]), "".join(kept[middle - start :]).rstrip()


def _functions(text: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # e.g. of an escape that is none
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a null byte; too deep
        return []
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return sorted(found, key=lambda node: node.lineno)


def _columns(rows: Mapping[str, Sequence[Any]]) -> tuple[Sequence[str], Sequence[str] | None]:
    """Prompts, and completions where they are known. Raises AdaptError for rows without prompts."""
    if "prompt" in rows:
        return rows["prompt"], rows.get("completion")
    if "text" not in rows:
        raise AdaptError(
            "the examples have neither a text nor a prompt",
            hint="name a column: --map text=COLUMN, or --map prompt=COLUMN --map completion=COLUMN",
        )
    halves = [parted(str(text)) for text in rows["text"]]
    return [prompt for prompt, _ in halves], [completion for _, completion in halves]
