"""An adapted model's graph in ONNX Runtime, called as a model of transformers is: inputs by name, logits out.

Shapes: b examples of a batch, t tokens, C labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isoflop.engines import ONNX
from isoflop.errors import CorruptError, ProjectError
from isoflop.export.onnx import HINT


class Said(NamedTuple):
    """As transformers names it."""

    logits: Tensor  # (b, C) or (b, t, C)


class Served(nn.Module):
    """A folder's graph on the CPU, on as many threads as torch has when it is opened.

    Raises ProjectError when onnxruntime is not installed, CorruptError when it cannot open the graph.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise ProjectError(f"opening {folder} needs the package onnxruntime", hint=HINT) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 3
        try:
            self.session: Any = onnxruntime.InferenceSession(
                str(folder / ONNX), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # it has no class of its own for what it cannot read
            raise CorruptError(
                f"ONNX Runtime cannot open {folder / ONNX}: {str(error).splitlines()[0]}",
                hint="export the model again",
            ) from None
        self.names = [i.name for i in self.session.get_inputs()]
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # says on which device inputs shall be

    def forward(self, **inputs: Tensor) -> Said:
        """Inputs (b, t) by name; those that the graph does not have are left out."""
        (found,) = self.session.run(["logits"], {name: inputs[name].numpy() for name in self.names})
        return Said(torch.from_numpy(found))
