"""The paths of the server, one file a kind of question."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from isoflop.serve.answering import Answering
from isoflop.serve.calls import MAIN, Call, call_of
from isoflop.serve.gateway import Gateway
from isoflop.serve.protocol import RequestError
from isoflop.serve.replies import Failure
from isoflop.serve.settings import Settings
from isoflop.serve.shadowing import Made
from isoflop.serve.sse import TYPE

TEXTS = 16  # of one request, times `Settings.answers`


def held(request: Request) -> tuple[Gateway, Call]:
    """What the server holds, and the call of a request."""
    gateway: Gateway = request.app.state.gateway
    return gateway, call_of(request.scope)


def answered_by(request: Request, name: str, ability: Any, made: Made) -> Answering:
    """What `made` says is the answer of the model of that name, and maybe of its shadow.

    Raises RequestError where there is none that has the ability, and what `made` raises.
    """
    gateway, call = held(request)
    model, engine = gateway.model(call, name, ability)
    shadow = gateway.shadows.get(name)
    if shadow is None or call.role != MAIN or gateway.draw() >= shadow.share:
        return made(call, model, engine)
    call.compared = True
    answer = made(call, model, engine)

    def copy() -> None:
        if gateway.shadows.get(name) is shadow:
            gateway.shadowing.copy(shadow, call, made)

    answer.after = copy
    return answer


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
