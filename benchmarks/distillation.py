"""Is a student better taught than trained longer? Weights, temperatures and divergences at equal cost.

    python benchmarks/distillation.py --record records/DATE_distillation

One teacher learns the modules of the Python standard library for long; small students see the same text in
each of several ways. The teacher's own training is not counted, its forward passes beside a student are.
Losses are on held-out text, in nats a token; intervals are 90%, of means over seeds, differences paired by
seed.
"""

from __future__ import annotations

import argparse
import sysconfig
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from comparing import mean, words
from keeping import NOTES, find, machine, once, write_readme

from isoflop.pipeline import corpus_of, train_model
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, Run, RunConfig
from isoflop.store import Project
from isoflop.teaching.divergences import Lesson
from isoflop.transforms.distill import distill, student
from isoflop.variant import DEFAULT

STDLIB = Path(sysconfig.get_paths()["stdlib"])
PLAIN, LONGER = "no teacher", "no teacher, equal FLOPs"
WAYS = {
    "forward KL, weight 0.5": Lesson(0.5),
    "forward KL, weight 0.9": Lesson(0.9),
    "forward KL, weight 1": Lesson(1.0),
    "forward KL, weight 0.9, temperature 2": Lesson(0.9, 2.0),
    "reverse KL, weight 0.9": Lesson(0.9, divergence="reverse-kl"),
    "Jensen-Shannon, weight 0.9": Lesson(0.9, divergence="jensen-shannon"),
    "forward KL, weight 0.9, top 32": Lesson(0.9, topk=32),
    "forward KL, weight 0.9, noise 0.05": Lesson(0.9, noise=0.05),
    "forward KL, weight 0.9, noise 0.2": Lesson(0.9, noise=0.2),
}


def alone(config: RunConfig) -> RunConfig:
    """On one core, in this process."""
    return config.model_copy(update={"ranks": 1, "threads": 1})


def row(run: Run) -> dict[str, Any]:
    return {
        "loss": run.loss, "loss_se": run.loss_se, "tokens": run.tokens, "flops": run.flops,
        "flops_teachers": run.flops_teachers, "params": run.params_matmul, "seconds": run.seconds_train,
    }  # fmt: skip


class Study:
    """The project, its teacher, and students of every seed."""

    def __init__(self, project: Project, args: argparse.Namespace) -> None:
        self.project, self.args = project, args
        config = CorpusConfig(sources=(str(STDLIB / "*.py"),), vocab_size=args.vocab, heldout_share=0.1)
        self.corpus: Corpus = corpus_of(project, config)
        model = shape(args.teacher_width, self.corpus.vocab_size)
        self.teacher = train_model(project, self.corpus, alone(recipe(model, args.teacher_tokens)))
        assert self.teacher.model is not None
        self.folder = project.folder / self.teacher.model

    def plain(self, tokens: int, seed: int) -> dict[str, Any]:
        model = shape(self.args.width, self.corpus.vocab_size)
        return row(train_model(self.project, self.corpus, alone(recipe(model, tokens, seed=seed))))

    def taught(self, lesson: Lesson, seed: int) -> dict[str, Any]:
        config, past = student(
            self.project, self.corpus, tokens=self.args.tokens, width=self.args.width, seed=seed,
            variant=DEFAULT,
        )  # fmt: skip
        made = distill(self.project, self.corpus, [self.folder], alone(config), past, lesson=lesson)
        run = self.project.get("run", str(made.run_id), Run)
        assert run is not None
        return row(run) | {"measured": made.measured}


def measure(study: Study, args: argparse.Namespace) -> None:
    """A row for each way and seed."""
    for seed in range(args.seeds):
        once(args.record, {"way": PLAIN, "seed": seed}, partial(study.plain, args.tokens, seed))
        for way, lesson in WAYS.items():
            once(args.record, {"way": way, "seed": seed}, partial(study.taught, lesson, seed))
        taught = find(args.record, {"way": next(iter(WAYS)), "seed": seed})
        assert taught is not None
        more = taught["flops"] / (taught["flops"] - taught["flops_teachers"])
        tokens = round(more * args.tokens)
        once(args.record, {"way": LONGER, "seed": seed}, partial(study.plain, tokens, seed))


def text(study: Study, args: argparse.Namespace) -> str:
    """The README."""

    def losses(way: str) -> list[float]:
        rows = (find(args.record, {"way": way, "seed": seed}) for seed in range(args.seeds))
        return [found["loss"] for found in rows if found is not None]

    def less(way: str, base: str) -> str:
        pairs = zip(losses(way), losses(base), strict=True)
        return words(mean([a - b for a, b in pairs]), 4)

    teacher = study.teacher
    lines = [
        "# Taught, or trained for longer", "",
        f"Teacher: {teacher.params_matmul:,} parameters, {teacher.tokens:,} tokens, loss {teacher.loss:.4f}.",
        f"Students: width {args.width}, {args.tokens:,} tokens, {args.seeds} seeds. {machine()}.", "",
        "| way | loss | less plain | less plain, equal FLOPs | FLOPs |", "|---" * 5 + "|",
    ]  # fmt: skip
    for way in (PLAIN, LONGER, *WAYS):
        one = find(args.record, {"way": way, "seed": 0})
        assert one is not None
        cells = (words(mean(losses(way)), 4), less(way, PLAIN), less(way, LONGER), f"{one['flops']:.3g}")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{NOTES}distillation.py --record {args.record}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--teacher-width", type=int, default=128)
    parser.add_argument("--teacher-tokens", type=int, default=4_000_000)
    parser.add_argument("--work", type=Path, help="keep the project there; run again it goes on")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        study = Study(Project(args.work or Path(temporary) / "project"), args)
        measure(study, args)
        write_readme(args.record, text(study, args))


if __name__ == "__main__":
    main()
