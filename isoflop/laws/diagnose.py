"""What the data cannot answer, in words."""

from __future__ import annotations

import numpy as np

from isoflop.laws import intervals
from isoflop.laws.observations import warnings
from isoflop.laws.registry import law_named
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array
from isoflop.laws.split import splits

CORRELATED = 0.9  # |correlation| of two shape parameters' draws
LOOSE = 8.0  # a shape parameter whose 90% interval spans more than this factor is not identified
DRIVEN = 0.03  # relative move of a prediction when one cluster is left out
ALIKE = 0.1  # spread of ln(D/N) under which N and D cannot be told apart
RISING = 0.3  # correlation of ln L and ln C
COLLINEAR = (
    "Tokens a parameter are nearly the same in all runs: N and D cannot be told apart, and the best split is"
    " not determined."
)
FAR = 4.0  # times the largest fitted compute, where that move is measured
OUTLIERS_NAMED = 8
LACK = 4.0  # |z| of a trend of the residuals in ln C, from which the law lacks fit
FLAT = 2.0  # noise sds between the best and the worst of an isoFLOP slice, under which it is flat
SLICE = 0.1  # runs whose compute agrees within this share are one slice


def sentences(result: Fit, without: Array) -> tuple[str, ...]:
    """Diagnostics of a fit; `without` (clusters, p) are the parameters with one cluster left out."""
    law, seen = law_named(result.law), result.observations
    found = [*seen.notes, *warnings(seen, law.columns), *_table(result)]
    found += [*_prior(result), *_floor(result), *_shape(result)]
    found += [*_starts(result), *_clusters(result), *_outliers(result), *_residuals(result)]
    if splits(law):
        found += [*_optimum(result), *_flat(result), *_driven(result, without)]
    return tuple(found)


def _table(result: Fit) -> list[str]:
    """What the table itself cannot answer: N and D that go together, no repeats, a target that rises."""
    out, columns = [], result.observations.arrays()
    if result.n and {"params", "tokens"} <= set(law_named(result.law).columns):
        if np.ptp(np.log(columns["tokens"] / columns["params"])) < ALIKE:
            out.append(COLLINEAR)
        C, L = np.log(result.observations.compute()), np.log(np.array(result.observations.loss))
        if np.ptp(L) > 0 and np.ptp(C) > 0 and np.corrcoef(C, L)[0, 1] > RISING:
            out.append("The target rises with compute: a score that should rise needs --ceiling.")
    if result.law == "repeated-data" and (columns["unique_tokens"] >= columns["tokens"]).all():
        out.append("No run repeats data: RD_star and RN_star are not determined.")
    return out


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
    if "E" not in result.params or "E" in result.fixed:
        return []
    E = result.conf_int(0.9)["E"]
    if E.low > 1e-6 * E.value and E.high - E.low <= 0.5 * min(result.observations.loss):
        return []
    return [
        f"E is not identified: its 90% interval is [{E.low:.3g}, {E.high:.3g}] nats a token."
        " Larger runs are needed to know the floor; do not read C_base near it."
    ]


def _shape(result: Fit) -> list[str]:
    """Shape parameters at a bound, loose ones, and pairs that only move together."""
    law, out = law_named(result.law), []
    free = [i for i, name in enumerate(law.names) if i >= law.linear and name not in result.fixed]
    for i in free:
        name = law.names[i]
        if not law.lower[i] < result.params[name] < law.upper[i] and np.isfinite(law.upper[i]):
            out.append(f"{name} is at its bound {result.params[name]:g}: the runs do not determine it.")
    total = len(result.draws) + result.draws_failed
    if result.draws_failed:
        out.append(f"{result.draws_failed} bootstrap refits did not converge and are left out.")
    if result.draws_at_bound > 0.05 * max(total, 1):
        out.append(f"{result.draws_at_bound} bootstrap refits ended with an exponent at its bound.")
    if len(result.draws) <= 2:
        return out
    for i in free:
        low, high = intervals.quantiles(result.draws_array[:, i], 0.9)
        if low > 0 and high / low > LOOSE:
            out.append(f"{law.names[i]} is not identified: its 90% interval is [{low:.3g}, {high:.3g}].")
    positive = [
        i for i in free if (result.draws_array[:, i] > 0).all() and np.ptp(result.draws_array[:, i]) > 0
    ]
    logs = np.log(result.draws_array[:, positive])
    correlation = np.corrcoef(logs.T) if len(positive) > 1 else np.eye(1)
    for a in range(len(positive)):
        for b in range(a + 1, len(positive)):
            if abs(correlation[a, b]) > CORRELATED:
                one, two = law.names[positive[a]], law.names[positive[b]]
                out.append(
                    f"{one} and {two} are strongly correlated ({correlation[a, b]:.2f}): their"
                    f" {'ratio' if correlation[a, b] > 0 else 'product'} is known better than either."
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
        f" (bootstrap: {result.bootstrap})."
    ]


def _outliers(result: Fit) -> list[str]:
    """Runs far from the law; they stay in the fit."""
    r = np.array(result.residuals)
    scale = max(1.4826 * float(np.median(np.abs(r))), 1e-4)
    far = np.flatnonzero(np.abs(r) > intervals.OUTLYING * scale)
    if result.n < 10 or len(far) == 0:
        return []
    far = far[np.argsort(-np.abs(r[far]))]
    named = ", ".join(f"{i} ({-100 * r[i]:+.1f}%)" for i in far[:OUTLIERS_NAMED])
    more = f" and {len(far) - OUTLIERS_NAMED} more" if len(far) > OUTLIERS_NAMED else ""
    return [f"Rows far from the law (kept; the first row is 0): {named}{more}."]


def _residuals(result: Fit) -> list[str]:
    """A curvature of the residuals in ln C that noise does not explain: the law is not this one."""
    x = np.log(result.observations.compute())
    if result.n < 20 or len(np.unique(x.round(2))) < 4:  # a parabola goes through three slices anyway
        return []
    x = (x - x.mean()) / x.std()
    design = np.stack([np.ones_like(x), x, x**2], axis=1)
    r = np.clip(result.residuals, *np.quantile(result.residuals, (0.02, 0.98)))
    coefficient, *_ = np.linalg.lstsq(design, r, rcond=None)
    left = r - design @ coefficient
    se = np.sqrt((left**2).sum() / (len(r) - 3) * np.linalg.inv(design.T @ design)[2, 2])
    if abs(coefficient[2]) <= LACK * se:
        return []
    way = "too low" if coefficient[2] < 0 else "too high"
    return [
        f"Lack of fit: the law is {way} at both ends of the {result.observations.scale} range"
        f" ({abs(coefficient[2] / se):.1f} standard errors); try another law (isoflop laws)."
    ]


def _optimum(result: Fit) -> list[str]:
    seen = result.observations
    if result.max_flops is None or set(law_named(result.law).columns) != {"params", "tokens"}:
        return []
    N, D, _ = (float(v[0]) for v in result.split().optimum(result.theta, result.max_flops))
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


def _flat(result: Fit) -> list[str]:
    """IsoFLOP slices whose spread of loss is lost in the noise cannot say where the optimum is."""
    C, L = result.observations.compute(), np.log(np.array(result.observations.loss))
    order = np.argsort(C)
    starts = np.flatnonzero(np.diff(np.log(C[order]), prepend=-np.inf) > SLICE)
    slices = [part for part in np.split(order, starts[1:]) if len(part) >= 4]
    flat = [part for part in slices if np.ptp(L[part]) < FLAT * result.noise_sd]
    if not slices or len(flat) < 0.5 * len(slices):
        return []
    return [
        f"{len(flat)} of {len(slices)} isoFLOP slices are flat (they span less than {FLAT:g} noise sds):"
        " the best size is poorly determined; widen the range of N."
    ]


def _driven(result: Fit, without: Array) -> list[str]:
    if len(without) == 0:
        return []
    law, columns = law_named(result.law), result.observations.arrays()
    largest = int(np.argmax(result.observations.compute()))
    point = {name: columns[name][largest : largest + 1] for name in law.columns}
    for name in ("params", "tokens"):
        point[name] = point[name] * FAR**0.5
    move = law.loss(without, point)[:, 0] / law.loss(result.theta, point)[0, 0] - 1.0
    worst = int(np.abs(move).argmax())
    if abs(move[worst]) <= DRIVEN:
        return []
    return [
        f"One cluster of runs drives the fit: without it the prediction at {FAR:g}x the largest compute"
        f" moves by {100 * move[worst]:+.1f}%."
    ]
