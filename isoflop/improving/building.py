"""A candidate as ordinary transforms of the project: pruned, healed, exported, measured.

Each transform is in the ledger under an id of its own, so that what was done, by whomever, is not done again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from isoflop import flops
from isoflop.export.gated import FORMATS, export
from isoflop.export.rounders import GPTQ
from isoflop.improving.probing import probe, thread_counts
from isoflop.improving.records import Candidate, Probe, Step
from isoflop.places import here
from isoflop.progress import Progress
from isoflop.records import Corpus, ModelConfig, RunConfig, Throughput
from isoflop.served import Served, serve
from isoflop.starting import continuation
from isoflop.store import Project
from isoflop.transforms import Transform
from isoflop.transforms.pruning import SEARCH_TOKENS, Heal, Wanted, prune_model
from isoflop.transforms.quantize import MIXED, quantize

SCORED = 4  # passes over the held-out text beside the training of a healed shape: teacher, before, after, run


@dataclass(frozen=True)
class Built:
    """An artifact in the making: what an engine opens, and the steps to it."""

    path: Path
    steps: tuple[Step, ...]
    bytes: int


@dataclass(frozen=True)
class Builder:
    """Builds candidates of one input."""

    project: Project
    corpus: Corpus
    folder: Path  # of the input
    eval_tokens: int
    seed: int
    progress: Progress

    def shaped(self, candidate: Candidate, heal_tokens: int) -> list[Transform]:
        """Pruned to the candidate's shape, and healed by the input as teacher; nothing when it is whole.

        What was begun goes on. Raises as `prune_model` does.
        """
        if not candidate.shape:
            return []
        return prune_model(
            self.project, self.corpus, self.folder, Wanted(keep=candidate.shape, tokens=SEARCH_TOKENS),
            heal=Heal(heal_tokens, seed=self.seed), eval_tokens=self.eval_tokens, progress=self.progress,
        )  # fmt: skip

    def exported(self, candidate: Candidate, chain: list[Transform], room: float) -> Built:
        """In the candidate's representation, behind the gate; rounded by GPTQ where that knows its blocks.

        MIXED is the smallest file whose loss is above its shape's by no more than the share `room`. Raises as
        `export` and `quantize` do.
        """
        folder = self.project.folder / chain[-1].model if chain else self.folder
        steps = [Step(kind=t.kind, id=t.id, path=t.model, words=_words(t)) for t in chain]
        if candidate.kind == MIXED:
            found = quantize(
                self.project, self.corpus, folder, max_loss_increase=room, rounding=GPTQ,
                eval_tokens=self.eval_tokens, progress=self.progress,
            )  # fmt: skip
            made, step = found.export, ("quantize", found.transform.id)
        else:
            ways = FORMATS[candidate.format].roundings.get(candidate.kind, ())
            made = export(
                self.project, self.corpus, folder, to=candidate.format, kind=candidate.kind,
                rounding=GPTQ if GPTQ in ways else None,
            )  # fmt: skip
            step = ("export", made.id)
        steps.append(Step(kind=step[0], id=step[1], path=made.path, words=candidate.form))
        return Built(self.project.folder / made.path, tuple(steps), made.bytes)

    def probed(self, built: Built, most_threads: int | None = None) -> Probe:
        """The short measurement."""
        return probe(self.project, self.corpus, built.path, thread_counts(most_threads))

    def served(self, built: Built, threads: int) -> Served:
        """The whole measurement, in the engine, at a number of threads."""
        return serve(self.project, self.corpus, built.path, threads=threads, eval_tokens=self.eval_tokens)


@dataclass(frozen=True)
class Healing:
    """What the healing of a shape costs, by a short measurement of the input's training."""

    model: ModelConfig  # the input, which teaches
    config: RunConfig  # of its own training on
    rate: float  # FLOPs a second
    eval_tokens: int

    @classmethod
    def measured(cls, builder: Builder, model: ModelConfig) -> Healing:
        """By the speed that the ledger knows of, or by training for a moment."""
        project, corpus, place = builder.project, builder.corpus, here()
        config, _ = continuation(project, corpus, builder.folder, tokens=1, seed=builder.seed, place=place)
        config = config.model_copy(update={"initial": ""})  # first weights do not change the speed
        key = config.speed_key(1, place.machine)
        known = project.get("throughput", key, Throughput)
        if known is None:
            builder.progress.log("measuring the speed of healing")
            known = place.probe_alone(config, corpus)
            project.put("throughput", known, key)
        rate = known.tokens_per_second * flops.mean_flops_per_token(config)
        return cls(model, config, rate, builder.eval_tokens)

    def flops_of(self, shape: ModelConfig, tokens: int) -> float:
        """Of training a shape on so many tokens beside its teacher, and scoring it."""
        student = flops.mean_flops_per_token(self.config.model_copy(update={"model": shape}))
        taught = flops.forward_flops_per_token(self.model)
        return tokens * (student + taught) + self._scoring()

    def seconds_of(self, shape: ModelConfig, tokens: int) -> float:
        return self.flops_of(shape, tokens) / self.rate

    def tokens_for(self, shape: ModelConfig, amount: float) -> int:
        """Whole batches that so many FLOPs buy of healing; 0 when it is not one."""
        each = self.flops_of(shape, 1) - self._scoring()
        batches = math.floor((amount - self._scoring()) / each / self.config.batch_tokens)
        return max(0, batches) * self.config.batch_tokens

    def _scoring(self) -> float:
        return SCORED * self.eval_tokens * flops.forward_flops_per_token(self.model)


def _words(step: Transform) -> str:
    """A transform of a chain in a few words."""
    if step.kind == "prune":
        return f"prune to {step.after.params_total:,} parameters"
    return f"{step.kind}, {int(step.options.get('tokens', 0)):,} tokens"
