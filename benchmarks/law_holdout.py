"""Do intervals of a new run hold on public tables, when the law is fitted to cheap runs?

    python benchmarks/law_holdout.py --tables ../shared/data/scaling --record records/DATE_law-holdout \\
        [--simple-scaling-laws PYTHON]

Every table is cut at several computes; the law is fitted to the runs below the cut and predicts all that lie
up to 20 times above it. Beside isoflop's interval stand a plain bootstrap of the parameters, and
the interval of simple-scaling-laws for a new run.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peer_laws
from keeping import keep

from isoflop.laws import fit, intervals

Table = dict[str, np.ndarray]
CUTS = 5  # per table, evenly spaced in ln C between a twentieth of the largest compute and a quarter of it
REACH = 20.0
LEAST = 10  # runs below a cut


def tables(folder: Path) -> Iterator[tuple[str, Table]]:
    """The shared tables, one a corpus and loss scale; outliers marked by their sources are dropped."""
    rows = sorted(read(folder / "chinchilla_epoch_245.csv"), key=lambda r: float(r["loss"]))[:-5]
    N, C, L = (np.array([float(r[k]) for r in rows]) for k in ("Model Size", "Training FLOP", "loss"))
    yield "chinchilla", {"params": N, "tokens": C / 6 / N, "loss": L}
    rows = [r for r in read(folder / "isoflops_llama3_marin.csv") if r["outlier"] != "True"]
    for name in sorted({r["experiment"] for r in rows}):
        part = [r for r in rows if r["experiment"] == name]
        yield name, {k: np.array([float(r[k]) for r in part]) for k in ("params", "tokens", "loss")}
    rows = [
        r
        for r in read(folder / "datablations_182.csv")
        if float(r["tokens"]) <= 1.01 * float(r["unique_tokens"])
    ]
    columns = {"params": "params", "tokens": "tokens", "val_loss": "loss"}
    yield "datablations-one-epoch", {c: np.array([float(r[k]) for r in rows]) for k, c in columns.items()}


def repeats(row: dict[str, str]) -> bool:
    return float(row["tokens"]) > 1.01 * float(row["unique_tokens"])


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def cuts(table: Table) -> Iterator[tuple[float, Table, Table]]:
    """The largest fitted compute, the runs up to it, and those up to `REACH` times above it."""
    C, seen = 6 * table["params"] * table["tokens"], set()
    for cut in np.geomspace(C.max() / REACH, C.max() / 4, CUTS):
        inside = cut * (1 + 1e-9) >= C
        largest = C[inside].max() if inside.any() else cut
        outside = ~inside & (REACH * largest * 1.001 >= C) & (1.5 * largest <= C)
        if inside.sum() >= LEAST and outside.any() and largest not in seen:
            seen.add(largest)
            yield (
                float(largest),
                {k: v[inside] for k, v in table.items()},
                {k: v[outside] for k, v in table.items()},
            )


def judge(name: str, table: Table, python: str | None) -> list[dict[str, Any]]:
    """One row for each held-out run; `python` has the peer."""
    out: list[dict[str, Any]] = []
    for largest, inside, outside in cuts(table):
        law = fit(inside, bootstrap=400)
        first = len(out)
        for N, D, L in zip(outside["params"], outside["tokens"], outside["loss"], strict=True):
            found = law.predict(N, D)
            low, high = intervals.quantiles(law.predict_draws(N, D)[:, 0], 0.9)
            out.append({
                "table": name, "runs": law.n, "fitted_flops": largest, "ratio": found.extrapolation,
                "loss": float(L), "error": float(found.value / L - 1),
                "held": bool(found.low <= L <= found.high),
                "half_width": (found.high - found.low) / 2 / found.value,
                "plain_held": bool(low <= L <= high), "plain_half_width": (high - low) / 2 / found.value,
            })  # fmt: skip
        if python:
            low, middle, high = peer_laws.ask(python, inside, outside)["quantiles"]
            for row, one in zip(out[first:], np.stack([low, middle, high], axis=1), strict=True):
                row["peer_held"] = bool(one[0] <= row["loss"] <= one[2])
                row["peer_half_width"] = float((one[2] - one[0]) / 2 / one[1])
                row["peer_error"] = float(one[1] / row["loss"] - 1)
    return out


def line(name: str, rows: list[dict[str, Any]]) -> str:
    """One row of the record's table."""

    def mean(key: str) -> float:
        return float(np.mean([r[key] for r in rows]))

    cells = (
        name, len({r["fitted_flops"] for r in rows}), len(rows),
        f"{mean('held'):.0%}", f"{mean('half_width'):.1%}",
        f"{mean('plain_held'):.0%}", f"{mean('plain_half_width'):.1%}", f"{mean('error'):+.1%}",
        f"{max(abs(r['error']) for r in rows):.1%}",
        *((f"{mean('peer_held'):.0%}", f"{mean('peer_half_width'):.1%}", f"{mean('peer_error'):+.1%}")
          if "peer_held" in rows[0] else ()),
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


HEAD = ("table", "cuts", "held-out runs", "held", "half-width", "plain bootstrap held", "its half-width",
        "mean error", "largest error")  # fmt: skip
PEER_HEAD = ("simple-scaling-laws held", "its half-width", "its mean error")


def summary(rows: list[dict[str, Any]]) -> str:
    """The record's README; the last line counts every table once."""
    names = list(dict.fromkeys(r["table"] for r in rows))
    parts = [[r for r in rows if r["table"] == name] for name in names]
    held = np.mean([np.mean([r["held"] for r in p]) for p in parts])
    width = np.mean([np.mean([r["half_width"] for r in p]) for p in parts])
    far = [r for r in rows if r["ratio"] >= 10]
    head = (*HEAD, *(PEER_HEAD if "peer_held" in rows[0] else ()))
    return "\n".join([
        "# Intervals of a new run against held-out larger runs of public tables",
        "",
        f"90% intervals held {np.mean([r['held'] for r in rows]):.0%} of {len(rows)} held-out runs"
        f" ({held:.0%} with every table counting once), mean half-width {width:.1%}; of those at 10 to"
        f" {REACH:g} times the fitted compute {np.mean([r['held'] for r in far]):.0%} of {len(far)},"
        f" half-width {np.mean([r['half_width'] for r in far]):.1%}.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *(line(name, part) for name, part in zip(names, parts, strict=True)),
        line("all", rows),
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=Path, required=True, help="folder with the shared scaling tables")
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--simple-scaling-laws", help="a Python interpreter that has simple-scaling-laws")
    args = parser.parse_args()
    rows = [
        row for name, table in tables(args.tables) for row in judge(name, table, args.simple_scaling_laws)
    ]
    keep(args.record, rows, summary(rows))


if __name__ == "__main__":
    main()
