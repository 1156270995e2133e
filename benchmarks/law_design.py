"""How many FLOPs does choosing the next run save against a fixed grid?

    python benchmarks/law_design.py --record records/DATE_law-design --seeds 40 --tables FOLDER

Simulated: both start from the same eight runs of two sizes. The grid adds runs in the order that people sweep
(five sizes, four counts of tokens a parameter, cheap first); the design adds what `isoflop next` names,
refitting after each, and may spend on one run what the grid's dearest costs. Truth: Besiroglu et al.'s
constants with the noise of real ladders; the target has 100 times the compute of the grid's dearest run.
After each run the error of the law at the target's best split is noted, and the interval's half-width.

Tables: the runs of a public table up to a twentieth to a quarter of its largest compute are a fixed grid that
somebody has paid for. The design starts from the ten cheapest and buys one run of that grid after another, by
the criterion of `isoflop next`, refitting after each. Asked is the loss of the table's dearest runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import law_holdout
import numpy as np
from keeping import keep

from isoflop.laws import LAWS, Fit, fit
from isoflop.laws.design import Designer, next_run, telling
from isoflop.laws.intervals import NOISE_PRIOR

TRUTH = np.array([[1.8172, 482.01, 2085.43, 0.3478, 0.3658]])
GRID_SIZES, GRID_RATIOS = (1e7, 2e7, 4e7, 8e7, 1.6e8), (5.0, 10.0, 20.0, 40.0)
DEAREST = 6 * GRID_SIZES[-1] ** 2 * GRID_RATIOS[-1]
FIRST = 10  # runs of a table that the design starts from
NEAR = 1.05  # of the whole grid's half-width is as good


def loss(N: float, D: float) -> float:
    at = {"params": np.array([N]), "tokens": np.array([D])}
    return float(LAWS["chinchilla"].loss(TRUTH, at)[0, 0])


def measured(runs: list[tuple[float, float]], noise: np.ndarray) -> Fit:
    """The fit to those runs, the i-th with the i-th noise."""
    N, D = (np.array(v) for v in zip(*runs, strict=True))
    L = np.array([loss(*run) for run in runs]) * np.exp(noise[: len(runs)])
    return fit({"params": N, "tokens": D, "loss": L}, delta=1.345 * NOISE_PRIOR, bootstrap=100)


def path(kind: str, seed: int, target: float) -> list[dict[str, Any]]:
    """Spent FLOPs, error and half-width after each run, until the grid's FLOPs are spent."""
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
        width = (best.loss.high - best.loss.low) / 2 / best.loss.value
        out.append({"kind": kind, "seed": seed, "flops": spent, "error": error, "half_width": width})
        if kind == "grid":
            if not todo:
                return out
            runs.append(todo.pop(0))
            continue
        chosen = next_run(law, target, share=DEAREST / target).runs[0]
        if spent + chosen.flops > whole:
            return out
        runs.append((chosen.params, chosen.tokens))


def at_budgets(rows: list[dict[str, Any]], kind: str, key: str, budgets: np.ndarray) -> np.ndarray:
    """(seeds, budgets) what the last law that each budget allowed has under `key`."""
    out = []
    for seed in sorted({r["seed"] for r in rows}):
        mine = [r for r in rows if r["kind"] == kind and r["seed"] == seed]
        flops, value = (np.array([r[k] for r in mine]) for k in ("flops", key))
        out.append(value[np.searchsorted(flops, budgets * 1.000001, side="right") - 1])
    return np.array(out)


def rms(values: np.ndarray) -> np.ndarray:
    """(budgets,) over seeds."""
    return np.asarray(np.sqrt((values**2).mean(axis=0)))


def needed(grid: np.ndarray, design: np.ndarray, shares: np.ndarray) -> float:
    """Share of the grid's FLOPs from which on the design is at least as good as the whole grid."""
    above = np.flatnonzero(rms(design) > NEAR * rms(grid)[-1])
    return float(shares[min(above.max(initial=-1) + 1, len(shares) - 1)])


def simulated(rows: list[dict[str, Any]], seeds: int) -> list[str]:
    """Lines of the record's README."""
    whole = max(r["flops"] for r in rows if r["kind"] == "grid")
    shares = np.linspace(0.05, 1.0, 96)
    rng = np.random.default_rng(0)
    lines, columns = [], []
    for key, words in (("error", "error of the law, rms"), ("half_width", "half-width")):
        grid, design = (at_budgets(rows, kind, key, whole * shares) for kind in ("grid", "design"))
        draws = [needed(grid[i], design[i], shares) for i in rng.integers(seeds, size=(1000, seeds))]
        low, high = np.quantile(draws, (0.05, 0.95))
        lines.append(
            f"- {words}: as good as the whole grid (within {NEAR - 1:.0%}) from"
            f" {needed(grid, design, shares):.2f} of its FLOPs on, 90% over seeds {low:.2f} to {high:.2f}"
        )
        columns += [rms(grid), rms(design)]
    shown = [int(np.abs(shares - s).argmin()) for s in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)]
    return [
        f"Simulated, {seeds} seeds, a target of {100 * DEAREST:.2g} FLOPs:", "", *lines, "",
        "| share of the grid's FLOPs | error, grid | error, design | half-width, grid | half-width, design |",
        "|---" * 5 + "|",
        *(f"| {shares[i]:.2f} | " + " | ".join(f"{c[i]:.2%}" for c in columns) + " |" for i in shown),
    ]  # fmt: skip


def replay(name: str, inside: law_holdout.Table, outside: law_holdout.Table) -> dict[str, Any]:
    """The design buys runs of the grid `inside` until its half-width at the dearest runs is as good."""
    C = 6 * inside["params"] * inside["tokens"]
    order = np.argsort(C, kind="stable")
    grid = {k: v[order] for k, v in inside.items()}
    C = C[order]
    dearest = int(np.argmax(6 * outside["params"] * outside["tokens"]))
    asked = {k: float(v[dearest]) for k, v in outside.items()}

    def judged(at: np.ndarray) -> tuple[Fit, float, float]:
        law = fit({k: v[at] for k, v in grid.items()}, bootstrap=200)
        found = law.predict(asked["params"], asked["tokens"])
        return law, (found.high - found.low) / 2 / found.value, found.value / asked["loss"] - 1

    _, whole, whole_error = judged(np.arange(len(C)))
    bought = np.arange(len(C)) < FIRST
    while True:
        law, width, error = judged(np.flatnonzero(bought))
        if width <= NEAR * whole or bought.all():
            break
        designer = Designer(law, law.flops(asked["params"], asked["tokens"]))
        left = np.flatnonzero(~bought)
        found = designer.judge(designer.known, grid["params"][left], grid["tokens"][left], C[left])
        before = designer.variances(designer.known)[0]
        bought[left[telling(before, found.loss, C[left]).argmax()]] = True
    cheap = [judged(np.arange(k))[1] for k in range(FIRST, len(C) + 1)]
    enough = FIRST + int(np.flatnonzero(np.array(cheap) <= NEAR * whole)[0])
    return {
        "table": name,
        "grid_runs": len(C),
        "runs": int(bought.sum()),
        "share": float(C[bought].sum() / C.sum()),
        "cheap_first": float(C[:enough].sum() / C.sum()),
        "half_width": width,
        "error": error,
        "grid_half_width": whole,
        "grid_error": whole_error,
        "ratio": float(asked_flops(asked) / C.max()),
    }


def asked_flops(at: dict[str, float]) -> float:
    return 6 * at["params"] * at["tokens"]


def replayed(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the record's README."""
    share = np.array([r["share"] for r in rows])
    saved = np.exp(np.log(share).mean())
    return [
        f"Public tables: on {len(rows)} grids the design needs {saved:.2f} of the FLOPs (geometric mean;"
        f" median {np.median(share):.2f}, from {share.min():.2f} to {share.max():.2f}) for an interval within"
        f" {NEAR - 1:.0%} of the whole grid's.", "",
        "| table | times the grid's dearest run | runs | of | share of FLOPs | cheap first | half-width |"
        " grid's | error | grid's |",
        "|---" * 10 + "|",
        *(
            f"| {r['table']} | {r['ratio']:.1f} | {r['runs']} | {r['grid_runs']} | {r['share']:.2f} |"
            f" {r['cheap_first']:.2f} | {r['half_width']:.1%} | {r['grid_half_width']:.1%} |"
            f" {r['error']:+.1%} | {r['grid_error']:+.1%} |"
            for r in rows
        ),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, required=True, help="folder for rows and README.md")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--tables", type=Path, help="folder with the shared scaling tables")
    args = parser.parse_args()
    target = 100 * DEAREST
    rows = [r for s in range(args.seeds) for kind in ("grid", "design") for r in path(kind, s, target)]
    text = ["# FLOPs of a designed ladder against a fixed grid", "", *simulated(rows, args.seeds), ""]
    if args.tables:
        found = [
            replay(name, inside, outside)
            for name, table in law_holdout.tables(args.tables)
            for _, inside, outside in law_holdout.cuts(table)
        ]
        rows += found
        text += [*replayed(found), ""]
    keep(args.record, rows, "\n".join(text))


if __name__ == "__main__":
    main()
