"""What the terminal shows: progress and errors on stderr, tables or JSON on stdout."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from isoflop.errors import IsoflopError
from isoflop.progress import Live

WIDE, UNBOUNDED = 100, 10_000  # columns
OFTEN = 30.0  # seconds between lines about a stage where no terminal shows its bar


class Terminal:
    """Progress on stderr: bars with an ETA on a terminal; elsewhere lines as stages begin, go on and end."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.bars = Bars(
            TextColumn("{task.description:10}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.tasks: dict[str, TaskID] = {}
        self.began: dict[str, float] = {}
        self.totals: dict[str, float] = {}
        self.told = 0.0  # when a line was written last

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def start(self, stage: str, total: float, unit: str = "") -> None:
        self.began[stage], self.totals[stage] = time.monotonic(), total
        self.tasks[stage] = self.bars.add_task(stage, total=total, note="")
        if self.bars.disable:
            self.log(f"{stage} ...")

    def update(self, stage: str, done: float, note: str = "") -> None:
        if stage in self.tasks:
            self.bars.update(self.tasks[stage], completed=done, note=note)
            if self.bars.disable and time.monotonic() - self.told >= OFTEN:
                self.log(self._how_far(stage, done, note))

    def _how_far(self, stage: str, done: float, note: str) -> str:
        """With the time that is left at the pace so far."""
        seconds, total = time.monotonic() - self.began[stage], self.totals[stage]
        share = min(1.0, done / total) if total > 0 else 0.0
        left = f", {seconds * (1 / share - 1):.0f} s left" if share > 0 else ""
        return f"{stage} {share:.0%} in {seconds:.0f} s{left}   {note}".rstrip()

    def finish(self, stage: str, note: str = "") -> None:
        if stage in self.tasks:
            self.bars.remove_task(self.tasks.pop(stage))
            self.log(f"{stage} done in {time.monotonic() - self.began[stage]:.1f} s   {note}")

    def log(self, message: str) -> None:
        self.told = time.monotonic()
        self.console.print(message, markup=False, soft_wrap=True)

    def live(self, point: Live) -> None: ...


def out(document: BaseModel | dict[str, Any] | list[Any]) -> None:
    """One JSON document on stdout."""
    plain = document.model_dump(mode="json") if isinstance(document, BaseModel) else document
    sys.stdout.write(json.dumps(_strict(plain), indent=1) + "\n")


def _strict(value: Any) -> Any:
    """With null where JSON has no word: infinity and nan."""
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; the first column is text, the others are aligned right."""
    drawn = Table()
    for i, name in enumerate(columns):
        drawn.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    natural = console.measure(drawn, options=console.options.update(width=UNBOUNDED)).maximum
    if natural > min(console.width, WIDE):
        drawn.padding = 0  # rather than cut what the cells say
    console.print(title, style="table.title", markup=False, soft_wrap=True)  # a path in it stays whole
    console.print(drawn)


def show_error(error: IsoflopError) -> None:
    """One sentence and a hint on stderr."""
    console = Console(stderr=True, highlight=False)
    console.print("error:", style="bold red", end=" ")
    console.print(error.message, markup=False, soft_wrap=True)
    console.print("hint:", style="bold", end=" ")
    console.print(error.hint, markup=False, soft_wrap=True)
