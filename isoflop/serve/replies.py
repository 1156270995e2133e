"""Answers in OpenAI's shape, as the server's document describes them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isoflop.serve.schemas import Shape


class Cached(Shape):
    cached_tokens: int


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Cached


class InputUsage(Shape):
    prompt_tokens: int
    total_tokens: int


class CompletionLogprobs(Shape):
    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="null: of a prompt's first token.")
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Shape):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(Shape):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Alternative(Shape):
    token: str
    logprob: float
    bytes: list[int]


class ToldToken(Alternative):
    top_logprobs: list[Alternative]


class ChatLogprobs(Shape):
    content: list[ToldToken]
    refusal: None


class Said(Shape):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Shape):
    index: int
    message: Said
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Shape):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Embedding(Shape):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Numbers, or their little-endian float32 in base64.")


class Embeddings(Shape):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: InputUsage


class LabelTold(Shape):
    label: str
    probability: float


class Classified(Shape):
    index: int
    label: str = Field(description="The likeliest.")
    labels: list[LabelTold] = Field(description="All of them, the likeliest first.")


class Classes(Shape):
    object: Literal["list"]
    data: list[Classified]
    model: str
    usage: InputUsage


class SpanTold(Shape):
    tag: str
    start: int = Field(description="Characters before it.")
    end: int
    text: str


class Tagged(Shape):
    index: int
    text: str = Field(description="What the spans are of: the input, masked where that was asked.")
    spans: list[SpanTold]


class TaggedTexts(Shape):
    object: Literal["list"]
    data: list[Tagged]
    model: str
    usage: InputUsage


class SoundUsage(Shape):
    type: Literal["tokens"]
    input_tokens: int = Field(description="50 for each second of the sound.")
    output_tokens: int
    total_tokens: int


class Transcription(Shape):
    text: str
    usage: SoundUsage


class VerboseTranscription(Shape):
    task: Literal["transcribe"]
    language: str | None
    duration: float
    text: str


class Tokens(Shape):
    count: int
    max_model_len: int
    tokens: list[int]


class Detokenized(Shape):
    prompt: str


class ModelTold(Shape):
    """A model, with what the ledger knows of it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    engine: str
    context: int
    hash: str
    bytes: int | None
    bits_per_byte: float | None


class Models(Shape):
    object: Literal["list"]
    data: list[ModelTold]


class ArtifactTold(Shape):
    """What an engine has opened."""

    path: str
    hash: str
    engine: str
    bytes: int | None
    bits_per_byte: float | None


class BesideTold(ArtifactTold):
    """A canary or a shadow."""

    share: float


class NameTold(Shape):
    """What stands behind one name on this server."""

    name: str
    version: int
    state: Literal["serving", "opening", "failed"]
    why: str
    main: ArtifactTold
    canary: BesideTold | None
    shadow: BesideTold | None


class Deployed(Shape):
    models: list[NameTold]


class Health(Shape):
    status: Literal["live", "ready"]


class Wrong(Shape):
    message: str
    type: str
    param: str | None
    code: str | None


class Failure(Shape):
    error: Wrong
