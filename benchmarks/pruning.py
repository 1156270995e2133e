"""Half of a model, healed, against a model of that size from scratch; what to prune by, and how to heal.

    python benchmarks/pruning.py --record records/DATE_pruning

A model that learned the Python standard library is pruned to half of its stored parameters: the shape is
chosen once, then held. What is left is healed with a quarter of the training FLOPs that the same shape takes
from scratch, and with all of them, calibration counted. Not counted are the whole model's training, its
forward passes as a teacher, and the choice of the shape; the last two stand beside. Losses are on held-out
text, in nats a token; intervals are 90%, of means over seeds, differences paired by seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from comparing import mean, words
from distillation import alone
from keeping import NOTES, find, machine, once, write_readme

from isoflop import flops
from isoflop.export import load_pretrained
from isoflop.pipeline import corpus_of, train_model
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, Run
from isoflop.store import Project
from isoflop.teaching.divergences import Lesson
from isoflop.transforms import Transform, scores_of
from isoflop.transforms.importance import DEPTHS, MEASURES, pass_flops
from isoflop.transforms.pruning import HEALERS, Heal, Wanted, prune_model
from isoflop.transforms.shapes import WORDS, smaller

SCRATCH, EQUAL = "from scratch", "taught, equal FLOPs"
QUARTER, PLAIN, STEPS = "taught, a quarter", "without a teacher, a quarter", "taught, two steps, a quarter"
TAUGHT, UNTAUGHT = HEALERS
WAYS = {  # share of the FLOPs from scratch, healed by, steps
    QUARTER: (0.25, TAUGHT, 1), EQUAL: (1.0, TAUGHT, 1), PLAIN: (0.25, UNTAUGHT, 1), STEPS: (0.25, TAUGHT, 2),
}  # fmt: skip
SHORT = 1 / 8  # of the FLOPs from scratch heal what was pruned by each importance


class Study:
    """The project, the model that is pruned, and the shape that it is pruned to."""

    def __init__(self, project: Project, args: argparse.Namespace) -> None:
        self.project, self.args = project, args
        config = CorpusConfig(vocab_size=args.vocab, heldout_share=0.02)
        self.corpus: Corpus = corpus_of(project, None if args.model else config)
        self.folder: Path = args.model or self._trained()
        self.whole = load_pretrained(self.folder).config
        found = once(args.record, {"what": "shape"}, self._chosen)
        self.sizes: dict[str, int] = found["sizes"]
        self.shape = smaller(self.whole, **self.sizes)

    def _trained(self) -> Path:
        model = shape(self.args.width, self.corpus.vocab_size, n_layers=self.args.layers)
        run = train_model(self.project, self.corpus, alone(recipe(model, self.args.whole_tokens)))
        return self.project.folder / str(run.model)

    def _chosen(self) -> dict[str, Any]:
        """The half that loses least, as the command finds it."""
        (done,) = self._pruned(Wanted(share=0.5, tokens=self.args.calibrate), None)
        before = scores_of(load_pretrained(self.folder), self.corpus, self.args.eval_tokens)
        return {
            "sizes": done.options["target"], "params": done.after.params_total,
            "flops_search": done.flops.get("search", 0.0), "whole_params": before.params_total,
            "whole_loss": before.loss,
        }  # fmt: skip

    def _pruned(self, wanted: Wanted, heal: Heal | None) -> list[Transform]:
        return prune_model(
            self.project, self.corpus, self.folder, wanted, heal=heal, eval_tokens=self.args.eval_tokens
        )

    def scratch(self, seed: int) -> dict[str, Any]:
        config = recipe(self.shape, self.args.tokens, seed=seed, eval_tokens=self.args.eval_tokens)
        run = train_model(self.project, self.corpus, alone(config))
        return {
            "loss": run.loss, "loss_se": run.loss_se, "tokens": run.tokens, "flops": run.flops,
            "seconds": run.seconds_train,
        }  # fmt: skip

    def healed(self, share: float, by: str, wanted: Wanted, seed: int) -> dict[str, Any]:
        """Of `share` of the FLOPs from scratch calibration takes its part, healing the rest."""
        args, config = self.args, recipe(smaller(self.whole, **wanted.keep), self.args.tokens)
        whole = flops.run_flops(recipe(self.shape, args.tokens))
        slopes = "taylor" in (wanted.by, wanted.depth)
        read = wanted.steps * pass_flops(self.whole, wanted.tokens, backward=slopes)
        steps = int((share * whole - read) / flops.mean_flops_per_token(config) / config.batch_tokens)
        lesson = Lesson(args.weight, args.temperature)
        heal = Heal(steps * config.batch_tokens, by, args.lr_scale, seed, lesson)
        return self._row(self._pruned(wanted, heal))

    def _row(self, chain: Sequence[Transform]) -> dict[str, Any]:
        runs = [self.project.get("run", str(step.run_id), Run) for step in chain if step.run_id]
        spent = dict.fromkeys(("training", "calibration", "teacher"), 0.0)
        for step in chain:
            spent |= {name: spent[name] + amount for name, amount in step.flops.items()}
        teacher = spent.pop("teacher")
        return {
            "loss": chain[-1].after.loss, "loss_se": chain[-1].after.loss_se,
            "loss_pruned": chain[0].after.loss, "tokens": sum(run.tokens for run in runs if run),
            "flops": sum(spent.values()), "flops_teacher": teacher,
            "seconds": sum(step.seconds for step in chain),
        }  # fmt: skip

    def wanted(self, **options: Any) -> Wanted:
        return Wanted(**{"keep": self.sizes, "tokens": self.args.calibrate, **options})


def importances(study: Study) -> list[tuple[str, Wanted]]:
    """What is pruned by each measure: the widths of all layers, or one layer."""
    keep = {name: size for name, size in study.sizes.items() if name != "n_layers"}
    wide = [(f"widths by {by}", study.wanted(keep=keep, by=by)) for by in MEASURES]
    one = {"n_layers": study.whole.n_layers - 1}
    return [*wide, *((f"one layer by {by}", study.wanted(keep=one, depth=by)) for by in DEPTHS)]


def measure(study: Study, args: argparse.Namespace) -> None:
    """A row for each way and seed, the figure's own first."""
    for seed in range(args.seeds):
        once(args.record, {"what": SCRATCH, "seed": seed}, partial(study.scratch, seed))
    for way, (share, by, steps) in WAYS.items():
        for seed in range(args.seeds):
            wanted = study.wanted(steps=steps)
            once(args.record, {"what": way, "seed": seed}, partial(study.healed, share, by, wanted, seed))
    for name, wanted in importances(study):
        for seed in range(args.seeds):
            drawn = replace(wanted, seed=seed)
            once(args.record, {"what": name, "seed": seed}, partial(study.healed, SHORT, TAUGHT, drawn, seed))


class Rows:
    """Those of a record, by what was done."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.record, self.seeds = args.record, range(args.seeds)

    def column(self, what: str, name: str) -> dict[int, float]:
        """By seed, as far as it was measured."""
        rows = {seed: find(self.record, {"what": what, "seed": seed}) for seed in self.seeds}
        return {seed: row[name] for seed, row in rows.items() if row is not None}

    def mean(self, what: str, name: str = "loss") -> str:
        return words(mean(list(self.column(what, name).values())), 4)

    def less(self, what: str, base: str) -> str:
        ours, theirs = self.column(what, "loss"), self.column(base, "loss")
        return words(mean([ours[seed] - theirs[seed] for seed in ours if seed in theirs]), 4)


def text(study: Study, args: argparse.Namespace) -> str:
    """The README."""
    found, rows = find(args.record, {"what": "shape"}), Rows(args)
    assert found is not None
    kept = ", ".join(f"{WORDS[name]} {size}" for name, size in study.sizes.items())
    base = rows.column(SCRATCH, "flops")[0]
    lines = [
        "# Half of a model, healed, or trained from scratch", "",
        f"Whole: {found['whole_params']:,} parameters, loss {found['whole_loss']:.4f}.",
        f"Half: {found['params']:,} ({kept}).",
        f"From scratch it sees {args.tokens:,} tokens, {base:.3g} FLOPs. {args.seeds} seeds.",
        f"{machine()}.", "",
        "| way | loss | less from scratch | FLOPs over scratch | the teacher's beside |", "|---" * 5 + "|",
        f"| {SCRATCH} | {rows.mean(SCRATCH)} | | 1 | |",
    ]  # fmt: skip
    for what in (way for way in WAYS if rows.column(way, "loss")):
        paid, beside = (rows.column(what, name)[0] / base for name in ("flops", "flops_teacher"))
        numbers = f"{rows.mean(what)} | {rows.less(what, SCRATCH)} | {paid:.3f} | {beside:.3f}"
        lines.append(f"| {what} | {numbers} |")
    lines += ["", f"Choosing the shape took {found['flops_search'] / base:.3f} of them, once.", ""]
    lines += ["| pruned | loss before healing | after | FLOPs over scratch |", "|---" * 4 + "|"]
    for what in (name for name, _ in importances(study) if rows.column(name, "loss")):
        share = rows.column(what, "flops")[0] / base
        lines.append(f"| {what} | {rows.mean(what, 'loss_pruned')} | {rows.mean(what)} | {share:.3f} |")
    return "\n".join([*lines, "", f"{NOTES}pruning.py --record {args.record}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8_000_000, help="that the half sees from scratch")
    parser.add_argument("--model", type=Path, help="prune this folder, of the project --work")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--width", type=int, default=128, help="of the whole model, when it is trained here")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--whole-tokens", type=int, default=16_000_000)
    parser.add_argument("--calibrate", type=int, default=65_536, help="tokens")
    parser.add_argument("--eval-tokens", type=int, default=131_072)
    parser.add_argument("--lr-scale", type=float, default=Heal(0).lr_scale, help="of healing")
    parser.add_argument("--weight", type=float, default=Lesson().weight, help="of the teacher in healing")
    parser.add_argument("--temperature", type=float, default=Lesson().temperature)
    parser.add_argument("--work", type=Path, help="keep the project there; run again it goes on")
    args = parser.parse_args()
    if args.model and not args.work:
        parser.error("--model needs the project that it was trained in: --work PROJECT")
    with tempfile.TemporaryDirectory() as temporary:
        study = Study(Project(args.work or Path(temporary) / "project"), args)
        measure(study, args)
        write_readme(args.record, text(study, args))


if __name__ == "__main__":
    main()
