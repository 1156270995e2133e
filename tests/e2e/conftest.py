"""The command line, called in this process."""

from __future__ import annotations

import sys

import pytest

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
