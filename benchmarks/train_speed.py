"""Training speed at equal shape on the same cores, against nanoGPT, transformers' Trainer and the machine.

    python benchmarks/train_speed.py --nanogpt DIR --work DIR --record records/DATE_train-speed

    nanogpt   tokens a second of nanoGPT's own train.py, uncompiled, on all cores by threads
    trainer   the same of transformers' Trainer (its defaults) with LlamaForCausalLM
    peak      of our own run at the recipe's batch and context: FLOPs over those of plain matmuls
    ladder    runs of the ladder side by side, one thread each, against one after another on all threads

Ours is what `isoflop train` does with the machine: processes that share each batch, and compiled only where a
plan of a run of `--length` seconds would compile it. Against peers both have the same width, depth, heads,
context, batch and vocabulary, hence the same N (weights that multiply, the head counted once); sizes are
named by the blocks' weights alone. Peers are float32, their own choice without a GPU; ours multiplies in
`--precision`, by default what the recipe takes on this machine, and its weights are float32. Every step takes
whole batches of the same tokens; the Trainer's are counted like ours though it predicts one less a window.
The matmuls of `peak` are in that precision, too. Speed is that of the loop as it is, data, optimizer and our
checkpoints inside, over `--seconds` after 5 steps. Start-up is from the start of the
process to the end of the first step, with a cold compilation where there is one; "in a run" counts it over
`--length` seconds. Not compared: what a token teaches (time_to_loss.py does). The order alternates from
round to round. Rows are appended to `rows.jsonl` as they end; a row that is there is not measured again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nanogpt
import ours
import trainer_llama
from comparing import checkout, ratio, words
from keeping import machine, once, read, write_readme

from isoflop import flops
from isoflop.corpus import build_corpus
from isoflop.devices import preferred_precision
from isoflop.precision import PRECISIONS
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, RunConfig
from isoflop.store import Project
from isoflop.throughput import probe
from isoflop.workers import cores, pool

Row = dict[str, Any]
BATCH = 12  # rows, nanoGPT's default
VOCAB, LADDER_VOCAB = 4096, 2048
PEAK = """
import sys
from isoflop.flops import matmul_peak
print(matmul_peak(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
"""
GOALS = {
    ("nanogpt", "0.3M"): 1.4, ("nanogpt", "2.2M"): 1.3, ("nanogpt", "10M"): 1.1, ("trainer", "2.2M"): 1.3,
    ("peak", "2.2M"): 0.60, ("peak", "10M"): 0.68, ("ladder", "64"): 1.2, ("ladder", "96"): 1.2,
    ("ladder", "128"): 1.2,
}  # fmt: skip


def equal(size: str, corpus: Corpus, seed: int, own: bool = False, **values: Any) -> RunConfig:
    """Our run of nanoGPT's shape, with its context and batch, or with the recipe's `own`."""
    layers, heads, width = nanogpt.SIZES[size]
    model = shape(width, corpus.vocab_size, n_layers=layers)
    if not own:
        model = model.model_copy(update={"context": nanogpt.CONTEXT})
    config = recipe(model, 0, seed=seed, **values)
    assert (model.n_heads, flops.params_matmul(model)) == (heads, params(size, corpus.vocab_size))
    return config if own else config.model_copy(update={"batch_tokens": BATCH * nanogpt.CONTEXT})


def params(size: str, vocab: int) -> int:
    """N of nanoGPT's shape: 12 layers width^2 and the head."""
    layers, _, width = nanogpt.SIZES[size]
    return 12 * layers * width**2 + vocab * width


def run_ours(config: RunConfig, corpus: Corpus, args: argparse.Namespace) -> Row:
    config = ours.as_trained(config, corpus, Project(args.work / "speeds"), args.length)
    row = ours.speed(config, corpus, args.seconds)
    rate = row["tokens_per_second"] * flops.flops_per_token(config.trunk_model)  # it never comes to cool down
    n = flops.params_matmul(config.model)
    return row | {"params": n, "batch_tokens": config.batch_tokens, "flops_per_second": rate}


def peak(precision: str, seconds: float) -> Row:
    """FLOP/s of plain matmuls on all cores: one thread each side by side, or threads, whichever is more."""

    def together(processes: int, threads: int) -> float:
        line = [sys.executable, "-c", PEAK, str(threads), precision, str(seconds)]
        started = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        return sum(float(p.communicate()[0]) for p in started)

    found = {"packed": together(cores(), 1), "threads_peak": together(1, cores())}
    return found | {"flops_per_second": max(found.values())}


def packed(config: RunConfig, corpus: Corpus, seconds: float) -> Row:
    """Tokens a second of as many runs as there are cores, together."""
    n = cores()
    with pool(n) as executor:
        jobs = [executor.submit(partial(probe, config, corpus, packed=n, seconds=seconds)) for _ in range(n)]
        found = [job.result().tokens_per_second for job in jobs]
    return {"tokens_per_second": sum(found), "params": flops.params_matmul(config.model)}


def threaded(config: RunConfig, corpus: Corpus, seconds: float) -> Row:
    """Tokens a second of one run on as many threads as there are cores."""
    found = probe(config.model_copy(update={"threads": cores()}), corpus, packed=1, seconds=seconds)
    return {"tokens_per_second": found.tokens_per_second}


Job = Callable[[], Row]


def pairs(what: str, args: argparse.Namespace, seed: int) -> Iterator[tuple[str, Job, Job]]:
    """Name, our measurement and the other one of every comparison of a kind."""
    if what == "ladder":
        corpus = build_corpus(CorpusConfig(vocab_size=LADDER_VOCAB), args.work / "corpora")
        for width in args.widths:
            config = recipe(shape(width, LADDER_VOCAB), 0, seed=seed, precision=args.precision)
            job = (config, corpus, args.seconds)
            yield str(width), partial(packed, *job), partial(threaded, *job)
        return
    corpus = build_corpus(CorpusConfig(vocab_size=VOCAB), args.work / "corpora")
    for size in args.sizes:
        config = equal(size, corpus, seed, own=what == "peak", precision=args.precision)
        mine = partial(run_ours, config, corpus, args)
        if what == "peak":
            yield size, mine, partial(peak, args.precision, args.seconds / 4)
        elif what == "trainer":
            yield size, mine, partial(
                trainer_llama.speed, config.model, corpus, BATCH, cores(), args.seconds
            )  # fmt: skip
        else:
            nanogpt.prepare(args.nanogpt, corpus, corpus.id)
            peer = nanogpt.Peer(size=size, batch=BATCH, seed=1337 + seed)
            yield size, mine, partial(
                nanogpt.speed, args.nanogpt, peer, args.work / "peer", corpus.id, cores(), args.seconds
            )  # fmt: skip


def rates(row: Row, unit: str, length: float) -> tuple[float, float]:
    """Steady, and what a run of `length` seconds does a second of them with its start-up inside."""
    return row[unit], row[unit] * (1 - row.get("start_seconds", 0.0) / length)


def line(what: str, size: str, rows: list[Row]) -> str:
    """One comparison: means over its rounds, and the ratio of pairs with its interval."""
    unit = "flops_per_second" if what == "peak" else "tokens_per_second"
    by = {side: {r["round"]: r for r in rows if r["side"] == side} for side in SIDES}
    pairs = [(by["ours"][i], by["theirs"][i]) for i in sorted(by["ours"].keys() & by["theirs"].keys())]
    found = [tuple(rates(row, unit, row["length"]) for row in pair) for pair in pairs]
    steady, inside = (ratio([a[k] for a, _ in found], [b[k] for _, b in found]) for k in (0, 1))
    started = "start_seconds" in pairs[0][1]
    mine = pairs[0][0]
    how = f"{mine['ranks']} x {mine['threads']}" if "ranks" in mine else ""
    how += ", compiled" if mine.get("compile") else ""
    cells = (
        what, size, f"{mine['params']:,}", mine["precision"], how,
        *(f"{sum(pair[i][unit] for pair in pairs) / len(pairs):.4g}" for i in (0, 1)), len(pairs),
        words(steady), GOALS.get((what, size), ""),
        *(" ".join(f"{p[i]['start_seconds']:.0f}" for p in pairs) if started else "" for i in (0, 1)),
        words(inside) if started else "", f"{max(r['load_before'] for r in rows):.1f}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


SIDES = ("ours", "theirs")
HEADER = ("what", "size", "N", "our products", "our processes x threads", "ours", "theirs", "rounds",
          "ours / theirs, 90%", "goal", "our start-up, s", "theirs", "in a run",
          "highest load before")  # fmt: skip


def summary(rows: list[Row]) -> str:
    """The record's README."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["what"], row["size"], row["precision"]), []).append(row)
    return "\n".join([
        "# Training speed",
        "",
        " ".join((__doc__ or "").split("\n\n")[3].split()),
        "",
        "Ours and theirs are tokens a second, for `peak` FLOP/s; a goal is what we set ourselves beforehand.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---" * len(HEADER) + "|",
        *(line(*name[:2], part) for name, part in groups.items() if {r["side"] for r in part} == set(SIDES)),
        "",
        f"{machine()}. A run is one of {rows[0]['length']:g} seconds. The load before counts the measurement"
        " ahead of it too. Every round is in rows.jsonl.",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ("nanogpt", "trainer", "peak", "ladder")
    parser.add_argument("--nanogpt", type=checkout("train.py"), help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--work", type=Path, required=True, help="folder for corpora and checkpoints")
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--what", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--sizes", nargs="+", choices=nanogpt.SIZES, default=["0.3M", "2.2M", "10M"])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 96, 128], help="of ladder runs")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default=preferred_precision(), help="of our products"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of steady state, each measurement")
    parser.add_argument(
        "--length", type=float, default=300.0, help="seconds of the run that start-up is part of"
    )
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if "nanogpt" in args.what and args.nanogpt is None:
        parser.error("nanogpt needs --nanogpt DIR")
    if "trainer" in args.what and (lack := trainer_llama.missing()) is not None:
        parser.error(lack)
    for number in range(args.rounds):
        for what in args.what:
            for size, *jobs in pairs(what, args, number):
                todo = list(zip(SIDES, jobs, strict=True))
                for side, job in todo if number % 2 == 0 else todo[::-1]:
                    key = {"what": what, "size": size, "precision": args.precision, "side": side,
                           "round": number, "length": args.length}  # fmt: skip
                    once(args.record, key, job)
    rows = [row for row in read(args.record) if row["length"] == args.length]
    write_readme(args.record, summary(rows))


if __name__ == "__main__":
    main()
