"""What the data cannot answer, in words."""

from __future__ import annotations

import numpy as np

from isoflop.laws.registry import law_named
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array

CORRELATED = 0.9  # |correlation| of the exponents' draws
DRIVEN = 0.03  # relative move of a prediction when one cluster is left out
FAR = 4.0  # times the largest fitted compute, where that move is measured


def sentences(result: Fit, without: Array) -> tuple[str, ...]:
    """Diagnostics of a fit; `without` (clusters, p) are the parameters with one cluster left out."""
    found = [*_prior(result), *_floor(result), *_exponents(result), *_starts(result), *_clusters(result)]
    return (*found, *_optimum(result), *_driven(result, without))


def _prior(result: Fit) -> list[str]:
    if not result.prior:
        return []
    return [
        f"Weak prior on alpha and beta (about 0.35, a factor of 1.5 either way) used because there are"
        f" {result.n} runs in {result.n_clusters} clusters; with 30 runs in 8 clusters it is not needed."
    ]


def _floor(result: Fit) -> list[str]:
    if not result.draws:
        return ["No bootstrap: intervals hold run-to-run noise and model error only."]
    E = result.conf_int(0.9)["E"]
    if E.low > 1e-6 * E.value and E.high - E.low <= 0.5 * min(result.observations.loss):
        return []
    return [
        f"E is not identified: its 90% interval is [{E.low:.3g}, {E.high:.3g}] nats a token."
        " Larger runs are needed to know the floor; do not read C_base near it."
    ]


def _exponents(result: Fit) -> list[str]:
    law, out = law_named(result.law), []
    for i, name in enumerate(law.names):
        if i >= law.linear and not law.lower[i] < result.params[name] < law.upper[i]:
            out.append(f"{name} is at its bound {result.params[name]:g}: the runs do not determine it.")
    total = len(result.draws) + result.draws_failed
    if result.draws_failed:
        out.append(f"{result.draws_failed} bootstrap refits did not converge and are left out.")
    if result.draws_at_bound > 0.05 * max(total, 1):
        out.append(f"{result.draws_at_bound} bootstrap refits ended with an exponent at its bound.")
    if len(result.draws) > 2:
        shape = np.log(result.draws_array[:, law.linear :])
        if (shape.std(axis=0) > 0).all():
            correlation = float(np.corrcoef(shape.T)[0, 1])
            if abs(correlation) > CORRELATED:
                out.append(
                    f"alpha and beta are strongly correlated ({correlation:.2f}): their ratio is known better"
                    " than either."
                )
    return out


def _starts(result: Fit) -> list[str]:
    if result.starts_at_optimum >= 0.5 * result.starts:
        return []
    return [
        f"Only {result.starts_at_optimum} of {result.starts} starts reached the best objective:"
        " the problem has several minima."
    ]


def _clusters(result: Fit) -> list[str]:
    if result.n_clusters >= 8:
        return []
    return [
        f"Only {result.n_clusters} independent clusters of runs: intervals of the parameters are rough"
        " (parametric bootstrap)."
    ]


def _optimum(result: Fit) -> list[str]:
    law, cost, seen = law_named(result.law), result.flops_model, result.observations
    N, D, _ = (float(v[0]) for v in law.optimum(result.theta, result.max_flops, cost.kappa, cost.gamma))
    if not (np.isfinite(N) and np.isfinite(D) and N > 0 and D > 0):
        return ["The fitted law has no best split: parameters or tokens do not matter in it."]
    out = []
    for word, value, column in (("size", N, seen.params), ("token count", D, seen.tokens)):
        if not min(column) <= value <= max(column):
            out.append(
                f"The best {word} at the largest measured compute ({value:.3g}) is outside the measured"
                f" range [{min(column):.3g}, {max(column):.3g}]."
            )
    return out


def _driven(result: Fit, without: Array) -> list[str]:
    if len(without) == 0:
        return []
    law = law_named(result.law)
    largest = int(np.argmax(result.observations.compute()))
    N, D = result.observations.params[largest], result.observations.tokens[largest]
    point = np.array([N * FAR**0.5]), np.array([D * FAR**0.5])
    move = law.loss(without, *point)[:, 0] / law.loss(result.theta, *point)[0, 0] - 1.0
    worst = int(np.abs(move).argmax())
    if abs(move[worst]) <= DRIVEN:
        return []
    return [
        f"One cluster of runs drives the fit: without it the prediction at {FAR:g}x the largest compute"
        f" moves by {100 * move[worst]:+.1f}%."
    ]
