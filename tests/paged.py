"""The page with a server behind it that speaks enough of OpenAI's interface, in a thread of this process."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from serving import Echo

from isoflop.serve.pages import page_router
from isoflop.serve.protocol import Ending, Generation, Piece, Token

KEY = "isk_right"
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
PROBABILITIES = (0.97, 0.7, 0.3, 0.1, 0.01)


class Doubting(Echo):
    """Says a word of each probability in turn; `broken` ends its streams too early, as a crash would."""

    broken, said = False, 0

    async def generate(self, asked: Generation) -> AsyncIterator[Piece | Ending]:
        number = 0
        async for part in super().generate(asked):
            if isinstance(part, Piece):
                logprob = math.log(PROBABILITIES[number % 5])
                others = ((part.text, logprob), (" something", math.log(0.02)), ("\n", math.log(0.0001)))
                part = Piece(part.text, 1, part.tokens and (Token(part.text, logprob, others),))
                number += 1
                self.said += 1
                if self.broken and number == 3:
                    return
            yield part


class Server:
    """The page's server at `url`; `feedback` is what was posted, `asked` the bodies of the questions."""

    def __init__(self, engine: Doubting) -> None:
        self.engine, self.feedback, self.asked = engine, [], []  # type: ignore[var-annotated]
        self.refusal: JSONResponse | None = None  # in place of answers
        self.edited = False  # whether feedback has other texts than were answered
        config = uvicorn.Config(self._app(), port=0, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(page_router())

        @app.middleware("http")
        async def guard(request: Request, answer: Any) -> Response:
            sent = request.headers.get("authorization")
            if request.url.path.startswith("/v1/") and sent != f"Bearer {KEY}":
                return wrong(401, "the API key is not known")
            response: Response = await answer(request)
            response.headers["content-security-policy"] = POLICY
            response.headers["x-request-id"] = "req-7"
            return response

        @app.get("/v1/models")
        async def models() -> Any:
            told = {"id": "tiny", "engine": "echo", "bytes": 9_400_000, "bits_per_byte": 1.2345}
            return {"object": "list", "data": [told, {**told, "id": "other", "bits_per_byte": None}]}

        @app.post("/v1/feedback")
        async def feedback(request: Request) -> Any:
            self.feedback.append(await request.json())
            return {"edited": self.edited}

        @app.post("/v1/chat/completions")
        @app.post("/v1/completions")
        async def answers(request: Request) -> Response:
            body = await request.json()
            self.asked.append(body)
            if self.refusal is not None:
                return self.refusal
            return StreamingResponse(self._events(body), media_type="text/event-stream")

        return app

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        chat = "messages" in body
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        asked = Generation(prompt, body["max_tokens"], logprobs=5 if body.get("logprobs") else None)
        async for part in self.engine.generate(asked):
            match part:
                case Piece():
                    yield f"data: {json.dumps({'choices': [(_chat if chat else _text)(part)]})}\n\n"
                case Ending():
                    used = {"completion_tokens": part.completion_tokens}
                    yield f"data: {json.dumps({'choices': [], 'usage': used})}\n\n"
            await asyncio.sleep(0)
        if not self.engine.broken:
            yield "data: [DONE]\n\n"


def _chat(part: Piece) -> dict[str, Any]:
    content = [
        {
            "token": t.text,
            "logprob": t.logprob,
            "top_logprobs": [{"token": a, "logprob": p} for a, p in t.alternatives],
        }
        for t in part.tokens
    ]
    return {"delta": {"content": part.text}, "logprobs": {"content": content} if content else None}


def _text(part: Piece) -> dict[str, Any]:
    told = {
        "tokens": [t.text for t in part.tokens],
        "token_logprobs": [t.logprob for t in part.tokens],
        "top_logprobs": [dict(t.alternatives) for t in part.tokens],
    }
    return {"text": part.text, "logprobs": told if part.tokens else None}


def wrong(status: int, message: str, **more: str) -> JSONResponse:
    """An error in OpenAI's shape."""
    return JSONResponse({"error": {"message": message, **more}}, status_code=status)
