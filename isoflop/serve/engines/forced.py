"""How likely a given text is to a llama.cpp server, which tells that only of tokens that it writes itself.

So it is made to write the text, one token a request: a bias forces the token, and the probability that is
told is from before the bias. What came before is in the server's cache, so that each computes one token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoflop.serve.engines.http import Http, tokens_of
from isoflop.serve.protocol import EngineError, Token

FORCING = 1e6  # nats, more than logits differ by
PLAIN = "a"  # a text whose tokens are whole characters


async def forced(http: Http, ids: Sequence[int], alternatives: int, vocabulary: int) -> list[Token]:
    """The tokens of a text but its first. Of a token that is no whole character the server tells nothing:
    there it is made to write a plain one, and to tell the probabilities of the whole vocabulary.
    """
    plain = (await http.post("/tokenize", {"content": PLAIN}))["tokens"][0]
    found = []
    for place in range(1, len(ids)):
        told = await _told(http, ids[:place], ids[place], max(1, alternatives))
        if told is None:
            told = await _told(http, ids[:place], plain, vocabulary)
        if told is None:
            raise EngineError(f"{http.name} does not tell probabilities")
        found.append(_token(told, ids[place], alternatives))
    return found


async def _told(http: Http, prompt: Sequence[int], id: int, count: int) -> Mapping[str, Any] | None:
    body = {
        "prompt": list(prompt), "n_predict": 1, "n_probs": count, "logit_bias": [[id, FORCING]],
        "temperature": 0, "samplers": [],
    }  # fmt: skip
    told = (await http.post("/completion", body)).get("completion_probabilities")
    return told[0] if told else None


def _token(told: Mapping[str, Any], id: int, alternatives: int) -> Token:
    """The one with this id: what was written, or among the others."""
    this = next(one for one in (told, *told["top_logprobs"]) if one["id"] == id)
    (found,) = tokens_of([{**this, "top_logprobs": told["top_logprobs"]}], alternatives)
    return found
