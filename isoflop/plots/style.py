"""How pictures look: one palette, light and dark, and the dress of axes.

Colours are by meaning: blue is the law and the small runs (darker: larger), vermillion is the final run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import log10
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from isoflop.records import Interval

Array = npt.NDArray[np.float64]
Numbers = Sequence[float] | Array
Words = Callable[[float], str]
Spread = Literal["params", "tokens", "flops"]

PALETTE = {  # blue and vermillion of Okabe and Ito (2008), told apart by every kind of colour vision
    "ink": "#1c2127",
    "muted": "#5c6670",
    "grid": "#e6e9ec",
    "paper": "#fdfdfc",
    "accent": "#0072b2",
    "final": "#d55e00",
    "step1": "#93c4e3",
    "step2": "#559fd0",
    "step3": "#1f78b4",
    "step4": "#10527f",
    "step5": "#082c47",
}
DARK = {
    "ink": "#e8eaec",
    "muted": "#9aa4ae",
    "grid": "#2b3138",
    "paper": "#14181c",
    "accent": "#56b4e9",
    "final": "#f08a4b",
    "step1": "#24506e",
    "step2": "#2f7bab",
    "step3": "#4aa3d8",
    "step4": "#8cc8ec",
    "step5": "#d3ebf9",
}
STEPS = 5
LOSS = "loss, nats a token"
MARKERS = ("o", "s", "^", "D", "v")
SIZE, SMALL = (390 / 72, 276 / 72), (320 / 72, 226 / 72)  # inches; readable on a phone 390 px wide


def short(value: float) -> str:
    """Three digits and a unit: 823k, 1.25M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def power(value: float) -> str:
    """A power of ten: 3.1×10¹², 10¹³."""
    if value <= 0 or not np.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    digits = f"{float(mantissa):g}"
    tens = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return tens if digits == "1" else f"{digits}×{tens}"


def draw_forecast(ax: Axes, x: float, forecast: Interval) -> None:
    reach = [[forecast.value - forecast.low], [forecast.high - forecast.value]]
    red = PALETTE["final"]
    bar = ax.errorbar([x], [forecast.value], reach, color=red, lw=1.4, capsize=4, fmt="o", ms=6, mfc="none")
    bar.set_label("final, predicted")


def points(ax: Axes, x: Numbers, y: Numbers, colour: str, marker: str, label: str = "_") -> None:
    size = 12 if marker == "*" else 5.5
    ax.plot(x, y, color=colour, marker=marker, ms=size, mew=0, ls="none", label=label, zorder=4)


def dress(ax: Axes, xlabel: str, ticks: Words | None, ylabel: str = LOSS, **legend: Any) -> None:
    """Axes' labels, grid and legend; with `ticks` the horizontal axis is logarithmic."""
    if ticks is not None:
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        decades = log10(high / low)
        subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.3 else (1.0, 2.0, 5.0)
        ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: ticks(value)))
    ax.set_xlabel(xlabel, color=PALETTE["ink"], fontsize=11.5)
    ax.set_ylabel(ylabel, color=PALETTE["ink"], fontsize=11.5)
    ax.tick_params(colors=PALETTE["muted"], labelsize=11, length=0, pad=5)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(PALETTE["muted"])
    ax.grid(color=PALETTE["grid"], lw=0.8)
    ax.set_axisbelow(True)
    if ax.get_legend_handles_labels()[1]:
        style = {"fontsize": 10.5, "labelcolor": PALETTE["ink"], "handlelength": 1.4, "labelspacing": 0.35}
        ax.legend(**(style | legend)).get_frame().set(
            facecolor=PALETTE["paper"], edgecolor="none", alpha=0.85
        )


def step_colour(step: int) -> str:
    """Colour of a rank from 0 (small) to STEPS - 1 (large)."""
    return PALETTE[f"step{step + 1}"]


@contextmanager
def dark() -> Iterator[None]:
    """Whatever is drawn inside has the dark palette."""
    light = dict(PALETTE)
    PALETTE.update(DARK)
    try:
        yield
    finally:
        PALETTE.update(light)
