"""OpenVINO: an exported folder, whose graph keeps keys and values itself.

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

from isoflop.engines import OPENVINO, check_room
from isoflop.errors import CorruptError
from isoflop.export.openvino import package


class OpenVino:
    """A folder with openvino_model.xml, config.json and tokenizer.json, on the CPU.

    What is not rounded is computed in float32: left alone, OpenVINO takes bf16 where the CPU has units for
    it. Raises ProjectError when OpenVINO is not installed, CorruptError when it cannot open the folder.
    """

    name = "OpenVINO"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        openvino = package()
        plain = {
            "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32",
        }  # fmt: skip
        try:
            config = json.loads((path / "config.json").read_text())
            self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
            made = openvino.Core().compile_model(path / OPENVINO, "CPU", plain)
            self._request: Any = made.create_infer_request()
            self.vocab_size = int(config["vocab_size"])
            self.context = int(config["max_position_embeddings"])
        except Exception as error:  # it has no class of its own for what it cannot read
            raise CorruptError(
                f"OpenVINO cannot open {path}: {str(error).splitlines()[0]}", hint="export it again"
            ) from None
        weights = (path / OPENVINO).with_suffix(".bin").stat().st_size
        table = 4 * self.vocab_size * config["hidden_size"]  # of which a token reads one row
        self.weight_bytes = max(0, weights - table)
        self._fed = 0

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def feed(self, ids: Sequence[int], *, every: bool) -> NDArray[np.float32]:
        s = self._fed + len(ids)
        check_room(s, self.context)
        found = self._request.infer({
            "input_ids": np.array([list(ids)], np.int64),
            "attention_mask": np.ones((1, s), np.int64),
            "position_ids": np.arange(self._fed, s, dtype=np.int64)[None],
        })  # fmt: skip
        self._fed = s
        logits: NDArray[np.float32] = np.array(found["logits"][0])
        return logits if every else logits[-1:]

    def reset(self) -> None:
        self._request.reset_state()
        self._fed = 0

    def close(self) -> None:
        self._request = None
