"""compressed-tensors: a folder that vLLM serves on GPUs, with matrices in int4 or int8 and the rest in bf16.

Packed by the package of that name as llm-compressor packs (`pack-quantized`), each weight to its nearest or
by GPTQ. The head stays in bf16, as in llm-compressor's recipes. On a CPU transformers makes floats of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from isoflop.errors import ProjectError
from isoflop.export.gptq import in_turn
from isoflop.families.sparse import WEIGHTS
from isoflop.gpt import GPT

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs

KINDS = {"w4a16": 4, "w8a16": 8}  # bits of a weight; a GPU computes with activations in 16
GROUPS = (128, 64, 32)  # columns that share a scale, as vLLM's Marlin kernels know them
BLOCK = 128  # columns at a time where a row has one scale
DTYPE = torch.bfloat16  # of scales, and of all that is not rounded
PACKED = "pack-quantized"
HEAD = "lm_head"
HINT = "pip install 'isoflop[compressed-tensors]'"


Moments = Mapping[str, NDArray[np.float32]]  # `calibrate.second_moments`


def write_compressed(model: GPT, folder: Path, *, kind: str, moments: Moments | None = None) -> None:
    """Round the weights of a model folder: 4 bits with a scale a group of columns, 8 with one a row.

    Groups have one size in all matrices, the largest that divides their columns; where none does, 4 bits have
    a scale a row as well. By GPTQ with the second moments of what the layers are fed, else each weight to its
    nearest. Raises ProjectError without the package.
    """
    require_package()
    from compressed_tensors.compressors import ModelCompressor, compress_module
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    made: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=_grid(model, KINDS[kind]))
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=[HEAD], format=PACKED)
    apply_quantization_config(made, config, show_progress=False)
    for name, module in made.named_modules():
        if hasattr(module, "quantization_scheme"):
            if moments is None:
                _set_scales(module)
            else:
                _compensate(module, moments[f"{name}.weight"])
            compress_module(module, PACKED)
    config.quantization_status = QuantizationStatus.COMPRESSED
    state = {k: t.to(DTYPE) if t.is_floating_point() else t for k, t in made.state_dict().items()}
    if model.config.tied:
        del state[f"{HEAD}.weight"]
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"dtype": str(DTYPE).removeprefix("torch.")}, indent=2)
        + "\n"
    )
    ModelCompressor(config).update_config(str(folder))


def read_compressed(model: GPT, folder: Path) -> None:
    """Give `model` the weights of a folder as they were rounded."""
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    raw = json.loads((folder / "config.json").read_text())["quantization_config"]
    (scheme,) = QuantizationConfig.model_validate(raw).config_groups.values()
    ours, packed = model.state_dict(), dict[str, dict[str, torch.Tensor]]()
    for name, tensor in load_file(folder / WEIGHTS).items():
        if name in ours:
            ours[name].copy_(tensor)
        else:
            layer, part = name.rsplit(".", 1)
            packed.setdefault(layer, {})[part] = tensor
    for layer, parts in packed.items():
        found = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
        ours[f"{layer}.weight"].copy_(found)


def load_compressed(folder: Path) -> Any:
    """The transformers model of a folder, in float32. Raises ProjectError, and what transformers does."""
    require_package()
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config.quantization_config["dequantize"] = True  # at once, and not in bf16 at the first token
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, local_files_only=True
    )


def require_package() -> None:
    """Raises ProjectError where compressed-tensors is not installed."""
    try:
        import compressed_tensors  # noqa: F401
    except ImportError:
        raise ProjectError("compressed-tensors is not installed", hint=HINT) from None


def _grid(model: GPT, bits: int) -> QuantizationArgs:
    """How weights are rounded: symmetric, with a scale a group of columns or a row."""
    from compressed_tensors.quantization import QuantizationArgs

    columns = [m.in_features for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != HEAD]
    group = next((g for g in GROUPS if all(c % g == 0 for c in columns)), None) if bits == 4 else None
    return QuantizationArgs(num_bits=bits, group_size=group, strategy="group" if group else "channel")


def _set_scales(module: Any) -> None:
    """By the largest weight of each group or row."""
    grid, weight = module.quantization_scheme.weights, module.weight.detach()
    parts = weight.split(grid.group_size or weight.shape[1], dim=1)
    module.weight_scale.data.copy_(torch.stack([_scale(part, grid) for part in parts], dim=1))


def _scale(weight_rk: torch.Tensor, grid: QuantizationArgs) -> torch.Tensor:
    """(r,), rounded as it is kept: weights are rounded to what scales are then."""
    from compressed_tensors.quantization.utils import calculate_qparams

    scale: torch.Tensor = calculate_qparams(*weight_rk.float().aminmax(dim=1), grid)[0]
    return scale.to(DTYPE).to(weight_rk.dtype)


@torch.no_grad()
def _compensate(module: Any, moments_cc: NDArray[np.float32]) -> None:
    """Weights on the grid by GPTQ: a group's scale is of what it is by then, a row's of what it was."""
    grid, weight = module.quantization_scheme.weights, module.weight
    scales_rg = [] if grid.group_size else [_scale(weight, grid)]

    def scales(part_rk: torch.Tensor, here: slice) -> tuple[torch.Tensor, torch.Tensor]:
        if grid.group_size:
            scales_rg.append(_scale(part_rk, grid))
        return scales_rg[-1], torch.zeros_like(scales_rg[-1])

    size, half = grid.group_size or BLOCK, 1 << (grid.num_bits - 1)
    levels_rc = in_turn(weight, moments_cc, size, np.arange(-half, half), scales) - half
    module.weight_scale.data.copy_(torch.stack(scales_rg, dim=1))
    wide_rc = module.weight_scale.float().repeat_interleave(weight.shape[1] // len(scales_rg), dim=1)
    weight.copy_(levels_rc * wide_rc)
