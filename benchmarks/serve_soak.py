"""A server under load for a long time: clients that leave, models that are swapped, every answer compared.

    python benchmarks/serve_soak.py RECORD MODELS [--minutes 30] [--no-swap] [--threads N]

MODELS is what benchmarks/serve_models.py has made. First each model's greedy answers are taken down; then so
many streams as keep `--share` of the slots busy ask for them again. An answer is right if it is that of the
model that was served as it began, or of the next one while a swap is under way. Memory is that of the server
and its engine after the first tenth of the time: the mean of the last tenth over that of the first.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import keeping
from serve_load import SAME, body, prompts
from serve_peers import NAME, Client, Peer, bare, gateway

MODELS = ("small-a", "small-b")
SLOTS = 10
PROMPTS = 24
TOKENS = 48
BATCHES = 12  # in which the right answers are taken down
LEAVING = 0.1  # share of requests whose client goes in mid-answer
SWAP_SECONDS = 60.0
SECONDS = 10.0  # of a round
WARM_SHARE = 0.1  # of the time, in which memory may grow
STEADY = 0.05  # that it may grow by later


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kind", default="q8_0")
    parser.add_argument("--no-swap", action="store_true")
    given = parser.parse_args()
    key = {
        "what": "soak", "minutes": given.minutes, "share": given.share, "swap": not given.no_swap,
        "threads": given.threads,
    }  # fmt: skip
    row = keeping.once(given.record, key, lambda: soaked(given))
    keeping.write_readme(given.record, readme(row))
    if row["wrong"] or row["lost"] or not row["steady"]:
        sys.exit(1)


def soaked(given: argparse.Namespace) -> dict[str, Any]:
    texts = prompts()
    asked = [next(texts) for _ in range(PROMPTS)]
    files = [given.models / f"{name}-{given.kind}.gguf" for name in MODELS]
    how: dict[str, Any] = {"slots": SLOTS, "threads": given.threads}
    with ExitStack() as ends:
        client = Client(ends)
        right = [references(client, file, asked, how) for file in files]
        project = Path(ends.enter_context(tempfile.TemporaryDirectory())) / "project"
        peer = ends.enter_context(gateway(files[0], project, **how))
        swaps = Swaps(project, files, [] if given.no_swap else [SWAP_SECONDS])
        ends.callback(swaps.end)
        return load(given, client, peer, swaps, asked, right)


def references(client: Client, file: Path, asked: Sequence[str], how: dict[str, Any]) -> list[set[str]]:
    """The model's answers to each prompt, from llama.cpp without us: alone, and beside others.

    At a near tie what runs beside decides, so one prompt may have several that are right.
    """
    order, found = list(range(len(asked))), [set[str]() for _ in asked]
    with bare(file, **how) as peer:
        for number in range(BATCHES):
            random.Random(number).shuffle(order)
            bodies = [{**body(asked[each], TOKENS), **SAME} for each in order]
            told = client.ask(peer, bodies, SLOTS if number else 1)["answers"]
            for each, answer in zip(order, told, strict=True):
                found[each].add(answer["text"])
    return found


class Swaps:
    """Deploys the models in turns beside the load, each so many seconds after the last."""

    def __init__(self, project: Path, files: Sequence[Path], every: Sequence[float]) -> None:
        self._project, self._files = project, files
        self.served = {0}  # numbers of the models that may answer now
        self.done: list[float] = []  # seconds that each took
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=every, daemon=True) if every else None
        if self._thread:
            self._thread.start()

    def _work(self, every: float) -> None:
        now = 0
        while not self._stop.wait(every):
            then = (now + 1) % len(self._files)
            self.served = {now, then}
            began = time.monotonic()
            deploy(self._project, self._files[then])
            self.done.append(time.monotonic() - began)
            self._stop.wait(SECONDS)  # what began before it may still be answered by the last model
            self.served, now = {then}, then

    def end(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()


def deploy(project: Path, file: Path) -> None:
    """Let the running server answer with another file under the same name, without a dropped request."""
    line = [
        sys.executable, "-m", "isoflop", "deploy", str(file), "--name", NAME, "--project", str(project),
        "--force",
    ]  # fmt: skip
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)


def load(
    given: argparse.Namespace, client: Client, peer: Peer, swaps: Swaps, asked: Sequence[str],
    right: Sequence[Sequence[set[str]]],
) -> dict[str, Any]:  # fmt: skip
    """Rounds of requests until the time is over."""
    chance, counts, wrong = random.Random(0), Counter[str](), list[Any]()
    streams, rounds = max(1, round(given.share * SLOTS)), list[dict[str, float]]()
    began, each_round = time.monotonic(), 4 * streams
    while (passed := time.monotonic() - began) < 60 * given.minutes:
        numbers = [chance.randrange(len(asked)) for _ in range(each_round)]
        bodies = [body(asked[number], TOKENS) for number in numbers]
        for one in bodies:
            if chance.random() < LEAVING:
                one["leave"] = chance.randrange(1, TOKENS // 2)
        able = set(swaps.served)
        done = client.ask(peer, bodies, streams)
        able |= swaps.served
        for number, answer in zip(numbers, done["answers"], strict=True):
            kind = judged(answer, [right[model][number] for model in able])
            counts[kind] += 1
            if kind in ("wrong", "lost") and len(wrong) < 20:
                wrong.append({"number": number, "able": sorted(able), **answer})
        rounds.append({"at": passed, "seconds": done["seconds"], "resident": float(peer.resident())})
        each_round = max(streams, round(each_round * SECONDS / done["seconds"]))
    warm = [each["resident"] for each in rounds if each["at"] >= WARM_SHARE * 60 * given.minutes] or [0.0]
    part = max(1, len(warm) // 10)
    growth = statistics.mean(warm[-part:]) / statistics.mean(warm[:part]) - 1 if warm[0] else 0.0
    return {
        "streams": streams, "slots": SLOTS,
        "several": sum(max(len(each[number]) for each in right) > 1 for number in range(len(asked))),
        **{kind: counts[kind] for kind in ("right", "left", "wrong", "lost")},
        "swaps": len(swaps.done), "swap_seconds": max(swaps.done, default=0.0), "growth": growth,
        "steady": growth <= STEADY, "resident_mb": [round(each["resident"] / 1e6) for each in rounds],
        "failures": wrong,
    }  # fmt: skip


def judged(answer: dict[str, Any], right: Sequence[set[str]]) -> str:
    """One word for an answer; `right` has those of each model that may have given it."""
    if answer.get("left"):
        return "left"
    if "error" in answer:
        return "lost"
    return "right" if any(answer["text"] in each for each in right) else "wrong"


def readme(row: dict[str, Any]) -> str:
    told = {name: value for name, value in row.items() if name not in ("failures", "resident_mb")}
    memory = row["resident_mb"]
    return "\n".join([
        "# A server under load for a long time\n",
        f"Machine: {keeping.machine()}. {row['minutes']:g} minutes, {row['streams']} streams on"
        f" {row['slots']} slots.\n",
        f"- answers: {row['right']:,} right, {row['left']:,} left by their client, **{row['wrong']} wrong,"
        f" {row['lost']} lost**; {row['several']} of {PROMPTS} prompts have several right ones, by near ties",
        f"- swaps: {row['swaps']}, the longest {row['swap_seconds']:.1f} s",
        f"- memory after the first tenth: {row['growth']:+.1%} ({min(memory)} to {max(memory)} MB in all)\n",
        f"    {json.dumps(told)}\n",
        "    benchmarks/serve_soak.py RECORD MODELS\n",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
