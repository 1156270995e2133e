"""Requests in OpenAI's shape; their answers are in replies.py. What is not named here is refused by its name.

Clients always send some parameters that mean nothing here: `Ignored` has them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _whole(value: Any) -> Any:
    """JSON does not tell 1.0 from 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _never(value: bool) -> bool:
    if value:
        raise PydanticCustomError("never", "Input should be false")
    return value


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1)]
WHOLE = BeforeValidator(_whole)
Never = Annotated[bool, Field(json_schema_extra={"const": False}), AfterValidator(_never)]
Id = Annotated[int, Field(ge=0, lt=1 << 31), WHOLE]
Ids = Annotated[list[Id], Field(min_length=1)]
EXAMPLE = "my-model"
TRUE, NONE = {"const": True}, {"const": 0}


class Shape(BaseModel):
    """No unknown names, no numbers in quotes, no infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Asked(Shape):
    model: str = Field(description="A name that /v1/models lists.", examples=[EXAMPLE])
    mask: list[Text] | None = Field(
        None, description="Kinds of personal data that are masked, in addition to the server's own policy."
    )


class Ignored(Shape):
    """Parameters that OpenAI's clients send and that have no meaning here."""

    user: str | None = Field(None, description="Ignored.")
    store: bool | None = Field(None, description="Ignored.")
    metadata: dict[str, str] | None = Field(None, description="Ignored.")
    service_tier: str | None = Field(None, description="Ignored.")
    safety_identifier: str | None = Field(None, description="Ignored.")
    prompt_cache_key: str | None = Field(None, description="Ignored.")
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = Field(None, description="0 alone.")
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = Field(None, description="0 alone.")


def _both(**told: dict[str, Any]) -> dict[str, Any]:
    """Of requests that have all of these so."""
    return {"required": list(told), "properties": told}


def _never_with_mask(*told: dict[str, Any]) -> list[dict[str, Any]]:
    """Where these are asked for, nothing can be masked: they would tell it."""
    mask = {"mask": {"type": "array", "minItems": 1}}
    return [_both(**mask, **one) for one in told]


def _refused(*cases: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"not": {"anyOf": list(cases)}})


class StreamOptions(Shape):
    include_usage: bool = Field(False, description="A last chunk says how many tokens there were.")
    include_obfuscation: Never = Field(False, description="Chunks are never padded.")


class PlainFormat(Shape):
    type: Literal["text"]


class ObjectFormat(Shape):
    type: Literal["json_object"]


class NamedSchema(Shape):
    name: str = Field(examples=["answer"])
    schema_: dict[str, Any] = Field(alias="schema", examples=[{"type": "object"}])
    description: str | None = None
    strict: bool | None = Field(None, description="Ignored: an engine that can keep to a schema always does.")


class SchemaFormat(Shape):
    type: Literal["json_schema"]
    json_schema: NamedSchema


Format = Annotated[PlainFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class Sampled(Asked, Ignored):
    """What completions and chats have in common."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="1 when absent; 0: the likeliest token."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="1 when absent.")
    n: Annotated[int, Field(ge=1, le=128), WHOLE] | None = Field(None, description="Answers to each prompt.")
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = Field(
        None, description="Texts that end an answer and are not part of it."
    )
    seed: Annotated[int, WHOLE] | None = Field(
        None, description="The same seed gives the same answer, where nothing else has changed."
    )
    stream: bool | None = Field(None, description="Answer piece by piece, by server-sent events.")
    stream_options: StreamOptions | None = None
    response_format: Format | None = Field(None, description="Where the engine can keep to a JSON schema.")


class CompletionRequest(Sampled):
    model_config = _refused(
        *_never_with_mask({"logprobs": {"type": "integer"}}, {"echo": TRUE}),
        _both(echo=TRUE) | {"not": _both(max_tokens=NONE)},
        _both(max_tokens=NONE) | {"not": _both(echo=TRUE)},
        _both(echo=TRUE, stream=TRUE), _both(echo=TRUE, n={"type": "integer", "minimum": 2}),
    )  # fmt: skip

    prompt: str | Texts | Ids | Annotated[list[Ids], Field(min_length=1)] = Field(
        description="A text, texts, token ids, or lists of them.", examples=["Once upon a time"]
    )
    max_tokens: Annotated[int, Field(ge=0), WHOLE] | None = Field(
        None, description="16 when absent; 0 with echo alone."
    )
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = Field(
        None, description="Tell each token's log-probability, and those of so many alternatives."
    )
    echo: bool | None = Field(
        None,
        description="Answer with the prompt and, by logprobs, how likely its tokens are; max_tokens is 0.",
    )
    suffix: None = Field(None, description="Text cannot be put before another.")
    best_of: Annotated[int, Field(ge=1, le=1), WHOLE] | None = Field(None, description="1 alone.")


class Part(Shape):
    type: Literal["text"]
    text: str


class Message(Shape):
    """Also what an answer's message looks like when a client sends it back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)] = Field(examples=["Hello!"])
    name: str | None = Field(None, description="Ignored, unless the model's chat template reads it.")
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class ChatRequest(Sampled):
    model_config = _refused(
        *_never_with_mask({"logprobs": TRUE}, {"top_logprobs": {"type": "integer", "minimum": 1}})
    )

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1), WHOLE] | None = Field(
        None, description="As many as fit when absent."
    )
    max_tokens: Annotated[int, Field(ge=1), WHOLE] | None = Field(
        None, description="The older name of max_completion_tokens."
    )
    logprobs: bool | None = Field(None, description="Tell each token's log-probability.")
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = Field(
        None, description="Also those of so many alternatives; implies logprobs."
    )


class EmbeddingRequest(Asked):
    input: str | Texts = Field(examples=["some text"])
    encoding_format: Literal["float", "base64"] | None = Field(None, description="float when absent.")
    user: str | None = Field(None, description="Ignored.")


class TextsRequest(Asked):
    input: str | Texts = Field(examples=["some text"])


class TokenizeRequest(Shape):
    model: str = Field(examples=[EXAMPLE])
    prompt: str = Field(examples=["some text"])


class DetokenizeRequest(Shape):
    model: str = Field(examples=[EXAMPLE])
    tokens: list[Id] = Field(examples=[[104, 105]])
