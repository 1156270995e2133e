"""What runs a finished model: one small interface over the engines that people serve with.

Shapes: t time, v vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import ProjectError

GGUF = ".gguf"
ONNX, OPENVINO, TORCH = "model.onnx", "openvino_model.xml", "model_int8.pt"
COMPRESSED = "compressed-tensors"
PACKAGES = {GGUF: "xllamacpp", ONNX: "onnxruntime", OPENVINO: "openvino", "config.json": "transformers"}


class Engine(Protocol):
    """A model that is loaded and ready: token ids in, logits out."""

    name: str
    vocab_size: int
    context: int  # most tokens that it holds
    weight_bytes: int  # that it reads for one token

    def encode(self, text: str) -> list[int]:
        """Token ids of a text by the engine's own tokenizer, nothing added."""

    def feed(self, ids: Sequence[int], *, every: bool) -> NDArray[np.float32]:
        """Logits (t, v) after each of the next tokens, or with `every=False` (1, v) after the last one."""

    def reset(self) -> None:
        """Forget all tokens that were fed."""

    def close(self) -> None:
        """Give its memory back."""


@contextmanager
def open_engine(path: Path, *, threads: int = 1) -> Iterator[Engine]:
    """The engine of an artifact, for a `with`: llama.cpp for a .gguf file, else by what is in the folder.

    Raises ProjectError when there is no such file or its engine is not installed, CorruptError when the
    engine refuses it.
    """
    engine = _loaded(path, threads)
    try:
        yield engine
    finally:
        engine.close()


def is_export(path: Path) -> bool:
    """Whether an artifact is for another engine than our own model: a file, or a folder with an engine's."""
    if path.suffix == GGUF or any((path / name).is_file() for name in (ONNX, OPENVINO, TORCH)):
        return True
    return packed_by(path) == COMPRESSED


def packed_by(folder: Path) -> str | None:
    """The method that a Hugging Face folder's weights are packed by, as its config says; None: by none."""
    try:
        raw = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):  # who opens it says what is wrong
        return None
    packing = raw.get("quantization_config") if isinstance(raw, dict) else None
    return str(packing.get("quant_method")) if isinstance(packing, dict) else None


def opened(artifact: Path) -> Path:
    """What an engine opens of an artifact: the .gguf file of a folder that has one, else the artifact.

    Raises ProjectError when there is nothing, or several such files.
    """
    if not artifact.exists():
        raise ProjectError(f"there is no artifact {artifact}", hint="look into PROJECT/artifacts")
    files = sorted(artifact.glob(f"*{GGUF}"))
    if len(files) > 1:
        raise ProjectError(f"{artifact} has {len(files)} {GGUF} files", hint="name one of them")
    return files[0] if files else artifact


def check_room(tokens: int, context: int) -> None:
    """Raises ProjectError when an engine would hold more tokens than its context."""
    if tokens > context:
        raise ProjectError(f"{tokens} tokens do not fit into a context of {context}", hint="shorten the text")


def package_of(path: Path) -> str:
    """The package whose engine opens an artifact. Raises ProjectError when it is none."""
    return PACKAGES[_mark(path)]


def _mark(path: Path) -> str:
    """By what an artifact is known: the file's suffix, or the first of these files in the folder."""
    if path.suffix == GGUF and path.is_file():
        return GGUF
    found = next((name for name in PACKAGES if (path / name).is_file()), None)
    if found is None:
        raise ProjectError(
            f"{path} is neither a model folder nor a {GGUF} file: it has no config.json",
            hint="look into PROJECT/artifacts",
        )
    return found


def _loaded(path: Path, threads: int) -> Engine:
    mark = _mark(path)
    if mark == GGUF:
        from isoflop.engines.llamacpp import LlamaCpp

        return LlamaCpp(path, threads=threads)
    if mark == ONNX:
        from isoflop.engines.onnxruntime import OnnxRuntime

        return OnnxRuntime(path, threads=threads)
    if mark == OPENVINO:
        from isoflop.engines.openvino import OpenVino

        return OpenVino(path, threads=threads)
    from isoflop.engines.folder import Transformers

    return Transformers(path, threads=threads)
