"""Which runs the law hangs on: every cluster left out in turn, and the law fitted again."""

from __future__ import annotations

import numpy as np

from isoflop.laws import intervals
from isoflop.laws.fit import fit as fit_law
from isoflop.laws.observations import Observations
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array

MOST = 40  # clusters left out; of more, those with the largest residuals


def influence(fit: Fit, flops: float) -> tuple[tuple[str, ...], Array]:
    """Labels and (k,) relative changes of the loss at the best split of `flops`, the largest first.

    A label is the cluster's, or the row's number. Raises FitError when the law has no best split.
    """
    seen = fit.observations
    cluster = intervals.clusters_of(seen.cluster, fit.n)
    size = np.zeros(fit.n_clusters)
    np.maximum.at(size, cluster, np.abs(fit.residuals))
    chosen = np.argsort(-size, kind="stable")[:MOST]
    best = fit.optimum(flops)
    at = {"params": best.params.value, "tokens": best.tokens.value}
    left = [_without(fit, cluster != one) for one in chosen]
    moves = [part.loss(**at)[0] / fit.loss(**at)[0] - 1.0 for part in left]
    labels = seen.cluster or tuple(f"row {i}" for i in range(fit.n))
    names = [labels[int(np.argmax(cluster == one))] for one in chosen]
    order = np.argsort(-np.abs(moves), kind="stable")
    return tuple(names[i] for i in order), np.array(moves)[order]


def _without(fit: Fit, kept: np.ndarray) -> Fit:
    """The same law fitted to the kept rows, without bootstrap."""
    seen, rows = fit.observations, np.flatnonzero(kept)

    def pick(column: tuple) -> tuple:  # type: ignore[type-arg]
        return tuple(column[i] for i in rows)

    part = Observations(
        columns={name: pick(column) for name, column in seen.columns.items()},
        loss=pick(seen.loss),
        loss_se=None if seen.loss_se is None else pick(seen.loss_se),
        cluster=None if seen.cluster is None else pick(seen.cluster),
    )
    fixed = {name: fit.params[name] for name in fit.fixed}
    delta = fit.delta if fit.estimator == "huber-sum" else 1e-3
    return fit_law(part, law=fit.law, estimator=fit.estimator, delta=delta, bootstrap=0, fixed=fixed)
