"""What `isoflop improve` misses and what it saves: its front against that of the exhaustive grid.

    python benchmarks/improve_search.py PROJECT MODEL --budget 20m --record records/DATE_improve-search

The search runs first; then everything that it left out is built in the same project, each shape healed with
the same tokens, each candidate exported and measured alike, so that both fronts are of the same measurements.
Cost is FLOPs as the budget counts them (calibration, healing, reading held-out text to score), and seconds,
where a candidate that the search had measured has the seconds that it took then. Work on a copy of a project:
its ledger is filled.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keeping

from isoflop import flops
from isoflop.budget import Budget
from isoflop.errors import CorruptError
from isoflop.export.gated import FORMATS, exportable
from isoflop.improving import improve
from isoflop.improving.building import Builder
from isoflop.improving.front import hypervolume
from isoflop.improving.probing import LOSS_TOKENS
from isoflop.improving.records import Candidate, Figures, Improvement, Limits
from isoflop.improving.space import SHARES, cuts, representations, whole
from isoflop.improving.state import timed
from isoflop.pipeline import corpus_of
from isoflop.store import Project
from isoflop.terminal import Terminal
from isoflop.transforms import Transform


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--max-loss-increase", type=float, default=0.02)
    parser.add_argument("--formats", nargs="*", default=[])
    parser.add_argument("--kinds", nargs="*", help="of each format, for a smaller grid")
    parser.add_argument("--shares", nargs="*", type=float, default=list(SHARES))
    parser.add_argument("--heal-tokens", type=int)
    parser.add_argument("--eval-tokens", type=int, default=131_072)
    parser.add_argument("--record", type=Path, required=True)
    args = parser.parse_args()
    for name, known in FORMATS.items():
        kinds = tuple(kind for kind in known.kinds if args.kinds is None or kind in args.kinds)
        FORMATS[name] = known._replace(kinds=kinds)
    home = Project(args.project, create=False)
    with home.lock(), Terminal() as progress:
        limits = Limits(loss_increase=args.max_loss_increase)
        done = improve(
            home, corpus_of(home), args.model, limits, Budget.parse(args.budget), formats=args.formats,
            heal_tokens=args.heal_tokens, eval_tokens=args.eval_tokens, shares=args.shares,
            progress=progress,
        )  # fmt: skip
        builder = Builder(home, corpus_of(home), args.model, args.eval_tokens, done.seed, progress)
        rows = [
            keeping.once(args.record, {"candidate": c.name}, lambda c=c: measured(builder, done, c))  # type: ignore[misc]
            for c in everything(builder, done, args.formats, args.shares)
        ]
    keeping.write_readme(args.record, report(args, done, rows, builder))


def everything(
    builder: Builder, done: Improvement, formats: Sequence[str], shares: Sequence[float]
) -> list[Candidate]:
    """The grid: all shapes of the search, and the input's, in all representations that open here."""
    forms = [form for form in representations(formats) if form[0] not in done.skipped]
    found: list[Candidate] = [whole(form) for form in forms]
    if done.heal_tokens:
        model = exportable(builder.folder, builder.corpus)
        shapes, _ = cuts(builder.project, builder.corpus, model, done.source, builder.progress, shares)
        found += [Candidate(shape=s.sizes, format=name, kind=kind) for s in shapes for name, kind in forms]
    return found


def measured(builder: Builder, done: Improvement, candidate: Candidate) -> dict[str, Any]:
    """Figures of one candidate, and what it cost; the search's own where it has them."""
    known = next((t for t in done.trials if t.candidate == candidate), None)
    start = time.perf_counter()
    chain = builder.shaped(candidate, done.heal_tokens or 0)
    began = time.perf_counter()
    row = {"shape": candidate.shape_name, "heal_seconds": began - start, **healing(chain)}
    try:
        built = builder.exported(candidate, chain, done.limits.loss_increase)
        served = builder.served(built, builder.probed(built).threads)
    except CorruptError as error:
        return row | {"error": error.message, "seconds": time.perf_counter() - began, "searched": False}
    found = {"loss": served.loss, "bytes": built.bytes, "token_seconds": timed(served)}
    seconds = known.cost if known and known.cost else time.perf_counter() - began
    return row | found | {"seconds": seconds, "searched": known is not None, "quiet": served.quiet}


def healing(chain: Sequence[Transform]) -> dict[str, float]:
    """What the steps to a shape took, once for all of its representations."""
    return {
        "shape_seconds": sum(step.seconds for step in chain),
        "shape_flops": sum(step.flops_total for step in chain),
    }


def report(
    args: argparse.Namespace, done: Improvement, rows: Sequence[dict[str, Any]], builder: Builder
) -> str:
    """The comparison."""
    start = done.trials[0].figures
    assert start is not None
    grid = [
        Figures(loss=r["loss"], bytes=r["bytes"], seconds=r["token_seconds"]) for r in rows if "loss" in r
    ]
    best = hypervolume(grid, start, done.limits)
    shapes = {r["shape"]: r for r in rows}.values()
    model = exportable(builder.folder, builder.corpus).config
    reading = (args.eval_tokens + LOSS_TOKENS) * flops.forward_flops_per_token(model)
    cost_flops = len(grid) * reading + sum(r["shape_flops"] for r in shapes)
    cost_seconds = sum(r["seconds"] for r in rows) + sum(r["shape_seconds"] for r in shapes)
    loud = sum(not r["quiet"] for r in rows if "loss" in r)
    measured = sum(t.figures is not None for t in done.trials)
    return f"""# The search for a smaller model against the exhaustive grid

{keeping.machine()}; {loud} of {len(grid)} candidates were timed while the machine had other work.

The input has {flops.params_total(model):,} parameters, a loss of {start.loss:.4f}, {start.bytes:,.0f} bytes
and {1000 * start.seconds:.3f} ms a token in {done.trials[0].engine}. The loss may rise by
{done.limits.loss_increase:.1%}; a shape is healed with {done.heal_tokens or 0:,} tokens.

| | search | grid | share |
|---|---:|---:|---:|
| models measured | {measured} | {len(grid)} | {measured / len(grid):.0%} |
| shapes healed | {len(done.healed)} | {len(shapes) - 1} | |
| FLOPs | {done.flops_total:.3g} | {cost_flops:.3g} | {done.flops_total / cost_flops:.0%} |
| seconds | {done.seconds_total:.0f} | {cost_seconds:.0f} | {done.seconds_total / cost_seconds:.0%} |
| hypervolume of the front | {done.hypervolume:.4f} | {best:.4f} | {done.hypervolume / best:.1%} |

{done.sentence}

    benchmarks/improve_search.py PROJECT MODEL --budget {args.budget} \\
        --max-loss-increase {args.max_loss_increase} --eval-tokens {args.eval_tokens} \\
        --heal-tokens {done.heal_tokens} --formats {" ".join(args.formats)} \\
        --shares {" ".join(map(str, args.shares))} --kinds {" ".join(args.kinds or ["(all)"])}
"""


if __name__ == "__main__":
    main()
