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
from isoflop.serve.masked import asked_of, masker_of
from isoflop.serve.protocol import Classifies, Embeds, Tags
from isoflop.serve.routes import check_texts, documented, held
from isoflop.serve.schemas import Classes, EmbeddingRequest, Embeddings, TaggedTexts, TextsRequest

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

    return _listed(asked, request, Classifies, told)


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

    return _listed(asked, request, Tags, told)


def _listed(
    asked: EmbeddingRequest | TextsRequest, request: Request, ability: Any,
    told: Callable[[Any, list[str]], Awaitable[Told]],
) -> Answering:  # fmt: skip
    """The answer with what is `told`, by an engine of that ability, of the texts as it may see them."""
    gateway, call = held(request)
    model, engine = gateway.model(call, asked.model, ability)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    check_texts(gateway.settings, len(texts), "input")
    masker = masker_of(gateway, asked.mask)

    async def made() -> Response:
        data, tokens = await told(engine, [await asked_of(gateway, call, masker, text) for text in texts])
        call.prompt_tokens = tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": model.name, "usage": usage})

    return answered(call, gateway.settings.seconds, made)


def _written(vector: Sequence[float], form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return list(vector)
