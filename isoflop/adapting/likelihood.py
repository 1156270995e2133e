"""How likely a language model thinks each of several answers to a prompt, in the words of the model's kind.

A decoder goes on from the prompt with the answer; an encoder-decoder reads the prompt and writes the answer
with its end; a masked encoder fills as many masks after the prompt as the answer has tokens, each by itself
(Schick and Schütze, arXiv 2009.07118, section 3.1, without their order), and the mean over masks counts, as
longer answers have more of them.

Shapes: b prompts of a batch, t tokens, V vocabulary, n prompts, a answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from isoflop.progress import Progress, Silent
from isoflop.tasks.protocol import BOTH, DECODER, ENCODER, Base
from isoflop.tasks.sequences import plain_ids, target_ids

CLASSES = {
    ENCODER: "AutoModelForMaskedLM", DECODER: "AutoModelForCausalLM", BOTH: "AutoModelForSeq2SeqLM",
}  # fmt: skip
TOKENS = 4096  # of a batch
STAGE = "prompt"

Array = NDArray[np.float64]


def language_model(base: Base) -> nn.Module | None:
    """The base with its head for words; None where the folder has no weights of such a head."""
    import transformers

    auto = getattr(transformers, CLASSES[base.kind])
    model, found = auto.from_pretrained(base.folder, dtype=torch.float32, output_loading_info=True)
    if found["missing_keys"] or (base.kind == ENCODER and base.processor.mask_token_id is None):
        return None
    lm: nn.Module = model.eval()
    return lm


def answer_ids(base: Base, answers: Sequence[str]) -> list[tuple[int, ...]]:
    """Of answers, as they follow a prompt of that kind of model."""
    if base.kind == BOTH:
        return [tuple(ids) for ids in target_ids(base, answers)]
    return [tuple(ids) for ids in plain_ids(base, [f" {answer}" for answer in answers])]


class _Asked(NamedTuple):
    """One pass of the model, which tells of every answer that differs in its last token alone."""

    prompt: int
    ids: list[int]  # what is read
    heard: list[int]  # what a decoder of an encoder-decoder has to write
    first: int  # place of the logits of the answer's first token


def log_probs(
    model: nn.Module, base: Base, prompts: Sequence[Sequence[int]], answers: Sequence[tuple[int, ...]], *,
    end: Sequence[int] = (), progress: Progress | None = None,
) -> Array:  # fmt: skip
    """(n, a) log-probabilities; `end` are special tokens after the masks of an encoder."""
    progress = progress or Silent()
    found = np.full((len(prompts), len(answers)), np.nan)
    groups = defaultdict(list)  # answers that one pass tells
    for number, ids in enumerate(answers):
        groups[len(ids) if base.kind == ENCODER else ids[:-1]].append(number)
    progress.start(STAGE, len(groups) * len(prompts), "prompts")
    done = 0
    for group in groups.values():
        like = answers[group[0]]
        wanted = torch.tensor([answers[number] for number in group])  # (g, tokens)
        asked = [_asked(base, number, list(ids), like, end) for number, ids in enumerate(prompts)]
        for batch in _batches(asked):
            for one, logp in zip(batch, _passed(model, base, batch, len(like)), strict=True):
                told = logp.gather(1, wanted.T).sum(0)  # (tokens, V) at (tokens, g)
                found[one.prompt, group] = told / len(like) if base.kind == ENCODER else told
            done += len(batch)
            progress.update(STAGE, done)
    progress.finish(STAGE)
    return found


def _asked(base: Base, number: int, prompt: list[int], answer: tuple[int, ...], end: Sequence[int]) -> _Asked:
    if base.kind == BOTH:
        return _Asked(number, prompt, list(answer), 0)
    if base.kind == DECODER:
        return _Asked(number, [*prompt, *answer[:-1]], [], len(prompt) - 1)
    return _Asked(number, [*prompt, *[base.processor.mask_token_id] * len(answer), *end], [], len(prompt))


def _batches(asked: Sequence[_Asked]) -> list[list[_Asked]]:
    """Of near lengths, the longest first."""
    batches: list[list[_Asked]] = []
    for one in sorted(asked, key=lambda one: -len(one.ids)):
        if not batches or len(batches[-1][0].ids) * (len(batches[-1]) + 1) > TOKENS:
            batches.append([])
        batches[-1].append(one)
    return batches


@torch.inference_mode()
def _passed(model: nn.Module, base: Base, batch: Sequence[_Asked], tokens: int) -> list[Tensor]:
    """Of each prompt, log-probabilities (tokens, V) at the places of its answer."""
    ids = [torch.tensor(one.ids) for one in batch]
    inputs: dict[str, Any] = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=base.processor.pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
    }
    before = 0  # places whose logits are not asked for
    if base.kind == BOTH:
        inputs["labels"] = torch.tensor([one.heard for one in batch])
    if base.kind == DECODER:
        before = min(one.first for one in batch)
        inputs["logits_to_keep"] = inputs["input_ids"].shape[1] - before
    logits_btv = model(**inputs).logits
    return [
        logits[one.first - before :][:tokens].float().log_softmax(-1)
        for one, logits in zip(batch, logits_btv, strict=True)
    ]
