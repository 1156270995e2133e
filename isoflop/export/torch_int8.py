"""torch's dynamic int8: weights in 8 bits with a scale a row, and what a layer is fed rounded as it comes.

torch takes one scale for all positions that are fed at once, and 7 bits of them, so that sums fit its
kernels: coarser than other engines, which the gate allows for. Embedding and norms stay float32.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isoflop.gpt import GPT

KINDS = ("int8",)
TOLERANCE = 0.1  # of logits; 0.06 was seen where others have 0.01


def write_torch(model: GPT, path: Path, *, kind: str) -> None:
    """Write the state of a transformers model with int8 layers; its config.json lies beside `path`."""
    made = _empty(path.parent)
    made.load_state_dict(model.state_dict())
    torch.save(_rounded(made).state_dict(), path)


def load_torch(path: Path) -> Any:
    """The transformers model that was written there. Raises what torch and transformers do."""
    made = _rounded(_empty(path.parent))
    made.load_state_dict(torch.load(path, weights_only=True))
    return made


def read_torch(model: GPT, path: Path) -> None:
    """Give `model` the matrices of a file as they were rounded."""
    found = dict(load_torch(path).named_modules())
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            # a new one: a tied head is rounded apart from the table, which stays as it is
            layer.weight = nn.Parameter(found[name].weight().dequantize())


def _empty(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _rounded(model: Any) -> Any:
    """With its linear layers in int8."""
    from torch.ao import quantization

    tool: Any = quantization
    with warnings.catch_warnings():  # deprecated for torchao, whose eager int8 is slower (docs/LOG.md)
        warnings.simplefilter("ignore")
        return tool.quantize_dynamic(model, {nn.Linear: tool.per_channel_dynamic_qconfig}, inplace=True)
