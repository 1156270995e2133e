"""Files of llama.cpp that say how they pool: vectors of texts, as torch computes them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("aiohttp", reason="the extra isoflop[serve] is not installed")

from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf_models import CONTEXT, untrained

from isoflop.errors import ProjectError
from isoflop.export.gguf import read_weights
from isoflop.serve.engines.llamacpp import LlamaCpp, LlamaCppEmbeds
from isoflop.serve.engines.opening import opened_engine
from isoflop.serve.protocol import Embeds, Engine, RequestError, Tokenizes, Writes


@torch.no_grad()
def pooled(file: Path, ids: list[int]) -> list[float]:
    """The mean of the tokens' last states by torch, of length 1."""
    model = untrained()
    read_weights(model, file)
    mean = model.model(torch.tensor([ids]))[0].mean(0)
    out: list[float] = (mean / mean.norm()).tolist()
    return out


def test_a_file_that_says_how_it_pools_makes_vectors(tiny_gguf: Path, tmp_path: Path) -> None:
    async def kind(path: Path) -> type[Engine]:
        engine = await opened_engine(path, threads=1, slots=1)
        await engine.close()
        return type(engine)

    assert asyncio.run(kind(tiny_gguf)) is LlamaCpp
    for pooling, expected in ((0, LlamaCpp), (3, LlamaCppEmbeds)):
        assert asyncio.run(kind(pooling_by(tiny_gguf, pooling, tmp_path / f"{pooling}.gguf"))) is expected
    with pytest.raises(ProjectError, match="ranks texts, which is not served"):
        asyncio.run(kind(pooling_by(tiny_gguf, 4, tmp_path / "4.gguf")))


def pooling_by(file: Path, pooling: int, to: Path) -> Path:
    """A copy of it that names this pooling in its header."""
    reader = GGUFReader(file)
    family = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(to, family)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            items = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], items)
    writer.add_uint32(f"{family}.pooling_type", pooling)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


def test_vectors_of_texts(tiny_gguf: Path) -> None:
    async def embedded() -> None:
        engine = LlamaCppEmbeds(tiny_gguf, threads=1, slots=3, context=100)
        await engine.start()
        try:
            assert 100 <= engine.context < CONTEXT
            assert isinstance(engine, Embeds)
            assert isinstance(engine, Tokenizes)
            assert not isinstance(engine, Writes)
            texts = ["the day was long", "one two", "the day was", "日本語", "the day was long"]
            vectors, tokens = await engine.embed(texts)
            ids = [await engine.tokenize(text) for text in texts]
            assert tokens == sum(map(len, ids))
            for vector, row in zip(vectors, ids, strict=True):
                assert vector == pytest.approx(pooled(tiny_gguf, row), abs=1e-3)
            assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
            assert len(await engine.embed(["!" * engine.context])) == 2
            with pytest.raises(RequestError, match=f"more than the {engine.context} ") as caught:
                await engine.embed(["one", "!" * (engine.context + 1)])
            assert caught.value.code == "context_length_exceeded"
        finally:
            await engine.close()

    asyncio.run(embedded())
