"""The tokens that objectives need besides those of text: their names and ids."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.corpus import special_tokens
from isoflop.records import Corpus

MASK, CLS, SEP = "<|mask|>", "<|cls|>", "<|sep|>"
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(100))  # T5's
OTHER_NAMES = {MASK: ("[MASK]", "<mask>"), CLS: ("[CLS]", "<s>"), SEP: ("[SEP]", "</s>")}  # other makers'


def own_names(names: Sequence[str], corpus: Corpus) -> list[str]:
    """What the corpus's tokenizer, if it is a model's, calls these tokens; nothing unless it has them all."""
    known = special_tokens(corpus)
    found = [next((n for n in (name, *OTHER_NAMES.get(name, ())) if n in known), None) for name in names]
    return [n for n in found if n is not None] if None not in found else []


def special_ids(names: Sequence[str], corpus: Corpus) -> list[int]:
    """Their ids: the tokenizer's own, or else the next above the corpus's vocabulary."""
    own, known = own_names(names, corpus), special_tokens(corpus)
    return [known[n] for n in own] or [corpus.vocab_size + i for i in range(len(names))]
