"""How likely given texts are: the prompts of /v1/completions, answered back with their log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from isoflop.serve.answering import Answering, answered
from isoflop.serve.forms import CompletionForm
from isoflop.serve.masked import asked_of
from isoflop.serve.protocol import LENGTH, RequestError
from isoflop.serve.routes import check_texts
from isoflop.serve.routes.asking import Asking
from isoflop.serve.schemas import CompletionRequest


def echoed(answering: Asking, asked: CompletionRequest, given: Sequence[str | list[int]]) -> Answering:
    """The prompts, with nothing written after them. A text is read as its tokens alone, nothing before them.

    Raises RequestError for what does not go with it.
    """
    gateway, call, settings = answering.gateway, answering.call, answering.gateway.settings
    _check(asked, masked=answering.masker is not None)
    check_texts(settings, len(given), "prompt")
    engine: Any = answering.engine  # which Scores
    call.scored, call.compared = True, False  # numbers of two models are never the same
    form = CompletionForm(asked.model, usage=False)

    async def choice(index: int, prompt: str | list[int]) -> dict[str, Any]:
        ids = await engine.tokenize(prompt) if isinstance(prompt, str) else prompt
        text = prompt if isinstance(prompt, str) else await engine.detokenize(ids)
        await asked_of(gateway, call, None, text)
        call.prompt_tokens += len(ids)
        if asked.logprobs is None:
            return form.whole(index, text, None, LENGTH)
        if not ids:
            return form.whole(index, text, [], LENGTH)
        tokens = await engine.score(ids, asked.logprobs)
        return form.echoed(index, text, await engine.detokenize(ids[:1]), tokens)

    async def made() -> Response:
        await answering.check_sizes([p if isinstance(p, str) else tuple(p) for p in given], "prompt")
        choices = await asyncio.gather(*(choice(i, prompt) for i, prompt in enumerate(given)))
        size = call.prompt_tokens
        usage = {"prompt_tokens": size, "completion_tokens": 0, "total_tokens": size}
        return JSONResponse(form.document(choices, usage | {"prompt_tokens_details": {"cached_tokens": 0}}))

    return answered(call, settings.seconds, made)


def _check(asked: CompletionRequest, *, masked: bool) -> None:
    if asked.max_tokens != 0:
        raise RequestError("echo answers with the prompt alone: max_tokens has to be 0", param="max_tokens")
    if asked.stream:
        raise RequestError("what is echoed is not streamed", param="stream")
    if (asked.n or 1) > 1:
        raise RequestError("what is echoed is answered once", param="n")
    if masked:
        raise RequestError("echo tells what is masked: leave it out", param="echo")
