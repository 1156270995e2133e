"""Which training examples a prompt shows, and texts as vectors, to choose by.

Shapes: n training examples, m rows, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from isoflop.errors import AdaptError
from isoflop.tasks.protocol import BOTH, Base

Vectors = NDArray[np.float32]

WAYS = ("random", "similar")
POOL = 5000  # training examples, drawn at random, of which similar ones are looked for
BATCH = 32


def chosen(
    choose: str, shots: int, pool: Vectors, asked: Vectors, labels: Sequence[str], seed: int
) -> list[list[int]]:
    """Numbers of the pool's examples that each row is shown, the last one nearest to it.

    At random: the same for all rows, every label in its turn. Similar: those of the greatest cosine (Liu et
    al., arXiv 2101.06804, section 3). Raises AdaptError for another way.
    """
    if choose not in WAYS:
        raise AdaptError(f"{choose!r} is no way to choose examples", hint=f"one of: {', '.join(WAYS)}")
    shots = min(shots, len(pool))
    if choose == "random" or not shots:
        return [in_turn(labels, seed)[:shots]] * len(asked)
    nearest = np.argsort(asked @ pool.T, axis=1, kind="stable")[:, -shots:]
    return [row.tolist() for row in nearest]


def in_turn(labels: Sequence[str], seed: int) -> list[int]:
    """Numbers of all examples: a random one of each label, then a second one of each, and so on."""
    order = np.random.default_rng(seed).permutation(len(labels))
    seen: dict[str, int] = {}
    turns = []
    for number in order.tolist():
        turns.append(seen.get(labels[number], 0))
        seen[labels[number]] = turns[-1] + 1
    return [int(order[i]) for i in np.argsort(turns, kind="stable")]


def words(label: str) -> str:
    """A label as a text would have it."""
    return label.replace("_", " ")


def drawn(size: int, seed: int) -> list[int]:
    """Numbers of at most POOL of so many examples."""
    return sorted(np.random.default_rng((seed, 1)).permutation(size)[:POOL].tolist())


def token_means(model: nn.Module, base: Base, texts: Sequence[str]) -> Vectors:
    """(n, d) means of the model's own token embeddings, of length 1."""
    table = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    rows = base.processor([str(text) for text in texts], add_special_tokens=False)["input_ids"]
    return _unit([table[ids].mean(0) if ids else torch.zeros(table.shape[1]) for ids in rows])


@torch.inference_mode()
def state_means(model: nn.Module, base: Base, texts: Sequence[str]) -> Vectors:
    """(n, d) means of the last hidden states over each text's tokens, of length 1."""
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    found: list[Any] = [None] * len(texts)
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        batch = base.processor(
            [texts[number] for number in numbers], truncation=True, max_length=base.max_length, padding=True,
            return_tensors="pt",
        )  # fmt: skip
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(states.dtype)
        for number, mean in zip(numbers, (states * mask).sum(1) / mask.sum(1).clamp(min=1), strict=True):
            found[number] = mean
    return _unit(found)


def encoder_of(base: Base) -> nn.Module:
    """The frozen body of a base, of an encoder-decoder the encoder."""
    from transformers import AutoModel

    model: Any = AutoModel.from_pretrained(base.folder, dtype=torch.float32)
    body: nn.Module = model.get_encoder() if base.kind == BOTH else model
    return body.eval()


def _unit(rows: Sequence[torch.Tensor]) -> Vectors:
    if not rows:
        return np.zeros((0, 0), np.float32)
    found: Vectors = nn.functional.normalize(torch.stack(list(rows)), dim=1).numpy()
    return found
