"""What tests hear of a run, keep of it, and wait for."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

from isoflop.model import LanguageModel
from isoflop.progress import Silent
from isoflop.records import Run


class Heard(Silent):
    """Keeps the lines that it is told, and how far the work is."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done = 0.0

    def update(self, stage: str, done: float, note: str = "") -> None:
        self.done = done

    def log(self, message: str) -> None:
        self.lines.append(message)


class Kept:
    """Collects the weights of runs as they finish, each run's in one vector."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def __call__(self, model: LanguageModel, run: Run) -> None:
        self.weights.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone())


def save_to(path: Path, model: LanguageModel, run: Run) -> None:
    """Keep the weights in a file, from whatever process."""
    torch.save(model.state_dict(), path)


def stops_after(steps: int) -> Callable[[], bool]:
    """True from the call of that number on: one call a step."""
    calls = count(1)
    return lambda: next(calls) >= steps


def until(true: Callable[[], object], seconds: float = 300) -> None:
    """Return once it is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
