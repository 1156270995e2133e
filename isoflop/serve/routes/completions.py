"""/v1/completions: a text goes on."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from isoflop.serve.answering import Answering
from isoflop.serve.forms import CompletionForm
from isoflop.serve.protocol import RequestError
from isoflop.serve.routes import documented
from isoflop.serve.routes.asking import Prompt, asking
from isoflop.serve.routes.echoing import echoed
from isoflop.serve.schemas import Completion, CompletionRequest

MAX_TOKENS = 16  # as OpenAI, where a request does not say

router = APIRouter(tags=["text"])
EVENTS = "A text_completion with some more of the text, in JSON; the last is [DONE]."


@router.post("/v1/completions", response_model=None, responses=documented(Completion, EVENTS))
async def complete(asked: CompletionRequest, request: Request) -> Answering:
    """Go on with a text, or with several."""
    answering = asking(request, asked)
    given = _listed(asked.prompt)
    if asked.echo:
        return echoed(answering, asked, given)
    if asked.max_tokens == 0:
        raise RequestError("max_tokens is 0, which goes with echo alone", param="max_tokens")

    async def prompts() -> list[Prompt]:
        return [
            await (answering.masked(each) if isinstance(each, str) else answering.masked_ids(each))
            for each in given
        ]

    most = asked.max_tokens or MAX_TOKENS
    return answering.answer(prompts, CompletionForm, texts=len(given), most=most, logprobs=asked.logprobs)


def _listed(prompt: Any) -> list[str | list[int]]:
    """The prompts, whichever of its four forms was used."""
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
