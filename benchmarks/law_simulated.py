"""Do 90% intervals cover 90% when the truth is known? Simulated ladders of three sizes and three laws.

    python benchmarks/law_simulated.py --record records/DATE_law-simulated --seeds 100

Each ladder is drawn from a law with realistic noise (0.45% between trunks and within them), fitted, and asked
about a new run at 8 times its largest compute. The fitted law is always Chinchilla's; one of the three truths
is not, so that the model-error term has work to do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.laws import LAWS, fit
from isoflop.laws.intervals import NOISE_PRIOR

TRUTHS = {
    "besiroglu": ("chinchilla", (1.8172, 482.01, 2085.43, 0.3478, 0.3658)),
    "steep": ("chinchilla", (1.2, 300.0, 800.0, 0.30, 0.28)),
    "coupled": ("coupled", (1.22, 3355.0, 18186.0, 0.408, 0.431, 0.452)),
}
LADDERS = {20: (5, 4), 60: (10, 6), 200: (20, 10)}  # runs: sizes, token counts
FAR = 8.0


def ladder(sizes: int, counts: int) -> tuple[np.ndarray, np.ndarray]:
    """N and D of a grid: 10M to 300M parameters, 5 to 160 tokens a parameter."""
    N = np.repeat(np.geomspace(1e7, 3e8, sizes), counts)
    return N, N * np.tile(np.geomspace(5, 160, counts), sizes)


def one(truth: str, runs: int, seed: int) -> dict[str, Any]:
    """One ladder: parameters, mean curve and new run, in or out."""
    name, values = TRUTHS[truth]
    law, theta = LAWS[name], np.array([values])
    rng = np.random.default_rng([seed, runs, list(TRUTHS).index(truth)])
    N, D = ladder(*LADDERS[runs])
    trunk = np.unique(N, return_inverse=True)[1]
    noise = NOISE_PRIOR * (rng.standard_normal(trunk.max() + 1)[trunk] + rng.standard_normal(len(N)))
    loss = law.loss(theta, {"params": N, "tokens": D})[0] * np.exp(noise)
    found = fit({"params": N, "tokens": D, "loss": loss, "cluster": trunk}, delta=1.345 * NOISE_PRIOR,
                bootstrap=200, seed=seed)  # fmt: skip
    split = found.optimum(FAR * float((6 * N * D).max()))
    at = {"params": np.array([split.params.value]), "tokens": np.array([split.tokens.value])}
    mean = float(law.loss(theta, at)[0, 0])
    run = mean * float(np.exp(NOISE_PRIOR * np.sqrt(2) * rng.standard_normal()))
    new, curve = found.predict(at["params"][0], at["tokens"][0]), found.mean(at["params"][0], at["tokens"][0])
    row = {"truth": truth, "runs": runs, "seed": seed, "new_run": new.low <= run <= new.high,
           "mean": curve.low <= mean <= curve.high, "half_width": (new.high - new.low) / 2 / new.value,
           "error": new.value / mean - 1}  # fmt: skip
    if name == "chinchilla":
        ends = found.conf_int(0.9)
        row |= {k: ends[k].low <= v <= ends[k].high for k, v in zip(law.names, values, strict=True)}
    return row


def summary(rows: list[dict[str, Any]], seeds: int) -> str:
    """The record's README."""
    head = ("truth", "runs", "new run", "mean curve", "E", "alpha", "beta", "half-width", "rms error")
    lines = []
    for truth in TRUTHS:
        for runs in LADDERS:
            part = [r for r in rows if r["truth"] == truth and r["runs"] == runs]
            shares = [f"{np.mean([r[k] for r in part]):.0%}" if k in part[0] else "" for k in
                      ("new_run", "mean", "E", "alpha", "beta")]  # fmt: skip
            width = f"{np.mean([r['half_width'] for r in part]):.1%}"
            rms = f"{np.sqrt(np.mean([r['error'] ** 2 for r in part])):.1%}"
            lines.append("| " + " | ".join([truth, str(runs), *shares, width, rms]) + " |")
    return "\n".join([
        "# Simulated coverage of 90% intervals",
        "",
        f"{seeds} ladders a row; a share of 90% has a standard error of {np.sqrt(0.09 / seeds):.1%}."
        f" The new run is at {FAR:g} times the largest compute of its ladder.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
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
    args.record.mkdir(parents=True, exist_ok=True)
    rows = [one(t, n, s) for t in TRUTHS for n in LADDERS for s in range(args.seeds)]
    with (args.record / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (args.record / "README.md").write_text(summary(rows, args.seeds))
    print(summary(rows, args.seeds))


if __name__ == "__main__":
    main()
