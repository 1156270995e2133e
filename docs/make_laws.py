"""Write docs/laws.md and its pictures: the laws, and public tables refitted.

python docs/make_laws.py --tables ../shared/data/scaling
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from isoflop import plots
from isoflop.errors import FitError
from isoflop.laws import LAWS, Fit, fit
from isoflop.laws.approaches import parabolas
from isoflop.laws.choose import OF_SIZE_AND_DATA, compare

Table = dict[str, np.ndarray]
HERE = Path(__file__).parent
CAPTIONS = {
    "isoflop": "Loss at constant compute; rings are the best splits.",
    "contour": "Lines of equal loss, and the compute-optimal path.",
    "frontier": "What compute buys, with bands for the mean and for a new run.",
    "residuals-flops": "Measured less law, against compute.",
    "pairs": "Bootstrap draws of the two parameters that move together most.",
    "holdout": "Fits to cheap runs against dearer ones, and the band of a new run.",
    "influence": "The runs that move the prediction at four times the largest compute most.",
    "design": "How well 16 times the compute would be known after one more run, had only the 40 cheapest been"
    " made; the ring is what isoflop next says.",
}
EARLY = 40  # cheapest runs, for the design map


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def columns(rows: list[dict[str, str]], **names: str) -> Table:
    return {role: np.array([float(row[name]) for row in rows]) for role, name in names.items()}


def chinchilla(folder: Path) -> Table:
    """The 240 points: D = C / 6N, the five highest losses dropped."""
    rows = sorted(read(folder / "chinchilla_epoch_245.csv"), key=lambda row: float(row["loss"]))[:-5]
    table = columns(rows, params="Model Size", flops="Training FLOP", loss="loss")
    flops = table.pop("flops")
    return {**table, "tokens": flops / 6 / table["params"]}


def cheapest(table: Table, runs: int) -> Table:
    first = np.argsort(table["params"] * table["tokens"])[:runs]
    return {name: column[first] for name, column in table.items()}


def isoflops(folder: Path) -> Iterator[tuple[str, Table]]:
    """Llama 3 and Marin, without the outliers marked by their collectors."""
    rows = [r for r in read(folder / "isoflops_llama3_marin.csv") if r["outlier"] != "True"]
    for name in sorted({r["experiment"] for r in rows}):
        part = [r for r in rows if r["experiment"] == name]
        yield name, columns(part, params="params", tokens="tokens", loss="loss")


def forms() -> list[str]:
    """The laws as a table."""
    lines = ["| law | equation | covariates | source | published constants |", "|---|---|---|---|---|"]
    for law in LAWS.values():
        constants = ", ".join(f"`{p.name}`" for p in law.published)
        formula = law.formula.replace("|", "\\|")
        lines.append(f"| `{law.name}` | {formula} | {', '.join(law.columns)} | {law.source} | {constants} |")
    return lines


def row(name: str, law: Fit) -> str:
    """Parameters with standard errors."""
    cells = [f"{law.params[k]:.4g} ({law.se[k]:.2g})" for k in ("E", "A", "B", "alpha", "beta")]
    a = law.params["beta"] / (law.params["alpha"] + law.params["beta"])
    return f"| {name} | {law.n} | " + " | ".join([*cells, f"{a:.3f}"]) + " |"


def refits(folder: Path) -> list[str]:
    """Every table by the additive law, then what decides among the laws."""
    tables = [("Chinchilla", chinchilla(folder)), *isoflops(folder)]
    out = ["| table | runs | E | A | B | alpha | beta | a |", "|---|---|---|---|---|---|---|---|"]
    out += [row(name, fit(table)) for name, table in tables]
    out += ["", "Standard errors in brackets are bootstrapped; a is the exponent of N* in C.", ""]
    out += [
        "| table | a by parabolas, 90% | largest bias | law by AICc | law by hold-out | decided |",
        "|---" * 6 + "|",
    ]
    for name, table in tables:
        try:
            frontier = parabolas(table)
            a, off = frontier.exponent, max(abs(s.bias - 1) for s in frontier.slices)
            slope = f"{a.value:.3f} [{a.low:.3f}, {a.high:.3f}] | {off:.1%}"
        except FitError:
            slope = " | "
        found = compare(table, OF_SIZE_AND_DATA)
        held = min((c for c in found.candidates if c.holdout is not None), key=lambda c: c.holdout or 0.0)
        decided = found.chosen or "no"
        out.append(f"| {name} | {slope} | {found.candidates[0].law} | {held.law} | {decided} |")
    return out


def repeated(folder: Path) -> list[str]:
    """R_D* and R_N* of the repeated-data runs, the other constants as published."""
    names = {"params": "params", "tokens": "tokens", "unique_tokens": "unique_tokens", "loss": "val_loss"}
    table = columns(read(folder / "datablations_182.csv"), **names)
    stars = ("RD_star", "RN_star")
    published = Fit.of_published("muennighoff-2023").params
    fixed = {name: value for name, value in published.items() if name not in stars}
    law = fit(table, law="repeated-data", fixed=fixed)
    ends = law.conf_int()
    lines = [f"- {name}: {law.params[name]:.3g}, 90% [{ends[name].low:.3g}, {ends[name].high:.3g}];"
             f" published {published[name]:.3g}" for name in stars]  # fmt: skip
    return [*lines, f"- objective {law.objective:.7f}", *(f"- {sentence}" for sentence in law.diagnostics)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=Path, required=True, help="folder with the shared scaling tables")
    folder = parser.parse_args().tables
    law = fit(chinchilla(folder))
    paths, _ = plots.save_law_pictures(law, HERE / "laws", kind="png")
    for path in paths:
        if path.stem not in CAPTIONS:
            path.unlink()
    plots.law_figure("design", fit(cheapest(chinchilla(folder), EARLY))).savefig(
        HERE / "laws" / "design.png", dpi=130
    )
    gallery = [f"![{words}](laws/{name}.png)\n\n*{words}*\n" for name, words in CAPTIONS.items()]
    text = (HERE / "laws.template.md").read_text()
    parts = {
        "forms": forms(), "refits": refits(folder), "repeated": repeated(folder),
        "summary": ["    " + line for line in law.summary().splitlines()], "gallery": gallery,
    }  # fmt: skip
    for name, lines in parts.items():
        text = text.replace("{{" + name + "}}", "\n".join(line.rstrip() for line in lines))
    (HERE / "laws.md").write_text(text)


if __name__ == "__main__":
    main()
