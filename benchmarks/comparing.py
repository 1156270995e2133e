"""What benchmarks against peers share: one score on one held-out text, ratios with intervals, commands."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import ttest_1samp, ttest_ind
from torch import Tensor

from isoflop.corpus import token_bytes
from isoflop.evaluate import heldout_windows
from isoflop.records import Corpus, Interval

LEVEL = 0.9
SCORED_ROWS = 16  # windows at once
SETTLE_STEPS = 5  # of a speed measurement, left out of the steady state


@torch.no_grad()
def score(nats: Callable[[Tensor, Tensor], Tensor], corpus: Corpus, context: int) -> dict[str, float]:
    """`loss` in nats a token and bits per byte on all held-out windows of `context` tokens.

    `nats(x, y)` gives the nats of all targets y (rows, context) together.
    """
    windows = heldout_windows(corpus, context, corpus.heldout_tokens)
    targets = windows[:, 1:]
    total = 0.0
    for part in torch.split(windows, SCORED_ROWS):
        total += float(nats(part[:, :-1].contiguous(), part[:, 1:].contiguous()))
    size = float(token_bytes(corpus)[targets.numpy()].sum())
    return {"loss": total / targets.numel(), "bpb": total / math.log(2) / size}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Geometric mean of ours / theirs over pairs (rounds, seeds), with Student's t interval of its logarithm.

    One pair has no interval: its ends are nan.
    """
    logs = np.log(np.array(ours) / np.array(theirs))
    ends = (math.nan, math.nan)
    if len(logs) > 1:
        found = ttest_1samp(logs, 0.0).confidence_interval(LEVEL)
        ends = (float(found.low), float(found.high))
    low, high = map(math.exp, ends)
    return Interval(value=math.exp(logs.mean()), low=low, high=high, level=LEVEL, of="ratio")


def mean(values: Sequence[float]) -> Interval:
    """Arithmetic mean over seeds with Student's t interval of it."""
    found = ttest_1samp(values, 0.0).confidence_interval(LEVEL)
    return Interval(value=float(np.mean(values)), low=float(found.low), high=float(found.high), of="mean")


def words(found: Interval, digits: int = 2) -> str:
    """1.52 [1.44, 1.60]; without an interval the value alone."""
    if math.isnan(found.low):
        return f"{found.value:.{digits}f} (one)"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def above(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """How far the mean of `theirs` lies above that of `ours`, with Welch's interval over seeds."""
    if not ours or not theirs:
        return ""
    base = float(np.mean(ours))
    value = f"{float(np.mean(theirs)) / base - 1:+.1%}"
    if min(len(theirs), len(ours)) < 2:
        return value
    ends = ttest_ind(theirs, ours, equal_var=False).confidence_interval(LEVEL)
    return f"{value} [{ends.low / base:+.1%}, {ends.high / base:+.1%}]"


def checkout(holds: str) -> Callable[[str], Path]:
    """The type of an option that names a checkout, known by a file that it holds."""

    def folder(text: str) -> Path:
        if not (Path(text) / holds).is_file():
            raise argparse.ArgumentTypeError(f"{text} has no {holds}: name a checkout of the project")
        return Path(text).absolute()

    return folder


def ask(line: Sequence[str], **options: Any) -> Any:
    """What a command prints as JSON; when it fails it has said why, and this program ends too."""
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, **options)
    if done.returncode:
        sys.exit(f"{Path(line[0]).name} {' '.join(line[1:4])} ... ended with code {done.returncode}")
    return json.loads(done.stdout)


def steady(marks: Sequence[Sequence[float]]) -> dict[str, float]:
    """Start-up and speed from (seconds since the process was started, tokens so far) after each step."""
    first, last = marks[SETTLE_STEPS - 1], marks[-1]
    return {
        "start_seconds": marks[0][0],
        "tokens_per_second": (last[1] - first[1]) / (last[0] - first[0]),
        "steady_seconds": last[0] - first[0],
    }
