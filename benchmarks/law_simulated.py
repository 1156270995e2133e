"""Do 90% intervals cover 90% when the truth is known? Simulated ladders of three sizes and three laws.

    python benchmarks/law_simulated.py --record records/DATE_law-simulated --seeds 200

Each ladder is drawn from a law with realistic noise (0.45% between trunks and within them), fitted by
the same law, and asked about its parameters, the mean curve and a new run: once holding the law to be exact,
as it is here, and once with the model-error term that real tables need. The last rows fit the wrong law.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from keeping import keep

from isoflop.laws import LAWS, fit
from isoflop.laws.intervals import NOISE_PRIOR
from isoflop.laws.result import Fit

TRUTHS = {
    "besiroglu": ("chinchilla", (1.8172, 482.01, 2085.43, 0.3478, 0.3658), "chinchilla"),
    "steep": ("chinchilla", (1.2, 300.0, 800.0, 0.30, 0.28), "chinchilla"),
    "kaplan": ("kaplan", (6.4e13, 1.8e13, 0.076, 0.103), "kaplan"),
    "wrong law": ("coupled", (1.22, 3355.0, 18186.0, 0.408, 0.431, 0.452), "chinchilla"),
}
LADDERS = {20: (5, 4), 60: (10, 6), 200: (20, 10)}  # runs: sizes, token counts
REACHES = (1.0, 8.0)  # times the largest compute of the ladder, at the best split
PARAMETERS = ("E", "alpha", "beta", "alpha_N", "alpha_D")


def ladder(sizes: int, counts: int) -> tuple[np.ndarray, np.ndarray]:
    """N and D of a grid: 10M to 300M parameters, 5 to 160 tokens a parameter."""
    N = np.repeat(np.geomspace(1e7, 3e8, sizes), counts)
    return N, N * np.tile(np.geomspace(5, 160, counts), sizes)


def one(truth: str, runs: int, seed: int) -> dict[str, Any]:
    """One ladder: what the intervals of its fit cover."""
    name, values, fitted = TRUTHS[truth]
    law, theta = LAWS[name], np.array([values])
    rng = np.random.default_rng([seed, runs, list(TRUTHS).index(truth)])
    N, D = ladder(*LADDERS[runs])
    trunk = np.unique(N, return_inverse=True)[1]
    noise = NOISE_PRIOR * (rng.standard_normal(trunk.max() + 1)[trunk] + rng.standard_normal(len(N)))
    loss = law.loss(theta, {"params": N, "tokens": D})[0] * np.exp(noise)
    found = fit({"params": N, "tokens": D, "loss": loss, "cluster": trunk}, law=fitted,
                delta=1.345 * NOISE_PRIOR, bootstrap=200, seed=seed)  # fmt: skip
    row: dict[str, Any] = {"truth": truth, "runs": runs, "seed": seed}
    if name == fitted:
        ends = found.conf_int(0.9)
        pairs = zip(law.names, values, strict=True)
        row |= {k: ends[k].low <= v <= ends[k].high for k, v in pairs if k in PARAMETERS}
    for reach in REACHES:
        split = found.optimum(reach * float((6 * N * D).max()))
        at = {"params": np.array([split.params.value]), "tokens": np.array([split.tokens.value])}
        mean = float(law.loss(theta, at)[0, 0])
        run = mean * float(np.exp(NOISE_PRIOR * np.sqrt(2) * rng.standard_normal()))
        row |= {f"{k} at {reach:g}x": v for k, v in asked(found, at, mean, run).items()}
    return row


def asked(found: Fit, at: dict[str, np.ndarray], mean: float, run: float) -> dict[str, Any]:
    """What is said of the mean and of a new run there, holding the law to be exact and not."""
    N, D = at["params"][0], at["tokens"][0]
    exact = found.model_copy(update={"model_sigma": 0.0})
    curve, sure, new = exact.mean(N, D), exact.predict(N, D), found.predict(N, D)
    return {
        "mean, exact": curve.low <= mean <= curve.high,
        "run, exact": sure.low <= run <= sure.high,
        "run": new.low <= run <= new.high,
        "half-width, exact": (sure.high - sure.low) / 2 / sure.value,
        "half-width": (new.high - new.low) / 2 / new.value,
        "error": new.value / mean - 1,
    }


def summary(rows: list[dict[str, Any]], seeds: int) -> str:
    """The record's README."""
    kinds = ("mean, exact", "run, exact", "run", "half-width, exact", "half-width")
    asked = [f"{kind} at {reach:g}x" for reach in REACHES for kind in kinds]
    lines = []
    for truth in TRUTHS:
        for runs in LADDERS:
            part = [r for r in rows if r["truth"] == truth and r["runs"] == runs]
            shape = ", ".join(f"{k} {np.mean([r[k] for r in part]):.0%}" for k in PARAMETERS if k in part[0])
            cells = [
                f"{np.mean([r[k] for r in part]):{'.1%' if k.startswith('half') else '.0%'}}" for k in asked
            ]
            lines.append("| " + " | ".join([truth, str(runs), shape, *cells]) + " |")
    return "\n".join([
        "# Simulated coverage of 90% intervals",
        "",
        f"{seeds} ladders a row; a share of 90% has a standard error of {np.sqrt(0.09 / seeds):.1%}. `mean`"
        " and `run`: the mean loss and a new run at the best split of that many times the largest compute of"
        " the ladder; `exact`: without the term for the law's own error.",
        "",
        "| truth | runs | parameters | " + " | ".join(asked) + " |",
        "|---" * (len(asked) + 3) + "|",
        *lines,
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--seeds", type=int, default=100)
    args = parser.parse_args()
    rows = [one(t, n, s) for t in TRUTHS for n in LADDERS for s in range(args.seeds)]
    keep(args.record, rows, summary(rows, args.seeds))


if __name__ == "__main__":
    main()
