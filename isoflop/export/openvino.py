"""OpenVINO: its own reading of our ONNX graph, with keys and values kept inside, and weights rounded by NNCF.

The graph is stateful, as optimum-intel's are: a request goes on from the tokens that it was fed before.
"""

from __future__ import annotations

import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isoflop.errors import ProjectError
from isoflop.export.onnx import BLOCK, linears, names, write_onnx
from isoflop.gpt import GPT

TYPES = {"f32": "", "int8": "INT8_SYM", "int4": "INT4_SYM"}  # what NNCF calls them
HINT = "pip install 'isoflop[openvino]'"


def write_openvino(model: GPT, path: Path, *, kind: str) -> None:
    """Write the graph and its weights (a .bin beside `path`) as `kind`, one of TYPES.

    Eight bits have a scale a row, four bits one for each BLOCK of it. Raises ProjectError without the
    packages.
    """
    openvino, layers = package(), model.config.n_layers
    from openvino._offline_transformations import apply_make_stateful_transformation

    onnx = path.with_suffix(".onnx")
    write_onnx(model, onnx, kind="f32")
    graph = openvino.Core().read_model(onnx)
    inputs = {i.any_name: i for i in graph.inputs}
    one = {name: openvino.PartialShape([1, *list(i.partial_shape)[1:]]) for name, i in inputs.items()}
    graph.reshape({inputs[name]: shape for name, shape in one.items()})
    pairs = zip(names(layers, "past_key_values"), names(layers, "present"), strict=True)
    apply_make_stateful_transformation(graph, dict(pairs))
    if TYPES[kind]:
        graph = _rounded(graph, kind)
    openvino.save_model(graph, path, compress_to_fp16=False)
    onnx.unlink()


def _rounded(graph: Any, kind: str) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    mode = getattr(nncf.CompressWeightsMode, TYPES[kind])
    blocks = {} if kind == "int8" else {"group_size": BLOCK, "ratio": 1.0, "all_layers": True}
    with redirect_stdout(sys.stderr):  # it draws a progress bar
        return nncf.compress_weights(graph, mode=mode, **blocks)


def read_openvino(model: GPT, path: Path) -> None:
    """Give `model` the matrices of a file as they were rounded: those of its products, and the table."""
    openvino = package()
    graph, table = openvino.Core().read_model(path), model.model.embed_tokens.weight
    found = linears(model) | {"logits": model.lm_head}  # the last product is called as what it gives
    for op in graph.get_ordered_ops():
        weight, place, turned = None, 1, False
        if op.get_type_name() == "MatMul" and op.get_friendly_name() in found:
            weight = found[op.get_friendly_name()].weight
            turned = not op.get_attributes()["transpose_b"]
        elif op.get_type_name() == "Gather" and list(op.input_value(0).get_partial_shape()) == [*table.shape]:
            weight, place = table, 0
        if weight is not None:
            value = torch.from_numpy(_constant(op.input_value(place), openvino))
            with torch.no_grad():
                weight.copy_(value.T if turned else value)


def _constant(output: Any, openvino: Any) -> NDArray[np.float32]:
    """The value of an output that depends on no input."""
    part = openvino.Model([output], [], "constant")
    made = openvino.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])
    return np.asarray(made[0], np.float32)


def package() -> Any:
    """Raises ProjectError where OpenVINO or NNCF is not installed."""
    try:
        import nncf  # noqa: F401
        import openvino
    except ImportError as error:
        raise ProjectError(f"OpenVINO needs the package {error.name}", hint=HINT) from None
    return openvino
