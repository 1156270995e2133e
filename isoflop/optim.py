"""Optimizers: Muon, or another of `recipe.MATRIX_RATES`, on the blocks' matrices, AdamW on the rest."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.devices import gathered, rank, world
from isoflop.errors import TrainError
from isoflop.model import LanguageModel
from isoflop.records import RunConfig

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al., Muon (2024): quintic, steep at zero
NS_STEPS = 5
ROWS_BETA2 = 0.95  # of NorMuon


def orthogonalise(g_nrc: Tensor, steps: int = NS_STEPS) -> Tensor:
    """Nearest semi-orthogonal matrix of each of n (r, c) matrices, by Newton-Schulz in their own precision.

    torch.optim.Muon does the same one matrix at a time and always in bfloat16, which a CPU without units
    for it computes a hundred times slower.
    """
    a, b, c = NS_COEFFICIENTS
    tall = g_nrc.shape[-2] > g_nrc.shape[-1]
    x = g_nrc.mT if tall else g_nrc
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _orthogonalised(g_nrc: Tensor) -> Tensor:
    """The same, each rank doing its share of the matrices.

    Those that are shared out by rows are laid out by matrices for the while.
    """
    if not hasattr(g_nrc, "device_mesh"):
        return _in_shares(g_nrc) if world() > 1 else orthogonalise(g_nrc)
    from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

    assert isinstance(g_nrc, DTensor)
    mesh = g_nrc.device_mesh

    def laid_out(x: DTensor, by: Sequence[Placement]) -> DTensor:
        if mesh.device_type == "cpu":
            x = x.redistribute(placements=[Replicate()])
        return x.redistribute(placements=by)

    wholes = laid_out(g_nrc, [Shard(0)])
    x_nrc = orthogonalise(wholes.to_local())
    out = DTensor.from_local(x_nrc, mesh, [Shard(0)], shape=wholes.shape, stride=wholes.stride())
    return laid_out(out, g_nrc.placements)


def _in_shares(g_nrc: Tensor) -> Tensor:
    """All matrices, which every rank has: each orthogonalises some and gets the others from the others."""
    each = math.ceil(len(g_nrc) / world())
    mine = g_nrc[rank() * each :][:each]
    part = g_nrc.new_zeros(each, *g_nrc.shape[1:])
    if len(mine):
        part[: len(mine)] = orthogonalise(mine)
    return gathered(part)[: len(g_nrc)]


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024); matrices of one shape are done in one batch.

    The step has spectral norm lr * sqrt(max(1, rows / columns)), so that a learning rate found at one
    width holds at another (Bernstein and Newhouse, arXiv 2409.20325). Weight decay is decoupled. Matrices of
    a group that says `transposed` have their rows as columns.

    With a `rows_beta2`, NorMuon (Li et al., arXiv 2510.05491, algorithm 1): each row of what was
    orthogonalised is divided by the root of the running mean of its squares, and the whole brought back to
    the norm that it had (the paper sets its root mean square to 0.2), so that the rate stays Muon's.

    Ranks that all have the same matrices share the orthogonalisation and send each other what they made of
    theirs. Matrices that are shared out by rows (`parallel.shard`) are exchanged, so that each rank does its
    share of those of one shape as wholes, and exchanged back: a rank sends and receives twice its part of
    every matrix a step on CUDA (all-to-all), and twice every matrix on a CPU, where gloo can only gather.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
        rows_beta2: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype, self.rows_beta2 = dtype, rows_beta2

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                by_shape[p.shape].append(p)
            for same in by_shape.values():
                self._step_batch(same, group)

    def _step_batch(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        grads = [p.grad for p in params if p.grad is not None]
        buffers = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        nesterov = torch._foreach_lerp(grads, buffers, momentum)
        stacked = torch.stack(nesterov)
        update = _orthogonalised(stacked.to(self.dtype)).to(stacked.dtype)
        if self.rows_beta2:
            update = self._rows_evened(update, params, -2 if group.get("transposed") else -1)
        rows, columns = params[0].T.shape if group.get("transposed") else params[0].shape
        weights: list[Tensor] = [p.data for p in params]
        torch._foreach_mul_(weights, 1 - lr * decay)
        torch._foreach_add_(weights, update.unbind(), alpha=-lr * max(1.0, rows / columns) ** 0.5)

    def _rows_evened(self, update_nrc: Tensor, params: list[nn.Parameter], across: int) -> Tensor:
        """Rows of one root mean square over time; `across` is the dimension that runs along a row."""
        seen = update_nrc.square().mean(across, keepdim=True)
        for p, mean in zip(params, seen, strict=True):
            if "squares" not in self.state[p]:
                self.state[p]["squares"] = torch.zeros_like(mean)
        squares = [self.state[p]["squares"] for p in params]
        torch._foreach_lerp_(squares, seen.unbind(), 1 - self.rows_beta2)
        evened = update_nrc / (torch.stack(squares).sqrt() + 1e-8)
        # Not by `norm`, which takes each rank's part of a shared-out matrix for a whole one.
        before, after = (x.square().sum((-2, -1), keepdim=True).sqrt() for x in (update_nrc, evened))
        out: Tensor = evened * (before / (after + 1e-8))  # behind a zero output projection both are 0
        return out


def make_optimizers(model: LanguageModel, config: RunConfig) -> list[torch.optim.Optimizer]:
    """`config.optimizer` for matrices; AdamW for embedding, head, and all else, each with its own rate.

    All else are the vectors of norms and biases, and tables of positions and kinds of token: what is added to
    every token, or scales it.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    turned = {id(p) for p in model.transposed}
    matrices: dict[bool, list[nn.Parameter]] = {False: [], True: []}  # by whether transposed
    embed: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for p in model.parameters():
        if p is model.table:
            embed.append(p)
        elif p is model.head:
            head.append(p)
        elif p.ndim == 2 and id(p) not in tables:
            matrices[id(p) in turned].append(p)
        else:
            vectors.append(p)
    groups = [
        {"params": embed, "lr": config.lr_embed},
        {"params": head, "lr": config.lr_head},
        {"params": vectors, "lr": config.lr_vector},
    ]
    adamw = torch.optim.AdamW(
        [g for g in groups if g["params"]], betas=config.betas, eps=1e-10, weight_decay=0.0, fused=True
    )
    optimizers = [_of_matrices(matrices, config), adamw]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _of_matrices(matrices: dict[bool, list[nn.Parameter]], config: RunConfig) -> torch.optim.Optimizer:
    """`config.optimizer` on matrices, by whether they are transposed. Raises TrainError without SOAP."""
    groups = [{"params": ps, "transposed": t} for t, ps in matrices.items() if ps]
    lr, decay = config.lr_matrix, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr, config.betas, eps=1e-10, weight_decay=decay, fused=True)
    if config.optimizer == "soap":
        made: torch.optim.Optimizer = _soap()(groups, lr, config.betas, weight_decay=decay)
        return made
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    beta2 = ROWS_BETA2 if config.optimizer == "normuon" else 0.0
    return Muon(groups, lr, config.momentum, decay, dtype, beta2)


def _soap() -> Any:
    """Vyas et al., arXiv 2409.11321; its first step only sets up the preconditioners."""
    try:
        from pytorch_optimizer import SOAP
    except ImportError:
        raise TrainError(
            "SOAP needs pytorch-optimizer, which is not installed", hint="pip install 'isoflop[optimizers]'"
        ) from None
    return SOAP
