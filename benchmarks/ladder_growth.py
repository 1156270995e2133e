"""What does a ladder that grows run by run save against the fixed one of the same share?

    python benchmarks/ladder_growth.py --project PROJECT --record records/DATE_ladder-growth --seeds 8

The truth is the law of a finished project's ladder; every run of a simulated ladder has its loss by that law,
with the noise of trunks and runs measured here. For each budget a third is the ladder's. The fixed ladder
spends it all; the growing one ends when it knows the final run as well as the fixed one does (or within 5%,
the default). Nothing is trained: designs, fits and choices are those of the main job.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from keeping import keep

from isoflop import extend as growing
from isoflop import ladder as rungs
from isoflop.budget import Budget
from isoflop.extend import Extender, extend
from isoflop.flops import flops_per_token
from isoflop.laws import Fit, Observations, fit
from isoflop.laws.design import WANTED, Designer
from isoflop.laws.intervals import NOISE_PRIOR
from isoflop.pipeline import LADDER_DELTA, LADDER_SHARE
from isoflop.progress import Silent
from isoflop.records import Corpus, Ladder, Member, Run, Throughput
from isoflop.store import Project
from isoflop.throughput import SpeedModel

BUDGETS = (5e13, 1.5e14, 6e14)  # FLOPs in all


def simulated(truth: Fit, seed: int, members: Sequence[Member]) -> list[Run]:
    """The runs that a ladder would give: a member has the same noise in every ladder of a seed."""
    runs = []
    for m in members:
        rng = np.random.default_rng([seed, m.params, m.token_counts[-1]])
        trunk = NOISE_PRIOR * rng.standard_normal()
        for tokens in m.token_counts:
            noise = float(np.exp(trunk + NOISE_PRIOR * rng.standard_normal()))
            known = {"params_matmul": m.params, "tokens": tokens, "trunk": f"{m.params} {m.config.seed}",
                     "loss": float(truth.loss(m.params, tokens)[0]) * noise,
                     "flops": float(flops_per_token(m.config.model)) * tokens}  # fmt: skip
            values: dict[str, Any] = dict.fromkeys(Run.model_fields, 0) | known
            runs.append(Run.model_construct(**values))
    return runs


def law(runs: Sequence[Run]) -> Fit:
    return fit(Observations.of_runs(list(runs)), delta=LADDER_DELTA, bootstrap=0)


def width(runs: Sequence[Run], flops: float) -> float:
    """Half-width of the final run's loss, as a share."""
    designer = Designer(law(runs), flops)
    return float(growing.Z * np.sqrt(designer.variances(designer.known)[0]))


def one(project: Project, truth: Fit, budget: float, seed: int) -> dict[str, Any]:
    """Both ladders of a budget, and what they know."""
    corpus, known = project.all("corpus", Corpus)[-1], project.all("throughput", Throughput)
    whole = Budget(flops=budget)
    share, left = whole.share(LADDER_SHARE), budget * (1 - LADDER_SHARE)
    with tempfile.TemporaryDirectory() as folder:
        home = Project(Path(folder) / "p")
        for speed in known:
            home.put("throughput", speed, speed.key)
        ask = partial(rungs.design, home, corpus, share, seed=0, progress=Silent(), workers=2)
        fixed, opening = ask(key="fixed"), ask(key="open", growing=True)
        wanted = width(simulated(truth, seed, fixed.members), left)
        row = {"budget": budget, "seed": seed, "fixed": wanted, "opening": opening.flops / fixed.flops}

        def climb(
            project: Project, corpus: Corpus, ladder: Ladder, *, progress: Silent, place: None
        ) -> list[Run]:
            return simulated(truth, seed, ladder.members)

        growing.climb = climb  # type: ignore[attr-defined, assignment]
        for name, within in (("as fixed", wanted), ("default", WANTED)):
            chooser = Extender(corpus, share, whole, SpeedModel(known), within, seed=0)
            start = opening.model_copy(update={"id": name}), simulated(truth, seed, opening.members)
            grown, runs = extend(home, *start, chooser, law, progress=Silent())
            row |= {f"{name}, half-width": width(runs, budget - grown.flops),
                    f"{name}, flops": grown.flops / fixed.flops}  # fmt: skip
    return row


def summary(rows: list[dict[str, Any]], seeds: int) -> str:
    """The record's README."""
    keys = ("fixed", "as fixed, flops", "as fixed, half-width", "default, flops", "default, half-width")
    lines = []
    for budget in sorted({r["budget"] for r in rows}):
        part = [r for r in rows if r["budget"] == budget]
        cells = (f"{np.mean([r[k] for r in part]):{'.2f' if 'flops' in k else '.1%'}}" for k in keys)
        lines.append(f"| {budget:.3g} | " + " | ".join(cells) + " |")
    share = np.array([r["as fixed, flops"] for r in rows])
    rng = np.random.default_rng(0)
    means = np.log(share)[rng.integers(len(share), size=(2000, len(share)))].mean(axis=1)
    low, high = np.exp(np.quantile(means, (0.05, 0.95)))
    return "\n".join([
        "# A ladder that grows against a fixed one",
        "",
        f"{seeds} seeds a budget. To know the final run as well as the fixed ladder, the growing one needs"
        f" {np.exp(np.log(share).mean()):.2f} of its FLOPs (geometric mean; 90% over ladders {low:.2f} to"
        f" {high:.2f}).",
        "",
        "| budget, FLOPs | half-width, fixed | FLOPs, as well | half-width | FLOPs, within 5% | half-width |",
        "|---" * 6 + "|",
        *lines,
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--project", type=Path, required=True, help="a project with a corpus and ladder runs")
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    project = Project(args.project)
    truth = law([r for r in project.all("run", Run) if r.role == "ladder"])
    rows = [one(project, truth, budget, seed) for budget in BUDGETS for seed in range(args.seeds)]
    keep(args.record, rows, summary(rows, args.seeds))


if __name__ == "__main__":
    main()
