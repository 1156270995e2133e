"""Which bootstrap covers with few clusters? Pairs, wild and parametric draws of laws whose truth is known.

    python benchmarks/law_bootstrap.py --record records/DATE_law-bootstrap --seeds 200

Each ladder is drawn from a law with realistic noise (0.45% between trunks and within them) and fitted with
the same law, so that the intervals are judged without the term for the law's own error: they are quantiles of
the draws. Asked are the exponents and E, and at the ladder's largest compute and at 4 times it the best size
and the mean loss at the true best split. Profile likelihood intervals of the parameters stand beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from keeping import keep

from isoflop.laws import LAWS, Fit, fit, intervals
from isoflop.laws.intervals import NOISE_PRIOR
from isoflop.laws.resample import RESAMPLES
from isoflop.laws.split import Split

TRUTHS = {
    "besiroglu": ("chinchilla", (1.8172, 482.01, 2085.43, 0.3478, 0.3658)),
    "steep": ("chinchilla", (1.2, 300.0, 800.0, 0.30, 0.28)),
    "kaplan": ("kaplan", (6.4e13, 1.8e13, 0.076, 0.103)),
}
LADDERS = ((3, 4), (4, 2), (4, 4), (6, 4), (8, 2), (8, 6), (12, 5), (20, 10))  # clusters, runs of each
WIDE, NARROW = 1.345 * NOISE_PRIOR, 1e-3
ALONE = ((4, 3), (5, 4), (8, 5))  # sizes, runs of each, every run its own cluster


class Case(NamedTuple):
    """A truth, the fit's Huber width, a ladder, and whether the runs of a size share a trunk."""

    truth: str
    delta: float
    shape: tuple[int, int]
    shared: bool = True


CASES = (
    *(Case("besiroglu", WIDE, shape) for shape in LADDERS),
    *(Case("besiroglu", NARROW, shape) for shape in ((8, 6), (12, 5), (20, 10))),
    *(Case("steep", WIDE, shape) for shape in ((4, 4), (8, 6), (12, 5), (20, 10))),
    *(Case("kaplan", WIDE, shape) for shape in ((4, 4), (8, 6), (12, 5), (20, 10))),
    *(Case("besiroglu", delta, shape, False) for delta in (WIDE, NARROW) for shape in ALONE),
)
SHAPES = {"chinchilla": ("E", "alpha", "beta"), "kaplan": ("alpha_N", "alpha_D")}
ASKED = ("E", "alpha", "beta", "N* at C", "N* at 4C", "loss at C", "loss at 4C")
BOOTSTRAPS = tuple(method for method in RESAMPLES if method != "auto")
DRAWS = 200


def ladder(clusters: int, counts: int) -> tuple[np.ndarray, np.ndarray]:
    """N and D of a grid: 10M to 300M parameters, 5 to 160 tokens a parameter; a size is a cluster."""
    N = np.repeat(np.geomspace(1e7, 3e8, clusters), counts)
    return N, N * np.tile(np.geomspace(5, 160, counts), clusters)


def answers(law: Any, theta: np.ndarray, truth: np.ndarray, flops: float) -> dict[str, np.ndarray]:
    """(m,) of everything asked, by parameters (m, p)."""
    names = SHAPES[law.name]
    columns = ASKED[3 - len(names) : 3]
    out = {word: theta[:, law.names.index(name)] for word, name in zip(columns, names, strict=True)}
    for far, word in ((1, "C"), (4, "4C")):
        with np.errstate(divide="ignore"):
            out[f"N* at {word}"] = np.log(Split(law).optimum(theta, far * flops)[0])
        N, D, _ = Split(law).optimum(truth, far * flops)
        out[f"loss at {word}"] = np.log(law.loss(theta, {"params": N, "tokens": D})[:, 0])
    return out


def described(case: Case) -> dict[str, Any]:
    """What a row says of its case."""
    sizes, counts = case.shape
    return {
        "truth": case.truth, "delta": case.delta, "clusters": sizes * (1 if case.shared else counts),
        "runs": sizes * counts,
    }  # fmt: skip


def one(case: Case, seed: int) -> dict[str, Any]:
    """One ladder: for each method and question, is the truth inside (1 or 0), and half the width."""
    name, values = TRUTHS[case.truth]
    law, theta = LAWS[name], np.array([values])
    rng = np.random.default_rng([seed, *case.shape, list(TRUTHS).index(case.truth)])
    N, D = ladder(*case.shape)
    trunk = np.unique(N, return_inverse=True)[1] if case.shared else np.arange(len(N))
    noise = NOISE_PRIOR * (rng.standard_normal(trunk.max() + 1)[trunk] + rng.standard_normal(len(N)))
    loss = law.loss(theta, {"params": N, "tokens": D})[0] * np.exp(noise)
    table = {"params": N, "tokens": D, "loss": loss, "cluster": trunk}
    flops = float((6 * N * D).max())
    expected = answers(law, theta, theta, flops)
    row = described(case) | {"seed": seed}
    for method in BOOTSTRAPS:
        found = fit(table, law=name, delta=case.delta, bootstrap=DRAWS, resample=method, seed=seed)
        draws = answers(law, found.draws_array, theta, flops)
        row[method] = judged({word: intervals.quantiles(draws[word], 0.9) for word in expected}, expected)
    row["profile"] = judged(profile_ends(found), expected)
    return row


def profile_ends(found: Fit) -> dict[str, tuple[float, float]]:
    """Profile intervals of the shape parameters."""
    names = SHAPES[found.law]
    parts = [found.profile(name).interval for name in names]
    return {word: (p.low, p.high) for word, p in zip(ASKED[3 - len(names) : 3], parts, strict=True)}


def judged(
    ends: dict[str, tuple[float, float]], expected: dict[str, np.ndarray]
) -> list[tuple[int, float] | None]:
    """For every question of `ASKED`: is the truth inside, and half the width; None without an answer."""

    def one(word: str) -> tuple[int, float] | None:
        if word not in ends:
            return None
        low, high = ends[word]
        return int(low <= expected[word][0] <= high), float(f"{(high - low) / 2:.2g}")

    return [one(word) for word in ASKED]


def cell(answered: list[tuple[int, float] | None]) -> str:
    """Share inside and median half-width of one question."""
    kept = np.array([x for x in answered if x is not None])
    return f"{kept[:, 0].mean():.0%} ({np.median(kept[:, 1]):.2g})" if len(kept) else ""


def summary(rows: list[dict[str, Any]], seeds: int) -> list[str]:
    """A table of coverage, with median half-widths in brackets."""
    lines = [
        f"{seeds} ladders a row, {DRAWS} draws each; a share of 90% has a standard error of"
        f" {np.sqrt(0.09 / seeds):.1%}. In brackets the median half-width (of N* and the loss that of the"
        " logarithm). For Kaplan's law alpha and beta are alpha_N and alpha_D.",
        "",
        "| truth | Huber width | clusters | runs | method | " + " | ".join(ASKED) + " |",
        "|---" * (5 + len(ASKED)) + "|",
    ]
    for case in CASES:
        part = [r for r in rows if all(r[k] == v for k, v in described(case).items())]
        for method in (*BOOTSTRAPS, "profile"):
            cells = [cell([r[method][i] for r in part]) for i in range(len(ASKED))]
            head = [case.truth, f"{case.delta:.3g}", *(str(part[0][k]) for k in ("clusters", "runs")), method]
            lines.append("| " + " | ".join([*head, *cells]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--seeds", type=int, default=200)
    args = parser.parse_args()
    rows = [one(case, s) for case in CASES for s in range(args.seeds)]
    text = ["# Coverage of 90% intervals by three bootstraps and the profile likelihood", ""]
    command = f"    benchmarks/law_bootstrap.py --record {args.record} --seeds {args.seeds}"
    text += [*summary(rows, args.seeds), "", command, ""]
    keep(args.record, rows, "\n".join(text))


if __name__ == "__main__":
    main()
