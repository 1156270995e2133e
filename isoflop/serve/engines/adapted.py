"""What `isoflop adapt` made, folder or ONNX graph: labels of texts, and tagged parts of them.

Requests that wait are computed together. A text is read as in training: for labels to the tokens that the
model was trained with, for tags whole, in windows.
"""

from __future__ import annotations

import unicodedata
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from isoflop.adapting.batches import CUT
from isoflop.adapting.quiet import quiet
from isoflop.adapting.saved import load_adapted
from isoflop.engines import ONNX
from isoflop.serve.engines.batched import Batched
from isoflop.serve.protocol import Label, RequestError, Span
from isoflop.tasks.iob2 import OUTSIDE, iob2
from isoflop.tasks.tagging import without_spaces

TEXTS, PADDED = 32, 8192  # of a batch at most: texts, and tokens with their padding

Features = Mapping[str, Any]


class Adapted(Batched[Features, Any]):
    """A model with its task, which says how rows are read and what is made of logits."""

    def __init__(self, path: Path, *, threads: int) -> None:
        super().__init__(path, threads=threads, items=TEXTS, padded=PADDED)
        self.name = "ONNX Runtime" if (path / ONNX).is_file() else "torch"

    def _load(self) -> None:
        with quiet():
            self._task, self._base, self._spec, self._model = load_adapted(self._path)
        self.context = self._spec.max_length or self._base.max_length

    @abstractmethod
    def _rows(self, texts: Sequence[str]) -> dict[str, list[Any]]:
        """Columns of the task's roles."""

    def _encoded(self, texts: Sequence[str]) -> list[Features]:
        if not texts:  # tokenizers do not take none
            return []
        columns = self._task.encode(self._base, self._spec, self._rows(texts))
        columns.pop(CUT, None)
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    @torch.inference_mode()
    def _compute(self, items: Sequence[Features]) -> Sequence[Any]:
        batch = self._task.collate(self._base, self._spec, items)
        return self._task.predict(self._model, self._base, self._spec, batch)


class Classifier(Adapted):
    """One label of a text, or several."""

    def _rows(self, texts: Sequence[str]) -> dict[str, list[Any]]:
        return {"text": list(texts)}

    async def classify(self, texts: Sequence[str]) -> tuple[list[list[Label]], int]:
        features = await self._read(self._encoded, texts)
        sizes = [len(f["input_ids"]) for f in features]
        check_read(sizes)
        found = await self._computed(features, sizes)
        labels = [
            sorted(map(Label, self._spec.labels, map(float, shares_c)), key=lambda label: -label.probability)
            for shares_c in found
        ]
        return labels, sum(sizes)


class Tagger(Adapted):
    """Words are those of `words_of`."""

    def _rows(self, texts: Sequence[str]) -> dict[str, list[Any]]:
        return {"tokens": [[text[start:end] for start, end in words_of(text)] for text in texts]}

    async def tag(self, texts: Sequence[str]) -> tuple[list[list[Span]], int]:
        said = [number for number, text in enumerate(texts) if not text.isspace() and text]
        features = await self._read(self._encoded, [texts[number] for number in said])
        windows = [[len(ids) for ids in f["input_ids"]] for f in features]
        tags = await self._computed(features, [len(lengths) * max(lengths) for lengths in windows])
        spans: list[list[Span]] = [[] for _ in texts]
        for number, found in zip(said, tags, strict=True):
            spans[number] = spans_of(found, words_of(texts[number]))
        return spans, sum(map(sum, windows))


def check_read(sizes: Sequence[int]) -> None:
    """Raises RequestError for a text of which the tokenizer leaves nothing."""
    if 0 in sizes:
        raise RequestError(f"text {sizes.index(0) + 1} has no tokens", param="input")


def words_of(text: str) -> list[tuple[int, int]]:
    """Where the words of a text are: runs of letters and digits, every other mark alone, and of scripts that
    are written without spaces each character alone."""
    made: list[tuple[int, int]] = []
    for i, character in enumerate(text):
        if character.isspace():
            continue
        if made and made[-1][1] == i and _in_word(character) and _in_word(text[i - 1]):
            made[-1] = made[-1][0], i + 1
        else:
            made.append((i, i + 1))
    return made


def _in_word(character: str) -> bool:
    if character.isascii():
        return character.isalnum()
    letter = character.isalnum() or unicodedata.category(character).startswith("M")
    return letter and not without_spaces(character)


def spans_of(tags: Sequence[str], words: Sequence[tuple[int, int]]) -> list[Span]:
    """Tagged parts of a text, of the tags of its words."""
    spans: list[Span] = []
    for tag, (start, end) in zip(iob2(tags, plain=False), words, strict=True):
        if tag.startswith("B-"):
            spans.append(Span(tag[2:], start, end))
        elif tag != OUTSIDE:
            spans[-1] = spans[-1]._replace(end=end)
    return spans
