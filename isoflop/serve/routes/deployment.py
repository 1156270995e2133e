"""/admin/deployment: what this server runs now, and what it makes of what is deployed."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from isoflop.serve.gateway import Beside, Gateway, Model
from isoflop.serve.replies import Deployed
from isoflop.serve.routes import documented, held

router = APIRouter(tags=["operations"])


@router.get("/admin/deployment", response_model=None, responses=documented(Deployed))
async def deployment(request: Request) -> Response:
    """Of every name: the model, the canary and the shadow that run, and which deployment that is."""
    gateway, _ = held(request)
    return JSONResponse({"models": [_told(gateway, model) for model in gateway.models.values()]})


def _told(gateway: Gateway, model: Model) -> dict[str, Any]:
    standing = gateway.standing.get(model.name)
    return {
        "name": model.name,
        "version": standing.version if standing else 0,
        "state": standing.state if standing else "serving",
        "why": standing.why if standing else "",
        "main": _artifact(model),
        "canary": _beside(gateway.canaries.get(model.name)),
        "shadow": _beside(gateway.shadows.get(model.name)),
    }


def _artifact(model: Model) -> dict[str, Any]:
    return {
        "path": model.path, "hash": model.hash, "engine": model.engine.name, "bytes": model.bytes,
        "bits_per_byte": model.bits_per_byte,
    }  # fmt: skip


def _beside(beside: Beside | None) -> dict[str, Any] | None:
    return None if beside is None else {**_artifact(beside.model), "share": beside.share}
