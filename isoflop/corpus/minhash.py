"""MinHash signatures of documents (Broder 1997), estimating the Jaccard similarity of their shingles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isoflop.records import CorpusConfig

PERMUTATIONS = 128
SHINGLE_WORDS = 5
WORD_CHARS = 20  # text with longer words on average has no spaces between words: characters serve
HASH_SEED = 1
MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0x27D4EB2F165667C5],
    np.uint64,
)


def wants_signatures(config: CorpusConfig) -> bool:
    """Whether near-duplicates are to be dropped at all."""
    return config.near_duplicate_threshold < 1.0


def signatures(texts: list[str]) -> NDArray[np.uint32]:
    """One row of `PERMUTATIONS` minima a text; the share of equal columns estimates the similarity."""
    from rensa import RMinHash

    rows = [_shingles(np.array(row, np.uint64)) for row in RMinHash.hash_token_sets([*map(_words, texts)])]
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(rows), offsets, PERMUTATIONS, HASH_SEED
    )
    return np.asarray(matrix.to_rows(), np.uint32)


def _words(text: str) -> list[str]:
    words = text.split()
    return words if len(words) * WORD_CHARS >= len(text) else list(text)


def _shingles(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes of all runs of `SHINGLE_WORDS` words; of the whole text when it is shorter."""
    width = min(SHINGLE_WORDS, len(words))
    count = len(words) - width + 1
    shingles = np.zeros(count, np.uint64)
    for at in range(width):
        shingles = (shingles ^ words[at : at + count]) * MULTIPLIERS[at]
        shingles ^= shingles >> np.uint64(29)
    return shingles
