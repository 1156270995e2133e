"""Chats as one text: by the template that the model was trained with, else in a plain form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.engines import GGUF
from isoflop.errors import CorruptError
from isoflop.serve.protocol import RequestError

PLAIN = "{role}: {content}\n\n"  # a message, for models without a template of their own
PLAIN_STOP = "\nUser:"  # there the user would speak again
TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
BEGIN, END = "bos_token", "eos_token"


@dataclass(frozen=True)
class Template:
    """A chat template in Jinja, as transformers reads it, and the texts of the tokens that it may write."""

    source: str
    begin: str = ""
    end: str = ""

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text after which the assistant speaks. Raises RequestError where the template says no.

        It is somebody else's program: transformers runs it in a sandbox, on copies.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, _ = render_jinja_template(
                conversations=[list(messages)], chat_template=self.source, add_generation_prompt=True,
                bos_token=self.begin, eos_token=self.end,
            )  # fmt: skip
        except Exception as error:  # of whatever kind a template raises
            raise RequestError(
                f"the model's chat template cannot take these messages: {error}", param="messages"
            ) from error
        return str(texts[0])


def plain(messages: Sequence[Mapping[str, str]]) -> str:
    """The chat for a model that has no template: who says what, a blank line between two."""
    said = (PLAIN.format(role=m["role"].capitalize(), content=m["content"]) for m in messages)
    return "".join(said) + "Assistant:"


def template_of(path: Path) -> Template | None:
    """The template of a model folder or a .gguf file, if it has one. Raises CorruptError."""
    template = _of_gguf(path) if path.suffix == GGUF else _of_folder(path)
    if template is not None:
        import transformers.utils.chat_template_utils  # noqa: F401  now: it takes seconds, and the first chat would wait
    return template


def _of_folder(path: Path) -> Template | None:
    config = _json(path / CONFIG)
    source = config.get("chat_template")
    if (path / TEMPLATE).is_file():
        source = (path / TEMPLATE).read_text(encoding="utf-8")
    if isinstance(source, list):  # several, by name
        source = next((each["template"] for each in source if each["name"] == "default"), None)
    return Template(source, _token(config.get(BEGIN)), _token(config.get(END))) if source else None


def _token(said: Any) -> str:
    """The text of a special token, which is written alone or with how it is read."""
    return str(said["content"] if isinstance(said, dict) else said or "")


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptError(f"{file} is not JSON: {error}", hint="write the model folder again") from None
    if not isinstance(found, dict):
        raise CorruptError(f"{file} is not a JSON object", hint="write the model folder again")
    return found


def _of_gguf(path: Path) -> Template | None:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:  # whatever it stumbles over
        raise CorruptError(f"{path} is no .gguf file that opens: {error}", hint="export it again") from None

    def value(name: str) -> Any:
        field = reader.fields.get(name)
        return None if field is None else field.contents()

    def token(name: str) -> str:
        field, number = reader.fields["tokenizer.ggml.tokens"], value(f"tokenizer.ggml.{name}_token_id")
        return "" if number is None else str(field.contents(int(number)))

    source = value("tokenizer.chat_template")
    return Template(str(source), token("bos"), token("eos")) if source else None
