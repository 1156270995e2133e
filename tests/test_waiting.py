"""Threads that wait for each other sleep soon, unless the user said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from isoflop.waiting import LOOKS, POLICY, SPIN, wait_briefly, waiting


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SPIN, POLICY):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)


def test_where_nothing_is_said_they_wait_briefly() -> None:
    assert waiting()[SPIN] == str(LOOKS)
    assert SPIN not in os.environ
    wait_briefly()
    assert os.environ[SPIN] == str(LOOKS)


@pytest.mark.parametrize(("name", "said"), [(SPIN, "7"), (SPIN, "INFINITY"), (POLICY, "active")])
def test_the_user_is_heard(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.setenv(name, said)
    wait_briefly()
    assert waiting() == dict(os.environ)
    assert os.environ[name] == said
    assert (name == POLICY) == (SPIN not in os.environ)


def test_the_command_line_says_so_before_torch_is_there() -> None:
    code = (
        "import os, sys, isoflop.cli as cli\n"
        "cli._typed = lambda: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules) or 0\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(LOOKS), "False"]
