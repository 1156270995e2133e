"""/v1/models: what is served, and what is known of it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from isoflop.serve.gateway import Model
from isoflop.serve.replies import Models, ModelTold
from isoflop.serve.routes import documented, held

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=None, responses=documented(Models))
async def models(request: Request) -> Response:
    """All models, with what the ledger knows of them."""
    gateway, _ = held(request)
    return JSONResponse({"object": "list", "data": [_told(model) for model in gateway.models.values()]})


@router.get("/v1/models/{name:path}", response_model=None, responses=documented(ModelTold))
async def model(name: str, request: Request) -> Response:
    """One of them."""
    gateway, _ = held(request)
    return JSONResponse(_told(gateway.named(name)))


def _told(model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.made,
        "owned_by": "isoflop",
        "engine": model.engine.name,
        "context": model.engine.context,
        "hash": model.hash,
        "bytes": model.bytes,
        "bits_per_byte": model.bits_per_byte,
    }
