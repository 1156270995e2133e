"""A tag for each token of a text: named entities, parts of speech."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from isoflop.errors import AdaptError
from isoflop.model import IGNORE
from isoflop.tasks.iob2 import OUTSIDE, iob2, is_plain
from isoflop.tasks.labels import numbers_of
from isoflop.tasks.protocol import DECODER, ENCODER, Base, LossOptions, Role, Spec
from isoflop.tasks.text import head_logits, headed
from isoflop.tasks.windows import EXAMPLE, by_row, check_fast, inputs_by_row, mean_by_row, side_by_side

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

TOKENS = Role("tokens", ("tokens", "words", "text", "sentence", "characters"), "tokens")
TAGS = Role("tags", ("tags", "ner_tags", "labels", "ner", "pos_tags", "pos"), "tags")

NONE = -1  # where no token of the row begins
WORDS, COUNT = "words", "count"
NOT_INPUTS = ("labels", EXAMPLE, WORDS, COUNT)


class Tagging:
    """The first sub-token of a token has its tag; tags are those of IOB2, `O` first.

    Each token is encoded by itself, so that no sub-token is of two. A row longer than the model is read in
    windows, one after the other. A token that the tokenizer drops has the commonest tag. Tags without B- and
    I- are made IOB2: a run of equal ones is one entity.
    """

    name: ClassVar[str] = "tagging"
    roles: ClassVar[tuple[Role, ...]] = (TOKENS, TAGS)
    metrics: ClassVar[tuple[str, ...]] = ("entity_f1", "token_accuracy")
    kinds: ClassVar[tuple[str, ...]] = (ENCODER, DECODER)
    soft: ClassVar[bool] = True

    def spec(self, rows: Dataset, base: Base) -> Spec:
        check_fast(base)
        plain = is_plain({str(tag) for tags in rows["tags"] for tag in tags})
        counts = Counter(tag for tags in rows["tags"] for tag in iob2(tags, plain=plain))
        if len(counts) < 2:
            raise AdaptError(
                f"the training examples have one tag only, {next(iter(counts), 'none')!r}",
                hint="give examples of two tags or more, or name another column: --map tags=COLUMN",
            )
        labels = tuple(sorted(counts, key=lambda tag: (tag != OUTSIDE, tag[2:], tag)))
        note = "tags have no B- and I-, and are made IOB2: each run of equal ones is one entity"
        return Spec(
            task=self.name, labels=labels, counts=tuple(counts[label] for label in labels),
            max_length=base.max_length, extra={"plain": plain}, notes=(note,) if plain else (),
        )  # fmt: skip

    def build(self, base: Base, spec: Spec) -> nn.Module:
        return headed("AutoModelForTokenClassification", self, base, spec)

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        found = base.processor(
            [spaced(tokens) for tokens in rows["tokens"]], is_split_into_words=True, truncation=True,
            max_length=spec.max_length or base.max_length, return_overflowing_tokens=True,
        )  # fmt: skip
        windows = by_row(found, len(rows["tokens"]))
        features = inputs_by_row(found, windows)
        features[WORDS] = [_firsts([found.word_ids(number) for number in numbers]) for numbers in windows]
        features[COUNT] = [len(tokens) for tokens in rows["tokens"]]
        features["cut"] = [False] * len(windows)
        if "tags" in rows:
            _check_lengths(rows)
            features["labels"] = [
                _targets(words, numbers_of(spec, iob2(tags, plain=spec.extra["plain"]), unseen=IGNORE))
                for words, tags in zip(features[WORDS], rows["tags"], strict=True)
            ]
        return features

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = side_by_side(base, features, {WORDS: NONE, "labels": IGNORE})
        batch[COUNT] = torch.tensor([f[COUNT] for f in features])
        return batch

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(w, t, C)."""
        return head_logits(model, batch, NOT_INPUTS)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        targets = batch["labels"]
        nats = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, weight=options.label_weights, reduction="none",
            label_smoothing=options.label_smoothing, ignore_index=IGNORE,
        )  # fmt: skip
        return mean_by_row(nats, targets != IGNORE, batch[EXAMPLE])

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """Tags of each example's tokens, as strings."""
        commonest = spec.labels[spec.counts.index(max(spec.counts))]
        tags = [[commonest] * count for count in batch[COUNT].tolist()]
        best_wt, words_wt = self.logits(model, batch).argmax(-1), batch[WORDS]
        window, at = (words_wt != NONE).nonzero(as_tuple=True)
        example, word, best = batch[EXAMPLE][window], words_wt[window, at], best_wt[window, at]
        for e, i, label in zip(example.tolist(), word.tolist(), best.tolist(), strict=True):
            tags[e][i] = spec.labels[label]
        return tags

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        return [iob2(tags, plain=spec.extra["plain"]) for tags in rows["tags"]]


def spaced(tokens: Sequence[str]) -> list[str]:
    """Tokens with a space before those that a text would have one before.

    Between the characters of scripts that are written without spaces there is none. Byte-level tokenizers
    tell a word in a text by its space; the others drop it.
    """
    made, before = [], ""
    for token in map(str, tokens):
        joined = not before or without_spaces(before[-1]) or (token and without_spaces(token[0]))
        made.append(token if joined else f" {token}")
        before = token or before
    return made


def without_spaces(character: str) -> bool:
    """Of Chinese, Japanese or Thai, with their punctuation."""
    name = unicodedata.name(character, "")
    return name.startswith(("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "FULLWIDTH", "THAI"))


def _firsts(windows: Sequence[Sequence[int | None]]) -> list[list[int]]:
    """Of each sub-token of a row's windows, the number of the token that begins with it, or NONE."""
    made: list[list[int]] = []
    last = NONE
    for words in windows:
        made.append([])
        for word in words:
            begins = word is not None and word > last
            last = word if word is not None and begins else last
            made[-1].append(last if begins else NONE)
    return made


def _targets(windows: Sequence[Sequence[int]], labels: Sequence[int]) -> list[list[int]]:
    """Numbers of labels at first sub-tokens, IGNORE elsewhere."""
    return [[IGNORE if word == NONE else labels[word] for word in words] for words in windows]


def _check_lengths(rows: Mapping[str, Sequence[Any]]) -> None:
    """Raises AdaptError for a row that has more tokens than tags, or fewer."""
    for tokens, tags in zip(rows["tokens"], rows["tags"], strict=True):
        if len(tokens) != len(tags):
            raise AdaptError(
                f"the example that begins with {tokens[:5]} has {len(tokens)} tokens and {len(tags)} tags",
                hint="give one tag a token",
            )
