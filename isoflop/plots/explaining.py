"""What a model goes by, drawn: a text's words in their colours, an image's heat; a reliability diagram."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from isoflop.explaining.attributions import Heat
from isoflop.explaining.records import Attribution, Reliability
from isoflop.plots.glyphs import columns, faces_for, note, written
from isoflop.plots.style import PALETTE, SIZE, Array, dress
from isoflop.store import atomic_write

LINE = 72  # characters of a line of text
LINES = 14  # of a text that are shown, at most
ROW = 0.27  # inches of a line
TEXT_WIDTH = 6.4  # inches of the picture: LINE characters of 10.5 points, and margins
DPI = 130


@dataclass(frozen=True)
class AttributionData:
    """Words in lines: where each stands, in characters and lines, and how strongly it is coloured.

    A word that is wider than a line is in pieces.
    """

    title: str
    words: tuple[str, ...]
    columns: tuple[int, ...]  # of the first character
    lines: tuple[int, ...]
    strengths: Array  # (words,) in [-1, 1]: for the label above zero; of the largest in the text
    left_out: int  # words that begin beyond the last line that is shown


def attribution_data(found: Attribution) -> AttributionData:
    """Broken into lines at blanks, as the text has them; what stood between words is not shown."""
    largest = max((abs(word.attribution) for word in found.words), default=0.0) or 1.0
    placed: list[tuple[str, int, int, float]] = []
    column, line, last, left_out = 0, 0, 0, 0
    for word in found.words:
        column += min(word.start - last, 1) if column else 0
        last = word.end
        for number, piece in enumerate(_pieces(word.text)):
            if column and column + columns(piece) > LINE:
                column, line = 0, line + 1
            left_out += line >= LINES and number == 0
            placed.append((piece, column, line, word.attribution / largest))
            column += columns(piece)
    shown = [place for place in placed if place[2] < LINES]
    return AttributionData(
        title=f"{found.output}: {found.value:+.2f} {found.unit}, {found.baseline:+.2f} without its words",
        words=tuple(text for text, *_ in shown), columns=tuple(column for _, column, _, _ in shown),
        lines=tuple(line for *_, line, _ in shown), strengths=np.array([strength for *_, strength in shown]),
        left_out=left_out,
    )  # fmt: skip


def _pieces(word: str) -> list[str]:
    """No wider than a line."""
    found = [""]
    for character in word:
        if columns(found[-1] + character) > LINE:
            found.append("")
        found[-1] += character
    return found


def draw_attributions(ax: Axes, data: AttributionData) -> None:
    """Blue words speak for the label, vermillion ones against it."""
    faces, missing = faces_for((data.title, *data.words))
    ax.set_xlim(0, LINE)
    ax.set_ylim(max(data.lines, default=0) + 0.7, -0.9)
    ax.axis("off")
    _title(ax, data.title)
    for word, column, line, strength in zip(
        data.words, data.columns, data.lines, data.strengths, strict=True
    ):
        colour = (*to_rgb(PALETTE["accent" if strength > 0 else "final"]), abs(float(strength)) * 0.75)
        box = {"boxstyle": "square,pad=0.12", "facecolor": colour, "edgecolor": "none"}
        ax.text(
            column, line, written(word, missing), fontsize=10.5, family=faces, color=PALETTE["ink"],
            va="center", bbox=box, parse_math=False,
        )  # fmt: skip
    if data.left_out:
        ax.annotate(
            f"… and {data.left_out} words more", (1, 0), xycoords="axes fraction", ha="right", fontsize=9.5,
            color=PALETTE["muted"],
        )  # fmt: skip


def _title(ax: Axes, title: str) -> None:
    faces, missing = faces_for([title])
    ax.set_title(
        written(title, missing), loc="left", fontsize=10.5, color=PALETTE["ink"],
        family=("DejaVu Sans", *faces), parse_math=False,
    )  # fmt: skip


def draw_heat(axes: Sequence[Axes], heat: Heat) -> None:
    """The image, and beside it what speaks for its label and against it."""
    axes[0].imshow(heat.image)
    largest = float(np.abs(heat.heat).max()) or 1.0
    ends = [PALETTE["final"], PALETTE["paper"], PALETTE["accent"]]
    axes[1].imshow(
        heat.heat, cmap=LinearSegmentedColormap.from_list("shares", ends), vmin=-largest, vmax=largest
    )
    _title(axes[0], f"{heat.label}: {heat.value:+.2f}")
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


def save_attributions(path: Path, found: Sequence[Attribution]) -> str:
    """One text under another; returns what a reader has to know of it, if anything.

    Raises ProjectError when the file cannot be written.
    """
    data = [attribution_data(one) for one in found]
    heights = [ROW * (max(one.lines, default=0) + 2.6) for one in data]
    drawn = Figure(figsize=(TEXT_WIDTH, sum(heights) + ROW), layout="constrained", facecolor=PALETTE["paper"])
    axes = drawn.subplots(len(data), 1, height_ratios=heights, squeeze=False)
    for ax, one in zip(axes[:, 0], data, strict=True):
        draw_attributions(ax, one)
    _legend(drawn, "blue words speak for what each title names, orange ones against it; deeper: by more")
    _save(drawn, path)
    return _lacking(text for one in data for text in (one.title, *one.words))


def save_heats(path: Path, found: Sequence[Heat]) -> str:
    """One image under another; returns what a reader has to know of it, if anything.

    Raises ProjectError when the file cannot be written.
    """
    drawn = Figure(figsize=(4.4, 2.3 * len(found) + 0.5), layout="constrained", facecolor=PALETTE["paper"])
    for axes, heat in zip(drawn.subplots(len(found), 2, squeeze=False), found, strict=True):
        draw_heat(axes, heat)
    _legend(drawn, "titles: label and its log-odds in nats\nblue pixels speak for it, orange ones against it")
    _save(drawn, path)
    return _lacking(heat.label for heat in found)


def _legend(drawn: Figure, text: str) -> None:
    drawn.suptitle(text, x=0.01, ha="left", fontsize=9.5, color=PALETTE["muted"])


def _lacking(words: Iterable[str]) -> str:
    _, missing = faces_for(words)
    return note(missing) if missing else ""


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
