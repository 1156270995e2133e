"""Published training runs against our model of layouts; writes the table of docs/cluster.md.

    python benchmarks/cluster_validation.py [--docs docs/cluster.md]

Each run is predicted with an efficiency that was fitted without it, and again without any run of its paper.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from isoflop.layouts import published
from isoflop.layouts.published import CLOSE, Checked, PublishedRun

BEGIN, END = "<!-- begin: benchmarks/cluster_validation.py -->", "<!-- end -->"
HEAD = ("run", "devices", "layout", "published", "ours", "error", "without its paper", "GB a device")


def paper(run: PublishedRun) -> str:
    return run.source.split(",")[0]


def without_paper(run: PublishedRun) -> float:
    """The relative error with all runs of the paper left out of the fit."""
    same = [other.name for other in published.published_runs() if paper(other) == paper(run)]
    return published.check(run, without=same).error


def rows(checked: Sequence[Checked]) -> list[tuple[str, ...]]:
    """Cells of the table."""
    out: list[tuple[str, ...]] = []
    for c in checked:
        run, cluster = c.run, c.run.cluster
        kind = "HFU" if run.hardware else "MFU"
        missed = "" if c.close else " (missed)"
        out.append((
            run.name, f"{cluster.devices:,} {cluster.accelerator.aliases[0]}", c.layout.words,
            f"{run.share:.1%} {kind}", f"{c.share:.1%}", f"{c.error:+.1%}{missed}",
            f"{without_paper(run):+.1%}",
            f"{c.memory_bytes / 1e9:.0f} of {cluster.memory_bytes / 1e9:.0f}",
        ))  # fmt: skip
    return out


def summary(checked: Sequence[Checked]) -> list[str]:
    """What the table adds up to."""
    close = sum(c.close for c in checked)
    strict = sum(abs(without_paper(c.run)) <= CLOSE for c in checked)
    first = paper(checked[0].run)
    others = [c for c in checked if paper(c.run) != first]
    generations = sorted({c.run.cluster.accelerator.generation for c in checked})
    constants = ", ".join(f"{g} {published.efficiency(g)[0]:.1%}" for g in generations)
    return [
        f"- {close} of {len(checked)} runs are within {CLOSE:.0%}; {strict} with their papers left out.",
        f"- {sum(c.close for c in others)} of the {len(others)} that are not of {first} are.",
        f"- {sum(c.fits for c in checked)} of {len(checked)} layouts fit in memory, as they did.",
        f"- Share of peak of matrix products, fitted on all runs of a generation: {constants}.",
    ]


def table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *cells)]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:]]


def markdown(checked: Sequence[Checked]) -> str:
    origins = [(c.run.name, c.run.assumed or "nothing", c.run.source, c.run.confidence) for c in checked]
    told = table(("run", "assumed", "source", ""), origins)
    return "\n".join([*table(HEAD, rows(checked)), "", *summary(checked), "", *told])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs/cluster.md")
    path = parser.parse_args().docs
    text = markdown(published.validation())
    before, rest = path.read_text().split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    print(text)


if __name__ == "__main__":
    main()
