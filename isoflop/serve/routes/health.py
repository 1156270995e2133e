"""/health/live and /health/ready: whether to start this server again, and whether to send it requests."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from isoflop.serve.protocol import Engine, RequestError
from isoflop.serve.replies import Health
from isoflop.serve.routes import documented, held

READY_SECONDS = 5.0  # in which an engine says that it is alive

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live", response_model=None, responses=documented(Health))
async def live() -> Response:
    """The server answers."""
    return JSONResponse({"status": "live"})


@router.get("/ready", response_model=None, responses=documented(Health))
async def ready(request: Request) -> Response:
    """Every model answers."""
    gateway, _ = held(request)
    models = list(gateway.models.values())
    alive = await asyncio.gather(*(_alive(model.engine) for model in models))
    dead = [model.name for model, lives in zip(models, alive, strict=True) if not lives]
    if dead:
        raise RequestError(f"no answer from {', '.join(dead)}", status=503, code="not_ready")
    return JSONResponse({"status": "ready"})


async def _alive(engine: Engine) -> bool:
    try:
        async with asyncio.timeout(READY_SECONDS):
            return await engine.alive()
    except TimeoutError:
        return False
