"""How much each part of our decoder matters on calibration text: layers, heads, feed-forward and width.

Activations are those of Minitron (Muralidharan et al., arXiv 2407.14679, section 2.2), Taylor expansion is
Molchanov et al., arXiv 1906.10771, and the influence of a layer is ShortGPT's (Men et al., arXiv 2403.03853).

Shapes: b windows, t time, d width, L layers, k key/value groups, h heads, e head width, f feed-forward width,
v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import flops
from isoflop.errors import TrainError
from isoflop.export.calibrate import CALIBRATION_TOKENS, windows
from isoflop.gpt import GPT, Block, RMSNorm
from isoflop.objectives import OBJECTIVES
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, ModelConfig

RANDOM = "random"  # the floor that the others are measured against
MEASURES = ("activation", "l2", "taylor", RANDOM)
DEPTHS = ("influence", "taylor", RANDOM)
STAGE = "calibrate"


@dataclass(frozen=True)
class Importance:
    """Of each structure of a model; only the order within one tensor has a meaning."""

    layers_l: Tensor
    groups_lk: Tensor  # a key/value head with the query heads that share it
    ff_lf: Tensor
    width_d: Tensor
    squares_nd: Tensor  # mean square of each channel before every RMSNorm: two a layer, then the last one
    tokens: int  # of calibration text
    flops: float  # spent on it


def measure(
    model: GPT, corpus: Corpus, *, by: str = "activation", depth: str = "influence",
    tokens: int = CALIBRATION_TOKENS, seed: int = 0, progress: Progress | None = None,
) -> Importance:  # fmt: skip
    """Importance of heads, feed-forward and width by one of MEASURES, of layers by one of DEPTHS.

    The `seed` is that of what is random.

    One pass over about `tokens` tokens of training text, a batch in memory at a time. Raises TrainError for
    a measure that is not known, CorpusError when the text is shorter than a window.
    """
    for option, name, known in (("--by", by, MEASURES), ("--depth-by", depth, DEPTHS)):
        if name not in known:
            raise TrainError(f"{option} {name} is no importance", hint=f"name one of {', '.join(known)}")
    progress, config = progress or Silent(), model.config
    learns = "taylor" in (by, depth)
    meter, slopes = _Meter(model, power=2 if by == "l2" else 1), _Slopes(model)
    seen = batches = 0
    progress.start(STAGE, tokens, "tokens")
    for rows in windows(corpus, config.context, tokens):
        inputs, targets = OBJECTIVES[config.objective].examples(rows, corpus, (0, batches))
        with meter.listening(), torch.set_grad_enabled(learns):
            if learns:
                model.zero_grad()
                model.loss(inputs, targets).backward()  # type: ignore[no-untyped-call]
                slopes.add()
            else:
                model.model(inputs)
        seen += inputs.numel()
        batches += 1
        progress.update(STAGE, seen)
    model.zero_grad()
    progress.finish(STAGE, f"{seen:,} tokens")
    others: dict[str, tuple[_Sums, int]] = {"taylor": (slopes, batches), RANDOM: (_chance(config, seed), 1)}
    found, count = others.get(by, (meter, seen))
    deep, times = others.get(depth, (meter, seen))
    return Importance(
        layers_l=deep.layers_l / times,
        groups_lk=found.groups_lk / count,
        ff_lf=found.ff_lf / count,
        width_d=found.width_d / count,
        squares_nd=meter.squares_nd / seen,
        tokens=seen,
        flops=pass_flops(config, seen, backward=learns),
    )


def pass_flops(config: ModelConfig, tokens: int, *, backward: bool) -> float:
    """FLOPs of reading `tokens` tokens once; a training token counts forward once and backward twice."""
    return float(flops.flops_per_token(config) * tokens) / (1 if backward else 3)


class _Sums:
    """Of each structure, over what was seen."""

    def __init__(self, c: ModelConfig) -> None:
        self.layers_l = torch.zeros(c.n_layers, dtype=torch.float64)
        self.groups_lk = torch.zeros(c.n_layers, c.n_kv_heads, dtype=torch.float64)
        self.ff_lf = torch.zeros(c.n_layers, c.d_ff, dtype=torch.float64)
        self.width_d = torch.zeros(c.d_model, dtype=torch.float64)


def _chance(c: ModelConfig, seed: int) -> _Sums:
    """Numbers without a meaning."""
    generator, drawn = torch.Generator().manual_seed(seed), _Sums(c)
    for numbers in vars(drawn).values():
        numbers.uniform_(generator=generator)
    return drawn


class _Meter(_Sums):
    """Sums over tokens of what passes by, listening in the forward pass.

    By activations (Minitron, equation 1), with |.| to the `power` of 1 or 2 summed over tokens:

        head h    || its output, an e-vector ||
        neuron f  | silu(gate x) * up x |
        channel d | RMSNorm(x)_d |, summed over all norms

    A group has the sum of its heads. The order of means of squares is that of Minitron's L2 norm. A layer
    has its block influence (ShortGPT, equation 1), 1 - cos(x, layer(x)).
    """

    def __init__(self, model: GPT, power: int) -> None:
        super().__init__(c := model.config)
        self.model, self.power = model, power
        self.squares_nd = torch.zeros(2 * c.n_layers + 1, c.d_model, dtype=torch.float64)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While a batch passes."""
        hooks = []
        for i, layer in enumerate(blocks(self.model)):
            hooks += [
                layer.register_forward_hook(self._told(self._layer, i)),
                layer.self_attn.o_proj.register_forward_hook(self._told(self._heads, i)),
                layer.mlp.down_proj.register_forward_hook(self._told(self._neurons, i)),
            ]
        for i, norm in enumerate(norms(self.model)):
            hooks.append(norm.register_forward_hook(self._told(self._norm, i)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _told(self, tell: Callable[[int, Tensor, Tensor], None], i: int) -> Callable[..., None]:
        """A hook that gives `tell` the index, input and output of a module."""

        @torch.no_grad()
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            tell(i, inputs[0].detach().float(), output.detach().float())

        return hook

    def _layer(self, i: int, x_btd: Tensor, y_btd: Tensor) -> None:
        self.layers_l[i] += (1 - F.cosine_similarity(x_btd, y_btd, dim=-1)).sum()

    def _heads(self, i: int, x_bta: Tensor, _: Tensor) -> None:
        c = self.model.config
        size_nkg = x_bta.view(-1, c.n_kv_heads, c.n_heads // c.n_kv_heads, c.head_dim).norm(dim=-1)
        self.groups_lk[i] += (size_nkg**self.power).sum((0, 2))

    def _neurons(self, i: int, x_btf: Tensor, _: Tensor) -> None:
        self.ff_lf[i] += (x_btf.abs() ** self.power).sum((0, 1))

    def _norm(self, i: int, x_btd: Tensor, y_btd: Tensor) -> None:
        self.width_d += (y_btd.abs() ** self.power).sum((0, 1))
        self.squares_nd[i] += x_btd.square().sum((0, 1))


class _Slopes(_Sums):
    """Sums over batches of |gradient * weight|, over all weights of a structure.

    That is the first-order term of what the loss changes by when a weight becomes zero (Molchanov et al.,
    equations 6 to 9), with absolute values in the place of squares, so that weights of both signs add up.
    A weight that touches several structures counts for each of them.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__(model.config)
        self.model = model

    @torch.no_grad()
    def add(self) -> None:
        """Of the gradients of one batch."""
        model, k = self.model, self.model.config.n_kv_heads
        for i, layer in enumerate(blocks(model)):
            mlp = layer.mlp
            slope = {name: _slope(p) for name, p in layer.named_parameters()}
            for s in slope.values():
                self.layers_l[i] += s.sum()
            inner = [slope[f"self_attn.{name}_proj.weight"] for name in "qkv"]
            out_da = slope["self_attn.o_proj.weight"]
            for s in (*inner, out_da.T):
                self.groups_lk[i] += s.reshape(k, -1).sum(1)
            gate_fd, up_fd, down_df = (_slope(p.weight) for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
            self.ff_lf[i] += gate_fd.sum(1) + up_fd.sum(1) + down_df.sum(0)
            for s in (*inner, gate_fd, up_fd, out_da.T, down_df.T):
                self.width_d += s.sum(0)
        for norm in norms(model):
            self.width_d += _slope(norm.weight)
        for table in {id(p): p for p in (model.table, model.head)}.values():  # a tied one once
            self.width_d += _slope(table).sum(0)


def _slope(p: Tensor) -> Tensor:
    assert p.grad is not None
    return (p.grad * p).abs().double()


def blocks(model: GPT) -> list[Block]:
    """The layers, first to last."""
    return [layer for layer in model.model.layers if isinstance(layer, Block)]


def norms(model: GPT) -> list[RMSNorm]:
    """The norms of the residual stream in the order in which it meets them."""
    pairs = ((b.input_layernorm, b.post_attention_layernorm) for b in blocks(model))
    return [*(norm for pair in pairs for norm in pair), model.model.norm]
