"""The parametric law of Hoffmann et al. 2203.15556 (eqs. 2 and 10): L(N, D) = E + A/N^alpha + B/D^beta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from isoflop.laws.published import Published
from isoflop.laws.solve import Array


class Chinchilla:
    """L = E + A/N^alpha + B/D^beta, parameters ordered (E, A, B, alpha, beta).

    The solver works on centred logarithms x = ln(N/N0), y = ln(D/D0) (N0, D0: geometric means), in
    which the law reads E + A' e^(-alpha x) + B' e^(-beta y) with A' = A/N0^alpha and B' = B/D0^beta:
    each of A', B' is then a loss in nats at the centre of the data, so the problem is well conditioned.
    """

    name: ClassVar[str] = "chinchilla"
    formula: ClassVar[str] = "L = E + A/N^alpha + B/D^beta"
    names: ClassVar[tuple[str, ...]] = ("E", "A", "B", "alpha", "beta")
    source: ClassVar[str] = "Hoffmann et al. 2203.15556, eqs. 2 and 10"
    columns: ClassVar[tuple[str, ...]] = ("params", "tokens")
    linear: ClassVar[int] = 3  # the first parameters enter linearly (variable projection)
    exponents_at: ClassVar[tuple[int, ...]] = (3, 4)
    held: ClassVar[Mapping[str, float]] = {}
    target: ClassVar[str] = "loss"
    least_ratio: ClassVar[float] = 0.0
    lower: ClassVar[Array] = np.array([0.0, 0.0, 0.0, 0.02, 0.02])
    upper: ClassVar[Array] = np.array([np.inf, np.inf, np.inf, 2.0, 2.0])

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            "hoffmann-2022",
            {"E": np.exp(0.5267228), "A": np.exp(6.0073404), "B": np.exp(6.0179186), "alpha": 0.33917084,
             "beta": 0.2849083},
            "Hoffmann et al. 2203.15556, appendix D.2, unrounded as in the source of its text",
            max_flops=1.3e22,
        ),
        Published(
            "hoffmann-2022-rounded",
            {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
            "Hoffmann et al. 2203.15556, eq. 10 as printed; the best split is sensitive to the rounding",
            max_flops=1.3e22,
        ),
        Published(
            "besiroglu-2024",
            {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
            "Besiroglu et al. 2404.10102: Hoffmann's runs refitted",
            max_flops=1.3e22,
        ),
    )  # fmt: skip

    def same_split(self, theta: Array) -> Array:
        """Itself: other laws name the Chinchilla law that splits as they do."""
        return theta

    def features(self, columns: Mapping[str, Array], centred: bool = True) -> tuple[Array, Array]:
        """(2, n) centred logarithms of N and D, and the (2,) centres ln N0, ln D0."""
        logs = np.log(np.stack([columns["params"], columns["tokens"]]))
        centre = logs.mean(axis=1) if centred else np.zeros(2)
        return logs - centre[:, None], centre

    def start_grid(self, level: float) -> Array:
        """(starts, 5): exponents that cover the published ones (0.05 to 1.2), equal shares of `level`."""
        side = np.geomspace(0.05, 1.2, 6)
        alpha, beta = np.meshgrid(side, side, indexing="ij")
        thirds = np.full((36, 3), level / 3.0)
        return np.column_stack([thirds, alpha.ravel(), beta.ravel()])

    def value(self, theta: Array, x: Array) -> Array:
        """(m, n) losses of `theta` (m, 5) at centred features `x` (2, n)."""
        u = np.exp(-theta[:, 3:4] * x[0])
        v = np.exp(-theta[:, 4:5] * x[1])
        return np.asarray(theta[:, 0:1] + theta[:, 1:2] * u + theta[:, 2:3] * v)

    def jacobian(self, theta: Array, x: Array) -> tuple[Array, Array]:
        """Losses (m, n) and their derivatives (m, 5, n)."""
        jac = np.empty((len(theta), 5, x.shape[1]))
        jac[:, 0] = 1.0
        np.exp(-theta[:, 3:4] * x[0], out=jac[:, 1])
        np.exp(-theta[:, 4:5] * x[1], out=jac[:, 2])
        a_term = theta[:, 1:2] * jac[:, 1]
        b_term = theta[:, 2:3] * jac[:, 2]
        np.multiply(a_term, -x[0], out=jac[:, 3])
        np.multiply(b_term, -x[1], out=jac[:, 4])
        return theta[:, 0:1] + a_term + b_term, jac

    def curvature(self, theta: Array, jac: Array, x: Array, weight: Array) -> Array:
        """(m, 5, 5): sum over points of `weight` (m, n) times the Hessian of the loss."""
        out = np.zeros((len(jac), 5, 5))
        for row, term, feature in ((1, 3, x[0]), (2, 4, x[1])):
            moment = weight * -feature
            out[:, row, term] = out[:, term, row] = np.einsum("mn,mn->m", moment, jac[:, row])
            out[:, term, term] = np.einsum("mn,mn->m", moment, jac[:, term])
        return out

    def uncentre(self, theta: Array, centre: Array) -> Array:
        """Parameters in the units of N and D from the solver's centred ones."""
        out = theta.copy()
        out[:, 1:3] *= np.exp(theta[:, 3:5] * centre)
        return out

    def recentre(self, theta: Array, centre: Array) -> Array:
        """Inverse of `uncentre`."""
        out = theta.copy()
        out[:, 1:3] *= np.exp(-theta[:, 3:5] * centre)
        return out

    def loss(self, theta: Array, columns: Mapping[str, Array]) -> Array:
        """(m, n) losses in nats a token of (m, 5) parameters at N, D of shape (n,) or (m, n)."""
        E, A, B, alpha, beta = (theta[:, i : i + 1] for i in range(5))
        N, D = columns["params"], columns["tokens"]
        return np.asarray(E + A * np.exp(-alpha * np.log(N)) + B * np.exp(-beta * np.log(D)))

    def frontier(self, theta: Array, kappa: float, gamma: float) -> tuple[Array, Array, Array]:
        """(G, K, s) of the compute-optimal frontier when a token costs F(N) = kappa N^gamma FLOPs.

        With M = kappa N^gamma / 6 the cost is C = 6 M D and the law is E + A'/M^a + B/D^beta with
        a = alpha/gamma and A' = A (kappa/6)^a, so eq. 4 of the paper holds in M: at c = C/6,
        M* = G c^(beta/(a+beta)), and L* = E + K c^(-s) with s = a beta/(a+beta).
        """
        _, A, B, alpha, beta = theta.T
        a = alpha / gamma
        A_m = A * (kappa / 6.0) ** a
        with np.errstate(divide="ignore", invalid="ignore"):
            G = (a * A_m / (beta * B)) ** (1.0 / (a + beta))
            K = A_m * G**-a + B * G**beta
        return G, K, a * beta / (a + beta)

    def optimum(
        self, theta: Array, flops: float | Array, kappa: float, gamma: float
    ) -> tuple[Array, Array, Array]:
        """(m,) arrays N*, D*, L*: the best split of `flops`. Not finite where A or B is zero."""
        G, K, s = self.frontier(theta, kappa, gamma)
        c = flops / 6.0
        beta, a = theta[:, 4], theta[:, 3] / gamma
        with np.errstate(divide="ignore", invalid="ignore"):
            M = G * c ** (beta / (a + beta))
            return (6.0 * M / kappa) ** (1.0 / gamma), c / M, theta[:, 0] + K * c**-s

    def compute_for(self, theta: Array, loss: Array, kappa: float, gamma: float) -> Array:
        """C_base(L), FLOPs on the frontier that reach `loss` (broadcast to (m,)); nan where L <= E."""
        _, K, s = self.frontier(theta, kappa, gamma)
        gap = loss - theta[:, 0]
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            return np.asarray(np.where(gap > 0, 6.0 * (K / gap) ** (1.0 / s), np.nan))
