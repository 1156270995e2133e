"""What a model forgets when its training goes on with other text, and what replay and consolidation save.

    python benchmarks/forgetting.py --record records/DATE_forgetting | tee records/DATE_forgetting/log.txt

A small model learns the modules of the Python standard library (old text), then the manual's topics as
`help()` prints them (new text), in each of several ways. Losses are on held-out text, in nats a token;
intervals are 90%, of the mean over seeds by Student's t. Tokens and FLOPs are counted, times are not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
from scipy import stats

from isoflop.pipeline import corpus_of, train_model
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, Run
from isoflop.starting import continuation
from isoflop.store import Project
from isoflop.using import evaluate_model
from isoflop.workers import cores

STDLIB = Path(sysconfig.get_paths()["stdlib"])
VOCAB, WIDTH, CONTEXT, EVAL_TOKENS = 512, 64, 128, 16_384
LEVEL = 0.9
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, a tenth of the rates from scratch": {"lr_scale": 0.2},
    "replay 10%": {"replay_share": 0.1},
    "replay 30%": {"replay_share": 0.3},
    "EWC 1": {"ewc": 1.0, "ewc_tokens": 16_384},
    "EWC 5": {"ewc": 5.0, "ewc_tokens": 16_384},
    "replay 10% and EWC 1": {"replay_share": 0.1, "ewc": 1.0, "ewc_tokens": 16_384},
}


def manual(folder: Path) -> str:
    """A folder with each topic of the manual in a file."""
    folder.mkdir(exist_ok=True)
    for name, text in topics.topics.items():
        (folder / f"{name}.txt").write_text(text)
    return str(folder)


def small(config: Any) -> Any:
    """On one core, in this process."""
    return config.model_copy(update={"ranks": 1, "threads": 1, "eval_tokens": EVAL_TOKENS})


def learned(project: Project, corpus: Corpus, tokens: int, seed: int) -> Run:
    """The model that knows the old text."""
    model = shape(WIDTH, corpus.vocab_size, context=CONTEXT)
    return train_model(project, corpus, small(recipe(model, tokens, seed=seed)))


def one(project: Project, corpus: Corpus, before: Run, old: Path, way: str, tokens: int) -> dict[str, Any]:
    """One continued run as a row."""
    assert before.model is not None
    config, past = continuation(
        project, corpus, old / before.model, tokens=tokens, old=old, seed=before.config.seed, **WAYS[way]
    )
    run = train_model(project, corpus, small(config), role="continued", past=past)
    assert run.forgetting is not None
    assert past.model is not None
    return {
        "way": way, "seed": before.config.seed, "tokens": run.tokens, "flops": run.flops_spent,
        "new_before": evaluate_model(past.model, corpus, eval_tokens=EVAL_TOKENS).loss,
        "new": run.loss, "new_se": run.loss_se, "old_before": run.forgetting.before,
        "old_after": run.forgetting.after, "forgotten": run.forgetting.nats,
        "forgotten_se": run.forgetting.nats_se, "config": config.model_dump(mode="json"),
    }  # fmt: skip


def measure(folder: Path, args: argparse.Namespace) -> tuple[Corpus, Corpus, list[dict[str, Any]]]:
    """Both corpora and a row for each way and seed."""
    old, new = Project(folder / "old"), Project(folder / "new")
    modules = (str(STDLIB / "*.py"),)
    first = corpus_of(old, CorpusConfig(sources=modules, vocab_size=VOCAB, heldout_share=0.1))
    tokenizer = str(first.folder / "tokenizer.json")
    topics_of = (manual(folder / "manual"),)
    second = corpus_of(new, CorpusConfig(sources=topics_of, tokenizer=tokenizer, heldout_share=0.1))
    rows = []
    for seed in range(args.seeds):
        before = learned(old, first, args.old_tokens, seed)
        for way in WAYS:
            rows.append(one(new, second, before, old.folder, way, args.new_tokens))
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "config"}), flush=True)
    return first, second, rows


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half-width of its interval over seeds."""
    n = len(values)
    t = float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
    return float(np.mean(values)), t * float(np.std(values, ddof=1)) / n**0.5


def said(values: Sequence[float], plus: str = "") -> str:
    mean, half = interval(values)
    return f"{mean:{plus}.3f} +- {half:.3f}"


def table(rows: list[dict[str, Any]]) -> str:
    """One line a way; differences to plain are paired by seed."""
    by = {way: [r for r in rows if r["way"] == way] for way in WAYS}
    plain = by["plain"]
    lines = ["| way | loss, new text | forgotten | forgotten, less plain | FLOPs |", "|---" * 5 + "|"]
    for way, found in by.items():
        less = [r["forgotten"] - p["forgotten"] for r, p in zip(found, plain, strict=True)]
        cells = [
            said([r["new"] for r in found]), said([r["forgotten"] for r in found], "+"),
            "" if way == "plain" else said(less, "+"), f"{np.mean([r['flops'] for r in found]):.3g}",
        ]  # fmt: skip
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    before = [said([r[f"{text}_before"] for r in plain]) for text in ("new", "old")]
    return "\n".join([*lines, "", f"Before: {before[0]} on new text, {before[1]} on old."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, required=True, help="folder for result.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--old-tokens", type=int, default=120_000)
    parser.add_argument("--new-tokens", type=int, default=32_000)
    parser.add_argument("--work", type=Path, help="keep the projects there; run again it goes on")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        first, second, rows = measure(args.work or Path(temporary), args)
    args.record.mkdir(parents=True, exist_ok=True)
    names = {"id", "documents", "train_tokens", "heldout_tokens", "vocab_size", "bytes_per_token", "hashes"}
    result = {
        "python": platform.python_version(), "machine": platform.machine(), "cores": cores(),
        "load": os.getloadavg()[0], "seeds": args.seeds, "old_tokens": args.old_tokens,
        "new_tokens": args.new_tokens, "old": first.model_dump(mode="json", include=names),
        "new": second.model_dump(mode="json", include=names), "rows": rows,
    }  # fmt: skip
    (args.record / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
