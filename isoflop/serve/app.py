"""The application: the guard outside, the routes inside, every error in OpenAI's shape."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isoflop import __version__
from isoflop.serve.calls import Call, Observer
from isoflop.serve.errors import add_error_handlers
from isoflop.serve.gateway import Gateway
from isoflop.serve.routes import audio, chat, completions, health, models, texts, tokens

BEARER = {"key": {"type": "http", "scheme": "bearer"}}


def build_app(gateway: Gateway) -> FastAPI:
    """The server of a gateway whose engines have been started."""
    app = FastAPI(
        title="isoflop",
        version=__version__,
        description="Language models of this machine, asked as OpenAI's are.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.gateway = gateway
    for part in (models, completions, chat, texts, audio, tokens, health):
        app.include_router(part.router)
    add_error_handlers(app)
    app.add_middleware(Calls, observers=gateway.observers)
    # The guard is added here, last and so outermost.
    return app


class Calls:
    """Makes the call of each request that came through no guard, and tells observers of it."""

    def __init__(self, app: ASGIApp, observers: Sequence[Observer]) -> None:
        self.app, self.observers = app, observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "call" in scope.setdefault("state", {}):
            await self.app(scope, receive, send)
            return
        call = scope["state"]["call"] = Call(scope["path"])

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
            await send(message)

        for observer in self.observers:
            observer.began(call)
        try:
            await self.app(scope, receive, noted)
        except Exception:
            call.status = call.status or 500
            raise
        finally:
            call.ended = time.monotonic()
            for observer in self.observers:
                observer.ended(call)
