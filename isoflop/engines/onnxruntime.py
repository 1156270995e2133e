"""ONNX Runtime: an exported folder, with its keys and values handed from step to step.

Shapes: t time, v vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from isoflop.engines import ONNX, check_room
from isoflop.errors import CorruptError, ProjectError
from isoflop.export.onnx import HINT

PAST, PRESENT = "past_key_values", "present"


class OnnxRuntime:
    """A folder with model.onnx, config.json and tokenizer.json, on the CPU.

    Raises ProjectError when onnxruntime is not installed, CorruptError when it cannot open the folder.
    """

    name = "ONNX Runtime"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ProjectError(f"opening {path} needs the package onnxruntime", hint=HINT) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        try:
            config = json.loads((path / "config.json").read_text())
            self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
            self._session: Any = onnxruntime.InferenceSession(
                str(path / ONNX), options, providers=["CPUExecutionProvider"]
            )
            self.vocab_size = int(config["vocab_size"])
            self.context = int(config["max_position_embeddings"])
            self._empty = np.zeros((1, config["num_key_value_heads"], 0, config["head_dim"]), np.float32)
        except Exception as error:  # neither library has a class of its own for what it cannot read
            raise CorruptError(
                f"ONNX Runtime cannot open {path}: {str(error).splitlines()[0]}", hint="export it again"
            ) from None
        table = 4 * self.vocab_size * config["hidden_size"]  # of which a token reads one row
        self.weight_bytes = (path / ONNX).stat().st_size - table
        self._past: dict[str, NDArray[np.float32]] = {}
        self._names = [i.name for i in self._session.get_inputs() if i.name.startswith(PAST)]
        self.reset()

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def feed(self, ids: Sequence[int], *, every: bool) -> NDArray[np.float32]:
        p = next(iter(self._past.values())).shape[2]
        s = p + len(ids)
        check_room(s, self.context)
        logits, *present = self._session.run(None, {
            "input_ids": np.array([list(ids)], np.int64),
            "attention_mask": np.ones((1, s), np.int64),
            "position_ids": np.arange(p, s, dtype=np.int64)[None],
            **self._past,
        })  # fmt: skip
        self._past = dict(zip(self._names, present, strict=True))
        found: NDArray[np.float32] = logits[0] if every else logits[0, -1:]
        return found

    def reset(self) -> None:
        self._past = dict.fromkeys(self._names, self._empty)

    def close(self) -> None:
        self._session, self._past = None, {}
