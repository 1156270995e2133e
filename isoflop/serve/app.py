"""The application: the guard outside, the routes inside, every error in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI

from isoflop import __version__
from isoflop.serve.errors import add_error_handlers
from isoflop.serve.gateway import Gateway
from isoflop.serve.guard import Guard
from isoflop.serve.routes import audio, chat, completions, deployment, health, models, texts, tokens


def build_app(gateway: Gateway, more: Sequence[APIRouter] = ()) -> FastAPI:
    """The server of a gateway, with further routes that are guarded alike.

    Raises ServeError where it would be open to others than this machine.
    """
    app = FastAPI(
        title="isoflop",
        version=__version__,
        description="Language models of this machine, asked as OpenAI's are.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.gateway = gateway
    for part in (models, completions, chat, texts, audio, tokens, health, deployment):
        app.include_router(part.router)
    for router in more:
        app.include_router(router)
    add_error_handlers(app)
    app.add_middleware(
        Guard,
        settings=gateway.settings,
        keys=gateway.keys,
        observers=[*gateway.observers, gateway.in_use],
    )  # last, and so outermost
    app.middleware_stack = (
        app.build_middleware_stack()
    )  # now, not with the first request: the guard may refuse
    return app
