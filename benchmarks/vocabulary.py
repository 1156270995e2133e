"""What a vocabulary is worth: the same ladder, text and recipe with several, one law in bits a byte for each.

    python benchmarks/vocabulary.py --budget 2e13flops --seeds 3 --work DIR --record records/DATE_vocabulary

Each is measured by `isoflop sweep --budget X --seed S` on a corpus of the same documents, cleaned, split and
held out alike, whose tokenizer alone differs; every run is scored on all of the held-out text. A law in bits
a byte is fitted to the runs of all seeds, and laws are compared at equal compute, the head's FLOPs counted
(`gain.compare`), against the vocabulary that the rule (`corpus.vocab_for`) takes at the middle of the range.
A context is 512 tokens whatever they hold: that a larger vocabulary reads further is part of its worth. Not
compared: speed (FLOPs are equal, not seconds), other texts. Rows are appended to `rows.jsonl` as ladders end;
a row that is there is not measured again.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from family_scaling import Rows, doublings, isoflop, ladder
from keeping import machine, once, read, write_readme

from isoflop.corpus import vocab_for
from isoflop.gain import compare
from isoflop.laws import Fit, fit
from isoflop.pipeline import LADDER_DELTA

ALL = ("--set", "eval_tokens=1000000000")  # whatever the tokenizer, the same text is scored


def law_of(rows: Rows, vocab: int) -> Fit:
    """The law in bits a byte of all runs with a vocabulary; a trunk is a cluster."""
    runs = [run for row in rows if row["vocab"] == vocab for run in row["runs"]]
    names = {"params": "params_matmul", "tokens": "tokens", "flops": "flops", "loss": "bpb",
             "cluster": "trunk"}  # fmt: skip
    return fit({role: [run[name] for run in runs] for role, name in names.items()}, delta=LADDER_DELTA)


def line(vocab: int, laws: dict[int, Fit], base: int) -> list[str]:
    """A vocabulary's rows of the table: at each compute its best loss, and its doublings over the base's."""
    law, out = laws[vocab], []
    gain = None if vocab == base else compare(laws[base], law)
    at = [s.flops for s in gain.scales] if gain else np.geomspace(*_range(law), 3).tolist()
    for i, compute in enumerate(at):
        best = law.optimum(compute)
        mean = law.mean(best.params.value, best.tokens.value)
        worth = doublings(gain.scales[i].doublings) if gain else ""
        cells = (f"{vocab:,}", law.n, f"{compute:.2g}", f"{vocab_for(compute):,}",
                 f"{best.params.value:,.0f}",
                 f"{mean.value:.4f} [{mean.low:.4f}, {mean.high:.4f}]", worth)  # fmt: skip
        out.append("| " + " | ".join(map(str, cells)) + " |")
    return out


def _range(law: Fit) -> tuple[float, float]:
    """The least and the most compute of a law's runs."""
    compute = law.observations.compute()
    return float(compute.min()), float(compute.max())


def summary(rows: Rows, vocabs: list[int]) -> str:
    """The record's README."""
    laws = {vocab: law_of(rows, vocab) for vocab in vocabs}
    ends = [_range(law) for law in laws.values()]
    middle = float(np.sqrt(max(low for low, _ in ends) * min(high for _, high in ends)))
    base = min(vocabs, key=lambda v: abs(np.log(v / vocab_for(middle))))
    head = ("vocabulary", "runs", "C, FLOPs", "the rule's there", "best N at C",
            "best bits a byte at C, 90% of the mean", f"doublings over {base:,}, 90%")  # fmt: skip
    return "\n".join([
        "# What a vocabulary is worth",
        "",
        (__doc__ or "").split("\n\n")[2].replace("\n", " ").strip(),
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *(text for vocab in vocabs for text in line(vocab, laws, base)),
        "",
        f"{machine()}; budget {rows[0]['budget']} a ladder. Commands, loads and every run are in rows.jsonl.",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabs", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--budget", default="2e13flops", help="of one ladder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True, help="folder for a project a vocabulary")
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    args = parser.parse_args()
    for vocab in args.vocabs:
        isoflop(args.work / str(vocab), "corpus", "--vocab", str(vocab))
    for seed in range(args.seeds):
        for vocab in args.vocabs:
            job = partial(ladder, args.work / str(vocab), "isoflop", args.budget, seed, ALL)
            once(args.record, {"vocab": vocab, "seed": seed, "budget": args.budget}, job)
    rows = [row for row in read(args.record) if row["budget"] == args.budget and row["vocab"] in args.vocabs]
    write_readme(args.record, summary(rows, args.vocabs))


if __name__ == "__main__":
    main()
