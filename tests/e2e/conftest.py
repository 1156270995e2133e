"""The command line, called in this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
import torch

from e2e.commands import Answer
from isoflop.cli import main


@pytest.fixture
def isoflop(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Calls the command line in this process."""

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["isoflop", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return call


@pytest.fixture
def own_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Budgets are of this process's own seconds, however busy the machine is; threads that wait for each
    other would use them up."""
    monkeypatch.setattr(time, "monotonic", time.process_time)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
