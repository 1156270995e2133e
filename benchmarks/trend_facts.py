"""The package's tables of models and accelerators against other tables of the same things.

    python benchmarks/trend_facts.py FOLDER/notable_models.csv FOLDER/accelerators.csv

Rows are matched by name; one with a size in it also without it, if the sizes are near. It prints how many
match and each disagreement: sizes by more than 10%, tokens, compute and cost by more than 1.5x, rates,
memory, bandwidth and power by more than 5%, prices by more than 25%, days by more than 60.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable
from pathlib import Path

from isoflop.records import Record
from isoflop.trend.formats import RATES
from isoflop.trend.metrics import HARDWARE
from isoflop.trend.tables import Table, read_table

DAYS = 60
SIZES_APART = 1.25
SIZE = re.compile(r"-?\b\d+(\.\d+)?[BT]\b")  # of a model, in its name
FARTHEST = {  # ratio by which a column may differ
    "params_total": 1.1, "params_active": 1.1, "tokens": 1.5, "flops": 1.5, "cost_usd": 1.5,
    **dict.fromkeys((*RATES, "memory_bytes", "bandwidth_bytes", "tdp_w"), 1.05), "launch_price_usd": 1.25,
}  # fmt: skip
MAKERS = {
    "nvidia", "amd", "google", "intel", "huawei", "amazon", "aws", "meta", "microsoft", "instinct", "geforce",
    "tesla", "habana", "cloud", "xai",
}  # fmt: skip


class Disagreement(Record):
    """One figure that the two tables state differently."""

    name: str
    other: str  # the row's name in the other table
    column: str
    ours: str
    theirs: str


def plain(name: str) -> str:
    """A name without case, punctuation and makers."""
    words = re.split(r"[^a-z0-9.+]+", name.lower().replace("α", "alpha").replace("σ", "sigma"))
    return "".join(word for word in words if word not in MAKERS).replace(".0", "")


def names_of(table: Table, row: int) -> Iterable[str]:
    """A row's own name and its aliases, then its name without what is in brackets; all plain."""
    name = table.names[row]
    return map(plain, (name, *table.words("aliases")[row].split("|"), re.sub(r"\(.*?\)", " ", name)))


def matches(ours: Table, theirs: Table) -> list[tuple[int, int]]:
    """Rows of one name in both; a whole name is preferred to one without its brackets, then the earlier."""
    order = sorted(range(len(theirs)), key=lambda i: str(theirs.dates[i] or "9"))
    whole: dict[str, int] = {}
    for i in order:
        whole.setdefault(plain(theirs.names[i]), i)
    known = dict(whole)
    for i in order:
        for name in names_of(theirs, i):
            known.setdefault(name, i)
    found = []
    for i in range(len(ours)):
        hit = next((known[name] for name in names_of(ours, i) if name and name in known), None)
        if hit is None:
            hit = whole.get(plain(SIZE.sub(" ", ours.names[i])))
            hit = None if hit is None or other_size(ours, i, theirs, hit) else hit
        if hit is not None:
            found.append((i, hit))
    return found


def other_size(ours: Table, i: int, theirs: Table, j: int) -> bool:
    """Whether two rows of one family are of different sizes."""
    ratio = ours.stated("params_total")[i] / theirs.stated("params_total")[j]
    return bool(abs(math.log(ratio)) > math.log(SIZES_APART))


def disagreements(ours: Table, theirs: Table) -> list[Disagreement]:
    """Figures of matched rows that differ by more than `FARTHEST`, and days by more than `DAYS`."""
    columns = [name for name in ours.format.columns if name in FARTHEST]
    values = {name: (ours.values(name), theirs.values(name)) for name in columns}
    values["params_active"] = (ours.stated("params_active"), theirs.stated("params_active"))
    out = []
    for i, j in matches(ours, theirs):
        cells = [
            (name, f"{one[i]:.4g}", f"{other[j]:.4g}")
            for name, (one, other) in values.items()
            if abs(math.log(one[i] / other[j])) > math.log(FARTHEST[name])  # never of an empty cell: nan
        ]
        day, other_day = ours.dates[i], theirs.dates[j]
        if day is not None and other_day is not None and abs((day - other_day).days) > DAYS:
            cells.append(("date", str(day), str(other_day)))
        out += [
            Disagreement(name=ours.names[i], other=theirs.names[j], column=column, ours=a, theirs=b)
            for column, a, b in cells
        ]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="+", type=Path)
    for path in parser.parse_args().tables:
        theirs = read_table(path, every_row=True)
        ours = read_table(kind=theirs.kind)
        found = disagreements(ours, theirs)
        what = "accelerators" if theirs.kind == HARDWARE else "models"
        print(
            f"{len(matches(ours, theirs))} of our {len(ours)} {what} are in {path.name} ({theirs.snapshot});"
        )
        print(f"{len(found)} figures of {len({d.name for d in found})} of them disagree.")
        for d in found:
            print(f"  {d.name:36} {d.column:16} ours {d.ours:>11}  theirs {d.theirs:>11}  ({d.other})")


if __name__ == "__main__":
    main()
