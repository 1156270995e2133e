"""Answers to instructions, of single prompts or of chats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from isoflop.errors import AdaptError
from isoflop.model import IGNORE
from isoflop.tasks.protocol import BOTH, DECODER, Base, Role, Spec
from isoflop.tasks.sequences import FromTextToText, Pair, by_example, written

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

MESSAGES = Role("messages", ("messages", "conversation", "conversations", "chat"), "messages", optional=True)
PROMPT = Role("prompt", ("prompt", "instruction", "question", "input", "query"), "text", optional=True)
RESPONSE = Role("response", ("response", "answer", "completion", "output", "reply"), "text", optional=True)

TURN = "{role}:\n{content}\n\n"
ASSISTANT = "assistant"
Message = Mapping[str, str]  # its "role" and "content"


class Generation(FromTextToText):
    """Rows are `messages`, of which the last, the assistant's, is learned, or a `prompt` and its `response`.

    Turns are laid out by the tokenizer's chat template. Where it has none, `Spec.source` is what a turn looks
    like, and a prompt ends with the beginning of the assistant's.
    """

    name: ClassVar[str] = "generation"
    roles: ClassVar[tuple[Role, ...]] = (MESSAGES, PROMPT, RESPONSE)
    metrics: ClassVar[tuple[str, ...]] = ("perplexity",)
    kinds: ClassVar[tuple[str, ...]] = (DECODER, BOTH)
    keeps_end: ClassVar[bool] = True

    def template(self, base: Base) -> str:
        return "" if base.processor.chat_template else TURN

    def pairs(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> list[Pair]:
        return [
            Pair("", _laid_out(base, spec, asked), "", reply)
            for asked, reply in (_parted(messages) for messages in _chats(rows))
        ]

    def answered(self, rows: Dataset, texts: Sequence[str]) -> Dataset:
        from datasets import Dataset

        asked = [_parted(messages)[0] for messages in _chats(rows[:])]
        replies = [[*before, _said(ASSISTANT, text)] for before, text in zip(asked, texts, strict=True)]
        return Dataset.from_dict({"messages": replies})

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """(nats, tokens) of each response under the model, its end token among them.

        Of prompts alone: the responses that the model writes.
        """
        if "labels" not in batch:
            return list(written(model, base, spec, batch))
        wanted = batch["labels"] != IGNORE
        logits = self.logits(model, batch)[wanted].float()
        nats = torch.nn.functional.cross_entropy(logits, batch["labels"][wanted], reduction="none")
        return list(zip(by_example(nats, wanted).tolist(), wanted.sum(1).tolist(), strict=True))

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        return [_parted(messages)[1] for messages in _chats(rows[:])]


def _chats(rows: Mapping[str, Sequence[Any]]) -> list[list[Message]]:
    """Of each row its messages. Raises AdaptError for rows without."""
    if "messages" in rows:
        return [list(messages) for messages in rows["messages"]]
    if "prompt" not in rows:
        raise AdaptError(
            "the examples have neither messages nor a prompt",
            hint="name a column: --map messages=COLUMN, or --map prompt=COLUMN --map response=COLUMN",
        )
    asked = [[_said("user", str(prompt))] for prompt in rows["prompt"]]
    if "response" not in rows:
        return asked
    return [
        [*before, _said(ASSISTANT, str(reply))] for before, reply in zip(asked, rows["response"], strict=True)
    ]


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _parted(messages: list[Message]) -> tuple[list[Message], str | None]:
    """What was said before the assistant's last message, and that one, if a chat ends with it."""
    if messages and messages[-1]["role"] == ASSISTANT:
        return messages[:-1], messages[-1]["content"]
    return messages, None


def _laid_out(base: Base, spec: Spec, messages: list[Message]) -> str:
    """A prompt that the assistant is to answer. Raises AdaptError for a chat that its template refuses."""
    if spec.source:
        turns = [
            spec.source.replace("{role}", said["role"].capitalize()).replace("{content}", said["content"])
            for said in messages
        ]
        start = spec.source.partition("{content}")[0].replace("{role}", ASSISTANT.capitalize())
        return "".join(turns) + start
    from jinja2 import TemplateError

    try:
        found: str = base.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise AdaptError(
            f"the chat template of {base.folder} refuses a chat: {error}",
            hint="give chats in which user and assistant take turns, and the roles that the model knows",
        ) from None
    return found
