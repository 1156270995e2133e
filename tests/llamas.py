"""For tests of llama.cpp in its own process: an engine that is started, and what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isoflop.serve.engines.llamacpp import LlamaCpp
from isoflop.serve.protocol import Ending, Generation, Piece

PROMPT = "the day was"


@contextmanager
def started(file: Path, loop: asyncio.Runner) -> Iterator[LlamaCpp]:
    """It computes two answers at the same time."""
    engine = LlamaCpp(file.parent, threads=1, slots=2)
    loop.run(engine.start())
    yield engine
    loop.run(engine.close())


async def answered(
    engine: LlamaCpp, prompt: str | tuple[int, ...] = PROMPT, tokens: int = 24, **more: object
) -> tuple[str, list[Piece], Ending]:
    asked = Generation(prompt, tokens, **{"temperature": 0.0, **more})  # type: ignore[arg-type]
    *pieces, ending = [part async for part in engine.generate(asked)]
    assert isinstance(ending, Ending)
    found = [piece for piece in pieces if isinstance(piece, Piece)]
    assert len(found) == len(pieces)
    return "".join(piece.text for piece in found), found, ending
