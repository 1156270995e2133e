"""/v1/embeddings, /v1/classify and /v1/tag: what a model says of texts."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from isoflop.serve.answering import Answering, answered
from isoflop.serve.calls import Call
from isoflop.serve.gateway import Model
from isoflop.serve.masked import asked_of, masker_of
from isoflop.serve.protocol import Classifies, Embeds, Tags
from isoflop.serve.replies import Classes, Embeddings, TaggedTexts
from isoflop.serve.routes import answered_by, check_texts, documented, held
from isoflop.serve.schemas import EmbeddingRequest, TextsRequest

Told = tuple[list[dict[str, Any]], int]  # what is said of each text, and the tokens of all

router = APIRouter(tags=["texts"])


@router.post("/v1/embeddings", response_model=None, responses=documented(Embeddings))
async def embed(asked: EmbeddingRequest, request: Request) -> Answering:
    """A vector of each text."""

    async def told(engine: Embeds, texts: list[str]) -> Told:
        vectors, tokens = await engine.embed(texts)
        written = [_written(vector, asked.encoding_format) for vector in vectors]
        return [
            {"object": "embedding", "index": i, "embedding": each} for i, each in enumerate(written)
        ], tokens

    return _listed(asked, request, Embeds, told)


@router.post("/v1/classify", response_model=None, responses=documented(Classes))
async def classify(asked: TextsRequest, request: Request) -> Answering:
    """The labels of each text, the likeliest first."""

    async def told(engine: Classifies, texts: list[str]) -> Told:
        found, tokens = await engine.classify(texts)
        return [
            {"index": i, "label": labels[0].label, "labels": [label._asdict() for label in labels]}
            for i, labels in enumerate(found)
        ], tokens

    return _listed(asked, request, Classifies, told, lambda each: str(each["label"]))


@router.post("/v1/tag", response_model=None, responses=documented(TaggedTexts))
async def tag(asked: TextsRequest, request: Request) -> Answering:
    """The tagged parts of each text."""

    async def told(engine: Tags, texts: list[str]) -> Told:
        found, tokens = await engine.tag(texts)
        return [
            {"index": i, "text": text, "spans": [
                {**span._asdict(), "text": text[span.start : span.end]} for span in spans
            ]}
            for i, (text, spans) in enumerate(zip(texts, found, strict=True))
        ], tokens  # fmt: skip

    return _listed(asked, request, Tags, told, lambda each: str(each["spans"]))


def _listed(
    asked: EmbeddingRequest | TextsRequest, request: Request, ability: Any,
    told: Callable[[Any, list[str]], Awaitable[Told]], alike: Callable[[dict[str, Any]], str] | None = None,
) -> Answering:  # fmt: skip
    """The answer with what is `told`, by an engine of that ability, of the texts as it may see them.

    What a shadow says of a text is the same where `alike` is; without it two models never say the same.
    """
    gateway, _ = held(request)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input

    def answer(call: Call, model: Model, engine: Any) -> Answering:
        check_texts(gateway.settings, len(texts), "input")
        masker = masker_of(gateway, asked.mask)
        call.compared = call.compared and alike is not None

        async def made() -> Response:
            seen = [await asked_of(gateway, call, masker, text) for text in texts]
            data, call.prompt_tokens = await told(engine, seen)
            if call.compared and alike:
                call.answered = {i: alike(each) for i, each in enumerate(data)}
            usage = {"prompt_tokens": call.prompt_tokens, "total_tokens": call.prompt_tokens}
            return JSONResponse({"object": "list", "data": data, "model": model.name, "usage": usage})

        return answered(call, gateway.settings.seconds, made)

    return answered_by(request, asked.model, ability, answer)


def _written(vector: Sequence[float], form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return list(vector)
