"""What a call asked and was answered, as digests: its texts are recognised, and not kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import blake2b

SIZE = 8  # bytes of a digest
NONE = bytes(SIZE)  # of no text

Turn = tuple[str, str]  # of a chat: who, and what they said
Prompt = str | Sequence[Turn]


class Traces:
    """Of one call. Without the secret, which ends with the process, no text can be tried against them."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._prompts: list[bytes] = []
        self._each = 1  # answers to a prompt
        self._answers: dict[int, blake2b] = {}

    def asked(self, prompts: Iterable[Prompt | None], answers: int = 1) -> None:
        """So many answers to each prompt are asked for; None: it is no text."""
        self._each = answers
        self._prompts = [NONE if each is None else _of_prompt(self._secret, each) for each in prompts]

    def said(self, index: int, text: str) -> None:
        """Some more of an answer, as the client gets it."""
        if index not in self._answers:
            self._answers[index] = _of_answer(self._secret)
        self._answers[index].update(_bytes(text))

    def pairs(self) -> bytes:
        """What each answer was given to, and the answer, as they are by now."""
        count = max(len(self._prompts) * self._each, len(self._answers))
        return b"".join(self._prompt(i) + self._answer(i) for i in range(count))

    def _prompt(self, index: int) -> bytes:
        number = index // self._each
        return self._prompts[number] if number < len(self._prompts) else NONE

    def _answer(self, index: int) -> bytes:
        return (self._answers.get(index) or _of_answer(self._secret)).digest()


def recognised(secret: bytes, pairs: bytes, prompt: Prompt | None, answer: str | None) -> bool:
    """Whether one of `Traces.pairs` has this prompt and this answer; None: any."""
    asked = None if prompt is None else _of_prompt(secret, prompt)
    said = None
    if answer is not None:
        digest = _of_answer(secret)
        digest.update(_bytes(answer))
        said = digest.digest()
    return any(
        asked in (None, pairs[at : at + SIZE]) and said in (None, pairs[at + SIZE : at + 2 * SIZE])
        for at in range(0, len(pairs), 2 * SIZE)
    )


def _of_prompt(secret: bytes, prompt: Prompt) -> bytes:
    """A text is what the user alone says."""
    turns = [("user", prompt)] if isinstance(prompt, str) else [*prompt]
    return blake2b(json.dumps(turns).encode(), digest_size=SIZE, key=secret, person=b"prompt").digest()


def _of_answer(secret: bytes) -> blake2b:
    return blake2b(digest_size=SIZE, key=secret, person=b"answer")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
