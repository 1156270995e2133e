"""/v1/embeddings, /v1/classify and /v1/tag: what a model says of texts."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from isoflop.serve.answering import Answering, answered
from isoflop.serve.calls import Call
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.masked import asked_of, masker_of
from isoflop.serve.protocol import Classifies, Embeds, Label, Span, Tags
from isoflop.serve.routes import answered_by, check_texts, documented, held
from isoflop.serve.schemas import Classes, EmbeddingRequest, Embeddings, TaggedTexts, TextsRequest

router = APIRouter(tags=["texts"])


@router.post("/v1/embeddings", response_model=None, responses=documented(Embeddings))
async def embed(asked: EmbeddingRequest, request: Request) -> Answering:
    """A vector of each text."""
    gateway, _ = held(request)

    def answer(call: Call, model: Model, engine: Embeds) -> Answering:
        texts = _texts(gateway, call, asked)
        call.compared = False  # numbers of two models are never the same

        async def made() -> Response:
            vectors, tokens = await engine.embed(await texts())
            data = [
                {"object": "embedding", "index": i, "embedding": _written(vector, asked.encoding_format)}
                for i, vector in enumerate(vectors)
            ]
            return _listed(call, model.name, data, tokens)

        return answered(call, gateway.settings.seconds, made)

    return answered_by(request, asked.model, Embeds, answer)


@router.post("/v1/classify", response_model=None, responses=documented(Classes))
async def classify(asked: TextsRequest, request: Request) -> Answering:
    """The labels of each text, the likeliest first."""
    gateway, _ = held(request)

    def answer(call: Call, model: Model, engine: Classifies) -> Answering:
        texts = _texts(gateway, call, asked)

        async def made() -> Response:
            found: list[list[Label]]
            found, tokens = await engine.classify(await texts())
            data = [
                {"index": i, "label": labels[0].label, "labels": [label._asdict() for label in labels]}
                for i, labels in enumerate(found)
            ]
            _keep(call, [labels[0].label for labels in found])
            return _listed(call, model.name, data, tokens)

        return answered(call, gateway.settings.seconds, made)

    return answered_by(request, asked.model, Classifies, answer)


@router.post("/v1/tag", response_model=None, responses=documented(TaggedTexts))
async def tag(asked: TextsRequest, request: Request) -> Answering:
    """The tagged parts of each text."""
    gateway, _ = held(request)

    def answer(call: Call, model: Model, engine: Tags) -> Answering:
        texts = _texts(gateway, call, asked)

        async def made() -> Response:
            found: list[list[Span]]
            read = await texts()
            found, tokens = await engine.tag(read)
            data = [
                {"index": i, "text": text, "spans": [
                    {**span._asdict(), "text": text[span.start : span.end]} for span in spans
                ]}
                for i, (text, spans) in enumerate(zip(read, found, strict=True))
            ]  # fmt: skip
            _keep(call, map(str, found))
            return _listed(call, model.name, data, tokens)

        return answered(call, gateway.settings.seconds, made)

    return answered_by(request, asked.model, Tags, answer)


def _texts(
    gateway: Gateway, call: Call, asked: EmbeddingRequest | TextsRequest
) -> Callable[[], Awaitable[list[str]]]:
    """Gives the texts of a request as the engine may see them."""
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    check_texts(gateway.settings, len(texts), "input")
    masker = masker_of(gateway, asked.mask)

    async def seen() -> list[str]:
        return [await asked_of(gateway, call, masker, text) for text in texts]

    return seen


def _keep(call: Call, said: Iterable[str]) -> None:
    """What is said of each text, to be compared with what a shadow says."""
    if call.compared:
        call.answered = dict(enumerate(said))


def _listed(call: Call, model: str, data: list[dict[str, Any]], tokens: int) -> Response:
    call.prompt_tokens = tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": model, "usage": usage})


def _written(vector: Sequence[float], form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return list(vector)
