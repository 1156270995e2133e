"""Training examples as they might also have been: changed anew each time they are read.

An augmentation changes one input of an example. In each pass each is applied to half of the examples, drawn
by the seed, in place of the originals; validation and test examples are never changed. To add one, write its
function and a line in AUGMENTATIONS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import AdaptError
from isoflop.perturb import typos
from isoflop.tasks.protocol import Base, Spec, Task


SHARE = 0.5  # of the examples
RATE = 0.1  # share of the words that are changed (Wei and Zou, arXiv 1901.11196, section 4.3: alpha)
NEAREST = 5  # tokens of an embedding table that may stand for a word; assumption
NEAR = 0.5  # their cosine at least; assumption
# A word is what spaces part, or one Chinese character.
WORD = re.compile(r"([\u3400-\u9fff]|[^\s\u3400-\u9fff]+)(\s*)")

Change = Callable[[Any, np.random.Generator], Any]  # of an input of one example
Augment = Callable[..., dict[str, list[Any]]]  # encodes raw rows, changed by a generator `rng`
Synonyms = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Augmentation:
    """A way to change inputs."""

    name: str
    holds: str  # what the role of a task that it changes holds: see `tasks.protocol.Role`
    prepare: Callable[[Base, str], Change]  # `name:ARGUMENT` gives the argument
    says: str


def augmented(task: Task, base: Base, spec: Spec, names: Sequence[str]) -> Augment:
    """What encodes rows of the task with some of them changed: the first role that fits, which is the input.

    Raises AdaptError for an augmentation that is unknown or does not fit the task.
    """
    changes: list[tuple[str, Change]] = []
    for given in names:
        name, _, argument = given.partition(":")
        if name not in AUGMENTATIONS:
            raise AdaptError(f"{name!r} is no augmentation", hint=f"one of: {', '.join(AUGMENTATIONS)}")
        found = AUGMENTATIONS[name]
        role = next((role.name for role in task.roles if role.holds == found.holds), None)
        if role is None:
            raise AdaptError(
                f"the augmentation {name} changes {found.holds}, and {task.name} reads none",
                hint="leave it out",
            )
        changes.append((role, found.prepare(base, argument)))

    def encode(rows: Mapping[str, Sequence[Any]], *, rng: np.random.Generator) -> dict[str, list[Any]]:
        made = dict(rows)
        for role, change in changes:
            made[role] = [change(x, rng) if rng.random() < SHARE else x for x in made[role]]
        return task.encode(base, spec, made)

    return encode


def swap(text: str, rng: np.random.Generator) -> str:
    """Pairs of words change places, as many as a tenth of the words, at least one (EDA's random swap)."""
    words, gaps = _words(text)
    for _ in range(_count(words)):
        i, j = rng.integers(len(words), size=2)
        words[i], words[j] = words[j], words[i]
    return _joined(words, gaps)


def delete(text: str, rng: np.random.Generator) -> str:
    """Each word goes with a chance of one in ten; one word stays (EDA's random deletion)."""
    words, gaps = _words(text)
    kept = np.flatnonzero(rng.random(len(words)) >= RATE)
    if not len(kept) and words:
        kept = rng.integers(len(words), size=1)
    return _joined([words[i] for i in kept], [gaps[i] for i in kept])


def insert(text: str, rng: np.random.Generator) -> str:
    """Words of the text are put into it once more elsewhere; EDA's random insertion takes synonyms of them."""
    words, gaps = _words(text)
    for _ in range(_count(words)):
        word, at = words[rng.integers(len(words))], int(rng.integers(len(words) + 1))
        words.insert(at, word)
        gaps.insert(at, " " if len(word) > 1 or word.isascii() else "")
    return _joined(words, gaps)


def replace(text: str, rng: np.random.Generator, *, synonyms: Synonyms) -> str:
    """A tenth of the words, at least one, where they have synonyms, become one of these (EDA's replacement)."""
    words, gaps = _words(text)
    wanted = _count(words)
    for i in rng.permutation(len(words)):
        others = synonyms(words[i].lower()) if wanted else ()
        if others:
            words[i] = others[rng.integers(len(others))]
            wanted -= 1
    return _joined(words, gaps)


def words_of_file(path: Path) -> Synonyms:
    """Of a file whose lines are groups of words that may stand for each other, with commas between them.

    Raises AdaptError where it cannot be read or has no group.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AdaptError(f"{path} cannot be read: {error}", hint="name a text file of UTF-8") from None
    groups = [[word.strip() for word in line.split(",") if word.strip()] for line in lines]
    known: dict[str, list[str]] = {}
    for group in groups:
        for word in group:
            known.setdefault(word.lower(), []).extend(other for other in group if other != word)
    if not any(known.values()):
        raise AdaptError(
            f"{path} has no line of two words or more", hint="write lines such as: big, large, great"
        )
    return lambda word: known.get(word, ())


def nearest_words(base: Base) -> Synonyms:
    """The tokens of the base's embedding table that are nearest to a word that is a token, by cosine.

    They are words of the same use rather than of the same meaning.
    """
    from transformers import AutoModel

    tokenizer = base.processor
    table = AutoModel.from_pretrained(base.folder).get_input_embeddings().weight.detach().float().numpy()
    table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(len(table), len(tokenizer)))))
    marks = tuple(mark for mark in ("\u0120", "\u2581") if any(piece.startswith(mark) for piece in pieces))
    whole = {
        number: word
        for number, piece in enumerate(pieces)
        if (not marks or piece.startswith(marks)) and (word := tokenizer.decode([number]).strip()).isalpha()
    }
    numbers = np.array(sorted(whole))
    number_of = {word.lower(): number for number, word in whole.items()}

    @lru_cache(maxsize=None)
    def nearest(word: str) -> tuple[str, ...]:
        if word not in number_of:
            return ()
        near = table[numbers] @ table[number_of[word]]
        best = numbers[np.argsort(-near, kind="stable")[: NEAREST + 1]]
        cosine = dict(zip(numbers.tolist(), near.tolist(), strict=True))
        return tuple(whole[n] for n in best.tolist() if whole[n].lower() != word and cosine[n] >= NEAR)

    return nearest


def _synonyms(base: Base, argument: str) -> Change:
    return partial(replace, synonyms=words_of_file(Path(argument)) if argument else nearest_words(base))


def _noise(text: str, rng: np.random.Generator) -> str:
    return typos(text, RATE, rng)


AUGMENTATIONS: Mapping[str, Augmentation] = {
    made.name: made
    for made in (
        Augmentation("noise", "text", lambda base, _: _noise, "slips of the keyboard in a tenth of the words"),
        Augmentation("swap", "text", lambda base, _: swap, "words change places"),
        Augmentation("delete", "text", lambda base, _: delete, "words are left out"),
        Augmentation("insert", "text", lambda base, _: insert, "words are said once more"),
        Augmentation("synonyms", "text", _synonyms,
                     "words of a file (synonyms:FILE), or near ones in the base's embedding table"),
    )
}  # fmt: skip


def _words(text: str) -> tuple[list[str], list[str]]:
    """Words, and the space after each."""
    found = WORD.findall(text)
    return [word for word, _ in found], [gap for _, gap in found]


def _joined(words: Sequence[str], gaps: Sequence[str]) -> str:
    return "".join(word + gap for word, gap in zip(words, gaps, strict=True))


def _count(words: Sequence[str]) -> int:
    """How many words are changed: a tenth, at least one where there is any."""
    return max(1, round(RATE * len(words))) if words else 0
