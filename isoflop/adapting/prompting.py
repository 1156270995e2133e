"""What a base does on a task before it is adapted: the baseline that adapting has to beat.

Each label's words are scored as what follows a prompt (`likelihood`), which may first show examples (`shots`).
Answers that a model likes whatever the text are weighed by how it likes them after texts that say nothing
(Zhao et al., arXiv 2102.09690, section 4). Tasks from text to text write after such a prompt. A base without
a head for words is asked which label's examples lie nearest (`nearest`), and where no base can be asked, the
training examples give the usual answer (`usual`).

Shapes: n rows, a answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from isoflop.adapting.likelihood import Array, answer_ids, language_model, log_probs
from isoflop.adapting.nearest import by_nearest
from isoflop.adapting.shots import chosen, drawn, token_means, words
from isoflop.adapting.usual import USUAL
from isoflop.errors import AdaptError
from isoflop.progress import Progress, Silent
from isoflop.tasks.protocol import BOTH, DECODER, ENCODER, Base, Spec, Task
from isoflop.tasks.sequences import (
    SLOT,
    FromTextToText,
    Pair,
    plain_ids,
    prompt_ids,
    prompt_room,
    special_ids,
)
from isoflop.tasks.translation import Translation

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

Answer = tuple[list[Any], str]  # predictions in the task's own form, and how they were made

ASKS = "\nLabel:"
BLANK = "\n\n"  # between examples
SAYING_NOTHING = ("N/A", "")
BATCH = 16
ITSELF = ("masked", "similarity", "embedding", "speech")  # tasks for which a base needs no new head


class Asked(NamedTuple):
    """How prompts are made."""

    shots: int
    choose: str
    seed: int
    calibrated: bool
    progress: Progress

    def says(self, what: str) -> str:
        if not self.shots:
            return f"zero-shot: {what}"
        way = "drawn at random" if self.choose == "random" else "that resemble the text"
        return f"{self.shots}-shot, training examples {way}: {what}"


def prompted(
    task: Task, base: Base, spec: Spec, train: Dataset, rows: Dataset, *, shots: int = 0,
    choose: str = "random", seed: int = 0, calibrated: bool = True, progress: Progress | None = None,
) -> Answer:  # fmt: skip
    """Predictions of rows, and in words how they were made.

    `shots` training examples are shown before each text, chosen "random" or "similar" (`shots.chosen`).
    `calibrated` weighs labels by their scores after texts that say nothing. Raises AdaptError for numbers
    that cannot be, and for a base that a task from text to text does not take.
    """
    if shots < 0:
        raise AdaptError(f"a prompt cannot show {shots} examples", hint="show 0 or more")
    asked = Asked(shots, choose, seed, calibrated, progress or Silent())
    if isinstance(task, FromTextToText):
        return _written(task, base, spec, train, rows, asked)
    if task.name == "classification":
        model = language_model(base)
        if model is not None:
            return _labelled(model, base, spec, train, rows, asked)
        found, what = by_nearest(base, spec, train, rows, shots=shots, choose=choose, seed=seed)
        return found, asked.says(what)
    if task.name == "question-answering" and base.kind == DECODER:
        return _answered(base, train, rows, asked)
    if task.name in ITSELF:
        model = task.build(base, spec).eval()
        features = _features(task.encode(base, spec, rows[:]))
        return _predicted(task, base, spec, model, features, asked.progress), "zero-shot: the base as it is"
    return USUAL[task.name](spec, train, rows)


def _labelled(
    model: nn.Module, base: Base, spec: Spec, train: Dataset, rows: Dataset, asked: Asked
) -> Answer:
    """Probabilities (a,) of each row's labels."""
    labels = [words(label) for label in spec.labels]
    answers = answer_ids(base, labels)
    end = special_ids(base)[1] if base.kind == ENCODER else []
    room = base.max_length - len(end) - (0 if base.kind == BOTH else max(map(len, answers)))
    texts = [str(text) for text in rows["text"]]
    before = _examples(model, base, train, texts, room, asked)

    def scores(pairs: Sequence[Pair]) -> Array:
        prompts, _ = prompt_ids(base, pairs, room, keeps_end=False)
        return log_probs(model, base, prompts, answers, end=end, progress=asked.progress)

    logs = scores([Pair(b, text, ASKS, None) for b, text in zip(before, texts, strict=True)])
    what = "labels scored by log-probability"
    if asked.calibrated:
        shown = list(dict.fromkeys(before))
        empty = scores([Pair(b, nothing, ASKS, None) for b in shown for nothing in SAYING_NOTHING])
        prior = _softmax(empty).reshape(len(shown), len(SAYING_NOTHING), -1).mean(1)
        logs = logs - np.log(prior)[[shown.index(b) for b in before]]
        what += ", over that after empty texts"
    return list(_softmax(logs)), asked.says(what)


def _softmax(logs: Array) -> Array:
    shares = np.exp(logs - logs.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))


def _examples(
    model: nn.Module, base: Base, train: Dataset, texts: Sequence[str], room: int, asked: Asked
) -> list[str]:
    """What is shown before each text; every text of it has the same share of the room."""
    if not asked.shots:
        return [""] * len(texts)
    pool = train.select(drawn(len(train), asked.seed))
    shown, labels = [str(text) for text in pool["text"]], [str(label) for label in pool["label"]]
    pool_vectors, vectors = (token_means(model, base, some) for some in (shown, texts))
    numbers = chosen(asked.choose, asked.shots, pool_vectors, vectors, labels, asked.seed)
    label_tokens = max(map(len, plain_ids(base, [f"{ASKS} {words(label)}{BLANK}" for label in set(labels)])))
    share = max(1, room // (asked.shots + 1) - label_tokens)
    made: dict[int, str] = {}
    for number in {number for row in numbers for number in row}:
        ids = plain_ids(base, [shown[number]])[0]
        text = shown[number] if len(ids) <= share else base.processor.decode(ids[:share])
        made[number] = f"{text}{ASKS} {words(labels[number])}{BLANK}"
    return ["".join(made[number] for number in row) for row in numbers]


def _written(
    task: FromTextToText, base: Base, spec: Spec, train: Dataset, rows: Dataset, asked: Asked
) -> Answer:
    """In the task's form, after examples that leave half of the prompt to the row itself."""
    model = task.build(base, spec).eval()
    pool = task.pairs(base, spec, train.select(drawn(len(train), asked.seed))[:])
    pairs = task.pairs(base, spec, rows[:])
    numbers: list[list[int]] = [[]] * len(pairs)
    if asked.shots:
        shown, vectors = (token_means(model, base, [p.source for p in some]) for some in (pool, pairs))
        numbers = chosen(asked.choose, asked.shots, shown, vectors, [""] * len(pool), asked.seed)
    texts = {n: "".join((*pool[n][:3], pool[n].target or "", BLANK)) for row in numbers for n in row}
    lengths = dict(zip(texts, map(len, plain_ids(base, list(texts.values()))), strict=True)) if texts else {}
    room = prompt_room(base, spec)
    own = [min(sum(map(len, ids)), room // 2) for ids in zip(*_parts(base, pairs), strict=True)]
    kept = [_fitting(row, lengths, room - size) for row, size in zip(numbers, own, strict=True)]
    longer = [
        pair._replace(before="".join(texts[n] for n in row) + pair.before)
        for pair, row in zip(pairs, kept, strict=True)
    ]
    features = _features(task.encode_pairs(base, spec, longer))
    found = _predicted(task, base, spec, model, features, asked.progress)
    if base.kind == DECODER and not any(BLANK in (pair.target or "") for pair in pool):
        found = [text.split(BLANK)[0] if isinstance(text, str) else text for text in found]
    what = "written by the base" if found and isinstance(found[0], str) else "the base as it is"
    if asked.shots:
        what += f", {np.mean([len(row) for row in kept]):.1f} examples a prompt fit the model"
    return found, asked.says(what)


def _answered(base: Base, train: Dataset, rows: Dataset, asked: Asked) -> Answer:
    """Answers to questions on texts, written as translations are."""
    from datasets import Dataset

    def texts(some: Dataset) -> Dataset:
        asks = [f"Question: {q}\n{c}" for q, c in zip(some["question"], some["context"], strict=True)]
        answers = [(answers["text"] or [""])[0] for answers in some["answers"]]
        return Dataset.from_dict({"source": asks, "target": answers})

    task = Translation()
    spec = task.spec(texts(train), base).model_copy(update={"source": f"{SLOT}\nAnswer:\n"})
    return _written(task, base, spec, texts(train), texts(rows), asked)


def _parts(base: Base, pairs: Sequence[Pair]) -> list[list[list[int]]]:
    """Ids of what comes before, of, and after each source."""
    return [plain_ids(base, texts) for texts in zip(*(pair[:3] for pair in pairs), strict=True)]


def _fitting(numbers: Sequence[int], lengths: Mapping[int, int], room: int) -> list[int]:
    """The last of the examples, which are the nearest, that fit together."""
    kept: list[int] = []
    for number in reversed(numbers):
        room -= lengths[number]
        if room < 0:
            break
        kept.insert(0, number)
    return kept


def _features(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _predicted(
    task: Task, base: Base, spec: Spec, model: nn.Module, features: Sequence[dict[str, Any]],
    progress: Progress,
) -> list[Any]:  # fmt: skip
    """Of encoded rows, in their order; batches are of near lengths."""
    order = sorted(range(len(features)), key=lambda number: -len(features[number].get("input_ids", ())))
    found: list[Any] = [None] * len(features)
    progress.start("prompt", len(features), "prompts")
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        batch = task.collate(base, spec, [features[number] for number in numbers])
        with torch.no_grad():
            made = task.predict(model, base, spec, batch)
        for number, prediction in zip(numbers, made, strict=True):
            found[number] = prediction
        progress.update("prompt", start + len(numbers))
    progress.finish("prompt")
    return found
