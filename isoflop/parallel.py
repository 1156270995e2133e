"""A model whose weights, gradients and optimizer state are shared out to the ranks (fully sharded, FSDP2).

Each rank holds its rows of every weight. A layer's weights are gathered when it computes and let go
afterwards, its gradients become means over ranks, shared out again, in the backward pass (Zhao et al.,
arXiv 2304.11277). What is outside the layers (embedding, head, final norm) is gathered for the whole step.

A rank needs about 4 / ranks copies of the weights (themselves, gradients, two moments), and one layer whole;
each builds the whole model once in memory of the CPU, since initial weights depend on the seed alone.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from isoflop.devices import rank, world
from isoflop.families import family_of
from isoflop.model import LanguageModel
from isoflop.records import RunConfig

# What is called of a model, rather than itself; the last only where it is.
ENTRIES = ("loss", "token_losses", "last_logits", "relation_logits")


def shard(model: LanguageModel, device: torch.device) -> LanguageModel:
    """Share `model` out to the ranks and move it to their devices; what it computes stays the same."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (world(),))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh)
    for name in filter(partial(hasattr, model), ENTRIES):
        register_fsdp_forward_method(model, name)
    return model


def whole(model: LanguageModel, config: RunConfig) -> LanguageModel:
    """On rank 0 a model with all the weights of a sharded one, in memory of the CPU; all ranks take part.

    On the others its weights are initial ones.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    gathered = family_of(config.model).build(config.model, config.seed)
    if rank() == 0:
        gathered.load_state_dict(weights)
    return gathered


def added_up(norm: Tensor) -> Tensor:
    """The norm of what is shared out, of which each rank has its part: the same on all of them."""
    from torch.distributed.tensor import DTensor

    assert isinstance(norm, DTensor)
    return norm.full_tensor()


def mesh_of(model: LanguageModel) -> DeviceMesh:
    """The ranks that hold a sharded model."""
    from torch.distributed.tensor import DTensor

    weight = next(model.parameters())
    assert isinstance(weight, DTensor)
    return weight.device_mesh
