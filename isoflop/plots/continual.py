"""What a model knows of each task after each that it learned, drawn as a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from isoflop.adapting.continual import InOrder
from isoflop.plots.glyphs import faces_for, written
from isoflop.plots.style import PALETTE, Array
from isoflop.store import atomic_write

DPI = 130


@dataclass(frozen=True)
class MatrixData:
    """Scores before and after each task (1 + T, T)."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    scores: Array
    title: str


def matrix_data(found: InOrder) -> MatrixData:
    """The base's scores above those after each task."""
    return MatrixData(
        rows=("before", *(f"after {name}" for name in found.names)), columns=found.names,
        scores=np.array([found.before, *found.scores]),
        title=f"{found.metric} by test set; backward transfer {found.backward.value:+.3f}",
    )  # fmt: skip


def draw_matrix(ax: Axes, data: MatrixData) -> None:
    """Darker is higher; bold is what a task scores when it has just been learned."""
    shades = LinearSegmentedColormap.from_list("scores", [PALETTE["paper"], PALETTE["accent"]])
    low, high = float(data.scores.min()), float(data.scores.max())
    ax.imshow(data.scores, cmap=shades, vmin=low, vmax=high + 0.3 * (high - low), aspect="auto")
    for (i, j), score in np.ndenumerate(data.scores):
        weight = "bold" if i == j + 1 else "normal"
        ax.text(j, i, f"{score:.3f}", ha="center", va="center", color=PALETTE["ink"], weight=weight)
    faces, missing = faces_for(data.columns)
    columns, rows = ([written(name, missing) for name in names] for names in (data.columns, data.rows))
    look: dict[str, Any] = {"parse_math": False, "family": ("DejaVu Sans", *faces)}
    ax.set_xticks(range(len(columns)), columns, **look)
    ax.set_yticks(range(len(rows)), rows, **look)
    ax.tick_params(colors=PALETTE["muted"], labelsize=10.5, length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(data.title, loc="left", fontsize=11.5, color=PALETTE["ink"])


def save_matrix(path: Path, found: InOrder) -> None:
    """Raises ProjectError when the file cannot be written."""
    data = matrix_data(found)
    size = (2.2 + 1.2 * len(data.columns), 1.2 + 0.5 * len(data.rows))
    drawn = Figure(figsize=(max(5.0, size[0]), size[1]), layout="constrained", facecolor=PALETTE["paper"])
    draw_matrix(drawn.subplots(), data)
    made = BytesIO()
    drawn.savefig(made, format="png", dpi=DPI)
    atomic_write(path, made.getvalue())
