"""What rounding costs, and what is won back: 8 and 4 bits in llama.cpp, in nats and in tokens a second.

    python benchmarks/quantization.py --what loss --record records/DATE_quantization
    python benchmarks/quantization.py --what speed --record records/DATE_quantization    # on a quiet machine

Loss: models of several seeds learn the Python standard library, or are given as PROJECT:MODEL; each is
written in every way and scored on held-out text in llama.cpp. Ratios are of what a way loses to what rounding
each weight to its nearest loses, with 90% intervals over models. Speed: a model of the recipe's shape with
initial weights, one text at a time on one thread, each round in processes of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comparing import mean, ratio, words
from keeping import NOTES, find, machine, once, write_readme

from isoflop.engines.folder import opened
from isoflop.engines.speed import MOST_WRITTEN, PROMPT_SHARE, REPEATS, measure
from isoflop.export import save_pretrained
from isoflop.export.gated import Export, export
from isoflop.gpt import GPT
from isoflop.pipeline import corpus_of, train_model
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig
from isoflop.store import Project
from isoflop.transforms.qat import Training, train_rounded
from isoflop.using import evaluate_model
from isoflop.workers import pool

FLOAT, NEAREST, TRAINED, GENERATE = "f32", "q4_0 nearest", "q4_0 trained", "transformers.generate"
WAYS = (  # type and rounding
    FLOAT, "q8_0 nearest", NEAREST, "q4_0 calibrated", "q4_0 gptq", "iq4_nl calibrated", "iq4_nl gptq",
)  # fmt: skip
KINDS, ROUNDED = ("f32", "q8_0", "q4_0"), "nearest"  # timed


# -- loss ----------------------------------------------------------------------------------------------


def models(args: argparse.Namespace, work: Path) -> Iterator[tuple[Project, Corpus, Path]]:
    """Those that are given, and as many of this program's own as are wanted beside them."""
    for given in args.model:
        place, _, folder = given.partition(":")
        project = Project(Path(place))
        yield project, corpus_of(project), Path(folder)
    own = Project(work)
    for seed in range(len(args.model), args.seeds):
        corpus = corpus_of(own, CorpusConfig(vocab_size=args.vocab))
        config = recipe(shape(args.width, corpus.vocab_size), args.tokens, seed=seed)
        run = train_model(own, corpus, config.model_copy(update={"ranks": 1, "threads": 1}))
        assert run.model is not None
        yield own, corpus, own.folder / run.model


def rounded(
    project: Project, corpus: Corpus, folder: Path, way: str, args: argparse.Namespace
) -> dict[str, Any]:
    """One way's file and its loss."""
    kind, _, rounding = way.partition(" ")
    start = time.perf_counter()
    if way == TRAINED:
        training = Training(kind, args.train_tokens, lr_scale=args.lr_scale)
        done = train_rounded(project, corpus, folder, training, eval_tokens=args.eval_tokens).export
    else:
        done = export(project, corpus, folder, kind=kind, rounding=rounding or None)
    seconds = time.perf_counter() - start
    found = evaluate_model(project.folder / done.path, corpus, eval_tokens=args.eval_tokens)
    return {
        "loss": found.loss, "loss_se": found.loss_se, "bytes": done.bytes, "params": done.params_total,
        "deviation": done.parity.deviation, "seconds": seconds,
    }  # fmt: skip


def measure_losses(args: argparse.Namespace, work: Path) -> None:
    for number, place in enumerate(models(args, work)):
        for way in args.way or (*WAYS, TRAINED):
            key = {"what": "loss", "model": number, "way": way}
            once(args.record, key, partial(rounded, *place, way, args))


# -- speed ---------------------------------------------------------------------------------------------


def generate_speed(folder: Path) -> dict[str, Any]:
    """Tokens a second of `generate` as people call it; the median round."""
    torch.set_num_threads(1)
    model, _ = opened(folder)
    context = int(model.config.max_position_embeddings)
    prompt = torch.arange(max(1, int(PROMPT_SHARE * context)))[None] % model.config.vocab_size
    written, rates = min(MOST_WRITTEN, context - prompt.shape[1]), []
    for _ in range(REPEATS + 1):
        marks = []
        for new in (1, written):
            start = time.perf_counter()
            model.generate(prompt, min_new_tokens=new, max_new_tokens=new, do_sample=False, pad_token_id=0)
            marks.append(time.perf_counter() - start)
        rates.append((written - 1) / (marks[1] - marks[0]))
    return {"decode": sorted(rates[1:])[REPEATS // 2]}


def generated(folder: Path) -> dict[str, Any]:
    """By transformers, in a process of its own."""
    with pool(1, fresh=True) as executor:
        found: dict[str, Any] = executor.submit(generate_speed, folder).result()
    return found


def timed(project: Project, done: Export) -> dict[str, Any]:
    """By llama.cpp, in a process of its own."""
    speed = measure(project.folder / done.path)
    return {
        "decode": speed.decode.median, "prefill": speed.prefill.median, "bytes": done.bytes,
        "params": done.params_total, "bandwidth_share": speed.bandwidth_share, "quiet": speed.quiet,
    }  # fmt: skip


def measure_speeds(args: argparse.Namespace, work: Path) -> None:
    project = Project(work)
    corpus = corpus_of(project, CorpusConfig(vocab_size=args.vocab))
    torch.manual_seed(0)
    model = GPT(shape(args.speed_width, corpus.vocab_size))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_pretrained(model, corpus, folder)
        ways = {GENERATE: partial(generated, folder)}
        for kind in KINDS:
            rounding = None if kind == FLOAT else ROUNDED
            ways[kind] = partial(
                timed, project, export(project, corpus, folder, kind=kind, rounding=rounding)
            )
        for number in range(args.seeds):
            for way, work_of in ways.items():
                once(args.record, {"what": "speed", "round": number, "way": way}, work_of)


# -- what comes out ------------------------------------------------------------------------------------


def column(args: argparse.Namespace, what: str, way: str, value: str) -> list[float]:
    """Of all models or rounds."""
    name = "model" if what == "loss" else "round"
    rows = (find(args.record, {"what": what, name: n, "way": way}) for n in range(args.seeds))
    return [row[value] for row in rows if row is not None]


def loss_lines(args: argparse.Namespace) -> list[str]:
    whole, nearest = (column(args, "loss", way, "loss") for way in (FLOAT, NEAREST))
    if len(whole) < args.seeds:
        return []
    lines = [
        "| way | loss above f32 | share of it that q4_0 nearest loses | bits a weight |",
        "|---" * 4 + "|",
    ]
    for way in (*WAYS[1:], TRAINED):
        losses = column(args, "loss", way, "loss")
        if len(losses) < args.seeds:
            continue
        parts = [(a - f) / (n - f) for a, f, n in zip(losses, whole, nearest, strict=True)]
        share = "1" if way == NEAREST else words(mean(parts))
        above = mean([a / f - 1 for a, f in zip(losses, whole, strict=True)])
        bits = [
            8 * b / p
            for b, p in zip(*(column(args, "loss", way, v) for v in ("bytes", "params")), strict=True)
        ]
        rise = f"{above.value:+.3%} [{above.low:+.3%}, {above.high:+.3%}]"
        lines.append(f"| {way} | {rise} | {share} | {mean(bits).value:.2f} |")
    sizes = ", ".join(f"{p:,}" for p in column(args, "loss", FLOAT, "params"))
    scores = ", ".join(f"{loss:.4f}" for loss in whole)
    return [f"Models of {sizes} parameters, losses {scores} as f32, in llama.cpp.", "", *lines, ""]


def speed_lines(args: argparse.Namespace) -> list[str]:
    rates = {way: column(args, "speed", way, "decode") for way in (GENERATE, *KINDS)}
    if not all(len(found) == args.seeds for found in rates.values()):
        return []
    lines = ["| way | new text, tokens/s | over f32 | over transformers.generate |", "|---" * 4 + "|"]
    for way, found in rates.items():
        over = [words(ratio(found, rates[base])) for base in ("f32", GENERATE)]
        lines.append(f"| {way} | {words(mean(found), 0)} | " + " | ".join(over) + " |")
    size = column(args, "speed", "f32", "params")[0]
    return [f"A model of {size:,} parameters, one thread, one text, {args.seeds} rounds.", "", *lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--what", choices=("loss", "speed"), required=True)
    parser.add_argument("--model", action="append", default=[], help="PROJECT:FOLDER of a finished model")
    parser.add_argument("--way", action="append", choices=(*WAYS, TRAINED), help="only these of the losses")
    parser.add_argument("--seeds", type=int, default=3, help="models, or rounds of timing")
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--train-tokens", type=int, default=1_000_000, help="of training for rounded weights")
    parser.add_argument("--lr-scale", type=float, default=0.3, help="of it")
    parser.add_argument("--eval-tokens", type=int, default=131_072)
    parser.add_argument("--speed-width", type=int, default=384)
    parser.add_argument("--work", type=Path, help="keep the project there; run again it goes on")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary) / "project"
        (measure_losses if args.what == "loss" else measure_speeds)(args, work)
    head = ["# Rounded weights: what they lose and how fast they are", "", f"{machine()}.", ""]
    tail = f"{NOTES}quantization.py --what {args.what} --record {args.record}"
    write_readme(args.record, "\n".join([*head, *loss_lines(args), *speed_lines(args), tail, ""]))


if __name__ == "__main__":
    main()
