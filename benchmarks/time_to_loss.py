"""Wall time in which our run of the same size reaches the held-out loss of a nanoGPT run.

    python benchmarks/time_to_loss.py --nanogpt DIR --work DIR --record records/DATE_time-to-loss

    default-2m    nanoGPT 2.2M (N = 3.0M), batch 12, rate 1e-3: its default recipe on a CPU, for 120 seconds
    default-20m   the same for 20 minutes
    tuned-1m      batch 4, rate 3e-3, for 60 seconds

nanoGPT is its own train.py, uncompiled, on all cores; its schedule ends with its time, which buys as many
steps as its own measured speed says. It is charged for its steps alone: start-up, evaluation and checkpoints
are free. Ours has the same width, depth, heads and vocabulary, and its own recipe besides. It is charged for
the interpreter's start, imports, worker processes, compilation and checkpoints, up to its last step. Every
length tried is a complete run of its own, cooldown included, in a fresh process. Lengths are nanoGPT's time
over 1, 2^(1/4), 2^(1/2), ... 32; the shortest that reaches its bits per byte is found by halving the range
(from the second seed on, beginning with the first one's), for each seed against nanoGPT's run of the same
number, and its measured wall time is what counts. Both are scored on the same held-out windows of 256 tokens,
with the same tokenizer, so nats compare too. Not compared: other sizes, and the whole job with its ladder
(vs_nanogpt.py). Rows are appended to `rows.jsonl` as they end; a row that is there is not measured again.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import nanogpt
import ours
from comparing import checkout, ratio, words
from keeping import machine, once, read, write_readme

from isoflop import flops
from isoflop.corpus import build_corpus
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, RunConfig
from isoflop.store import Project
from isoflop.workers import cores

Row = dict[str, Any]
CASES = {
    "default-2m": nanogpt.Peer(minutes=2.0),
    "default-20m": nanogpt.Peer(minutes=20.0),
    "tuned-1m": nanogpt.Peer(batch=4, lr=3e-3, minutes=1.0),
}
GOALS = {"default-2m": 1 / 5, "default-20m": 1 / 4, "tuned-1m": 1 / 3}
VOCAB = 4096
PER_HALVING, FINEST = 4, 20  # lengths: 2^(-k / 4) of nanoGPT's time, k up to 20


class Bench:
    """The corpus, the folders and the rows of one record."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.record = args, args.record
        self.corpus: Corpus = build_corpus(CorpusConfig(vocab_size=VOCAB), args.work / "corpora")
        nanogpt.prepare(args.nanogpt, self.corpus, self.corpus.id)

    def peer(self, case: str, seed: int) -> Row:
        """One nanoGPT run of the case's length."""
        args, peer = self.args, CASES[case]
        minutes = peer.minutes * args.scale
        peer = nanogpt.Peer(peer.size, peer.batch, peer.lr, minutes, 1337 + seed)
        where = (args.work / "peer", self.corpus.id, cores())
        batch = peer.batch * nanogpt.CONTEXT
        speed = once(
            self.record, {"what": "nanoGPT speed", "size": peer.size, "batch": peer.batch},
            partial(nanogpt.speed, args.nanogpt, peer, *where, args.probe),
        )  # fmt: skip
        steps = max(2, int(60 * minutes * speed["tokens_per_second"] / batch))

        def work() -> Row:
            times = nanogpt.run_peer(args.nanogpt, peer, steps, *where)
            seconds = steps * statistics.mean(times[1:] or times) / 1000  # the first holds an evaluation
            return {"steps": steps, "seconds": seconds} | nanogpt.score_peer(
                args.nanogpt, where[0], self.corpus
            )

        return once(self.record, {"what": "nanoGPT", "case": case, "seed": seed, "minutes": minutes}, work)

    def config(self, case: str, seed: int) -> RunConfig:
        """Our recipe for the same shape."""
        layers, heads, width = nanogpt.SIZES[CASES[case].size]
        model = shape(width, self.corpus.vocab_size, n_layers=layers)
        assert model.n_heads == heads
        assert flops.params_matmul(model) == 12 * layers * width**2 + self.corpus.vocab_size * width
        return recipe(model, 0, seed=seed)

    def attempt(self, case: str, seed: int, k: int, seconds: float) -> Row:
        """A complete run of ours of about `seconds` of training, 2^(-k / 4) of nanoGPT's."""
        config, planned = self.config(case, seed), seconds * 2 ** (-k / PER_HALVING)
        config = ours.as_trained(config, self.corpus, Project(self.args.work / "speeds"), planned)
        layout = {"what": "our speed", "size": CASES[case].size, **ours.how(config)}
        speed = once(self.record, layout, partial(ours.speed, config, self.corpus, self.args.probe))
        steps = max(1, round(planned * speed["tokens_per_second"] / config.batch_tokens))
        config = config.model_copy(update={"tokens": steps * config.batch_tokens})
        minutes = CASES[case].minutes * self.args.scale
        key = {"what": "ours", "case": case, "seed": seed, "k": k, "minutes": minutes}
        return once(self.record, key, partial(ours.whole_run, config, self.corpus, nanogpt.CONTEXT))

    def reached(self, case: str, seed: int, near: int | None) -> Row | None:
        """Our shortest run that reaches nanoGPT's loss; None when the longest does not.

        `near` is the length of another seed, by which the search begins.
        """
        peer = self.peer(case, seed)
        low, high = -1, FINEST + 1  # k: low reaches it, high does not
        likely = [] if near is None else [near, near + 1, near - 1]
        while high - low > 1:
            middle = next((k for k in likely if low < k < high), (low + high) // 2)
            got = self.attempt(case, seed, middle, peer["seconds"])
            low, high = (middle, high) if got["bpb"] <= peer["bpb"] else (low, middle)
        if low < 0:
            return None
        best = self.attempt(case, seed, low, peer["seconds"])
        return {
            "peer": peer["seconds"], "peer_bpb": peer["bpb"], "peer_loss": peer["loss"],
            "wall": best["wall_seconds"], "start": best["start_seconds"], "bpb": best["bpb"],
            "loss": best["loss"], "k": low,
        }  # fmt: skip


def line(case: str, found: list[Row | None]) -> str:
    """One case: means over seeds, and our time over nanoGPT's."""
    good = [row for row in found if row is not None]
    if not good:
        return f"| {case} | 0 of {len(found)} |" + " |" * 4 + f" not within its time | {GOALS[case]:.3f} |"
    share = ratio([r["wall"] for r in good], [r["peer"] for r in good])

    def mean(name: str) -> float:
        return float(statistics.mean(row[name] for row in good))

    cells = (
        case, f"{len(good)} of {len(found)}", f"{mean('peer'):.0f}",
        f"{mean('peer_bpb'):.4f} ({mean('peer_loss'):.3f})", f"{mean('wall'):.1f} ({mean('start'):.1f})",
        f"{mean('bpb'):.4f} ({mean('loss'):.3f})", f"{words(share, 3)}", f"{GOALS[case]:.3f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


HEADER = ("case", "seeds that reach it", "nanoGPT, s", "its bits per byte (nats)", "ours, s (start-up)",
          "our bits per byte (nats)", "our time over its, 90%", "goal")  # fmt: skip


def summary(rows: list[Row], found: dict[str, list[Row | None]]) -> str:
    """The record's README."""
    return "\n".join([
        "# Time to nanoGPT's loss",
        "",
        " ".join((__doc__ or "").split("\n\n")[3].split()),
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---" * len(HEADER) + "|",
        *(line(case, seeds) for case, seeds in found.items()),
        "",
        f"{machine()}; highest load before a measurement {max(r['load_before'] for r in rows):.1f},"
        " where one ahead of it counts. Every length tried is in rows.jsonl.",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--nanogpt", type=checkout("train.py"), required=True, help="a checkout of karpathy/nanoGPT"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for corpora and checkpoints")
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--what", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--probe", type=float, default=20.0, help="seconds to measure a speed for")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of nanoGPT's time; below 1 to try the script"
    )
    args = parser.parse_args()
    bench = Bench(args)
    found: dict[str, list[Row | None]] = {case: [] for case in args.what}
    for seed in range(args.seeds):
        for case in args.what:
            near = next((row["k"] for row in found[case] if row is not None), None)
            found[case].append(bench.reached(case, seed, near))
    write_readme(args.record, summary(read(args.record), found))


if __name__ == "__main__":
    main()
