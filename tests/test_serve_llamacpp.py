"""llama.cpp in its own process says what llama.cpp's functions say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("aiohttp", reason="the extra isoflop[serve] is not installed")

import httpx
from gguf_models import CONTEXT, greedy
from llamas import PROMPT, answered, started

from isoflop.engines import open_engine
from isoflop.engines.reading import log_probabilities
from isoflop.serve.app import build_app
from isoflop.serve.chats import Template
from isoflop.serve.engines.llamacpp import LlamaCpp
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.protocol import LENGTH, STOP, Embeds, Ending, RequestError, Writes
from isoflop.serve.settings import Settings


@pytest.fixture(scope="module")
def engine(tiny_gguf: Path, loop: asyncio.Runner) -> Iterator[LlamaCpp]:
    with started(tiny_gguf, loop) as engine:
        yield engine


def test_it_can_write_and_says_what_it_holds(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    assert isinstance(engine, Writes)
    assert not isinstance(engine, Embeds)
    assert (engine.name, engine.context, engine.slots, engine.schemas) == ("llama.cpp", CONTEXT, 2, True)
    assert loop.run(engine.alive())


def test_the_likeliest_text_is_that_of_the_functions(
    engine: LlamaCpp, loop: asyncio.Runner, tiny_gguf: Path
) -> None:
    ids, following = greedy(tiny_gguf, PROMPT, 100)
    text, pieces, ending = loop.run(answered(engine, tokens=100))
    expected = loop.run(engine.detokenize(following))
    assert "schöne Bäume" in text
    assert "日" in text
    assert expected.startswith(text)
    assert len(expected) - len(text) <= 1  # the end of it may be a part of a character
    assert all(piece.text and "\ufffd" not in piece.text for piece in pieces)
    assert any(piece.size > 1 for piece in pieces)  # characters of several tokens
    assert ending._replace(queued=None, cached=0) == Ending(LENGTH, len(ids), 100)
    assert sum(piece.size for piece in pieces) <= 100
    assert loop.run(answered(engine, tuple(ids), tokens=100))[0] == text


def test_probabilities_are_those_of_the_functions(
    engine: LlamaCpp, loop: asyncio.Runner, tiny_gguf: Path
) -> None:
    text, pieces, _ = loop.run(answered(engine, tokens=20, logprobs=3))
    ids, following = greedy(tiny_gguf, PROMPT, 20)
    with open_engine(tiny_gguf) as functions:
        rows = log_probabilities(functions, ids + following)[len(ids) - 1 : -1]
    tokens = [token for piece in pieces for token in piece.tokens]
    assert "".join(token.text for token in tokens) == text
    assert len(tokens) == len(following)
    for token, row, i in zip(tokens, rows, following, strict=True):
        assert token.logprob == pytest.approx(row[i], abs=1e-3)
        assert [p for _, p in token.alternatives] == pytest.approx(sorted(row)[:-4:-1], abs=1e-3)
        assert token.alternatives[0] == (token.text, token.logprob)
    alone = loop.run(answered(engine, tokens=20, logprobs=0))[1]
    assert not any(token.alternatives for piece in alone for token in piece.tokens)
    alike = [token.logprob for piece in alone for token in piece.tokens]
    assert alike == pytest.approx([token.logprob for token in tokens], abs=1e-3)


def test_an_answer_that_nobody_watches_is_the_same_and_comes_whole(
    engine: LlamaCpp, loop: asyncio.Runner
) -> None:
    cut = 0
    for tokens in (1, 20, *range(40, 56)):
        text, pieces, ending = loop.run(answered(engine, tokens=tokens, logprobs=1))
        whole, one, end = loop.run(answered(engine, tokens=tokens, logprobs=1, whole=True))
        assert (whole, len(one)) == (text, 1)
        assert one[0].size == tokens
        known = [token.text for piece in pieces for token in piece.tokens]
        assert [token.text for token in one[0].tokens][: len(known)] == known
        assert end._replace(queued=None, cached=0, writing=None) == Ending(
            LENGTH, ending.prompt_tokens, tokens
        )
        assert ending.writing is None
        assert (end.writing or 0) > 0
        cut += sum(piece.size for piece in pieces) < tokens  # amid a character
    assert cut
    text, pieces, _ = loop.run(answered(engine, stop=(text[3:6],), whole=True))
    assert "".join(piece.text for piece in pieces) == whole[:3]


def test_temperature_and_top_p_mean_what_they_mean_elsewhere(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    wild = loop.run(answered(engine, tokens=200, temperature=20.0, logprobs=41, seed=1))[1]
    tokens = [token for piece in wild for token in piece.tokens]
    ranks = [sum(p > token.logprob for _, p in token.alternatives) for token in tokens]
    assert max(ranks) > 40  # no top-k
    assert min(t.logprob - t.alternatives[0][1] for t in tokens) < -3.1  # no min-p of 0.05
    likeliest = loop.run(answered(engine))[0]
    assert loop.run(answered(engine, temperature=1.0, top_p=0.01))[0] == likeliest
    # Of the flat probabilities that the temperature makes; before it, one token had more than half of all.
    assert loop.run(answered(engine, temperature=20.0, top_p=0.5))[0] != likeliest


def test_a_seed_repeats_an_answer(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    texts = [loop.run(answered(engine, temperature=3.0, seed=seed))[0] for seed in (7, 7, 8, -(2**40), None)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4


def test_stops_end_an_answer_wherever_they_lie(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    whole, pieces, _ = loop.run(answered(engine))
    middle = len(pieces[0].text + pieces[1].text) + 1  # amid the third piece
    text, _, ending = loop.run(answered(engine, stop=(whole[middle : middle + 6], "never")))
    assert (text, ending.reason) == (whole[:middle], STOP)
    assert 3 <= ending.completion_tokens < 24
    assert ending.cached > 0
    text, _, ending = loop.run(answered(engine, stop=(whole[-4:] + "never",)))
    assert (text, ending.reason) == (whole, LENGTH)  # what had been held back is not lost


def test_a_prompt_that_was_computed_is_not_computed_again(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    prompt = "one two three four five six seven eight"
    first, again = (loop.run(answered(engine, prompt))[2] for _ in range(2))
    assert again.cached > first.cached
    assert again.cached == again.prompt_tokens - 1


def test_an_answer_keeps_to_a_schema(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["tree", "bird"]},
            "seen": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
        },
        "required": ["kind", "seen"],
        "additionalProperties": False,
    }
    for seed in range(3):
        text, _, ending = loop.run(answered(engine, tokens=100, temperature=1.0, seed=seed, schema=schema))
        found = json.loads(text)
        assert (sorted(found), ending.reason) == (["kind", "seen"], STOP)
        assert found["kind"] in ("tree", "bird")
        assert [type(value) for value in found["seen"]] == [bool, bool]


@pytest.mark.parametrize(
    ("schema", "told"),
    [({"type": "nonsense"}, "nonsense"), ({"$ref": "#/nowhere"}, "nowhere"), ({"pattern": "["}, "regex")],
)
def test_a_schema_that_cannot_be_kept_to_is_refused(
    engine: LlamaCpp, loop: asyncio.Runner, schema: dict[str, str], told: str
) -> None:
    with pytest.raises(RequestError, match=told) as caught:
        loop.run(answered(engine, schema=schema))
    assert caught.value.status == 400


def test_a_prompt_that_leaves_no_room_is_refused(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    with pytest.raises(RequestError, match=rf"{CONTEXT + 44} tokens, .* {CONTEXT}$") as caught:
        loop.run(answered(engine, (5,) * (CONTEXT + 44)))
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    _, _, ending = loop.run(answered(engine, (5,) * (CONTEXT - 4), tokens=50))
    assert (ending.reason, ending.prompt_tokens) == (LENGTH, CONTEXT - 4)
    assert ending.completion_tokens < 6
    with pytest.raises(RequestError, match="invalid tokens"):
        loop.run(answered(engine, (5, 1_000_000)))


def test_an_empty_prompt_begins_a_text(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    text, _, ending = loop.run(answered(engine, ""))
    assert (text, ending.prompt_tokens) == (loop.run(answered(engine, (0,)))[0], 1)


@pytest.mark.parametrize("text", ["", "the day", "größer 日本 🙂\n\t\x00", "a<|endoftext|>b"])
def test_ids_are_those_of_the_functions(
    engine: LlamaCpp, loop: asyncio.Runner, tiny_gguf: Path, text: str
) -> None:
    ids = loop.run(engine.tokenize(text))
    with open_engine(tiny_gguf) as functions:
        assert ids == functions.encode(text)
    assert loop.run(engine.detokenize(ids)) == text


def test_special_tokens_of_a_chat_are_read_as_these_tokens(
    engine: LlamaCpp, loop: asyncio.Runner, tiny_gguf: Path
) -> None:
    """Not as the characters of their names, also where the template has written the first token itself."""
    special = "<|endoftext|>"
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    ids = loop.run(engine.tokenize(PROMPT))
    assert loop.run(engine.tokenize(special + PROMPT, special=True)) == [0, *ids]
    gateway = Gateway(
        {"m": Model("m", engine, template=Template(source, special, special))}, Settings(open=True)
    )
    asked = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1}

    async def chat() -> httpx.Response:
        transport = httpx.ASGITransport(build_app(gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/v1/chat/completions", json=asked)

    assert loop.run(chat()).json()["usage"]["prompt_tokens"] == len([0, *ids, 0])


def test_what_is_no_token_is_refused(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    for ids in ([5, 1_000_000], [-1]):
        with pytest.raises(RequestError, match="there is no token"):
            loop.run(engine.detokenize(ids))
