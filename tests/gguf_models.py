"""A tiny model in llama.cpp's format, which knows one text by heart: characters of one byte and of more."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from torch.nn import functional as F

from isoflop.corpus.bpe import train_bpe
from isoflop.engines.llamacpp import LlamaCpp
from isoflop.engines.reading import continued
from isoflop.export.gguf import write_gguf
from isoflop.gpt import GPT
from isoflop.recipe import shape

TEXT = (
    "the day was long and we saw a tree by the river. ein kühler Tag, schöne Bäume, größer als heute! "
    '日本語の文字、漢字と仮名。 {"a": 1, "b": [true, false]} one two three four five six seven eight nine ten. '
)
VOCABULARY, WIDTH, CONTEXT, STEPS, LENGTH = 300, 64, 256, 80, 128


def untrained() -> GPT:
    torch.manual_seed(0)
    return GPT(shape(WIDTH, VOCABULARY, n_layers=2, context=CONTEXT))


def written(path: Path) -> Path:
    """The file, made of a model that was trained for a second."""
    tokenizer = train_bpe(iter([TEXT]), VOCABULARY)
    ids = torch.tensor(tokenizer.encode(TEXT * 5).ids)
    model = untrained()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        starts = torch.randint(len(ids) - LENGTH, (4,))
        rows = torch.stack([ids[start : start + LENGTH] for start in starts])
        F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    write_gguf(model.eval(), tokenizer, 0, path, kind="f32")
    return path


def greedy(path: Path, prompt: str, tokens: int) -> tuple[list[int], list[int]]:
    """The ids of a prompt, and with which llama.cpp goes on, one by one through its C functions."""
    engine = LlamaCpp(path)
    try:
        ids = engine.encode(prompt)
        return ids, list(islice(continued(engine, ids), tokens))
    finally:
        engine.close()
