"""The paths of the server, one file a kind of question."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from isoflop.serve.calls import Call, call_of
from isoflop.serve.gateway import Gateway
from isoflop.serve.protocol import RequestError
from isoflop.serve.schemas import Failure
from isoflop.serve.settings import Settings
from isoflop.serve.sse import TYPE

TEXTS = 16  # of one request, times `Settings.answers`


def held(request: Request) -> tuple[Gateway, Call]:
    """What the server holds, and the call of a request."""
    gateway: Gateway = request.app.state.gateway
    return gateway, call_of(request.scope)


def documented(answer: Any, streamed: str = "") -> dict[int | str, dict[str, Any]]:
    """The answers of a route for its documentation; `streamed` says what its events' data are."""
    good: dict[str, Any] = {"model": answer, "description": "The answer."}
    if streamed:
        data = {"type": "string", "description": streamed}
        good["content"] = {
            TYPE: {"itemSchema": {"type": "object", "required": ["data"], "properties": {"data": data}}}
        }
    return {
        200: good,
        "4XX": {"model": Failure, "description": "The request cannot be answered, by its own fault."},
        "5XX": {"model": Failure, "description": "The server failed; the request may be sent again."},
    }


def check_texts(settings: Settings, texts: int, param: str) -> None:
    """Raises RequestError where a request has more texts than this server takes."""
    if texts > TEXTS * settings.answers:
        raise RequestError(
            f"{param} asks for {texts} texts, and this server takes {TEXTS * settings.answers} at once",
            param=param,
        )
