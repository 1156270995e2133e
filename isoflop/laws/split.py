"""The best split of compute between size and data, for any law of N and D, with or without constraints.

A training token costs F(N) = kappa N^gamma FLOPs, a served one F(N)/3 (forward only). Where nothing
constrains the split and the law splits as a Chinchilla law does (any increasing function of one), eq. 4 of
Hoffmann et al. 2203.15556 gives it in closed form; otherwise it is found on a grid of ln N and refined by
golden section, for all draws at once. Beyond a cap on N the search goes on to fewer tokens at the cap, since
more of them can hurt: a model trained longer loses more when it is quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from isoflop.laws.chinchilla import Chinchilla
from isoflop.laws.observations import complete
from isoflop.laws.repeated import effective_tokens
from isoflop.laws.solve import Array, Law

GRID, GOLDEN, BISECTIONS = 241, 45, 90
REACH = 45.0  # the grid covers e^+-45 around N = D: where data run out, all compute goes into size
FLOPS_RANGE = (1e3, 1e45)  # where C_base is looked for
RATIO = (np.sqrt(5.0) - 1.0) / 2.0
CHINCHILLA = Chinchilla()


def splits(law: Law) -> bool:
    """Whether the law is one of a loss by size and data."""
    return law.target == "loss" and {"params", "tokens"} <= set(law.columns)


@dataclass(frozen=True)
class Split:
    """A law, what a token costs, and what constrains the choice of N and D."""

    law: Law
    kappa: float = 6.0
    gamma: float = 1.0
    others: Mapping[str, float] = field(default_factory=dict)  # the law's further covariates
    inference_tokens: float = (
        0.0  # served over the model's life, paid from the same budget: Sardana 2401.00448
    )
    unique_tokens: float | None = None  # beyond them tokens are repeats, worth less
    max_params: float | None = None
    beside_flops: float = 0.0  # a training token, beside the model's own: a teacher's forward pass

    @property
    def constrained(self) -> bool:
        numbers = self.inference_tokens or self.beside_flops
        return bool(numbers) or self.unique_tokens is not None or self.max_params is not None

    def per_token(self, N: Array) -> Array:
        """(...) training FLOPs a token, of the model alone."""
        return np.asarray(self.kappa * N**self.gamma)

    def tokens(self, N: Array, flops: Array) -> Array:
        """(...) training tokens that `flops` leave after serving; not positive where serving takes all."""
        own = self.per_token(N)
        return np.asarray((flops - own * self.inference_tokens / 3.0) / (own + self.beside_flops))

    def train_flops(self, N: Array, D: Array) -> Array:
        """(...) FLOPs of training N parameters on D tokens, what stands beside them included."""
        return np.asarray((self.per_token(N) + self.beside_flops) * D)

    def loss(self, theta: Array, N: Array, D: Array) -> Array:
        """(m, n) losses at N, D of shape (m, n) or (n,); inf where D is not positive or too few for it."""
        with np.errstate(invalid="ignore"):
            possible = (D > 0) & (self.law.least_ratio * N <= D)
        seen = np.where(possible, D, 1.0)
        columns: dict[str, Array] = {"params": N, "tokens": seen}
        columns |= {
            name: np.broadcast_to(np.float64(value), seen.shape) for name, value in self.others.items()
        }
        if self.unique_tokens is not None:
            if "unique_tokens" in self.law.columns:
                columns["unique_tokens"] = np.minimum(self.unique_tokens, seen)
            else:
                columns["tokens"] = effective_tokens(seen, self.unique_tokens)
        with np.errstate(all="ignore"):
            found = self.law.loss(theta, complete(columns, self.law.columns)[0])
        return np.where(possible, found, np.inf)

    def optimum(self, theta: Array, flops: float | Array) -> tuple[Array, Array, Array]:
        """(m,) arrays N*, D*, L* at the best split of `flops` (one, or (m,)); not finite without one."""
        flops = np.broadcast_to(np.asarray(flops, dtype=np.float64), len(theta))
        if self.law.same_split is not None and not self.constrained:
            N, D, _ = CHINCHILLA.optimum(self.law.same_split(theta), flops, self.kappa, self.gamma)
        else:
            N, D = self._search(theta, flops)
        return N, D, self.loss(theta, N[:, None], D[:, None])[:, 0]

    def compute_for(self, theta: Array, loss: float | Array) -> Array:
        """C_base(L): (m,) FLOPs at the best split that reach `loss` (one, or (m,)); nan where none do."""
        if isinstance(self.law, Chinchilla) and not self.constrained:
            return self.law.compute_for(theta, np.asarray(loss, dtype=np.float64), self.kappa, self.gamma)
        return self._least(theta, lambda flops: np.asarray(self.optimum(theta, flops)[2] <= loss))

    def compute_for_tokens(self, theta: Array, tokens: float | Array) -> Array:
        """(m,) FLOPs whose best split trains on `tokens` (one, or (m,)) or more; nan where none do."""
        return self._least(theta, lambda flops: np.asarray(self.optimum(theta, flops)[1] >= tokens))

    def _least(self, theta: Array, enough: Callable[[Array], npt.NDArray[np.bool_]]) -> Array:
        """(m,) least FLOPs in `FLOPS_RANGE` that are `enough` (m,); nan where the most are not."""
        low, high = (np.full(len(theta), np.log(end)) for end in FLOPS_RANGE)
        reached = enough(np.exp(high))
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            more = ~enough(np.exp(middle))
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        return np.where(reached, np.exp(0.5 * (low + high)), np.nan)

    def _search(self, theta: Array, flops: Array) -> tuple[Array, Array]:
        """(m,) N* and D* by a grid and golden section; nan where the best is at the grid's end."""
        cap = np.inf if self.max_params is None else np.log(self.max_params)

        def loss(log_n: Array) -> Array:
            D = self.tokens(np.exp(log_n), flops[:, None])
            found = self.loss(theta, np.exp(np.minimum(log_n, cap)), D)
            return np.nan_to_num(found, nan=np.inf)

        middle = np.log(flops / self.kappa) / (1.0 + self.gamma)
        grid = np.linspace(np.minimum(middle, cap) - REACH, middle + REACH, GRID, axis=1)
        values = loss(grid)
        best = values.argmin(axis=1)
        inside = (best > 0) & (best < GRID - 1)
        at = np.clip(best, 1, GRID - 2)
        row = np.arange(len(grid))
        low, high = grid[row, at - 1], grid[row, at + 1]
        for _ in range(GOLDEN):
            width = RATIO * (high - low)
            left, right = high - width, low + width
            value = loss(np.stack([left, right], axis=1))
            keep_left = value[:, 0] <= value[:, 1]
            low, high = np.where(keep_left, low, left), np.where(keep_left, right, high)
        low = np.where(inside, low, np.nan)  # what is impossible lies above it
        return np.exp(np.minimum(low, cap)), self.tokens(np.exp(low), flops)
