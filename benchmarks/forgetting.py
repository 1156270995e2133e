"""What a model forgets when its training goes on with other text, and what replay and consolidation save.

    python benchmarks/forgetting.py --record records/DATE_forgetting

A small model learns the modules of the Python standard library (old text), then the manual's topics as
`help()` prints them (new text), in each of several ways. Losses are on held-out text, in nats a token; intervals
are 90%, of the mean over seeds by Student's t. Tokens and FLOPs are counted, times are not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
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

STDLIB = Path(sysconfig.get_paths()["stdlib"])
VOCAB, WIDTH, CONTEXT, EVAL_TOKENS = 1024, 64, 256, 32_768
LEVEL = 0.9
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, all of the rates": {"lr_scale": 2.0},
    "plain, a tenth of the rates": {"lr_scale": 0.2},
    "replay 10%": {"replay_share": 0.1},
    "replay 30%": {"replay_share": 0.3},
    "EWC 1": {"ewc": 1.0},
    "EWC 10": {"ewc": 10.0},
    "EWC 100": {"ewc": 100.0},
    "replay 10% and EWC 10": {"replay_share": 0.1, "ewc": 10.0},
}


def manual(folder: Path) -> str:
    """A folder with each topic of the manual in a file."""
    folder.mkdir()
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
    return {
        "way": way, "seed": before.config.seed, "tokens": run.tokens, "flops": run.flops_spent,
        "new": run.loss, "new_se": run.loss_se, "old_before": run.forgetting.before,
        "old_after": run.forgetting.after, "forgotten": run.forgetting.nats,
        "forgotten_se": run.forgetting.nats_se, "config": config.model_dump(mode="json"),
    }  # fmt: skip


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
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, required=True, help="folder for result.json and table.md")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--old-tokens", type=int, default=600_000)
    parser.add_argument("--new-tokens", type=int, default=200_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        old, new = Project(Path(folder, "old")), Project(Path(folder, "new"))
        modules = (str(STDLIB / "*.py"),)
        first = corpus_of(old, CorpusConfig(sources=modules, vocab_size=VOCAB, heldout_share=0.1))
        tokenizer = str(first.folder / "tokenizer.json")
        sources = manual(Path(folder, "manual"))
        second = corpus_of(new, CorpusConfig(sources=(sources,), tokenizer=tokenizer, heldout_share=0.1))
        rows, before = [], []
        for seed in range(args.seeds):
            before.append(learned(old, first, args.old_tokens, seed))
            for way in WAYS:
                rows.append(one(new, second, before[-1], old.folder, way, args.new_tokens))
                print(json.dumps({k: v for k, v in rows[-1].items() if k != "config"}), file=sys.stderr)
    args.record.mkdir(parents=True, exist_ok=True)
    result = {
        "command": "python " + " ".join(sys.argv), "load": os.getloadavg()[0],
        "old": first.model_dump(mode="json"), "new": second.model_dump(mode="json"),
        "learned": [r.loss for r in before], "rows": rows,
    }  # fmt: skip
    (args.record / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.record / "table.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
