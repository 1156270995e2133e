"""Text to tokens: sources, cleaning, duplicates, the split, the tokenizer, packed files."""

from isoflop.corpus.build import build_corpus
from isoflop.corpus.load import (
    heldout_documents,
    heldout_tokens,
    load_corpus,
    token_bytes,
    tokenizer,
    train_documents,
    train_tokens,
)
from isoflop.corpus.vocabulary import vocab_for

__all__ = [
    "build_corpus",
    "heldout_documents",
    "heldout_tokens",
    "load_corpus",
    "token_bytes",
    "tokenizer",
    "train_documents",
    "train_tokens",
    "vocab_for",
]
