"""The engine that serves an artifact, chosen by what it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from isoflop.engines import COMPRESSED, GGUF, is_export, opened, packed_by
from isoflop.errors import CorruptError, ProjectError
from isoflop.serve.protocol import Engine
from isoflop.workers import cores

URL = re.compile(r"^(https?):/+")  # a Path has one slash of two
VLLM = "vllm"  # the engine that is begun where it is named
KEY_VARIABLE = "ISOFLOP_ENGINE_KEY"  # has the key of another server
RANKING = 4  # llama.cpp's number for a pooling to one score of two texts
LABELS, TAGS, VECTORS = ("classification", "multi-label"), ("tagging",), ("similarity", "embedding")
SERVED = (
    f"a {GGUF} file, a folder of a causal model, of an encoder or of Whisper, an export of one, a model "
    f"adapted to {', '.join((*LABELS, *TAGS, *VECTORS))} or speech, or the URL of a server"
)


async def opened_engine(
    path: Path | str, *, threads: int | None = None, slots: int = 8, context: int | None = None,
    key_variable: str = KEY_VARIABLE, by: str | None = None,
) -> Engine:  # fmt: skip
    """An artifact's engine, started: `close` it at the end. A URL is of an OpenAI-compatible server.

    After a # a URL names one of the server's models; the environment may have its key. `by` VLLM: vLLM is
    begun for a folder.

    Without `threads` it computes on all cores. `slots` requests are computed at once, of `context` tokens
    each, where the engine lets one say so. Raises ProjectError for what is not served or without its
    package, CorruptError for what cannot be opened.
    """
    return await started(
        unstarted(str(path), threads=threads, slots=slots, context=context, key_variable=key_variable, by=by)
    )


async def started(engine: Engine) -> Engine:
    """The same. What it raises leaves nothing open."""
    try:
        await engine.start()
    except BaseException:
        await engine.close()
        raise
    return engine


def unstarted(
    named: str, *, threads: int | None, slots: int, context: int | None, key_variable: str, by: str | None
) -> Engine:  # fmt: skip
    """An engine that knows its slots, and has loaded nothing. Raises as `opened_engine` does."""
    threads = threads or cores()
    if URL.match(named):
        from isoflop.serve.engines.remote import Remote

        url, _, model = URL.sub(r"\1://", named).partition("#")
        return Remote(url, model=model or None, context=context, key_variable=key_variable)
    path = opened(Path(named))
    if by == VLLM:
        return _vllm(path, context)
    if path.suffix == GGUF:
        return _gguf(path, threads, slots, context)  # all else takes seconds to import
    from isoflop.adapting.saved import is_adapted

    if is_adapted(path):
        return _adapted(path, threads)
    return _folder(path, threads, context)


def _vllm(path: Path, context: int | None) -> Engine:
    """Of what transformers or compressed-tensors have written of a model that writes."""
    from isoflop.adapting.saved import is_adapted
    from isoflop.serve.engines.remote import Remote
    from isoflop.serve.engines.vllm import VllmProcess
    from isoflop.tasks.protocol import DECODER

    config = path / "config.json"
    others = path.suffix == GGUF or is_adapted(path) or (is_export(path) and packed_by(path) != COMPRESSED)
    if others or not config.is_file() or _kind(config) != DECODER:
        raise ProjectError(
            f"{path} is not what vLLM serves: the folder of a causal model, or its compressed-tensors export",
            hint="name one, or leave out --engine",
        )
    return Remote(VllmProcess(path, context=context), context=context)


def _gguf(path: Path, threads: int, slots: int, context: int | None) -> Engine:
    """Of a model of vectors where the file says how they are pooled, else of one that writes."""
    from isoflop.engines.llamacpp import described
    from isoflop.serve.engines.llamacpp import LlamaCpp, LlamaCppEmbeds

    pooling = described(path).pooling
    if pooling == RANKING:
        raise _not_served(path, "ranks texts")
    kind = LlamaCppEmbeds if pooling else LlamaCpp  # 0: none
    return kind(path, threads=threads, slots=slots, context=context)


def _adapted(path: Path, threads: int) -> Engine:
    from isoflop.adapting.saved import task_name
    from isoflop.serve.engines.adapted import Classifier, Tagger
    from isoflop.serve.engines.embedding import Embedder
    from isoflop.serve.engines.whisper import Whisper

    task = task_name(path)
    if task in LABELS:
        return Classifier(path, threads=threads)
    if task in TAGS:
        return Tagger(path, threads=threads)
    if task in VECTORS:
        return Embedder(path, threads=threads)
    if task == "speech":
        return Whisper(path, threads=threads)
    raise _not_served(path, f"is adapted to {task}")


def _folder(path: Path, threads: int, context: int | None) -> Engine:
    """Of transformers or CTranslate2."""
    from isoflop.serve.engines.embedding import Embedder
    from isoflop.serve.engines.faster import MODEL, FasterWhisper
    from isoflop.serve.engines.stepping import Stepping
    from isoflop.serve.engines.whisper import Whisper
    from isoflop.tasks.base import has_weights
    from isoflop.tasks.protocol import DECODER, ENCODER, SPEECH

    config = path / "config.json"
    if (path / MODEL).is_file():
        return FasterWhisper(path, threads=threads)
    if is_export(path):
        return Stepping(path, threads=threads, context=context)
    if not config.is_file():
        raise _not_served(path, "has no config.json")
    if not has_weights(path):
        raise _not_served(path, "has no weights")
    kind = _kind(config)
    if kind == DECODER:
        return Stepping(path, threads=threads, context=context)
    if kind == ENCODER:
        return Embedder(path, threads=threads)
    if kind == SPEECH:
        return Whisper(path, threads=threads)
    raise _not_served(path, f"is a model of the kind {kind}")


def _kind(config: Path) -> str:
    from isoflop.tasks.base import kind_of

    try:
        return kind_of(json.loads(config.read_text()), config.parent)
    except json.JSONDecodeError as error:
        raise CorruptError(f"{config} is no JSON: {error}", hint="restore the file") from None


def _not_served(path: Path, why: str) -> ProjectError:
    return ProjectError(f"{path} {why}, which is not served", hint=f"name {SERVED}")
