"""Text from engines in this process: as the same model writes it elsewhere, in whole characters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, softmax
from tiny import encoder_in, tiny_qwen3
from tokenizers import Tokenizer

from isoflop.engines import open_engine
from isoflop.engines.reading import continued, log_probabilities
from isoflop.errors import CorruptError, ProjectError
from isoflop.serve.engines.pieces import Pieces
from isoflop.serve.engines.sampling import Sampler, likeliest, nucleus
from isoflop.serve.engines.stepping import Stepping
from isoflop.serve.engines.torch_lm import TorchLM
from isoflop.serve.protocol import LENGTH, STOP, Ending, EngineError, Generation, Piece, RequestError, Writes

T = TypeVar("T")
PROMPT = "the day was bright and"


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@asynccontextmanager
async def started(path: Path, **options: Any) -> AsyncIterator[Stepping]:
    engine = Stepping(path, threads=1, **options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def all_of(engine: Stepping, asked: Generation) -> tuple[list[Piece], Ending]:
    found = [piece async for piece in engine.generate(asked)]
    *pieces, ending = found
    assert isinstance(ending, Ending)
    assert all(isinstance(piece, Piece) for piece in pieces)
    return [piece for piece in pieces if isinstance(piece, Piece)], ending


def answers(path: Path, *asked: Generation, **options: Any) -> list[tuple[str, Ending]]:
    async def work() -> list[tuple[str, Ending]]:
        async with started(path, **options) as engine:
            made = [await all_of(engine, one) for one in asked]
            return [("".join(piece.text for piece in pieces), ending) for pieces, ending in made]

    return run(work())


def greedy(path: Path, prompt: str, tokens: int) -> tuple[list[int], str]:
    """By the engine of `isoflop.engines`, which computes all anew."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    with open_engine(path) as engine:
        ids = list(islice(continued(engine, engine.encode(prompt), ends=[0]), tokens))
    return ids, tokenizer.decode(ids)


def test_keys_in_place_are_those_of_transformers() -> None:
    ours = TorchLM(tiny_qwen3(), threads=1)
    with open_engine(tiny_qwen3()) as theirs:
        ids = np.random.default_rng(0).integers(0, theirs.vocab_size, 80).tolist()
        whole = theirs.feed(ids, every=True)
    parts = [ours.feed(ids[:40], every=True), *(ours.feed([id], every=False) for id in ids[40:])]
    assert np.concatenate(parts) == pytest.approx(whole, abs=1e-4)
    ours.rewind(30)
    assert ours.feed(ids[30:], every=True) == pytest.approx(whole[30:], abs=1e-4)
    with pytest.raises(ProjectError, match="do not fit"):
        ours.feed([1] * (ours.context - 79), every=False)


def test_greedy_text_is_that_of_the_plain_engine() -> None:
    ids, text = greedy(tiny_qwen3(), PROMPT, 20)
    asked = Generation(PROMPT, max_tokens=20, temperature=0)
    (first, ending), (again, second) = answers(tiny_qwen3(), asked, asked)
    assert first == again == text
    assert ending.completion_tokens == len(ids)
    assert (ending.cached, second.cached) == (0, second.prompt_tokens - 1)


def test_log_probabilities_are_those_of_the_model() -> None:
    async def work() -> tuple[list[Piece], list[int]]:
        async with started(tiny_qwen3()) as engine:
            assert isinstance(engine, Writes)
            asked = Generation(PROMPT, max_tokens=8, temperature=2.0, top_p=0.5, seed=1, logprobs=3)
            return (await all_of(engine, asked))[0], await engine.tokenize(PROMPT)

    pieces, prompt = run(work())
    tokens = [token for piece in pieces for token in piece.tokens]
    tokenizer = Tokenizer.from_file(str(tiny_qwen3() / "tokenizer.json"))
    assert len(tokens) == sum(piece.size for piece in pieces)
    with open_engine(tiny_qwen3()) as engine:
        first_v = log_probabilities(engine, prompt)[-1]
    best = np.argsort(-first_v)[:3]
    assert [text for text, _ in tokens[0].alternatives] == [tokenizer.decode([id]) for id in best]
    assert [share for _, share in tokens[0].alternatives] == pytest.approx(first_v[best], abs=1e-4)
    assert tokens[0].logprob == pytest.approx(first_v[tokenizer.encode(tokens[0].text).ids[0]], abs=1e-4)


def test_a_seed_says_which_text() -> None:
    asked = [Generation(PROMPT, max_tokens=12, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    one, same, other = (text for text, _ in answers(tiny_qwen3(), *asked))
    assert one == same != other


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it() -> None:
    whole, _ = answers(tiny_qwen3(), Generation(PROMPT, max_tokens=30, temperature=0))[0]
    stop = whole[9:14]
    asked = Generation(PROMPT, max_tokens=30, temperature=0, stop=("never", stop))
    text, ending = answers(tiny_qwen3(), asked)[0]
    assert text == whole[: whole.index(stop)]
    assert ending.reason == STOP


def test_an_answer_ends_where_the_context_does() -> None:
    asked = Generation(PROMPT, max_tokens=1000, temperature=3.0, seed=0)
    _, ending = answers(tiny_qwen3(), asked, context=16)[0]
    assert (ending.reason, ending.prompt_tokens + ending.completion_tokens) == (LENGTH, 16)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (tuple([1] * 16), "the prompt has 16 tokens, and the model holds 16"),
        ((1, 99_999), "99999 is no token of the model"),
    ],
)
def test_a_prompt_that_cannot_be_is_refused(prompt: tuple[int, ...], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        answers(tiny_qwen3(), Generation(prompt, max_tokens=4), context=16)


def test_no_prompt_begins_a_document() -> None:
    asked = [Generation(prompt, max_tokens=6, temperature=0) for prompt in ("", (0,))]
    (one, ending), (other, _) = answers(tiny_qwen3(), *asked)
    assert one == other
    assert ending.prompt_tokens == 1


def test_who_leaves_early_frees_the_slot() -> None:
    """The second waits for the first, the third leaves before its turn, and the fourth is answered."""
    long = Generation(PROMPT, max_tokens=200, temperature=3.0, seed=0)

    async def work() -> list[str]:
        async with started(tiny_qwen3()) as engine:
            async with aclosing(engine.generate(long)) as first:
                await anext(first)

                async def left() -> None:
                    async with aclosing(engine.generate(long)) as third:
                        await anext(third)

                waiting = asyncio.create_task(all_of(engine, Generation(PROMPT, max_tokens=3, temperature=0)))
                leaving = asyncio.create_task(left())
                await asyncio.sleep(0)
                leaving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await leaving
            pieces, _ = await waiting
            more, _ = await all_of(engine, Generation(PROMPT, max_tokens=3, temperature=0))
            return ["".join(piece.text for piece in found) for found in (pieces, more)]

    one, other = run(work())
    assert one == other == greedy(tiny_qwen3(), PROMPT, 3)[1]


def test_what_is_closed_says_so() -> None:
    async def work() -> None:
        async with started(tiny_qwen3()) as engine:
            assert await engine.alive()
            writing = engine.generate(Generation(PROMPT, max_tokens=200, temperature=3.0, seed=0))
            await anext(writing)
        assert not await engine.alive()
        with pytest.raises(EngineError, match="torch was closed"):
            async for _ in writing:
                pass
        with pytest.raises(EngineError, match="torch is closed"):
            await anext(engine.generate(Generation(PROMPT, max_tokens=3)))

    run(work())


def test_a_model_that_does_not_write_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="has learned the objective 'masked'"):
        answers(encoder_in(tmp_path, [PROMPT]), Generation("", max_tokens=1))
    with pytest.raises(CorruptError, match=r"no tokenizer\.json that opens"):
        answers(tmp_path / "none", Generation("", max_tokens=1))


# -- text ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(tiny_qwen3() / "tokenizer.json"))


def said(tokenizer: Tokenizer, ids: list[int]) -> list[Piece]:
    pieces = Pieces(tokenizer, [5, 6])
    return [piece for piece in [*map(pieces.push, ids), pieces.end()] if piece is not None]


def test_characters_of_several_tokens_come_whole(tokenizer: Tokenizer) -> None:
    text = "naïve 你好🙂!"
    ids = tokenizer.encode(text).ids
    pieces = said(tokenizer, ids)
    assert "".join(piece.text for piece in pieces) == text
    assert not any("�" in piece.text for piece in pieces)
    assert sum(piece.size for piece in pieces) == len(ids) > len(pieces)


@settings(deadline=None, max_examples=100)
@given(ids=st.lists(st.integers(0, 398), max_size=24))
def test_pieces_are_the_whole_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Broken bytes too, as decoders show them; then only how many there are may differ."""
    pieces = said(tokenizer, ids)
    whole = tokenizer.decode([5, 6, *ids])[len(tokenizer.decode([5, 6])) :]
    found = "".join(piece.text for piece in pieces)
    assert found.replace("�", "") == whole.replace("�", "")
    assert sum(piece.size for piece in pieces) == len(ids)


# -- sampling --------------------------------------------------------------------------------------------


def test_tokens_are_drawn_as_their_probabilities_say() -> None:
    logits = np.array([0.0, 1.0, -1.0, 2.0], np.float32)
    sample = Sampler(temperature=0.7, top_p=1.0, seed=0)
    counts = np.bincount([sample(logits) for _ in range(4000)], minlength=4)
    assert counts / 4000 == pytest.approx(softmax(logits / 0.7), abs=0.03)
    assert Sampler(temperature=0, top_p=0.1, seed=None)(logits) == 3


@settings(deadline=None, max_examples=40)
@given(shares=arrays(np.float64, 30, elements=st.floats(0.01, 1)), top_p=st.floats(0.01, 0.99))
def test_the_nucleus_is_the_fewest_tokens_that_have_the_share(shares: Any, top_p: float) -> None:
    shares = shares / shares.sum()
    kept = nucleus(shares, top_p)
    assert list(kept) == list(np.argsort(-shares, kind="stable")[: len(kept)])
    assert shares[kept].sum() >= top_p - 1e-9
    assert shares[kept[:-1]].sum() < top_p


def test_top_p_draws_of_the_nucleus_alone() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sample = Sampler(temperature=1.0, top_p=0.7, seed=0)
    counts = np.bincount([sample(logits) for _ in range(4000)], minlength=4)
    assert counts / 4000 == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)


def test_the_likeliest_are_told_in_order() -> None:
    logits = np.random.default_rng(0).normal(size=50).astype(np.float32)
    logps = log_softmax(logits.astype(np.float64))
    own, best = likeliest(logits, 7, 5)
    assert own == pytest.approx(logps[7])
    assert [id for id, _ in best] == np.argsort(-logps)[:5].tolist()
    assert likeliest(logits, 7, 0)[1] == []
    assert len(likeliest(logits, 7, 99)[1]) == 50
