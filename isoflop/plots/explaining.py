"""What a model goes by, drawn: a text's words in their colours, an image's heat; a reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from unicodedata import east_asian_width

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names

from isoflop.explaining.attributions import Heat
from isoflop.explaining.records import Attribution, Reliability
from isoflop.plots.style import PALETTE, SIZE, Array, dress
from isoflop.store import atomic_write

LINE = 72  # characters of a line of text
LINES = 14  # of a text that are shown, at most
ROW = 0.27  # inches of a line
TEXT_WIDTH = 8.2  # inches of the picture: LINE characters of 10.5 points
DPI = 130
FACES = ("DejaVu Sans Mono", "Noto Sans Mono CJK SC", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "PingFang SC")


@dataclass(frozen=True)
class AttributionData:
    """Words in lines: where each stands, in characters and lines, and how strongly it is coloured."""

    title: str
    words: tuple[str, ...]
    columns: tuple[int, ...]  # of the first character
    lines: tuple[int, ...]
    strengths: Array  # (words,) in [-1, 1]: for the label above zero; of the largest in the text
    left_out: int  # words beyond the last line that is shown


def attribution_data(found: Attribution) -> AttributionData:
    """Broken into lines at blanks, as the text has them; what stood between words is not shown."""
    shares = np.array([word.attribution for word in found.words])
    largest = float(np.abs(shares).max(initial=0.0)) or 1.0
    columns, lines = [], []
    column, line, last = 0, 0, 0
    for word in found.words:
        column += min(word.start - last, 1) if column else 0
        if column and column + width(word.text) > LINE:
            column, line = 0, line + 1
        columns.append(column)
        lines.append(line)
        column, last = column + width(word.text), word.end
    shown = sum(number < LINES for number in lines)
    return AttributionData(
        title=f"{found.output}: {found.value:+.2f} {found.unit}, {found.baseline:+.2f} without its words",
        words=tuple(word.text for word in found.words[:shown]), columns=tuple(columns[:shown]),
        lines=tuple(lines[:shown]), strengths=shares[:shown] / largest, left_out=len(lines) - shown,
    )  # fmt: skip


def width(text: str) -> int:
    """Columns of a text in a face of equal widths; Chinese characters have two."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def draw_attributions(ax: Axes, data: AttributionData) -> None:
    """Blue words speak for the label, vermillion ones against it."""
    faces = [face for face in FACES if face in get_font_names()]
    ax.set_xlim(0, LINE)
    ax.set_ylim(max(data.lines, default=0) + 0.7, -0.9)
    ax.axis("off")
    ax.set_title(data.title, loc="left", fontsize=11.5, color=PALETTE["ink"])
    for word, column, line, strength in zip(
        data.words, data.columns, data.lines, data.strengths, strict=True
    ):
        colour = (*to_rgb(PALETTE["accent" if strength > 0 else "final"]), abs(float(strength)) * 0.75)
        box = {"boxstyle": "square,pad=0.12", "facecolor": colour, "edgecolor": "none"}
        ax.text(
            column, line, word, fontsize=10.5, family=faces, color=PALETTE["ink"], va="center", bbox=box,
            parse_math=False,
        )  # fmt: skip
    if data.left_out:
        ax.annotate(
            f"… and {data.left_out} words more", (1, 0), xycoords="axes fraction", ha="right", fontsize=9.5,
            color=PALETTE["muted"],
        )  # fmt: skip


def draw_heat(axes: Sequence[Axes], heat: Heat) -> None:
    """The image, and beside it what speaks for its label and against it."""
    axes[0].imshow(heat.image)
    largest = float(np.abs(heat.heat).max()) or 1.0
    ends = [PALETTE["final"], PALETTE["paper"], PALETTE["accent"]]
    axes[1].imshow(
        heat.heat, cmap=LinearSegmentedColormap.from_list("shares", ends), vmin=-largest, vmax=largest
    )
    axes[0].set_title(
        f"{heat.label}: {heat.value:+.2f} nats", loc="left", fontsize=10.5, color=PALETTE["ink"]
    )
    for ax in axes:
        ax.axis("off")


def draw_reliability(ax: Axes, found: Reliability) -> None:
    """Accuracy over confidence; a point's area is its share of the examples."""
    total = sum(b.examples for b in found.bins)
    ax.plot([0, 1], [0, 1], color=PALETTE["muted"], lw=1, ls="--")
    ax.scatter(
        [b.confidence for b in found.bins], [b.accuracy for b in found.bins],
        s=[20 + 300 * b.examples / total for b in found.bins], color=PALETTE["accent"], zorder=3,
    )  # fmt: skip
    ax.set_xlim(0, 1.02)
    ax.set_ylim(0, 1.05)
    dress(ax, "probability that the model gives its label", None, "share that is right")


def save_attributions(path: Path, found: Sequence[Attribution]) -> None:
    """One text under another. Raises ProjectError when the file cannot be written."""
    data = [attribution_data(one) for one in found]
    heights = [ROW * (max(one.lines, default=0) + 2.6) for one in data]
    drawn = Figure(figsize=(TEXT_WIDTH, sum(heights)), layout="constrained", facecolor=PALETTE["paper"])
    axes = drawn.subplots(len(data), 1, height_ratios=heights, squeeze=False)
    for ax, one in zip(axes[:, 0], data, strict=True):
        draw_attributions(ax, one)
    _save(drawn, path)


def save_heats(path: Path, found: Sequence[Heat]) -> None:
    """One image under another. Raises ProjectError when the file cannot be written."""
    drawn = Figure(figsize=(4.4, 2.3 * len(found)), layout="constrained", facecolor=PALETTE["paper"])
    for axes, heat in zip(drawn.subplots(len(found), 2, squeeze=False), found, strict=True):
        draw_heat(axes, heat)
    _save(drawn, path)


def save_reliability(path: Path, found: Reliability) -> None:
    """Raises ProjectError when the file cannot be written."""
    drawn = Figure(figsize=SIZE, layout="constrained", facecolor=PALETTE["paper"])
    ax = drawn.subplots()
    ax.set_facecolor(PALETTE["paper"])
    draw_reliability(ax, found)
    _save(drawn, path)


def _save(drawn: Figure, path: Path) -> None:
    made = BytesIO()
    drawn.savefig(made, format="png", dpi=DPI)
    atomic_write(path, made.getvalue())
