"""A training step while threads wait for each other in a loop, for long or briefly, on free cores and shared.

    python benchmarks/spin.py RECORD [--rounds 5] [--looks 1000 3000 10000 30000 100000] [--seconds 3]

Each measurement is a process of its own, for GNU's OpenMP reads GOMP_SPINCOUNT when it is loaded; "as it is"
has none. Half of them share the machine with a process that computes in one thread without an end. Ratios are
to free cores with nothing said, in the same round.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import keeping
from comparing import ratio, words

from isoflop.waiting import LOOKS, POLICY, SPIN

TRIED = (1000, 3000, 10_000, LOOKS, 100_000)
AS_IS = 0  # nothing is said
WIDTH, ROWS, LENGTH, VOCABULARY = 256, 8, 64, 4096  # of the model that learns
WARM = 5  # steps
BUSY = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--looks", type=int, nargs="+", default=TRIED)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    for number in range(given.rounds):
        order = [(looks, busy) for looks in (AS_IS, *given.looks) for busy in (False, True)]
        random.Random(number).shuffle(order)
        for looks, busy in order:
            key = {"looks": looks, "busy": busy, "round": number}
            keeping.once(given.record, key, lambda: _measured(looks, busy, given.seconds))  # noqa: B023
    keeping.write_readme(given.record, readme(given.record))


def _measured(looks: int, busy: bool, seconds: float) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name not in (SPIN, POLICY)}
    if looks != AS_IS:
        environment[SPIN] = str(looks)
    line = [sys.executable, "-c", f"import spin; print(spin.step_seconds({seconds}))"]
    with _beside() if busy else nullcontext():
        done = subprocess.run(
            line, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    return {"step_ms": 1000 * float(done.stdout)}


@contextmanager
def _beside() -> Iterator[None]:
    """Somebody else's process: in a session of its own, to which the scheduler gives as much."""
    process = subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def step_seconds(seconds: float) -> float:
    """Of training a small decoder, all cores."""
    import torch
    from torch.nn import functional as F

    from isoflop.gpt import GPT
    from isoflop.recipe import shape
    from isoflop.workers import cores

    torch.manual_seed(0)
    torch.set_num_threads(cores())
    model = GPT(shape(WIDTH, VOCABULARY, context=LENGTH))
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH + 1))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(WARM):
        step()
    began, steps = time.monotonic(), 0
    while time.monotonic() - began < seconds or not steps:
        step()
        steps += 1
    return (time.monotonic() - began) / steps


def readme(record: Path) -> str:
    rows = keeping.read(record)
    times = {(row["looks"], row["busy"], row["round"]): row["step_ms"] for row in rows}
    rounds = sorted({row["round"] for row in rows})
    base = [times[AS_IS, False, n] for n in rounds]
    lines = []
    for looks in sorted({row["looks"] for row in rows}):
        free, busy = ([times[looks, shared, n] for n in rounds] for shared in (False, True))
        name = f"{looks:,}" if looks else "as it is"
        cells = (f"{sum(ms) / len(ms):,.0f} | {words(ratio(ms, base))}" for ms in (free, busy))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    loads = [row["load_before"] for row in rows]
    return "\n".join([
        "# How long OpenMP's threads wait for each other in a loop", "",
        "| looks (GOMP_SPINCOUNT) | free cores, ms a step | ratio | beside one busy process, ms | ratio |",
        "|---" * 5 + "|", *lines, "",
        f"Machine: {keeping.machine()}; load {min(loads):.1f} to {max(loads):.1f}, this included. "
        f"{len(rounds)} rounds.", "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
