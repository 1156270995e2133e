"""What masks, the audit log and the limits see of requests, whatever clients do to get around them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from asking import CHAT, COMPLETIONS, Asked, events, refused
from serving import Echo, MaskedText, Words

from isoflop.serve.chats import Template
from isoflop.serve.masking import Masker
from isoflop.serve.protocol import LENGTH, STOP, Ending, Generation, Piece

CARD = "4111 1111 1111 1111"


class Says(Echo):
    """The same whatever is asked, in pieces; without a reason it never ends."""

    def __init__(self, *pieces: str, reason: str = STOP) -> None:
        super().__init__()
        self.pieces, self.reason, self.asked = pieces, reason, list[Generation]()

    async def generate(self, asked: Generation) -> AsyncIterator[Piece | Ending]:
        self.asked.append(asked)
        try:
            for piece in self.pieces:
                await asyncio.sleep(0)
                yield Piece(piece, 1)
            if not self.reason:
                await asyncio.Event().wait()
            yield Ending(self.reason, 7, len(self.pieces))
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise


def text_of(asked: Asked, document: dict[str, Any], stream: bool) -> tuple[str, str]:
    """The only answer and why it ended."""
    answer = asked(COMPLETIONS, {"model": "my-model", "prompt": "x", "stream": stream} | document)
    assert answer.status_code == 200, answer.text
    choices = [c for chunk in (events(answer) if stream else [answer.json()]) for c in chunk["choices"]]
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]


def test_texts_are_kept_apart_for_the_audit_log() -> None:
    asked = Asked(settings={"audit_text": True})
    messages = [{"role": "system", "content": "this is 4"}, {"role": "user", "content": CARD}]
    asked(CHAT, {"model": "my-model", "messages": messages})
    assert asked.call.asked == ["this is 4", CARD]
    asked(COMPLETIONS, {"model": "my-model", "prompt": ["a b c", "d"], "n": 2})
    assert asked.call.asked == ["a b c", "d"]
    assert asked.call.answered == {0: "a b c", 1: "a b c", 2: "d", 3: "d"}
    asked(COMPLETIONS, {"model": "my-model", "prompt": [104, 105]})
    assert (asked.call.asked, asked.call.answered) == (["hi"], {0: "hi"})
    for path in ("/v1/embeddings", "/v1/classify", "/v1/tag"):
        asked(path, {"model": "my-model", "input": ["one", "two"]})
        assert asked.call.asked == ["one", "two"]
    asked("/tokenize", {"model": "my-model", "prompt": "one"})
    assert asked.call.asked == ["one"]
    asked("/v1/audio/transcriptions", files={"file": ("a.wav", b"abc")}, data={"model": "my-model"})
    assert asked.call.answered == {0: "3 bytes"}
    without = Asked()
    without(COMPLETIONS, {"model": "my-model", "prompt": "a b c"})
    assert without.call.completion_tokens == 3
    assert (without.call.asked, without.call.answered) == ([], {})


def test_names_in_chats_are_masked() -> None:
    template = Template("{% for m in messages %}{{ m.name }} {{ m.content }}{% endfor %}")
    engine = Says("well")
    asked = Asked(engine, masker=Words, settings={"mask": ("bob",)}, template=template)
    messages = [{"role": "user", "name": "bob", "content": "hi"}]
    assert asked(CHAT, {"model": "my-model", "messages": messages}).status_code == 200
    assert [each.prompt for each in engine.asked] == ["[BOB] hi"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("stop", "expected"), [(["Mon", "x"], "Write to [EMAIL] on "), (" to", "Write")])
def test_stops_end_an_answer_that_is_masked(stop: Any, expected: str, stream: bool) -> None:
    engine = Says("Write", " to bob", "@example", ".com on", " Monday ", reason="")
    asked = Asked(engine, masker=Masker, settings={"mask": ("email",), "seconds": 20})
    assert text_of(asked, {"stop": stop}, stream) == (expected, STOP)
    assert engine.cancelled == 1
    assert asked.call.prompt_tokens == 1  # as the tokenizer says
    assert 2 <= asked.call.completion_tokens <= 5


@pytest.mark.parametrize("stream", [False, True])
def test_stops_do_not_cut_what_is_to_be_masked(stream: bool) -> None:
    engine = Says("Write to bob", "@example", ".com")
    asked = Asked(engine, masker=Masker, settings={"mask": ("email",)})
    assert text_of(asked, {"stop": "@"}, stream) == ("Write to [EMAIL]", STOP)
    assert text_of(asked, {"stop": "["}, stream) == ("Write to ", STOP)
    assert asked.call.prompt_tokens == 7  # as the engine says
    assert text_of(asked, {}, stream)[0] == "Write to [EMAIL]"
    assert [each.stop for each in engine.asked] == [(), (), ()]
    # Where a stop may be found here, the engine tells what it writes as it goes.
    assert [each.whole for each in engine.asked] == [False, False, not stream]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_does_not_end_in_half_of_what_is_masked(stream: bool) -> None:
    settings = {"mask": ("card",)}
    for reason, expected in ((LENGTH, "Pay with "), (STOP, "Pay with 4111 1111 1111 1")):
        asked = Asked(
            Says("Pay with ", "4111 1111", " 1111 1", reason=reason), masker=Masker, settings=settings
        )
        assert text_of(asked, {}, stream) == (expected, reason)


def test_schemas_do_not_tell_what_is_masked() -> None:
    asked = Asked(Says("{}"), masker=Masker, settings={"mask": ("card",)})
    schemas: list[Any] = [
        {"enum": ["x", {"a": CARD}]},
        {"properties": {CARD: {}}},
        {"const": 4111111111111111},
    ]
    for wrong in schemas:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": wrong}}
        answer = asked(COMPLETIONS, {"model": "my-model", "prompt": "x", "response_format": form})
        refused(answer, 400, "response_format", "card", code="masked")
        assert "4111" not in answer.text
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    assert text_of(asked, {"response_format": form}, stream=False) == ("{}", STOP)


def test_the_servers_policy_holds_for_tokens_too() -> None:
    asked = Asked(masker=Words, settings={"mask": ("bob",)})
    ids = asked("/tokenize", {"model": "my-model", "prompt": "hi bob"}).json()["tokens"]
    assert "".join(map(chr, ids)) == "hi [BOB]"
    answer = asked("/detokenize", {"model": "my-model", "tokens": list(map(ord, "hi bob"))})
    assert answer.json() == {"prompt": "hi [BOB]"}


def test_long_texts_are_masked_beside_the_loop() -> None:
    threads: list[int] = []

    class Noting(Words):
        def mask(self, text: str) -> MaskedText:
            threads.append(threading.get_ident())
            return super().mask(text)

    asked = Asked(masker=Noting, settings={"mask": ("bob",)})
    own = threading.get_ident()
    asked("/v1/embeddings", {"model": "my-model", "input": "bob"})
    asked("/v1/embeddings", {"model": "my-model", "input": "bob " * 5000})
    assert [thread == own for thread in threads] == [True, False]
    assert asked.call.masked == {"bob": 5000}


class Stuck(Echo):
    """Its tokenizer does not answer for longer than anybody waits."""

    async def tokenize(self, text: str, special: bool = False) -> list[int]:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return []

    async def detokenize(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, await self.tokenize("")))


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_done_before_an_answer_is_limited_in_time(stream: bool) -> None:
    asked = Asked(Stuck(), masker=Words, settings={"seconds": 0.05, "prompt_tokens": 9, "mask": ("bob",)})
    for path, document in (
        (COMPLETIONS, {"prompt": "text"}),
        (COMPLETIONS, {"prompt": [104, 105]}),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}]}),
    ):
        answer = asked(path, {"model": "my-model", "stream": stream} | document)
        refused(answer, 504, None, code="time_limit")
    assert asked.engine.cancelled == 3


class Still(Echo):
    """Says nothing more until it is cancelled."""

    async def generate(self, asked: Generation) -> AsyncIterator[Piece | Ending]:
        yield Piece("well", 1)
        await asyncio.Event().wait()


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_count_though_an_answer_does_not_end(stream: bool) -> None:
    asked = Asked(Still(), settings={"seconds": 0.05})
    for prompts, tokens in (["12345678é", "1"], 3 + 1), ([[1, 2, 3], [4]], 3 + 1):
        document = {"model": "my-model", "prompt": prompts, "n": 2, "stream": stream}
        assert "time_limit" in asked(COMPLETIONS, document).text
        assert (asked.call.prompt_tokens, asked.call.completion_tokens) == (tokens, 4)
