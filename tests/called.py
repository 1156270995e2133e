"""Calls as the server would have made them, and the models that they ask."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from serving import Echo

from isoflop.serve.calls import Call
from isoflop.serve.feedback import Feedbacks
from isoflop.serve.keys import Key
from isoflop.serve.protocol import Engine
from isoflop.serve.traces import Prompt

KEY = Key(id="k1", name="ada", salt="", hash="")


def made(*, first: float | None = 0.03, seconds: float = 0.5, **more: Any) -> Call:
    """A call that answered eleven tokens, `first` seconds after it began, each a hundredth later."""
    began = more.pop("began", time.monotonic())
    came = None if first is None else began + first
    call = Call(
        path="/v1/completions", route="/v1/completions", model="tiny", model_hash="abc", engine="echo",
        prompt_tokens=5, completion_tokens=11, status=200, finish="stop", key=KEY, queued=0.01,
        began=began, first=came, last=None if came is None else came + 0.1, ended=began + seconds,
    )  # fmt: skip
    return replace(call, **more)


def answer(feedbacks: Feedbacks, *ids: str, key: Key | None = None) -> None:
    """Calls with these ids have been answered; without a key the server was open."""
    for id in ids:
        feedbacks.ended(made(id=id, key=key))


def conversed(feedbacks: Feedbacks, id: str, prompt: Prompt, *answers: str, key: Key | None = None) -> None:
    """A call with this id has been asked that, and answered so."""
    call = made(id=id, key=key)
    feedbacks.began(call)
    assert call.traces
    call.traces.asked([prompt], len(answers))
    for number, text in enumerate(answers):
        for piece in text:
            call.traces.said(number, piece)
    feedbacks.ended(call)


@dataclass(frozen=True)
class Model:
    name: str = "tiny"
    hash: str = "abc"
    engine: Engine = field(default_factory=Echo)
    bits_per_byte: float | None = 1.25
    bytes: int | None = 4096
