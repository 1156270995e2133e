"""Models for the benchmarks of serving, made in some minutes: a folder and GGUF files of each.

    python benchmarks/serve_models.py FOLDER [--steps 150]

`small-a` and `small-b` have 14M parameters and know pages of the standard library's source by heart, each
others, so that the likeliest token mostly leaves the rest far behind: an answer can be told from a wrong one,
however it was batched. `large` has 54M parameters as they were drawn: it is for speed alone.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import torch
from torch.nn import functional as F

from isoflop.corpus import build_corpus, end_token, train_tokens
from isoflop.export import save_pretrained, tokenizer_of
from isoflop.export.gguf import write_gguf
from isoflop.gpt import GPT
from isoflop.recipe import shape
from isoflop.records import Corpus, CorpusConfig

SOURCES = ("asyncio", "email", "unittest", "json")  # of the standard library
VOCABULARY, CONTEXT = 4096, 512
SMALL, LARGE = 384, 640  # widths
LEARNED = 2_000  # tokens that the small ones know by heart
ROWS, LENGTH, RATE = 4, 128, 1e-3
KINDS = ("q8_0", "f32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    given = parser.parse_args()
    library = Path(sysconfig.get_paths()["stdlib"])
    config = CorpusConfig(sources=tuple(str(library / name) for name in SOURCES), vocab_size=VOCABULARY)
    corpus = build_corpus(config, given.folder / "corpora")
    for name, width, seed, steps in (
        ("small-a", SMALL, 0, given.steps), ("small-b", SMALL, 1, given.steps), ("large", LARGE, 2, 0),
    ):  # fmt: skip
        torch.manual_seed(seed)
        model = GPT(shape(width, corpus.vocab_size, context=CONTEXT))
        _learn(model, corpus, steps, seed)
        _write(model.eval(), corpus, given.folder / name)
        print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)


def _learn(model: GPT, corpus: Corpus, steps: int, seed: int) -> None:
    """A text by heart: another one for each seed."""
    ids = torch.as_tensor(train_tokens(corpus)[seed * LEARNED : (seed + 1) * LEARNED].astype("int64"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for step in range(steps):
        starts = torch.randint(len(ids) - LENGTH, (ROWS,))
        rows = torch.stack([ids[start : start + LENGTH] for start in starts])
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            print(f"step {step + 1}: {loss.item():.2f} nats a token", flush=True)


def _write(model: GPT, corpus: Corpus, folder: Path) -> None:
    save_pretrained(model, corpus, folder)
    tokenizer, _ = tokenizer_of(model.config, corpus)
    for kind in KINDS:
        path = folder.with_name(f"{folder.name}-{kind}.gguf")
        write_gguf(model, tokenizer, end_token(corpus), path, kind=kind)


if __name__ == "__main__":
    main()
