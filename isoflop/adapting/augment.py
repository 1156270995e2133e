"""Training examples as they might also have been: changed anew each time they are read.

Texts are changed before they are encoded: in each pass each augmentation changes half of the examples, drawn
by the seed, in place of the originals. Images and sounds are changed after it, every time (`augment_media`).
Validation and test examples are never changed. To add one for texts, write its function and a line in TEXTS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.adapting import augment_media
from isoflop.errors import AdaptError
from isoflop.perturb import typos
from isoflop.tasks.protocol import Base, Task

SHARE = 0.5  # of the examples
RATE = 0.1  # share of the words that are changed (Wei and Zou, arXiv 1901.11196, section 4.3: alpha)
NEAREST = 5  # tokens of an embedding table that may stand for a word; assumption
NEAR = 0.5  # their cosine at least; assumption
# A word is what spaces part, or one Chinese character.
WORD = re.compile(r"([\u3400-\u9fff]|[^\s\u3400-\u9fff]+)(\s*)")

Change = Callable[[str, np.random.Generator], str]
Columns = Mapping[str, Sequence[Any]]
Synonyms = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Augment:
    """What a configuration's augmentations do to a task's examples."""

    texts: tuple[Change, ...]
    role: str  # the column that they change
    media: tuple[str, ...]  # names of those of images and sounds

    def rows(self, rows: Columns, rng: np.random.Generator) -> Columns:
        """Rows before they are encoded, with some of the texts changed."""
        made = dict(rows)
        for change in self.texts:
            made[self.role] = [change(str(x), rng) if rng.random() < SHARE else x for x in made[self.role]]
        return made

    def features(self, features: list[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
        """Features before they are collated, with images and sounds changed."""
        return augment_media.augmented(features, self.media, rng) if self.media else features


def augment_for(task: Task, base: Base, names: Sequence[str]) -> Augment:
    """What the names say for a task. Of texts the first role is changed, which is the input.

    Raises AdaptError for a name that is unknown or does not fit the task.
    """
    holds = {role.holds: role.name for role in reversed(task.roles)}
    if "audio" in holds:  # whose text is the target
        holds.pop("text", None)
    texts: list[Change] = []
    media: list[str] = []
    for given in names:
        name, _, argument = given.partition(":")
        kinds = [kind for kind, known in AUGMENTATIONS.items() if name in known]
        if not kinds:
            every = sorted({name for known in AUGMENTATIONS.values() for name in known})
            raise AdaptError(f"{name!r} is no augmentation", hint=f"one of: {', '.join(every)}")
        if not set(kinds) & set(holds):
            raise AdaptError(
                f"the augmentation {name} changes {' or '.join(kinds)}, and {task.name} reads none",
                hint="leave it out",
            )
        if "text" in kinds and "text" in holds:
            texts.append(TEXTS[name](base, argument))
        else:
            media.append(name)
    return Augment(tuple(texts), holds.get("text", ""), tuple(media))


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
    """Words of the text are put into it once more elsewhere; EDA's insertion takes their synonyms."""
    words, gaps = _words(text)
    for _ in range(_count(words)):
        word, at = words[rng.integers(len(words))], int(rng.integers(len(words) + 1))
        words.insert(at, word)
        gaps.insert(at, " " if len(word) > 1 or word.isascii() else "")
    return _joined(words, gaps)


def replace(text: str, rng: np.random.Generator, *, synonyms: Synonyms) -> str:
    """A tenth of the words, at least one, become synonyms, where they have some (EDA's replacement)."""
    words, gaps = _words(text)
    wanted = _count(words)
    for i in rng.permutation(len(words)):
        others = synonyms(words[i].lower()) if wanted else ()
        if others:
            words[i] = others[int(rng.integers(len(others)))]
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

    @cache
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


TEXTS: Mapping[str, Callable[[Base, str], Change]] = {  # `name:ARGUMENT` gives the argument
    "noise": lambda base, _: _noise,
    "swap": lambda base, _: swap,
    "delete": lambda base, _: delete,
    "insert": lambda base, _: insert,
    "synonyms": _synonyms,
}
AUGMENTATIONS: Mapping[str, Mapping[str, Any]] = {  # by what the role of a task holds
    "text": TEXTS, "image": augment_media.IMAGES, "audio": augment_media.SOUNDS,
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
