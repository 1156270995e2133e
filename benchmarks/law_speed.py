"""Seconds of CPU for a fit and its bootstrap on the 240 points: isoflop against peers, one after another.

    python benchmarks/law_speed.py --tables ../shared/data/scaling --record records/DATE_law-speed \
        [--simple-scaling-laws PYTHON]

Peers: the published refit's own method (exact gradients, BFGS from one start a resample, by scipy); and
simple-scaling-laws, with the interpreter that has it. Each process is limited to one
thread. Optima are compared, since a bootstrap that stops early is fast for nothing.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peer_laws
from keeping import keep
from law_holdout import Table, tables
from scipy.optimize import minimize

from isoflop.laws import fit

DRAWS = 4000
START = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])  # ln A, ln B, ln E, alpha, beta


def published_method(table: Table, index: np.ndarray) -> np.ndarray:
    """Huber sum of one resample by BFGS with exact gradients, from Hoffmann's constants."""
    N, D, L = (np.log(table[k][index]) for k in ("params", "tokens", "loss"))

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        a, b, e, alpha, beta = z
        parts = np.stack([a - alpha * N, b - beta * D, np.full_like(N, e)])
        top = parts.max(axis=0)
        weights = np.exp(parts - top)
        total = weights.sum(axis=0)
        residual = top + np.log(total) - L
        psi = np.clip(residual, -1e-3, 1e-3)
        share = weights / total * psi
        size = np.abs(residual)
        value = np.where(size <= 1e-3, 0.5 * residual**2, 1e-3 * (size - 0.5e-3)).sum()
        slope = [share[0].sum(), share[1].sum(), share[2].sum(), -(share[0] * N).sum(), -(share[1] * D).sum()]
        return float(value), np.array(slope)

    return np.asarray(minimize(objective, START, jac=True, method="BFGS").x)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of CPU, and the answer."""
    start = time.process_time()
    answer = work()
    return time.process_time() - start, answer


def measure(table: Table, python: str | None, peer_draws: int) -> dict[str, Any]:
    """Every tool on the same points; scipy's method on fewer resamples, scaled up."""
    rng = np.random.default_rng(0)
    fit(table, bootstrap=10)
    once, _ = timed(lambda: fit(table, bootstrap=0))
    ours, law = timed(lambda: fit(table, bootstrap=DRAWS, keep_draws=DRAWS))
    resamples = rng.integers(240, size=(peer_draws, 240))
    theirs, found = timed(lambda: np.array([published_method(table, index) for index in resamples]))
    row = {
        "fit_seconds": once, "bootstrap_seconds": ours, "failed": law.draws_failed, "draws": DRAWS,
        "bfgs_seconds": theirs * DRAWS / peer_draws, "bfgs_draws": peer_draws,
        "se_alpha": law.se["alpha"], "bfgs_se_alpha": float(found[:, 3].std(ddof=1)),
        "load": os.getloadavg()[0],
    }  # fmt: skip
    if python:
        row["simple_scaling_laws_seconds"] = peer_laws.ask(python, table, draws=DRAWS)["seconds"]
    return row


def summary(rows: list[dict[str, Any]]) -> str:
    """The record's README."""

    def middle(key: str) -> float:
        return float(np.median([r[key] for r in rows]))

    lines = [
        "# Fit and bootstrap of the 240 Chinchilla points, CPU seconds",
        "",
        f"Medians of {len(rows)} rounds, one thread each, {DRAWS} resamples.",
        "",
        "| what | seconds | over isoflop |",
        "|---|---|---|",
        f"| isoflop, one fit of 39 starts | {middle('fit_seconds'):.3f} |  |",
        f"| isoflop, fit and {DRAWS} refits, each converged | {middle('bootstrap_seconds'):.2f} | 1 |",
        f"| BFGS a resample, exact gradients (scipy) | {middle('bfgs_seconds'):.1f} |"
        f" {middle('bfgs_seconds') / middle('bootstrap_seconds'):.0f} |",
    ]
    if all("simple_scaling_laws_seconds" in r for r in rows):
        peer = middle("simple_scaling_laws_seconds")
        lines.append(f"| simple-scaling-laws | {peer:.1f} | {peer / middle('bootstrap_seconds'):.0f} |")
    lines += [
        "",
        f"Standard error of alpha: {middle('se_alpha'):.4f} here, {middle('bfgs_se_alpha'):.4f} by BFGS"
        " (other resamples).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=Path, required=True, help="folder with the shared scaling tables")
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--simple-scaling-laws", help="a Python interpreter that has simple-scaling-laws")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bfgs-draws", type=int, default=400)
    args = parser.parse_args()
    table = dict(tables(args.tables))["chinchilla"]
    rows = [measure(table, args.simple_scaling_laws, args.bfgs_draws) for _ in range(args.rounds)]
    keep(args.record, rows, summary(rows))


if __name__ == "__main__":
    main()
