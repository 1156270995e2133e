"""A model that is being adapted: its optimizer, the weights that count, and all that a checkpoint needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from isoflop.adapting.objective import Batch, Objective, Teacher
from isoflop.adapting.parts import depths
from isoflop.adapting.planning import rate
from isoflop.adapting.records import AdaptConfig
from isoflop.errors import AdaptError
from isoflop.precision import Precision
from isoflop.tasks.protocol import Spec, Task

BETAS = (0.9, 0.999)

Penalty = Callable[[nn.Module], None]  # adds gradients of its own
Weights = dict[str, Tensor]


class Training:
    """Steps of AdamW (Loshchilov and Hutter, arXiv 1711.05101) on what requires gradients."""

    def __init__(
        self, task: Task, model: nn.Module, spec: Spec, config: AdaptConfig, device: torch.device,
        teacher: Teacher | None, penalty: Penalty | None,
    ) -> None:  # fmt: skip
        self.model, self.config, self.penalty = model, config, penalty
        self.objective = Objective(task, model, spec, config, device, teacher)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.trained:
            raise AdaptError(
                f"the method {config.method} trains nothing of this model: it has no new head",
                hint="choose another --method",
            )
        self.optimizer = torch.optim.AdamW(groups_of(model, config), lr=config.lr, betas=BETAS, fused=True)
        self.precision = Precision(config.precision, device, [self.optimizer])
        self.mean: Weights = {}  # the moving average
        if config.averaged:
            self.mean = {name: p.detach().clone() for name, p in self.trained.items()}
        self.ranks = _rank_allocator(model)

    @property
    def params_trained(self) -> int:
        return sum(p.numel() for p in self.trained.values())

    def step(self, batch: Batch, number: int, total: int) -> float:
        """One step of the optimizer; returns the loss. Raises AdaptError where it is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * group["share"] * rate(number, total, self.config.warmup)
        loss = float(self.gradients(batch, number))
        self.precision.unscale()
        if self.penalty is not None:
            self.penalty(self.model)
        if self.config.grad_clip:
            nn.utils.clip_grad_norm_(self.trained.values(), self.config.grad_clip)
        self.precision.step()
        if self.precision.failed(loss):
            raise AdaptError(
                f"the loss is {loss} at step {number + 1} of {self.config.method} at a learning rate of "
                f"{self.config.lr:g}",
                hint="give a lower learning rate",
            )
        if self.ranks is not None:
            self.ranks.allocate(number, total)
        self.optimizer.zero_grad(set_to_none=True)
        # Early on the average follows more closely, as it does in TensorFlow's moving averages.
        decay = min(self.config.averaged, (1 + number) / (10 + number))
        for name, mean in self.mean.items():
            mean.lerp_(self.trained[name].detach(), 1 - decay)
        return loss

    def gradients(self, batch: Batch, number: int) -> Tensor:
        """Add those of step `number`; returns the loss."""
        rng = np.random.default_rng((self.config.seed, number, 1))
        loss = self.objective.gradients(batch, rng, self.precision)
        if self.ranks is not None:
            self.precision.backward(self.ranks.penalty())
        return loss

    def flops_of(self, batch: Batch) -> float:
        """Of the gradients of a batch, counted as they are computed (torch's counter of matrix products)."""
        with FlopCounterMode(display=False) as counter:
            self.gradients(batch, 0)
        return float(counter.get_total_flops())

    @contextmanager
    def nothing_kept(self) -> Iterator[None]:
        """After this block layers' statistics and random numbers are as before, and no gradients are left."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with torch.random.fork_rng():
            yield
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> Weights:
        """A copy of what training changes: parameters, and statistics of layers."""
        found = {name: p.detach().clone() for name, p in self.trained.items()}
        return found | {name: b.clone() for name, b in self.model.named_buffers()}

    def load_weights(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, there in (*self.trained.items(), *self.model.named_buffers()):
                there.copy_(weights[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """In this block the model has the average of its weights, where one is kept."""
        if not self.mean:
            yield
            return
        own = {name: p.detach().clone() for name, p in self.trained.items()}
        self._put(self.mean)
        yield
        self._put(own)

    @torch.no_grad()
    def _put(self, weights: Weights) -> None:
        for name, p in self.trained.items():
            p.copy_(weights[name])

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "weights": self.weights(), "mean": self.mean, "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(), "random": torch.get_rng_state(),
            "ranks": None if self.ranks is None else self.ranks.state(),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        self.load_weights(state["weights"])
        for name, mean in self.mean.items():
            mean.copy_(state["mean"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if self.ranks is not None:
            self.ranks.load(state["ranks"])


def groups_of(model: nn.Module, config: AdaptConfig) -> list[dict[str, Any]]:
    """Parameters by depth, and by whether they decay: vectors, as norms and biases, do not.

    The rate of depth k is `layer_decay` to the power of what lies above it (Howard and Ruder, arXiv
    1801.06146, section 3.2; Clark et al., arXiv 2003.10555, appendix A).
    """
    found, top = depths(model)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups.setdefault((found[name] if config.layer_decay != 1 else top, p.dim() > 1), []).append(p)
    return [
        {
            "params": params, "share": config.layer_decay ** (top - depth),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (depth, decays), params in sorted(groups.items(), key=lambda item: item[0])
    ]  # fmt: skip


def set_dropout(model: nn.Module, p: float) -> None:
    """Every dropout's share, also of attention layers that keep it as a number."""
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = p


class _Ranks:
    """AdaLoRA's budget of ranks, which moves while it trains (Zhang et al., arXiv 2303.10512, section 3)."""

    WAIT, END = 0.1, 0.3  # shares of the steps before and after; assumption: theirs differ by task

    def __init__(self, tuner: Any) -> None:
        self.tuner, self.allocator = tuner, tuner.rankallocator
        self.options = tuner.peft_config[tuner.trainable_adapter_name]

    def allocate(self, number: int, total: int) -> None:
        """After a step of the optimizer, while there are gradients."""
        self.options.total_step = total
        self.options.tinit, self.options.tfinal = round(self.WAIT * total), max(1, round(self.END * total))
        if total > 1:
            self.tuner.update_and_allocate(number)

    def penalty(self) -> Tensor:
        """How far the factors are from orthogonal (equation 4), as peft adds it to a loss of its own."""
        found = [
            (p @ p.T if "lora_A" in name else p.T @ p)
            for name, p in self.tuner.model.named_parameters()
            if "lora_A" in name or "lora_B" in name
        ]
        norms = [torch.linalg.norm(x - torch.eye(len(x), device=x.device)) for x in found]
        total: Tensor = self.options.orth_reg_weight * torch.stack(norms).mean()
        return total

    def state(self) -> dict[str, Any]:
        a = self.allocator
        return {
            "pattern": self.options.rank_pattern,
            "ipt": a.ipt,
            "mean": a.exp_avg_ipt,
            "unsure": a.exp_avg_unc,
        }

    def load(self, state: dict[str, Any]) -> None:
        a, self.options.rank_pattern = self.allocator, state["pattern"]
        a.ipt, a.exp_avg_ipt, a.exp_avg_unc = state["ipt"], state["mean"], state["unsure"]


def _rank_allocator(model: nn.Module) -> _Ranks | None:
    from peft import AdaLoraModel

    tuner = getattr(model, "base_model", None)
    return _Ranks(tuner) if isinstance(tuner, AdaLoraModel) else None
