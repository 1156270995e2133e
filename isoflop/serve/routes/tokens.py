"""/tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from isoflop.serve.answering import Answering, answered
from isoflop.serve.masked import asked_of, masked, masker_of
from isoflop.serve.protocol import Tokenizes
from isoflop.serve.replies import Detokenized, Tokens
from isoflop.serve.routes import documented, held
from isoflop.serve.schemas import DetokenizeRequest, TokenizeRequest

router = APIRouter(tags=["tokens"])


@router.post("/tokenize", response_model=None, responses=documented(Tokens))
async def tokenize(asked: TokenizeRequest, request: Request) -> Answering:
    """The token ids of a text, nothing added; of what is left of it where the server masks."""
    gateway, call = held(request)
    model, engine = gateway.model(call, asked.model, Tokenizes)
    masker = masker_of(gateway)

    async def made() -> Response:
        ids = await engine.tokenize(await asked_of(gateway, call, masker, asked.prompt))
        return JSONResponse({"count": len(ids), "max_model_len": model.engine.context, "tokens": ids})

    return answered(call, gateway.settings.seconds, made)


@router.post("/detokenize", response_model=None, responses=documented(Detokenized))
async def detokenize(asked: DetokenizeRequest, request: Request) -> Answering:
    """The text of token ids."""
    gateway, call = held(request)
    _, engine = gateway.model(call, asked.model, Tokenizes)
    masker = masker_of(gateway)

    async def made() -> Response:
        text = await masked(call, masker, await engine.detokenize(asked.tokens))
        return JSONResponse({"prompt": text})

    return answered(call, gateway.settings.seconds, made)
