"""The stretch of a text that answers a question, or none.

Devlin et al., BERT, arXiv 1810.04805, section 4.2 and 4.3: probabilities of where it starts and ends, and
of a place that stands for no answer.

Shapes: w windows, t tokens of a window (question and all).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from isoflop.errors import AdaptError
from isoflop.model import IGNORE
from isoflop.tasks.protocol import DECODER, ENCODER, Base, LossOptions, Role, Spec
from isoflop.tasks.text import headed
from isoflop.tasks.windows import EXAMPLE, by_row, check_fast, inputs_by_row, mean_by_row, side_by_side

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

QUESTION = Role("question", ("question", "query", "q"), "text")
CONTEXT = Role("context", ("context", "passage", "paragraph", "document", "text"), "text")
ANSWERS = Role("answers", ("answers", "answer", "a"), "answers")

STRIDE = 128  # tokens of context that two windows share, at most a quarter of a window
NONE = -1  # in place of a character's number: this token is not of the context
STARTS, ENDS, NULL, CHARACTERS = "starts", "ends", "null", "characters"
NOT_INPUTS = ("labels", EXAMPLE, STARTS, ENDS, NULL, CHARACTERS)


class Stretch(NamedTuple):
    """Characters [start, end) of a context."""

    start: int
    end: int


class QuestionAnswering:
    """Answers are SQuAD's: `{"text": [...], "answer_start": [...]}`, a start of -1 where it is not known.

    A row without a text has no answer. A long context is read in windows that overlap; the answer is the
    stretch that is likeliest against none within its window. None is the first token of an encoder's window,
    and an end token after a decoder's.
    """

    name: ClassVar[str] = "question-answering"
    roles: ClassVar[tuple[Role, ...]] = (QUESTION, CONTEXT, ANSWERS)
    metrics: ClassVar[tuple[str, ...]] = ("token_f1", "exact_match")
    kinds: ClassVar[tuple[str, ...]] = (ENCODER, DECODER)
    soft: ClassVar[bool] = True

    def spec(self, rows: Dataset, base: Base) -> Spec:
        check_fast(base)
        pairs = list(zip(rows["answers"], rows["context"], strict=True))
        found = [located(answers, context) for answers, context in pairs]
        answers = [context[a.start : a.end] for a, (_, context) in zip(found, pairs, strict=True) if a]
        if not answers:
            raise AdaptError(
                "no training example has an answer that its context contains",
                hint="answers are stretches of the context: --map answers=COLUMN, --map context=COLUMN",
            )
        none = sum(not given["text"] for given, _ in pairs)
        lost = len(pairs) - none - len(answers)
        longest = max(len(ids) for ids in base.processor(answers, add_special_tokens=False)["input_ids"])
        note = f"{lost} training answers are not in their contexts, and are left out of the loss"
        return Spec(
            task=self.name, labels=("start", "end"), max_length=base.max_length,
            extra={"longest": longest, "unanswerable": none}, notes=(note,) if lost else (),
        )  # fmt: skip

    def build(self, base: Base, spec: Spec) -> nn.Module:
        """Decoders have the head that tags tokens, which is the same: of their own for questions transformers
        finds no weights in a folder of a language model."""
        decoder = base.kind == DECODER
        return headed(
            f"AutoModelFor{'TokenClassification' if decoder else 'QuestionAnswering'}", self, base, spec
        )

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        most = (spec.max_length or base.max_length) - (base.kind == DECODER)
        questions, cut = _questions(base, rows["question"], most)
        contexts = [str(context) for context in rows["context"]]
        found = base.processor(
            questions, contexts, truncation="only_second", max_length=most, stride=min(STRIDE, most // 4),
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        windows = by_row(found, len(contexts))
        features = {**inputs_by_row(found, len(contexts)), "cut": cut, CHARACTERS: contexts}
        spans = [[_spans(found, number) for number in numbers] for numbers in windows]
        if base.kind == DECODER:
            _end(features, spans, base.processor.eos_token_id)
        features[STARTS] = [[[a.start for a in window] for window in row] for row in spans]
        features[ENDS] = [[[a.end for a in window] for window in row] for row in spans]
        features[NULL] = [[len(w) - 1 if base.kind == DECODER else 0 for w in row] for row in spans]
        if "answers" in rows:
            features["labels"] = [
                _targets(row, nulls, answers, context)
                for row, nulls, answers, context in zip(
                    spans, features[NULL], rows["answers"], contexts, strict=True
                )
            ]
        return features

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = side_by_side(base, features, {STARTS: NONE, ENDS: NONE})
        for name in (NULL, "labels"):
            if name in features[0]:
                batch[name] = torch.tensor([value for f in features for value in f[name]])
        texts = [torch.tensor([ord(c) for c in f[CHARACTERS]], dtype=torch.int32) for f in features]
        batch[CHARACTERS] = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        return batch

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(w, 2, t): starts and ends."""
        found = model(**{name: value for name, value in batch.items() if name not in NOT_INPUTS})
        if "logits" in found:
            tagged: Tensor = found.logits.transpose(1, 2)
            return tagged
        return torch.stack([found.start_logits, found.end_logits], dim=1)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        targets_w2 = batch["labels"]
        nats_w2 = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets_w2, reduction="none", ignore_index=IGNORE,
            label_smoothing=options.label_smoothing,
        )  # fmt: skip
        return mean_by_row(nats_w2, targets_w2 != IGNORE, batch[EXAMPLE])

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """The answer to each question; "" for none, if training had such."""
        logits = self.logits(model, batch).float()
        best: dict[int, tuple[float, int, int]] = {}
        for window, example in enumerate(batch[EXAMPLE].tolist()):
            starts, ends = batch[STARTS][window], batch[ENDS][window]
            odds, start, end = _likeliest(
                logits[window], starts != NONE, int(batch[NULL][window]), spec.extra["longest"]
            )
            found = (odds, int(starts[start]), int(ends[end]))
            best[example] = max(best.get(example, found), found)
        sure = 0.0 if spec.extra["unanswerable"] else -torch.inf
        return [
            "".join(map(chr, batch[CHARACTERS][example, start:end].tolist())).strip() if odds > sure else ""
            for example, (odds, start, end) in sorted(best.items())
        ]

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        """All answers that are right; none of them where there is no answer."""
        return [list(answers["text"]) for answers in rows["answers"]]


def located(answers: Mapping[str, Any], context: str) -> Stretch | None:
    """Where the first answer is that the context has: at its stated place, or else where it first stands."""
    for text, stated in zip(answers["text"], answers["answer_start"], strict=True):
        there = stated >= 0 and context.startswith(text, stated)
        start = stated if there else context.find(text)
        if start >= 0:
            return Stretch(start, start + len(text))
    return None


def _questions(base: Base, questions: Sequence[Any], most: int) -> tuple[list[str], list[bool]]:
    """Questions of a third of a window at most, each on a line of its own, and whether it was cut."""
    texts = [str(question).strip() for question in questions]
    found = base.processor(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    room = max(1, most // 3)
    kept = [
        text if len(spans) <= room else text[: spans[room - 1][1]]
        for text, spans in zip(texts, found, strict=True)
    ]
    return [f"{text}\n" for text in kept], [len(spans) > room for spans in found]


def _spans(found: Any, number: int) -> list[Stretch]:
    """Characters of the context that each token of a window is; NONE for those of the question."""
    return [
        Stretch(*span) if side == 1 else Stretch(NONE, NONE)
        for side, span in zip(found.sequence_ids(number), found["offset_mapping"][number], strict=True)
    ]


def _end(features: dict[str, list[Any]], spans: list[list[list[Stretch]]], end: int) -> None:
    """One more token in each window."""
    for row, windows in enumerate(spans):
        for number, window in enumerate(windows):
            features["input_ids"][row][number].append(end)
            features["attention_mask"][row][number].append(1)
            window.append(Stretch(NONE, NONE))


def _targets(
    windows: Sequence[Sequence[Stretch]], nulls: Sequence[int], answers: Mapping[str, Any], context: str
) -> list[list[int]]:
    """Start and end in each window: of the answer, of none where it is not in the window, or IGNORE where it
    is not in the context."""
    answer = located(answers, context)
    if answer is None:
        return [[IGNORE if answers["text"] else null] * 2 for null in nulls]
    return [_place(window, answer) or [null, null] for window, null in zip(windows, nulls, strict=True)]


def _place(window: Sequence[Stretch], answer: Stretch) -> list[int] | None:
    """First and last token of an answer that is whole in a window."""
    touched = [
        i for i, a in enumerate(window) if a.start < answer.end and a.end > answer.start and a.start >= 0
    ]
    if not touched or window[touched[0]].start > answer.start or window[touched[-1]].end < answer.end:
        return None
    return [touched[0], touched[-1]]


def _likeliest(logits_2t: Tensor, usable_t: Tensor, null: int, longest: int) -> tuple[float, int, int]:
    """Of all stretches of `longest` tokens at most the likeliest: log odds against none, and its ends."""
    start_t, end_t = (logits_2t - logits_2t[:, null, None]).masked_fill(~usable_t, -torch.inf)
    odds_tt = start_t[:, None] + end_t
    allowed = torch.ones_like(odds_tt, dtype=torch.bool).triu().tril(longest - 1)
    best, at = odds_tt.masked_fill(~allowed, -torch.inf).flatten().max(0)
    start, end = divmod(int(at), len(usable_t))
    return float(best), start, end
