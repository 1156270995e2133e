"""The gateway's HTTP side, asked in this process: answers, limits, masks, errors, what observers hear."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from asking import CHAT, COMPLETIONS, Asked, events, refused
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from serving import Echo, Words

from isoflop.serve.chats import Template
from isoflop.serve.protocol import LENGTH, STOP, Ending, EngineError, Generation, Heard, Piece


class Failing(Echo):
    """Says one word and breaks."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def generate(self, asked: Generation) -> AsyncIterator[Piece | Ending]:
        if asked.prompt != "at once":
            yield Piece("well", 1)
        raise self.error


class Still(Echo):
    """Says nothing until it is cancelled."""

    async def generate(self, asked: Generation) -> AsyncIterator[Piece | Ending]:
        yield Piece("well", 1)
        await asyncio.Event().wait()


def test_a_text_goes_on() -> None:
    asked = Asked()
    answer = asked(COMPLETIONS, {"model": "my-model", "prompt": "one two three", "max_tokens": 2})
    found = Completion.model_validate(answer.json(), strict=True)
    assert found.choices[0].text == "one two"
    assert found.choices[0].finish_reason == LENGTH
    assert found.usage
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (13, 2, 15)
    call = asked.call
    assert (call.route, call.model, call.model_hash, call.engine) == (COMPLETIONS, "my-model", "abc", "echo")
    assert (call.prompt_tokens, call.completion_tokens, call.finish, call.error) == (13, 2, LENGTH, "")
    assert call.began <= call.first <= call.last <= call.ended
    assert call.queued == 0.0


def test_a_prompt_is_echoed_with_its_probabilities() -> None:
    asked = Asked()
    document = {"model": "my-model", "prompt": ["abc", "d"], "echo": True, "max_tokens": 0, "logprobs": 1}
    found = asked(COMPLETIONS, document).json()["choices"]
    assert [choice["text"] for choice in found] == ["abc", "d"]
    assert found[0]["logprobs"] == {
        "tokens": ["a", "b", "c"], "token_logprobs": [None, -0.5, -0.5],
        "top_logprobs": [None, {"b": -0.5}, {"c": -0.5}], "text_offset": [0, 1, 2],
    }  # fmt: skip
    assert found[1]["logprobs"]["token_logprobs"] == [None]
    assert (asked.call.prompt_tokens, asked.call.completion_tokens, asked.call.scored) == (4, 0, True)
    ids = asked(COMPLETIONS, document | {"prompt": [97, 98], "logprobs": None}).json()["choices"]
    assert [(choice["text"], choice["logprobs"]) for choice in ids] == [("ab", None)]
    empty = asked(COMPLETIONS, document | {"prompt": ""}).json()["choices"]
    assert [choice["logprobs"]["tokens"] for choice in empty] == [[]]


def test_all_prompts_are_answered_at_the_same_time() -> None:
    class Meeting(Echo):
        """Nobody goes on until all four are here."""

        async def generate(self, asked: Generation) -> AsyncIterator[Piece | Ending]:
            self.running += 1
            while self.running < 4:
                await asyncio.sleep(0)
            yield Piece(f"{asked.prompt} {asked.seed}", 1)
            yield Ending(STOP, 3, 1)

    asked = Asked(Meeting(), settings={"seconds": 20})
    document = {"model": "my-model", "prompt": ["a", "b"], "n": 2, "seed": -1}
    answer = asked(COMPLETIONS, document).json()
    top = (1 << 31) - 1
    assert [c["text"] for c in answer["choices"]] == [f"a {top}", "a 0", f"b {top}", "b 0"]
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 6  # each prompt once


def test_ids_are_a_prompt_too() -> None:
    asked = Asked()
    for prompt in ([104, 105], [[104, 105]]):
        answer = asked(COMPLETIONS, {"model": "my-model", "prompt": prompt})
        assert answer.json()["choices"][0]["text"] == "hi"


def test_a_stream_says_what_the_whole_says() -> None:
    asked = Asked()
    document = {"model": "my-model", "prompt": ['say "ä"\u2028', "b c"], "n": 2, "logprobs": 1}
    whole = asked(COMPLETIONS, document).json()
    chunks = events(
        asked(COMPLETIONS, document | {"stream": True, "stream_options": {"include_usage": True}})
    )
    assert asked.call.stream
    texts, tokens, reasons = [""] * 4, [[], [], [], []], {}  # type: ignore[var-annotated]
    for chunk in chunks[:-1]:
        assert chunk["usage"] is None
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
            if choice["logprobs"]:
                tokens[choice["index"]] += zip(*choice["logprobs"].values(), strict=True)
            if choice["finish_reason"]:
                reasons[choice["index"]] = choice["finish_reason"]
    assert texts == [c["text"] for c in whole["choices"]]
    assert tokens == [list(zip(*c["logprobs"].values(), strict=True)) for c in whole["choices"]]
    assert reasons == dict.fromkeys(range(4), STOP)
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-1]["choices"] == []


def test_pieces_that_are_there_go_out_together() -> None:
    class Hasty(Echo):
        async def generate(self, asked: Generation) -> AsyncIterator[Piece | Ending]:
            for letter in "abc":
                yield Piece(letter, 1)
            yield Ending(STOP, 1, 3)

    chunks = events(Asked(Hasty())(COMPLETIONS, {"model": "my-model", "prompt": "x", "stream": True}))
    assert [c["choices"][0]["text"] for c in chunks] == ["abc", ""]


def test_a_chat_by_the_models_template() -> None:
    source = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }} {% endfor %}"
    asked = Asked(template=Template(source, begin="<s>"))
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "!"}]},
    ]
    answer = asked(CHAT, {"model": "my-model", "messages": messages, "logprobs": True})
    found = ChatCompletion.model_validate(answer.json(), strict=True)
    assert found.choices[0].message.content == "<s><system>be kind <user>hi!"
    assert found.choices[0].logprobs
    assert found.choices[0].logprobs.content
    assert [t.token for t in found.choices[0].logprobs.content][:2] == ["<s><system>be", " kind"]
    chunks = events(asked(CHAT, {"model": "my-model", "messages": messages, "stream": True}))
    read = [ChatCompletionChunk.model_validate(chunk, strict=True).choices[0] for chunk in chunks]
    assert read[0].delta.role == "assistant"
    assert "".join(c.delta.content or "" for c in read) == found.choices[0].message.content
    assert read[-1].finish_reason == STOP


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('roles must alternate') }}", "{{ messages.pop() }}", "{{ 1 + 'a' }}"]
)
def test_a_template_that_says_no(source: str) -> None:
    asked = Asked(template=Template(source))
    answer = asked(CHAT, {"model": "my-model", "messages": [{"role": "user", "content": "hi"}]})
    refused(answer, 400, "messages", "chat template")


def test_a_chat_without_a_template_is_plain() -> None:
    asked = Asked()
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "you", "refusal": None}]
    answer = asked(CHAT, {"model": "my-model", "messages": messages})
    assert answer.json()["choices"][0]["message"]["content"] == "User: hi Assistant: you Assistant:"


def test_vectors_labels_and_tags() -> None:
    asked = Asked()
    plain = asked("/v1/embeddings", {"model": "my-model", "input": ["ab", "c"]}).json()
    assert [each["embedding"] for each in plain["data"]] == [[2.0, 1.0], [1.0, 1.0]]
    assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert asked.call.prompt_tokens == 3
    labels = asked("/v1/classify", {"model": "labels", "input": "a long text"}).json()
    assert labels["data"] == [
        {"index": 0, "label": "long", "labels": [{"label": "long", "probability": 0.75}]}
    ]
    tags = asked("/v1/tag", {"model": "my-model", "input": "Ada wrote"}).json()
    spans = [{"tag": "FIRST", "start": 0, "end": 3, "text": "Ada"}]
    assert tags["data"] == [{"index": 0, "text": "Ada wrote", "spans": spans}]


def test_a_sound() -> None:
    asked = Asked(masker=Words)
    told: dict[str, Any] = {"json": {"text": "3 bytes"}, "verbose_json": {"duration": 1.0}, "text": None}
    for form, expected in told.items():
        sent = {"model": "my-model", "response_format": form, "language": "de"}
        answer = asked("/v1/audio/transcriptions", files={"file": ("a.wav", b"abc")}, data=sent)
        assert answer.text == "3 bytes" if expected is None else expected.items() <= answer.json().items()
    sent = {"model": "my-model", "mask": "bytes, x"}
    answer = asked("/v1/audio/transcriptions", files={"file": ("a.wav", b"abc")}, data=sent)
    assert answer.json()["text"] == "3 [BYTES]"
    empty = asked("/v1/audio/transcriptions", files={"file": ("a.wav", b"")}, data={"model": "my-model"})
    refused(empty, 400, "file", "empty")
    unknown = asked("/v1/audio/transcriptions", files={"file": ("a.wav", b"x")}, data=sent | {"prompt": "x"})
    refused(unknown, 400, "prompt", code="unknown_parameter")


class Deaf(Echo):
    """Hears without end."""

    async def transcribe(self, sound: bytes, language: str | None) -> Heard:
        await asyncio.Event().wait()
        raise AssertionError


def test_sounds_count_as_tokens_by_their_seconds() -> None:
    asked, sent = Asked(), {"model": "my-model"}
    told = asked("/v1/audio/transcriptions", files={"file": ("a.wav", b"abc")}, data=sent).json()
    usage = {"type": "tokens", "input_tokens": 50, "output_tokens": 0, "total_tokens": 50}
    assert told == {"text": "3 bytes", "usage": usage}
    assert (asked.call.prompt_tokens, asked.call.completion_tokens) == (50, 0)
    asked("/v1/audio/transcriptions", files={"file": ("a.wav", b"")}, data=sent)
    assert asked.call.prompt_tokens == 0  # it could not be heard
    deaf = Asked(Deaf(), settings={"seconds": 0.05})
    late = deaf("/v1/audio/transcriptions", files={"file": ("a.wav", b"x" * 3201)}, data=sent)
    refused(late, 504, None, code="time_limit")
    assert deaf.call.prompt_tokens == 11  # as its bytes make likely


def test_tokens() -> None:
    asked = Asked()
    assert asked("/tokenize", {"model": "my-model", "prompt": "hi"}).json() == {
        "count": 2, "max_model_len": 1024, "tokens": [104, 105],
    }  # fmt: skip
    assert asked("/detokenize", {"model": "my-model", "tokens": [104]}).json() == {"prompt": "h"}


def test_models_tell_what_they_are_worth() -> None:
    asked = Asked()
    listed = asked("/v1/models").json()["data"]
    assert [each["id"] for each in listed] == ["my-model", "labels"]
    one = asked("/v1/models/my-model").json()
    assert (one["hash"], one["bits_per_byte"], one["bytes"], one["context"]) == ("abc", 1.5, 99, 1024)
    refused(asked("/v1/models/a/b"), 404, "model", code="model_not_found")


def test_health() -> None:
    asked = Asked()
    assert asked("/health/live").json() == {"status": "live"}
    assert not asked.witness.ends
    answer = asked("/health/ready")  # nobody started the engines
    refused(answer, 503, None, "my-model, labels")
    assert answer.headers["retry-after"]
    for model in asked.gateway.models.values():
        asyncio.run(model.engine.start())
    assert asked("/health/ready").json() == {"status": "ready"}


@pytest.mark.parametrize(
    ("path", "change", "status", "param", "words"),
    [
        (COMPLETIONS, {"model": "gpt-9"}, 404, "model", "no model 'gpt-9'"),
        (COMPLETIONS, {"model": "labels"}, 404, "model", "does not write text; my-model can"),
        ("/v1/embeddings", {"model": "labels", "input": "x", "prompt": None}, 404, "model", "does not embed"),
        (COMPLETIONS, {"tools": []}, 400, "tools", "tools is not known"),
        (COMPLETIONS, {"promt": "x", "prompt": None}, 400, "promt", "promt is not known"),
        (COMPLETIONS, {"prompt": None}, 400, "prompt", "prompt is missing"),
        (COMPLETIONS, {"prompt": []}, 400, "prompt", "at least 1"),
        (COMPLETIONS, {"prompt": [[1], "a"]}, 400, "prompt", "should be"),
        (COMPLETIONS, {"temperature": "1"}, 400, "temperature", "should be a valid number"),
        (COMPLETIONS, {"temperature": 2.1}, 400, "temperature", "less than or equal to 2"),
        (COMPLETIONS, {"top_p": 0}, 400, "top_p", "greater than 0"),
        (COMPLETIONS, {"echo": True}, 400, "max_tokens", "max_tokens has to be 0"),
        (COMPLETIONS, {"max_tokens": 0}, 400, "max_tokens", "with echo alone"),
        (COMPLETIONS, {"echo": True, "max_tokens": 0, "stream": True}, 400, "stream", "not streamed"),
        (COMPLETIONS, {"echo": True, "max_tokens": 0, "n": 2}, 400, "n", "answered once"),
        (COMPLETIONS, {"echo": True, "max_tokens": 0, "prompt": "x" * 101}, 400, "prompt", "101 tokens"),
        (COMPLETIONS, {"stop": ""}, 400, "stop", "at least 1 character"),
        (COMPLETIONS, {"n": 9}, 400, "n", "8 answers"),
        (COMPLETIONS, {"n": 8, "prompt": ["x"] * 17}, 400, "prompt", "136 texts"),
        (COMPLETIONS, {"max_tokens": 65}, 400, "max_tokens", "64 tokens"),
        (COMPLETIONS, {"prompt": "x" * 101}, 400, "prompt", "101 tokens"),
        (COMPLETIONS, {"prompt": [1] * 101}, 400, "prompt", "101 tokens"),
        (COMPLETIONS, {"mask": ["email"]}, 400, "mask", "without what masks"),
        (COMPLETIONS, {"response_format": {"type": "yaml"}}, 400, "response_format", "yaml"),
        (CHAT, {"messages": [], "prompt": None}, 400, "messages", "at least 1"),
        (CHAT, {"messages": [{"role": "x", "content": ""}], "prompt": None}, 400, "messages.0.role", "user"),
        ("/v1/nothing", {}, 404, None, "there is no /v1/nothing"),
        ("/v1/models", {}, 405, None, "does not take POST"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(path: str, change: Any, status: int, param: str, words: str) -> None:
    asked = Asked(settings={"prompt_tokens": 100, "completion_tokens": 64})
    document = {"model": "my-model", "prompt": "hi"} | change
    refused(asked(path, {k: v for k, v in document.items() if v is not None}), status, param, words)
    assert asked.call.error


def test_what_nobody_foresaw() -> None:
    asked = Asked()
    asked.gateway.models["labels"].engine.alive = None  # type: ignore[assignment, method-assign]
    refused(asked("/health/ready"), 500, None, "the server failed", code="internal_error")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 9999, b'"text"', b'{"model": NaN}'])
def test_bodies_that_are_no_request(body: bytes) -> None:
    answer = Asked()(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_schema_for_the_answer() -> None:
    class Keeping(Echo):
        async def generate(self, asked: Generation) -> AsyncIterator[Piece | Ending]:
            yield Piece(json.dumps(asked.schema), 1)
            yield Ending(STOP, 1, 1)

    asked, schema = Asked(Keeping()), {"type": "object", "properties": {"a": {}}}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for form, told in (
        (named, schema),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "text"}, None),
    ):
        answer = asked(COMPLETIONS, {"model": "my-model", "prompt": "x", "response_format": form})
        assert json.loads(answer.json()["choices"][0]["text"]) == told
    asked.engine.schemas = False
    answer = asked(COMPLETIONS, {"model": "my-model", "prompt": "x", "response_format": named})
    refused(answer, 400, "response_format", "cannot keep to a JSON schema")


@pytest.mark.parametrize("stream", [False, True])
def test_masked_before_and_after(stream: bool) -> None:
    seen: list[Any] = []

    class Telling(Echo):
        async def generate(self, asked: Generation) -> AsyncIterator[Piece | Ending]:
            seen.append(asked.prompt)
            for text in ("bob is", " sec", "ret", " yes"):
                yield Piece(text, 1)
            yield Ending(STOP, 1, 4)

    asked = Asked(Telling(), masker=Words, settings={"mask": ("bob",)})
    document = {"model": "my-model", "prompt": "ask bob secret", "mask": ["secret"], "stream": stream}
    answer = asked(COMPLETIONS, document)
    if stream:
        text = "".join(chunk["choices"][0]["text"] for chunk in events(answer))
    else:
        text = answer.json()["choices"][0]["text"]
    assert seen == ["ask [BOB] [SECRET]"]
    assert text == "[BOB] is [SECRET] yes"
    assert asked.call.masked == {"bob": 2, "secret": 2}
    ids = asked(COMPLETIONS, document | {"prompt": list(map(ord, "a bob"))})
    assert ids.status_code == 200
    assert seen[-1] == "a [BOB]"
    assert asked(COMPLETIONS, document | {"prompt": [97]}).status_code == 200
    assert seen[-1] == (97,)
    refused(asked(COMPLETIONS, document | {"logprobs": 1}), 400, "logprobs")


@pytest.mark.parametrize("stream", [False, True])
def test_where_masking_fails_nothing_goes_out(stream: bool) -> None:
    asked = Asked(masker=Words, settings={"mask": ("bob",)})
    document = {"model": "my-model", "prompt": "please fail", "stream": stream}
    refused(asked(COMPLETIONS, document), 500, None, "masking failed", code="masking_failed")
    assert asked.call.error == "masking_failed"

    class Traitor(Echo):
        async def generate(self, asked: Generation) -> AsyncIterator[Piece | Ending]:
            yield Piece("well fail now", 1)

    asked = Asked(Traitor(), masker=Words, settings={"mask": ("bob",)})
    answer = asked(COMPLETIONS, document | {"prompt": "x"})
    assert asked.call.error == "masking_failed"
    assert "well" not in answer.text


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineError("llama.cpp has ended"), 503, "engine_failed"),
        (RuntimeError("secret"), 500, "internal_error"),
    ],
)
def test_an_engine_that_fails(error: Exception, status: int, code: str) -> None:
    asked = Asked(Failing(error))
    document = {"model": "my-model", "prompt": "at once"}
    for stream in (False, True):  # before a stream has begun it fails as others do
        answer = asked(COMPLETIONS, document | {"stream": stream})
        refused(answer, status, None, code=code)
        assert "secret" not in answer.text
        assert ("retry-after" in answer.headers) == (status == 503)
    answer = asked(COMPLETIONS, {"model": "my-model", "prompt": "x", "stream": True})
    assert answer.status_code == 200
    first, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["text"] == "well"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == code
    assert asked.call.error == code


def test_time_is_limited() -> None:
    asked = Asked(Still(), settings={"seconds": 0.05})
    document = {"model": "my-model", "prompt": "x"}
    refused(asked(COMPLETIONS, document), 504, None, code="time_limit")
    answer = asked(COMPLETIONS, document | {"stream": True})
    assert json.loads(answer.text.split("data: ")[-1])["error"]["code"] == "time_limit"


def test_what_clients_always_send_is_ignored() -> None:
    document = {
        "model": "my-model", "prompt": "hi", "user": "u", "store": False, "metadata": {"a": "b"},
        "service_tier": "auto", "presence_penalty": 0, "frequency_penalty": 0.0, "best_of": 1,
        "echo": False, "suffix": None, "logprobs": None, "stop": None, "stream_options": None,
    }  # fmt: skip
    assert Asked()(COMPLETIONS, document).status_code == 200


def test_base64_is_little_endian_float32() -> None:
    document = {"model": "my-model", "input": "abc", "encoding_format": "base64"}
    sent = Asked()("/v1/embeddings", document).json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(sent), "<f4").tolist() == [3.0, 1.0]
