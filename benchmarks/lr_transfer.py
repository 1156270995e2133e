"""Does the learning rate of the smallest ladder size hold at four times its width and twice its depth?

    python benchmarks/lr_transfer.py --work DIR --record records/DATE_lr-transfer --plot docs/lr-transfer.png

Every rate of the recipe is multiplied by the same number, over half octaves; sizes share the number of steps,
the corpus and everything else that the recipe derives. Through the losses of a size near their lowest goes a
parabola in the logarithm of that number, each seed at its own height; its lowest point is the best multiple,
with a 90% interval from the parabola's own errors. The recipe transfers when the best multiples of the
smallest and the largest are within a factor 1.5. Runs are trained side by side, a thread each; those that
are done are kept in --work and not trained again.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from keeping import machine, once, write_readme
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from isoflop import ladder as rungs
from isoflop.corpus import build_corpus
from isoflop.plots.style import PALETTE, SIZE
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, Ladder, Member, Run, RunConfig, digest
from isoflop.store import Project
from isoflop.terminal import Terminal
from isoflop.workers import cores

Row = dict[str, Any]
RATES = ("lr_matrix", "lr_embed", "lr_head", "lr_vector")
SIZES = {"64x2": 3, "128x2": 3, "256x4": 1}  # width x depth: seeds; the largest costs as much as all others
ENDS = ("64x2", "256x4")
FACTOR = 1.5
NEAR = 1.01  # octaves around the lowest mean loss that a parabola is fitted to
DRAWS = 20_000
COLOURS = ("accent", "muted", "final")


class Best(NamedTuple):
    """Where a size learns best: multiples of the recipe's rates, and the parabola around it."""

    value: float
    low: float
    high: float
    curve: np.poly1d


def scaled(size: str, steps: int, corpus: Corpus, factor: float, seed: int) -> RunConfig:
    """The recipe of a size with every rate multiplied."""
    width, layers = map(int, size.split("x"))
    model = shape(width, corpus.vocab_size, n_layers=layers)
    plain = recipe(model, 0, seed=seed)
    rates = {name: factor * getattr(plain, name) for name in RATES}
    return plain.model_copy(update={"tokens": steps * plain.batch_tokens, **rates})


def members_of(corpus: Corpus, sizes: list[str], steps: int, factors: list[float]) -> list[Member]:
    """Of every size, factor and seed; their seconds only order them."""
    found = []
    for size in sizes:
        for factor in factors:
            for seed in range(SIZES[size]):
                config = scaled(size, steps, corpus, factor, seed)
                found.append(rungs.member(config, [config.tokens], config.tokens * 1e-12, 0.0))
    return found


def measured(project: Project, corpus: Corpus, sizes: list[str], steps: int, factors: list[float]) -> Row:
    """Held-out losses of all of them, trained as one ladder."""
    members = members_of(corpus, sizes, steps, factors)
    ladder = Ladder(
        id=digest([m.to_json() for m in members]), corpus_id=corpus.id, members=tuple(members),
        packed=cores(), seconds=1.0, flops=sum(m.flops for m in members),
    )  # fmt: skip
    with Terminal() as progress:
        runs = rungs.climb(project, corpus, ladder, role="ablation", progress=progress)
    return {"runs": [told(run, corpus) for run in runs]}


def told(run: Run, corpus: Corpus) -> Row:
    """What a row keeps of a run."""
    config = run.config
    size = f"{config.model.d_model}x{config.model.n_layers}"
    factor = config.lr_matrix / scaled(size, 1, corpus, 1.0, 0).lr_matrix
    return {
        "size": size, "factor": factor, "seed": config.seed, "loss": run.loss, "params": run.params_matmul,
        "batch_tokens": config.batch_tokens, "rate_scale": run.rate_scale,
    }  # fmt: skip


def best(runs: list[Row]) -> Best:
    """The lowest point of the parabola through the losses of a size near the lowest."""
    x = np.log2([r["factor"] for r in runs])
    y, seed = np.array([r["loss"] for r in runs]), np.array([r["seed"] for r in runs])
    lowest = min(set(x), key=lambda at: y[x == at].mean())
    near = abs(x - lowest) < NEAR
    x, y, seed = x[near], y[near], seed[near]
    heights = (seed[:, None] == np.unique(seed)).astype(float)
    design = np.column_stack([x**2, x, heights])
    found, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    spare = len(y) - rank
    if spare < 1:
        sys.exit(f"the lowest loss of {runs[0]['size']} is at an end of the factors; hint: widen --octaves")
    variance = float(((y - design @ found) ** 2).sum()) / spare
    covariance = variance * np.linalg.inv(design.T @ design)[:2, :2]
    random = np.random.default_rng(0)
    draws = random.multivariate_normal([0, 0], covariance, DRAWS)
    bent, slope = (found[:2] + draws / np.sqrt(random.chisquare(spare, (DRAWS, 1)) / spare)).T
    at = np.where(bent > 0, -slope / (2 * np.where(bent > 0, bent, 1)), np.sign(-slope) * np.inf)
    low, high = np.exp2(np.quantile(at, [0.05, 0.95]))
    curve = np.poly1d([found[0], found[1], found[2:].mean()])
    return Best(float(np.exp2(-found[1] / (2 * found[0]))), float(low), float(high), curve)


def draw(found: dict[str, list[Row]], path: Path) -> None:
    """Loss above each size's lowest against the multiple of the recipe's rates."""
    page = Figure(
        figsize=(1.15 * SIZE[0], 1.15 * SIZE[1]), layout="constrained", facecolor="white", dpi=130
    )  # fmt: skip
    ax = page.subplots()
    for runs, colour in zip(found.values(), COLOURS, strict=False):
        top, ink = best(runs), PALETTE[colour]
        lowest = top.curve(np.log2(top.value))
        factors = np.array(sorted({r["factor"] for r in runs}))
        means = [np.mean([r["loss"] for r in runs if r["factor"] == f]) for f in factors]
        grid = np.linspace(np.log2(top.value) - NEAR, np.log2(top.value) + NEAR, 60)
        ax.plot(np.exp2(grid), 100 * (top.curve(grid) / lowest - 1), color=ink, lw=1.8)
        ax.plot(factors, 100 * (np.array(means) / lowest - 1), "o", color=ink, label=label(runs[0]), ms=6)
        ax.axvspan(top.low, top.high, color=ink, alpha=0.10, lw=0)
        ax.axvline(top.value, color=ink, lw=1, ls=":")
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted({r["factor"] for runs in found.values() for r in runs}))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.2g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("every learning rate, as a multiple of the recipe's")
    ax.set_ylabel("held-out loss above the size's lowest, %")
    ax.margins(y=0.15)
    ax.legend(frameon=False)
    page.savefig(path)


def label(run: Row) -> str:
    width, layers = run["size"].split("x")
    return f"width {width}, {layers} layers (N = {run['params'] / 1e6:.2f}M)"


def summary(row: Row, found: dict[str, list[Row]]) -> str:
    """The record's README."""
    tops = {size: best(runs) for size, runs in found.items()}
    lines = [
        f"| {label(runs[0])} | {SIZES[size]} | {runs[0]['batch_tokens']:,} | {tops[size].value:.2f} "
        f"| {tops[size].low:.2f} to {tops[size].high:.2f} |"
        for size, runs in found.items()
    ]
    one, two = (tops[size].value for size in ENDS)
    apart = max(one, two) / min(one, two)
    words = "within" if apart <= FACTOR else "not within"
    return "\n".join([
        "# Transfer of the learning rate over width and depth",
        "",
        (__doc__ or "").split("\n\n")[2].replace("\n", " ").strip(),
        "",
        "| size | seeds | batch, tokens | best multiple of the recipe's rates | 90% interval |",
        "|---|---|---|---|---|",
        *lines,
        "",
        f"The best rates of {' and '.join(ENDS)} are a factor {apart:.2f} apart: {words} {FACTOR}.",
        "",
        f"{machine()}; {row['steps']} steps each, vocabulary {row['vocab']}. Every loss is in rows.jsonl.",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the project")
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--plot", type=Path, help="a PNG")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--octaves", nargs=2, type=float, default=[-1.5, 1.5], help="of the factors")
    args = parser.parse_args()
    corpus = build_corpus(CorpusConfig(vocab_size=args.vocab), args.work / "corpora")
    factors = [float(2**x) for x in np.arange(args.octaves[0], args.octaves[1] + 0.25, 0.5)]
    wanted = {"sizes": args.sizes, "steps": args.steps, "vocab": args.vocab, "factors": factors}
    job = partial(measured, Project(args.work), corpus, args.sizes, args.steps, factors)
    row = once(args.record, wanted, job)
    found = {size: [r for r in row["runs"] if r["size"] == size] for size in args.sizes}
    if args.plot is not None:
        draw(found, args.plot)
    write_readme(args.record, summary(row, found))


if __name__ == "__main__":
    main()
