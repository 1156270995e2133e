"""A smaller base without a download: every k-th layer of a model.

A student that begins with layers of its teacher learns faster than a new one (Sanh et al., arXiv 1910.01108,
section 3; which layers: every k-th, Sun et al., arXiv 1908.09355, section 3.2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from isoflop.adapting.parts import stacks
from isoflop.errors import AdaptError
from isoflop.store import Project
from isoflop.tasks.base import load_base, opened


def kept_layers(layers: int, of: int) -> list[int]:
    """Numbers of the layers that stay, from 0: every k-th, the last among them."""
    return [(i + 1) * of // layers - 1 for i in range(layers)]


def smaller(project: Project, folder: Path, layers: int) -> Path:
    """A base in the project's artifacts that has so many layers of the model of a folder, and the rest whole.

    Raises AdaptError for a folder that is no model, for one of two stacks of layers, and for a number of
    layers that it does not have.
    """
    base = load_base(folder)
    named = (getattr(base.config, "architectures", None) or ["AutoModel"])[0]  # so that a head stays
    model: Any = opened(named, folder)
    config, found = model.config, list(stacks(model).items())
    depth = getattr(config, "num_hidden_layers", None)
    if len(found) != 1 or len(found[0][1]) != depth:
        raise AdaptError(
            f"{folder} ({config.model_type}) is not one stack of layers, of which some could be kept",
            hint="name an encoder or a decoder, or leave --keep-layers out",
        )
    if not 1 <= layers < depth:
        raise AdaptError(
            f"{folder} has {depth} layers, of which {layers} cannot be kept", hint=f"keep 1 to {depth - 1}"
        )
    name, stack = found[0]
    stay = kept_layers(layers, depth)
    model.set_submodule(name, nn.ModuleList(stack[i] for i in stay))
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == depth:  # what each layer is
            setattr(config, key, [value[i] for i in stay])
    config.num_hidden_layers = layers

    def write(target: Path) -> None:
        model.save_pretrained(target)
        base.processor.save_pretrained(target)

    return project.folder / project.add_artifact(f"{layers}-layers", write)
