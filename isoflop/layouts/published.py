"""Published training runs, what our model of time and memory says of them, and what is fitted to them.

Matrix products reach one share of the peak in each accelerator generation. It is the only constant that is
fitted; a run is judged with the constant that the other runs of its generation give, or, where it is the only
one, those of all other generations.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np

from isoflop.layouts.hardware import Cluster
from isoflop.layouts.layouts import RECOMPUTE, Layout, Practice
from isoflop.layouts.search import Judged, candidates, judge
from isoflop.layouts.shapes import Shape
from isoflop.records import Record

GOODPUT = 0.9  # of the time, steps that count: "above 90%", Llama 3 team 2407.21783, section 3.3.4
KINDS = ("mfu", "hfu", "tokens_per_second", "device_hours")
CLOSE = 0.15  # of a published share of peak: what we call right
LOWEST, HIGHEST = 0.05, 1.0  # efficiencies that are looked at
BISECTIONS = 20
LAYOUT_COLUMNS = {
    "tensor": "tensor", "pipeline": "pipeline", "context": "context_parallel", "expert": "expert",
    "micro": "micro", "interleave": "interleave", "zero": "zero",
}  # fmt: skip


class PublishedRun(Record):
    """A run as its paper describes it; what it does not say of the layout is left open in `known`."""

    name: str
    shape: Shape
    cluster: Cluster
    known: dict[str, int]  # of the fields of `Layouts`
    sequences: int  # of a step
    practice: Practice
    share: float  # published, of the 16-bit peak
    hardware: bool  # what was computed again is counted in it
    published_as: str  # of `KINDS`
    assumed: str
    confidence: str
    source: str


class Checked(Record):
    """A published run against our model, which was fitted without it."""

    run: PublishedRun
    efficiency: float  # left out the run itself
    share: float  # of peak, ours
    layout: Layout  # as published; what is not known is the fastest that fits
    memory_bytes: float
    fits: bool
    fitted_on: str

    @property
    def error(self) -> float:
        return self.share / self.run.share - 1

    @property
    def close(self) -> bool:
        return abs(self.error) <= CLOSE


@cache
def published_runs() -> tuple[PublishedRun, ...]:
    """The package's table."""
    text = (files("isoflop.layouts") / "data/published.csv").read_text()
    return tuple(_run(row) for row in csv.DictReader(text.splitlines()))


def _run(row: dict[str, str]) -> PublishedRun:
    shape = Shape.model_validate({f: _number(row[f]) for f in Shape.model_fields if row.get(f)})
    cluster = Cluster.of(
        int(row["devices"]), row["accelerator"],
        node_devices=int(row["node_devices"]) if row["node_devices"] else None,
        internode_bytes=float(row["internode_bytes"]) if row["internode_bytes"] else None,
    )  # fmt: skip
    known = {field: int(row[column]) for field, column in LAYOUT_COLUMNS.items() if row[column]}
    if row["recompute"]:
        known["recompute"] = RECOMPUTE.index(row["recompute"])
    if row["sequence"]:
        known["sequence"] = int(row["sequence"] == "yes")
    assert row["kind"] in KINDS
    return PublishedRun(
        name=row["name"], shape=shape, cluster=cluster, known=known, sequences=int(row["sequences"]),
        practice=Practice(precision=row["precision"], flash=row["flash"] == "yes"),
        share=_share(row, shape, cluster), hardware=row["kind"] == "hfu", published_as=row["kind"],
        assumed=row["assumed"], confidence=row["confidence"], source=row["source"],
    )  # fmt: skip


def _number(text: str) -> object:
    return {"yes": True, "no": False}.get(text, text)


def _share(row: dict[str, str], shape: Shape, cluster: Cluster) -> float:
    """Of peak: as published, or from tokens a second and device, or from device-hours."""
    value = float(row["value"])
    if row["kind"] in ("mfu", "hfu"):
        return value
    speed = value if row["kind"] == "tokens_per_second" else float(row["tokens"]) / value / 3600
    return speed * shape.flops_per_token / cluster.peak_flops


def _judged(run: PublishedRun, efficiency: float) -> tuple[Judged, int]:
    """All layouts that agree with what was published, and the fastest that fits, or the leanest."""
    only = {name: [value] for name, value in run.known.items()}
    layouts = candidates(run.shape, run.cluster, run.sequences, only)
    assert len(layouts), f"the layout of {run.name} does not divide its devices"
    all_ = judge(run.shape, run.cluster, layouts, efficiency, run.practice)
    if all_.fits.any():
        return all_, int(np.where(all_.fits, all_.speed, 0.0).argmax())
    return all_, int(all_.memory.total.argmin())


def share_of(run: PublishedRun, efficiency: float) -> float:
    """Our share of peak, counted as the paper counts."""
    all_, i = _judged(run, efficiency)
    return _counted(run, all_, i)


def _counted(run: PublishedRun, all_: Judged, i: int) -> float:
    share = float((all_.step.hfu if run.hardware else all_.step.mfu)[i])
    return share * GOODPUT if run.published_as == "device_hours" else share  # which count the rest too


@cache
def implied(run_name: str) -> float:
    """The efficiency at which our share of peak is the published one, between 0.05 and 1."""
    run = next(r for r in published_runs() if r.name == run_name)
    low, high = LOWEST, HIGHEST
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if share_of(run, middle) < run.share else (low, middle)
    return (low + high) / 2


def fitted(runs: Sequence[PublishedRun]) -> float:
    """The median of what the runs imply: one odd run does not move it far."""
    return float(np.median([implied(run.name) for run in runs]))


def _of_generation(generation: str, without: Sequence[str] = ()) -> tuple[list[PublishedRun], str]:
    """Runs to fit on, and their name."""
    others = [run for run in published_runs() if run.name not in without]
    own = [run for run in others if run.cluster.accelerator.generation == generation]
    return (
        (own, f"{len(own)} runs of {generation}") if own else (others, f"{len(others)} of other generations")
    )


@cache
def efficiency(generation: str) -> tuple[float, str]:
    """Share of peak that matrix products reach on a generation, and what it was fitted on."""
    runs, words = _of_generation(generation)
    return fitted(runs), words


def check(run: PublishedRun, without: Sequence[str] = ()) -> Checked:
    """The run against our model, whose efficiency is fitted without it and without the runs named."""
    others, words = _of_generation(run.cluster.accelerator.generation, (run.name, *without))
    found = fitted(others)
    all_, i = _judged(run, found)
    return Checked(
        run=run, efficiency=found, fitted_on=words, layout=all_.layouts.one(i), fits=bool(all_.fits[i]),
        share=_counted(run, all_, i), memory_bytes=float(all_.memory.total[i]),
    )  # fmt: skip


def validation() -> list[Checked]:
    """Every published run, each left out of its own fit."""
    return [check(run) for run in published_runs()]
