"""How many FLOPs does choosing the next run save against a fixed grid, for the same error at the target?

    python benchmarks/law_design.py --record records/DATE_law-design --seeds 40

Both start from the same eight runs of two sizes. The grid adds runs in the order that people sweep (five
sizes, four counts of tokens a parameter, cheap first); the design adds what `isoflop next` names, refitting
after each, and may spend on one run what the grid's dearest costs. Truth: Besiroglu et al.'s constants with
the noise of real ladders; the target has 100 times the compute of the grid's dearest run. After each run the
error of the law at the target's best split is noted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.laws import LAWS, Fit, fit
from isoflop.laws.design import next_run
from isoflop.laws.intervals import NOISE_PRIOR

TRUTH = np.array([[1.8172, 482.01, 2085.43, 0.3478, 0.3658]])
GRID_SIZES, GRID_RATIOS = (1e7, 2e7, 4e7, 8e7, 1.6e8), (5.0, 10.0, 20.0, 40.0)
DEAREST = 6 * GRID_SIZES[-1] ** 2 * GRID_RATIOS[-1]


def loss(N: float, D: float) -> float:
    at = {"params": np.array([N]), "tokens": np.array([D])}
    return float(LAWS["chinchilla"].loss(TRUTH, at)[0, 0])


def measured(runs: list[tuple[float, float]], noise: np.ndarray) -> Fit:
    """The fit to those runs, the i-th with the i-th noise."""
    N, D = (np.array(v) for v in zip(*runs, strict=True))
    L = np.array([loss(*run) for run in runs]) * np.exp(noise[: len(runs)])
    return fit({"params": N, "tokens": D, "loss": L}, delta=1.345 * NOISE_PRIOR, bootstrap=100)


def path(kind: str, seed: int, target: float) -> list[dict[str, Any]]:
    """Spent FLOPs and error after each run, until the grid's FLOPs are spent."""
    noise = NOISE_PRIOR * np.sqrt(2) * np.random.default_rng(seed).standard_normal(256)
    pairs = [(N, N * r) for N in GRID_SIZES for r in GRID_RATIOS]
    runs, todo = pairs[:8], sorted(pairs[8:], key=lambda run: run[0] * run[1])
    whole = sum(6 * N * D for N, D in pairs)
    out = []
    while True:
        law = measured(runs, noise)
        best = law.optimum(target)
        at = best.params.value, best.tokens.value
        spent = sum(6 * N * D for N, D in runs)
        error = float(law.loss(*at)[0] / loss(*at) - 1)
        out.append({"kind": kind, "seed": seed, "runs": len(runs), "flops": spent, "error": error})
        if kind == "grid":
            if not todo:
                return out
            runs.append(todo.pop(0))
            continue
        chosen = next_run(law, target, share=DEAREST / target).runs[0]
        if spent + chosen.flops > whole:
            return out
        runs.append((chosen.params, chosen.tokens))


def errors_at(rows: list[dict[str, Any]], kind: str, budgets: np.ndarray) -> np.ndarray:
    """(seeds, budgets) error of the last law that each budget allowed."""
    out = []
    for seed in sorted({r["seed"] for r in rows}):
        mine = [r for r in rows if r["kind"] == kind and r["seed"] == seed]
        flops, error = (np.array([r[key] for r in mine]) for key in ("flops", "error"))
        out.append(error[np.searchsorted(flops, budgets * 1.000001, side="right") - 1])
    return np.array(out)


def needed(grid: np.ndarray, design: np.ndarray, shares: np.ndarray) -> float:
    """Share of the grid's FLOPs from which on the design's rms error is at most the whole grid's."""
    above = np.flatnonzero(np.sqrt((design**2).mean(axis=0)) > np.sqrt((grid[:, -1] ** 2).mean()))
    return float(shares[min(above.max(initial=-1) + 1, len(shares) - 1)])


def summary(rows: list[dict[str, Any]], seeds: int) -> str:
    """The record's README: errors at equal FLOPs, and FLOPs for the error of the whole grid."""
    whole = max(r["flops"] for r in rows if r["kind"] == "grid")
    shares = np.linspace(0.05, 1.0, 96)
    grid, design = (errors_at(rows, kind, whole * shares) for kind in ("grid", "design"))
    rng = np.random.default_rng(0)
    draws = [needed(grid[i], design[i], shares) for i in rng.integers(seeds, size=(1000, seeds))]
    low, high = np.quantile(draws, (0.05, 0.95))
    rms = [np.sqrt((e**2).mean(axis=0)) for e in (grid, design)]
    shown = [int(np.abs(shares - s).argmin()) for s in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)]
    return "\n".join([
        "# FLOPs of a designed ladder against a fixed grid",
        "",
        f"Root mean square error of the law at a target of {100 * DEAREST:.2g} FLOPs, {seeds} seeds. From"
        f" {needed(grid, design, shares):.2f} of the grid's FLOPs on (90% over seeds {low:.2f} to {high:.2f})"
        " the designed ladder is at least as good as the whole grid.",
        "",
        "| share of the grid's FLOPs | grid | design |",
        "|---|---|---|",
        *(f"| {shares[i]:.2f} | {rms[0][i]:.2%} | {rms[1][i]:.2%} |" for i in shown),
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--seeds", type=int, default=40)
    args = parser.parse_args()
    args.record.mkdir(parents=True, exist_ok=True)
    target = 100 * DEAREST
    rows = [r for s in range(args.seeds) for kind in ("grid", "design") for r in path(kind, s, target)]
    (args.record / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (args.record / "README.md").write_text(summary(rows, args.seeds))
    print(summary(rows, args.seeds))


if __name__ == "__main__":
    main()
