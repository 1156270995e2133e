"""Traps of tables of models and hardware: what is left out of fits, and what is only said."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

import numpy as np
from numpy.typing import NDArray

from isoflop.trend.cells import counted
from isoflop.trend.metrics import HARDWARE, MODELS, Metric
from isoflop.trend.points import Floats, Mask
from isoflop.trend.tables import Table

WORDS = re.compile(r"\bwords\b")
FAR = 1.5  # ratio of stated compute to 6 N D beyond which a row is not one pass of a dense decoder
# Figures of Epoch AI's hardware table of 2026-07 that data sheets contradict: name, columns, why.
DOUBTFUL = (
    (re.compile(r"MI355X"), ("fp8", "fp4"), "FP8 and FP4 are the MI350X's"),
    (re.compile(r"RTX 4090"), ("fp16", "fp8"), "the rate is with FP16 accumulation"),
    (re.compile(r"Gaudi ?3"), ("fp16", "fp8"), "the rates are below Intel's white paper"),
)  # fmt: skip
ANNOUNCED = re.compile(r"announce|expected|upcoming|preliminary", re.IGNORECASE)
AHEAD = re.compile(r"\b(MI4\d\dX?|VR\d00|Rubin)\b")  # named before anyone could buy one


@dataclass(frozen=True)
class Doubt:
    """A figure not to be trusted, or a whole row."""

    row: int
    columns: tuple[str, ...]  # of ours; empty: all
    why: str


def doubts(table: Table) -> tuple[Doubt, ...]:
    """What is left out of fits: announced, doubtful and unsourced hardware."""
    return tuple(_hardware(table)) if table.kind == HARDWARE else ()


def _hardware(table: Table) -> Iterable[Doubt]:
    said = zip(table.names, table.dates, table.words("provenance"), table.words("announced"), strict=True)
    for i, (name, day, provenance, announced) in enumerate(said):
        ahead = announced == "yes" or (day is not None and day > date.today())
        if ahead or AHEAD.search(name) or ANNOUNCED.search(provenance):
            yield Doubt(i, (), "announced only")
        elif provenance.startswith("memory"):
            yield Doubt(i, (), "without a source")
        if not table.format.own:
            for pattern, columns, why in DOUBTFUL:
                if pattern.search(name):
                    yield Doubt(i, columns, why)


def trusted(table: Table, metric: Metric) -> tuple[Mask, list[str]]:
    """(n,) rows whose figure can be used, and a sentence for each reason why others are left out."""
    use = np.ones(len(table), dtype=bool)
    reasons: dict[str, list[str]] = {}
    for doubt in doubts(table):
        if not doubt.columns or {metric.column, metric.per} & set(doubt.columns):
            use[doubt.row] = False
            reasons.setdefault(doubt.why, []).append(table.names[doubt.row])
    undated = np.array([day is None for day in table.dates])
    if (undated & use).any():
        reasons["without a date"] = [table.names[i] for i in np.flatnonzero(undated & use)]
    notes = [_sentence(names, f"left out: {why}") for why, names in reasons.items()]
    return use & ~undated, notes


def warnings(table: Table, metric: Metric, rows: NDArray[np.intp]) -> list[str]:
    """Sentences on figures that stay but do not mean what they seem to; `rows` are those used, (k,)."""
    if table.kind != MODELS:
        return []
    notes = []
    if metric.column == "params_active":
        with np.errstate(invalid="ignore"):
            dense = ratio_to_6nd(table) < 1 / FAR  # nan is not
        alike = rows[(dense & np.isnan(table.stated("params_active")) & ~table.mixture)[rows]]
        notes += _named(
            table, alike, "counted as dense with compute under 6 N D: mixtures, or encoders with decoders"
        )
    if metric.column == "flops":
        blind = rows[table.mixture[rows] & np.isnan(table.values("params_active")[rows])]
        notes += _named(table, blind, "of mixtures whose active parameters are not stated")
    if metric.column in ("tokens", "unique_tokens"):
        said = table.words("tokens_notes")
        notes += _named(table, [i for i in rows if WORDS.search(said[i])], "may count words, not tokens")
    if metric.column == "tokens" and table.source("tokens") is None:
        without = int(np.isnan(table.stated("epochs")[rows]).sum())
        notes += [f"{without} of {len(rows)} rows state no epochs: taken as one."] if without else []
    if metric.column in ("flops", "tokens"):
        far = int(apart(table)[rows].sum())
        notes += [
            f"{far} of {len(rows)} rows state compute more than {FAR:g}x from 6 N D: fine-tuning, several"
            " passes, other architectures, or another unit of data."
        ] if far else []  # fmt: skip
    return notes


def ratio_to_6nd(table: Table) -> Floats:
    """(n,) stated compute over 6 N_active D; nan where one is missing."""
    return table.stated("flops") / (6.0 * table.values("params_active") * table.values("tokens"))


def apart(table: Table) -> Mask:
    """(n,) rows whose compute is more than `FAR` from 6 N D."""
    with np.errstate(invalid="ignore"):
        distance: Floats = np.abs(np.log(ratio_to_6nd(table)))
    far: Mask = distance > np.log(FAR)
    return far


def _named(table: Table, rows: Iterable[int], what: str) -> list[str]:
    names = [table.names[i] for i in rows]
    return [_sentence(names, what)] if names else []


def _sentence(names: list[str], what: str) -> str:
    """`3 rows left out: announced only (A, B, ...).`"""
    shown = ", ".join(dict.fromkeys(names[:3])) + (", ..." if len(names) > 3 else "")
    return f"{counted(len(names))} {what} ({shown})."
