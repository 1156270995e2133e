"""Text to tokens: sources, cleaning, duplicates, the split, the tokenizer, packed files."""

from isoflop.corpus.bpe import vocab_for
from isoflop.corpus.build import build_corpus
from isoflop.corpus.load import (
    check_train_tokens,
    end_token,
    heldout_documents,
    heldout_spans,
    heldout_tokens,
    load_corpus,
    special_tokens,
    token_bytes,
    tokenizer,
    train_documents,
    train_stamp,
    train_tokens,
    word_edges,
)
from isoflop.corpus.tokens import Tokens

__all__ = [
    "Tokens",
    "build_corpus",
    "check_train_tokens",
    "end_token",
    "heldout_documents",
    "heldout_spans",
    "heldout_tokens",
    "load_corpus",
    "special_tokens",
    "token_bytes",
    "tokenizer",
    "train_documents",
    "train_stamp",
    "train_tokens",
    "vocab_for",
    "word_edges",
]
