"""Texts said otherwise, by way of another language (Sennrich et al., arXiv 1511.06709, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from isoflop.errors import AdaptError
from isoflop.progress import Progress, Silent
from isoflop.tasks.base import load_base
from isoflop.tasks.protocol import BOTH

BATCH = 16
STAGE = "back-translate"
LONGER = 2  # a translation has at most so many tokens for each of its source, and as many more as MORE
MORE = 16


def back_translated(
    texts: Sequence[str], forward: Path, backward: Path, *, sampled: bool = False, seed: int = 0,
    progress: Progress | None = None,
) -> list[str]:  # fmt: skip
    """Texts translated by the model in one folder, and back by that in the other.

    Encoder-decoders of transformers, adapted or not. The likeliest token each time, or with `sampled` one
    drawn by its probability, so that every seed says it otherwise (Edunov et al., arXiv 1808.09381). Raises
    AdaptError for a folder of another kind.
    """
    progress = progress or Silent()
    progress.start(STAGE, 2 * len(texts), "texts")
    there = _translated(texts, forward, sampled, seed, progress, 0)
    back = _translated(there, backward, sampled, seed + 1, progress, len(texts))
    progress.finish(STAGE)
    return back


def _translated(
    texts: Sequence[str], folder: Path, sampled: bool, seed: int, progress: Progress, done: int
) -> list[str]:
    """In batches of near lengths."""
    from transformers import AutoModelForSeq2SeqLM

    base = load_base(folder)
    if base.kind != BOTH:
        raise AdaptError(
            f"{folder} is of the kind {base.kind}, and back-translation takes {BOTH}",
            hint="name a translation model such as T5, BART or Marian",
        )
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    found = [""] * len(texts)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            inputs = base.processor(
                [texts[number] for number in numbers], truncation=True, max_length=base.max_length,
                padding=True, return_tensors="pt",
            )  # fmt: skip
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            room = min(base.max_length, LONGER * ids.shape[1] + MORE)
            made = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=sampled, num_beams=1, max_new_tokens=room,
                eos_token_id=base.processor.eos_token_id,
            )  # fmt: skip
            for number, text in zip(
                numbers, base.processor.batch_decode(made, skip_special_tokens=True), strict=True
            ):
                found[number] = text
            progress.update(STAGE, done + start + len(numbers))
    return found
