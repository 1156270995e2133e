"""What a base does on a task before it is adapted: the baseline that adapting has to beat.

Each label's words are scored as what follows a prompt (`likelihood`), which may begin with examples
(`shots`). Answers that a model likes whatever the text are weighed by how it likes them after texts that say
nothing (Zhao et al., arXiv 2102.09690, section 4). Tasks from text to text write after such a prompt. A base
without a head for words is asked which label's examples lie nearest (`nearest`), and where no base can be
asked, the training examples give the usual answer (`usual`).

Shapes: n rows, a answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from isoflop.adapting.likelihood import Array, answer_ids, language_model, log_probs
from isoflop.adapting.nearest import by_nearest
from isoflop.adapting.shots import WAYS, chosen, drawn, token_means, words
from isoflop.adapting.usual import USUAL
from isoflop.devices import device_for
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
    if choose not in WAYS:
        raise AdaptError(f"{choose!r} is no way to choose examples", hint=f"one of: {', '.join(WAYS)}")
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
        model = task.build(base, spec).eval().to(device_for())
        features = _features(task.encode(base, spec, rows[:]))
        return _predicted(task, base, spec, model, features, asked.progress), "zero-shot: the base as it is"
    return USUAL[task.name](spec, train, rows)


def takes_shots(task: Task, base: Base) -> bool:
    """Whether `prompted` shows training examples."""
    asks = task.name == "classification" or (task.name == "question-answering" and base.kind == DECODER)
    return asks or isinstance(task, FromTextToText)


def _labelled(
    model: nn.Module, base: Base, spec: Spec, train: Dataset, rows: Dataset, asked: Asked
) -> Answer:
    """Probabilities (a,) of each row's labels."""
    labels = [words(label) for label in spec.labels]
    answers = answer_ids(base, labels)
    end = special_ids(base)[1] if base.kind == ENCODER else []
    room = base.max_length - len(end) - (0 if base.kind == BOTH else max(map(len, answers)))
    texts = [str(text) for text in rows["text"]]
    before, fit = _examples(model, base, train, texts, room, asked)

    def scores(pairs: Sequence[Pair]) -> Array:
        prompts, _ = prompt_ids(base, pairs, room, keeps_end=False)
        return log_probs(model, base, prompts, answers, end=end, progress=asked.progress)

    logs = scores([Pair(b, text, ASKS, None) for b, text in zip(before, texts, strict=True)])
    what = "labels scored by log-probability"
    if asked.calibrated:
        shown = {b: number for number, b in enumerate(dict.fromkeys(before))}
        empty = scores([Pair(b, nothing, ASKS, None) for b in shown for nothing in SAYING_NOTHING])
        prior = _softmax(empty).reshape(len(shown), len(SAYING_NOTHING), -1).mean(1)
        logs = logs - np.log(prior)[[shown[b] for b in before]]
        what += ", over that after empty texts"
    return list(_softmax(logs)), asked.says(what + fit)


def _softmax(logs: Array) -> Array:
    shares = np.exp(logs - logs.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))


def _examples(
    model: nn.Module, base: Base, train: Dataset, texts: Sequence[str], room: int, asked: Asked
) -> tuple[list[str], str]:
    """What is shown before each text, and how much of it fits. Every text has the same share of the room."""
    pool = train.select(drawn(len(train), asked.seed))
    shown, labels = [str(text) for text in pool["text"]], [str(label) for label in pool["label"]]
    numbers = _numbers(model, base, shown, texts, labels, asked)
    share = room // (asked.shots + 1)
    made: dict[int, str] = {}
    for number in {number for row in numbers for number in row}:
        text, label = shown[number], f"{ASKS} {words(labels[number])}{BLANK}"
        ids, room_of_text = plain_ids(base, [text])[0], max(0, share - len(plain_ids(base, [label])[0]))
        cut = text if len(ids) <= room_of_text else base.processor.decode(ids[:room_of_text])
        made[number] = f"{cut}{label}"
    return _before(base, made, numbers, [Pair("", text, ASKS, None) for text in texts], room, asked)


def _numbers(
    model: nn.Module, base: Base, shown: Sequence[str], texts: Sequence[str], labels: Sequence[str],
    asked: Asked,
) -> list[list[int]]:  # fmt: skip
    if not asked.shots:
        return [[]] * len(texts)
    pool_vectors, vectors = (token_means(model, base, some) for some in (shown, texts))
    return chosen(asked.choose, asked.shots, pool_vectors, vectors, labels, asked.seed)


def _before(
    base: Base, made: Mapping[int, str], numbers: Sequence[Sequence[int]], pairs: Sequence[Pair], room: int,
    asked: Asked,
) -> tuple[list[str], str]:  # fmt: skip
    """The last examples of each row, which are the nearest, as many as fit; and how many do."""
    if not asked.shots:
        return [""] * len(pairs), ""
    lengths = dict(zip(made, map(len, plain_ids(base, list(made.values()))), strict=True))
    parts = [plain_ids(base, texts) for texts in zip(*(pair[:3] for pair in pairs), strict=True)]
    before, fit = [], 0
    for row, ids in zip(numbers, zip(*parts, strict=True), strict=True):
        left = room - min(sum(map(len, ids)), room // (asked.shots + 1))
        kept: list[int] = []
        for number in reversed(row):
            left -= lengths[number]
            if left < 0:
                break
            kept.insert(0, number)
        before.append("".join(made[number] for number in kept))
        fit += len(kept)
    return before, f"; {fit / len(pairs):.1f} of them fit a prompt"


def _written(
    task: FromTextToText, base: Base, spec: Spec, train: Dataset, rows: Dataset, asked: Asked
) -> Answer:
    """In the task's form; examples are shown whole."""
    model = task.build(base, spec).eval().to(device_for())
    pool = task.pairs(base, spec, train.select(drawn(len(train), asked.seed))[:])
    pairs = task.pairs(base, spec, rows[:])
    shown, texts = ([pair.source for pair in some] for some in (pool, pairs))
    numbers = _numbers(model, base, shown, texts, [""] * len(pool), asked)
    made = {n: "".join((*pool[n][:3], pool[n].target or "", BLANK)) for row in numbers for n in row}
    before, fit = _before(base, made, numbers, pairs, prompt_room(base, spec), asked)
    longer = [pair._replace(before=b + pair.before) for pair, b in zip(pairs, before, strict=True)]
    features = _features(task.encode_pairs(base, spec, longer))
    found = _predicted(task, base, spec, model, features, asked.progress)
    if base.kind == DECODER and not any(BLANK in (pair.target or "") for pair in pool):
        found = [text.split(BLANK)[0] if isinstance(text, str) else text for text in found]
    what = "written by the base" if isinstance(found[0], str) else "the base as it is"
    return found, asked.says(what + fit)


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


def _features(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _predicted(
    task: Task, base: Base, spec: Spec, model: nn.Module, features: Sequence[dict[str, Any]],
    progress: Progress,
) -> list[Any]:  # fmt: skip
    """Of encoded rows, in their order; batches are of near lengths."""
    order = sorted(range(len(features)), key=lambda number: -len(features[number].get("input_ids", ())))
    found: list[Any] = [None] * len(features)
    device = next(model.parameters()).device
    progress.start("prompt", len(features), "prompts")
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        batch = task.collate(base, spec, [features[number] for number in numbers])
        batch = {name: x.to(device) for name, x in batch.items()}
        with torch.no_grad():
            made = task.predict(model, base, spec, batch)
        for number, prediction in zip(numbers, made, strict=True):
            found[number] = prediction
        progress.update("prompt", start + len(numbers))
    progress.finish("prompt")
    return found
