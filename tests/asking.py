"""For tests of the gateway's routes: a gateway and its client in this process, and what answers look like."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
from serving import Echo, Witness

from isoflop.serve.app import build_app
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.settings import Settings

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class Lists:
    """Can only classify."""

    name, context, slots, started = "lists", 8, 1, False
    classify = Echo.classify
    start, alive, close = Echo.start, Echo.alive, Echo.close


class Asked:
    """A gateway and its client."""

    def __init__(self, engine: Any = None, **given: Any) -> None:
        self.engine = engine or Echo()
        self.witness = Witness()
        template = given.pop("template", None)
        settings = Settings(open=True, **given.pop("settings", {}))
        models = {"my-model": Model("my-model", self.engine, "abc", 1.5, 99, template)}
        models["labels"] = Model("labels", Lists())
        self.gateway = Gateway(models, settings, None, [self.witness], **given)

    def __call__(self, path: str, document: Any = None, **sent: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(build_app(self.gateway), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                if document is None and not sent:
                    return await client.get(path)
                return await client.post(path, json=document, **sent)

        answer = asyncio.run(call())
        assert self.witness.heard == self.witness.ends  # each once
        if self.witness.ends:  # not of /health/live
            assert self.witness.ends[-1].status == answer.status_code
        return answer

    @property
    def call(self) -> Any:
        return self.witness.ends[-1]


def events(answer: httpx.Response) -> list[Any]:
    """The documents of a stream, which ends as it should."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    *found, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(each.removeprefix("data: ")) for each in found]


def refused(
    answer: httpx.Response, status: int, param: str | None, *words: str, code: str | None = None
) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert code is None or error["code"] == code
    for word in words:
        assert word in error["message"]
