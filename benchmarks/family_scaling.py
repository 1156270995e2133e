"""What compute buys of several families: the same ladder, corpus and recipe, one law a family.

    python benchmarks/family_scaling.py --budget 1e13flops --seeds 3 --work DIR \\
        --record records/DATE_families --plot docs/families.png

Each family is measured by `isoflop sweep --family F --budget X --seed S`. A budget in FLOPs makes the
ladders, and so every loss, independent of how busy the machine is. A family's law is fitted to the runs of
all its seeds, a trunk is a cluster. Causal families read the same tokens and are scored on the same held-out
windows: their losses compare, and their difference is stated in doublings of compute (`gain.compare`). A
masked family predicts other tokens: it has a panel of its own, in nats a masked token, and is compared with
nothing. Not compared: speed (seconds a FLOP differ), and each family's own best recipe: all learn by ours.
Rows are appended to `rows.jsonl` as ladders end; a row that is there is not measured again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from comparing import ask
from keeping import machine, once, read, write_readme
from matplotlib.figure import Figure

from isoflop.gain import RecipeGain, compare
from isoflop.laws import Fit, fit
from isoflop.pipeline import LADDER_DELTA
from isoflop.plots.families import draw_families, family_curve
from isoflop.plots.style import PALETTE, SIZE
from isoflop.records import Interval

Rows = list[dict[str, Any]]
MOST = 100.0  # doublings that are still a number
KEPT = ("params_matmul", "tokens", "flops", "loss", "bpb", "trunk", "seconds_train")


def isoflop(project: Path, *words: str) -> Any:
    """What a command prints as JSON."""
    return ask([sys.executable, "-m", "isoflop", *words, "--project", str(project), "--json"])


def ladder(
    project: Path, family: str, budget: str, seed: int, changes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """One ladder and its runs; `changes` are options `--set`."""
    words = ("sweep", "--family", family, "--budget", budget, "--seed", str(seed), *changes)
    found = isoflop(project, *words)
    runs = [{name: run[name] for name in KEPT} for run in found["runs"]]
    return {"command": shlex.join(["isoflop", *words]), "flops": found["ladder"]["flops"], "runs": runs}


def law_of(rows: Rows, family: str) -> Fit:
    """The law of all runs of a family."""
    runs = [run for row in rows if row["family"] == family for run in row["runs"]]
    names = {
        "params": "params_matmul",
        "tokens": "tokens",
        "flops": "flops",
        "loss": "loss",
        "cluster": "trunk",
    }
    return fit({role: [run[name] for run in runs] for role, name in names.items()}, delta=LADDER_DELTA)


def bits_of(rows: Rows, family: str) -> float | None:
    """Bits per byte of a nat a token, the same for every run; None of a masked family."""
    runs = [run for row in rows if row["family"] == family for run in row["runs"]]
    return None if runs[0]["bpb"] is None else float(np.mean([r["bpb"] / r["loss"] for r in runs]))


def draw(laws: dict[str, Fit], bits: dict[str, float | None], path: Path) -> None:
    """One panel of the causal families in bits per byte, one of the masked in nats."""
    scored = [family_curve(f, law, scale=scale) for f, law in laws.items() if (scale := bits[f])]
    masked = [family_curve(f, law) for f, law in laws.items() if not bits[f]]
    panels = [(scored, "bits per byte, held-out"), (masked, "nats a masked token, held-out")]
    panels = [panel for panel in panels if panel[0]]
    page = Figure(
        figsize=(1.15 * SIZE[0] * len(panels), 1.15 * SIZE[1]),
        layout="constrained",
        facecolor="white",
        dpi=130,
    )
    for ax, (curves, label) in zip(page.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        draw_families(ax, curves, label)
        names = ", ".join(curve.name for curve in curves)
        ax.set_title(names, loc="left", color=PALETTE["ink"], fontsize=13, fontweight="bold", pad=12)
    page.savefig(path)


def over(laws: dict[str, Fit], bits: dict[str, float | None], ours: str) -> dict[str, RecipeGain]:
    """Our family against each other causal one, where both were measured."""
    others = [name for name in laws if name != ours and bits[name] is not None]
    return {name: compare(laws[name], laws[ours]) for name in others if ours in laws}


HEADER = ("family", "ladders", "runs", "sizes N", "noise", "C, FLOPs", "best N at C",
          "best loss at C, 90% of the mean")  # fmt: skip


def line(family: str, law: Fit, rows: Rows, scale: float | None) -> str:
    """One row of the table."""
    top = float(law.observations.compute().max())
    best = law.optimum(top)
    sizes = np.unique(law.observations.params)
    mean = law.mean(best.params.value, best.tokens.value)
    unit = scale or 1.0
    cells = (
        family, sum(row["family"] == family for row in rows), law.n,
        " ".join(f"{n:,.0f}" for n in sizes), f"{law.noise_sd:.1%}", f"{top:.2g}",
        f"{best.params.value:,.0f}",
        f"{unit * mean.value:.3f} [{unit * mean.low:.3f}, {unit * mean.high:.3f}]"
        f" {'bits a byte' if scale else 'nats a masked token'}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def doublings(found: Interval) -> str:
    """With its interval; what no compute reaches has no number."""
    value, low, high = (f"{v:+.2f}" if v < MOST else "none" for v in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def summary(rows: Rows, laws: dict[str, Fit], bits: dict[str, float | None], ours: str) -> str:
    """The record's README."""
    gains = over(laws, bits, ours)
    return "\n".join([
        "# What compute buys of several families",
        "",
        (__doc__ or "").split("\n\n")[2].replace("\n", " ").strip(),
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---" * len(HEADER) + "|",
        *(line(name, law, rows, bits[name]) for name, law in laws.items()),
        "",
        *(f"{ours} over {name}: {gain.sentence}" for name, gain in gains.items()),
        "",
        "| over | C, FLOPs | doublings, 90% (none: no compute brings the other there) |",
        "|---|---|---|",
        *(
            f"| {name} | {s.flops:.3g} | {doublings(s.doublings)} |"
            for name, gain in gains.items() for s in gain.scales
        ),
        "",
        f"{machine()}; budget {rows[0]['budget']} a ladder, vocabulary {rows[0]['vocab']}. C is the dearest"
        " run of the family. Commands, loads and every run are in rows.jsonl.",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--families", nargs="+", default=["isoflop", "gpt2", "llama", "bert"], help="ours first"
    )
    parser.add_argument("--budget", default="1e13flops", help="of one ladder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument(
        "--source", action="append", default=[], help="text; the standard library when absent"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the project")
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--plot", type=Path, help="a PNG")
    args = parser.parse_args()
    isoflop(args.work, "corpus", *args.source, "--vocab", str(args.vocab))
    wanted = {"budget": args.budget, "vocab": args.vocab}
    for seed in range(args.seeds):
        for family in args.families:
            job = partial(ladder, args.work, family, args.budget, seed)
            once(args.record, {"family": family, "seed": seed, **wanted}, job)
    rows = [row for row in read(args.record) if all(row[k] == v for k, v in wanted.items())]
    laws = {family: law_of(rows, family) for family in args.families}
    bits = {family: bits_of(rows, family) for family in args.families}
    if args.plot is not None:
        draw(laws, bits, args.plot)
    write_readme(args.record, summary(rows, laws, bits, args.families[0]))


if __name__ == "__main__":
    main()
