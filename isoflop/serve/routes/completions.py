"""/v1/completions: a text goes on."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from isoflop.serve.answering import Answering
from isoflop.serve.forms import CompletionForm
from isoflop.serve.protocol import RequestError, Scores, Writes
from isoflop.serve.replies import Completion
from isoflop.serve.routes import documented
from isoflop.serve.routes.asking import Asking, Prompt, asked_of_model
from isoflop.serve.routes.echoing import echoed
from isoflop.serve.schemas import CompletionRequest

MAX_TOKENS = 16  # as OpenAI, where a request does not say

router = APIRouter(tags=["text"])
EVENTS = "A text_completion with some more of the text, in JSON; the last is [DONE]."


@router.post("/v1/completions", response_model=None, responses=documented(Completion, EVENTS))
async def complete(asked: CompletionRequest, request: Request) -> Answering:
    """Go on with a text, or with several."""
    given, most = _listed(asked.prompt), asked.max_tokens or MAX_TOKENS
    if asked.max_tokens == 0 and not asked.echo:
        raise RequestError("max_tokens is 0, which goes with echo alone", param="max_tokens")

    def answer(answering: Asking) -> Answering:
        if asked.echo:
            return echoed(answering, asked, given)
        answering.trace([each if isinstance(each, str) else None for each in given])

        async def prompts() -> list[Prompt]:
            return [
                await (answering.masked(each) if isinstance(each, str) else answering.masked_ids(each))
                for each in given
            ]

        return answering.answer(prompts, CompletionForm, texts=len(given), most=most, logprobs=asked.logprobs)

    return asked_of_model(request, asked, answer, Scores if asked.echo else Writes)


def _listed(prompt: Any) -> list[str | list[int]]:
    """The prompts, whichever of its four forms was used."""
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
