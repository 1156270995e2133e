"""The parts of a model that adapting tells apart: blocks by depth, the trunk's linear layers, new heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

HEADS = ("classifier", "score", "qa_outputs", "classification_head", "pre_classifier")  # of transformers
CHECKPOINTS = ("*.safetensors", "pytorch_model*.bin")


def stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The model's lists of blocks by name, in order: one of an encoder, two of an encoder with a decoder."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(module, nn.ModuleList) and not inside:
            found[name] = module
    return found


def depths(model: nn.Module) -> tuple[dict[str, int], int]:
    """Depth of each parameter, and the greatest: 0 before the n blocks, 1 in the first, n + 1 after the last.

    Blocks of a decoder come after those of its encoder.
    """
    starts, blocks = {}, 0
    for name, stack in stacks(model).items():
        starts[name] = blocks
        blocks += len(stack)
    found, seen = {}, 0
    for name, _ in model.named_parameters():
        stack_name = next((s for s in starts if name.startswith(f"{s}.")), None)
        if stack_name is not None:
            seen = starts[stack_name] + int(name[len(stack_name) + 1 :].split(".")[0]) + 1
            found[name] = seen
        else:
            found[name] = seen + (seen == blocks)
    return found, blocks + 1


def new_parameters(model: nn.Module, folder: Path) -> set[str]:
    """Names of what has to be trained whatever the method: parameters that the folder's weights lack, or have
    in another shape, and heads of labels; but for what the model keeps fixed.

    A part that was read from a folder of its own, as the image half of two encoders, is looked for there.
    """
    known: set[str] = set()
    for path, part in pretrained_parts(model):
        own_folder = Path(part.name_or_path or folder)
        stored = _stored_shapes(own_folder if own_folder.is_dir() else folder)
        prefix = part.base_model_prefix
        for name, weight in part.named_parameters():
            own = name.removeprefix(f"{prefix}.")
            if tuple(weight.shape) in {stored.get(key) for key in (name, own, f"{prefix}.{own}")}:
                known.add(f"{path}.{name}" if path else name)
    return {
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad and (name not in known or any(piece in HEADS for piece in name.split(".")))
    }


def linear_layers(model: nn.Module, but: set[str]) -> list[str]:
    """Names of the linear layers, but for those that have parameters of `but`: new ones are trained whole."""
    from transformers.pytorch_utils import Conv1D

    heads = {name.rpartition(".")[0] for name in but}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and name not in heads and module is not output
    ]


def model_type(model: nn.Module) -> str:
    """As transformers names it; the class of any other module."""
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def pretrained_parts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The outermost models of transformers in it, with where they are."""
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        yield "", model
        return
    for name, child in model.named_children():
        for path, part in pretrained_parts(child):
            yield f"{name}.{path}" if path else name, part


def _stored_shapes(folder: Path) -> Mapping[str, tuple[int, ...]]:
    """Of each tensor of the weights under a folder; files are not read but for their index."""
    import torch
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.rglob(CHECKPOINTS[0])):
        with safe_open(path, "pt") as file:
            shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    if not shapes:
        for path in sorted(folder.rglob(CHECKPOINTS[1])):
            tensors = torch.load(path, mmap=True, weights_only=True)
            shapes |= {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return shapes
