"""What a candidate could be at best, and what is expected of it, before anything of it is built.

Bytes and seconds of a pruned model follow from those of the input in the same representation, by their
stored parameters: what an engine's file has beside its weights stays, and a token is read no faster than in
proportion to the bytes. The loss has two parts, that of the shape and the rise by rounding, which is taken
from the input's. Before a shape is healed its loss lies between a floor and what it is without healing:

    floor = the input's loss, or L(N', D) / L(N, D) of it where the project has a law and knows the input's
            tokens; D counts those and the tokens of healing, as if the smaller model had learned from all

and it is not below that of a larger shape that was healed and holds this one, nor is its rise by pruning
healed much better than that of the best of the others. Once a shape is healed its loss is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from isoflop import flops
from isoflop.evaluate import mean_se
from isoflop.improving.records import Candidate, Cut, Figures, Probe, shape_name
from isoflop.laws import Fit
from isoflop.records import Corpus, Ladder, ModelConfig, Run
from isoflop.store import Project
from isoflop.transforms.shapes import smaller

NOISE = 2.0  # standard errors by which a rise may be smaller than it was measured
SPEED_SLACK = 0.1  # by which a short measurement of the speed may be too slow
SIZE_SLACK = 0.01  # by which a pruned model's file may be smaller than in proportion to its parameters
RECOVERED = 0.7  # of the rise by pruning, expected to be healed until some shape was: an assumption
LEFT = 0.5  # of what healing left of the rise in the best of the shapes before, it leaves at best: assumed
CLOSE = 0.01  # of the loss: a smaller shape may end so far below a larger one that holds it


@dataclass
class Known:
    """What has been measured so far, and what follows from it."""

    model: ModelConfig  # of the input
    loss: float = math.nan  # its own, in float32 in its fastest engine
    start: str = ""  # its form then
    floors: Mapping[str, float] = field(default_factory=dict)  # by shape_name, shares of it; `floors`
    probes: dict[str, tuple[int, Probe]] = field(default_factory=dict)  # of the input by form: bytes, ...
    cuts: dict[str, Cut] = field(default_factory=dict)  # by shape_name
    healed: dict[str, float] = field(default_factory=dict)  # loss by shape_name

    def add_cuts(self, found: Sequence[Cut], formats: Sequence[tuple[str, str]]) -> list[Candidate]:
        """The candidates of these shapes in these representations."""
        made = [Candidate(shape=cut.sizes, format=name, kind=kind) for cut in found for name, kind in formats]
        self.cuts |= {c.shape_name: next(cut for cut in found if cut.sizes == c.shape) for c in made}
        return made

    def at_best(self, candidate: Candidate) -> Figures:
        """The figures that it could have at most favourable."""
        rise, se = self.rise(candidate.form)
        bytes_, seconds = self._size(candidate)
        return Figures(
            loss=self._floor(candidate) + max(0.0, rise - NOISE * se),
            bytes=bytes_ * (1 - SIZE_SLACK) if candidate.shape else bytes_,
            seconds=seconds * (1 - SPEED_SLACK),
        )  # fmt: skip

    def probed(self, candidate: Candidate, bytes_: int, found: Probe) -> Figures:
        """At best, once the artifact is there and was measured shortly."""
        exact = self._exact(candidate.form)
        loss = self._floor(candidate)
        if len(found.windows) == len(exact.windows):
            rise, se = _apart(found, exact)
            loss = self.loss + rise - NOISE * se
        return Figures(loss=loss, bytes=bytes_, seconds=found.best * (1 - SPEED_SLACK))

    def expected(self, candidate: Candidate) -> Figures:
        """The figures that are likely."""
        bytes_, seconds = self._size(candidate)
        loss = self._floor(candidate)
        if candidate.shape and candidate.shape_name not in self.healed:
            before = self.loss + self.cuts[candidate.shape_name].rise
            loss = max(loss, before - self.recovery() * (before - self.loss))
        return Figures(loss=loss + max(0.0, self.rise(candidate.form)[0]), bytes=bytes_, seconds=seconds)

    def rise(self, form: str) -> tuple[float, float]:
        """Of the input's loss by a representation, over float32 in the same engine; its standard error."""
        return _apart(self.probes[form][1], self._exact(form))

    def _exact(self, form: str) -> Probe:
        """The input in float32, in the same engine where that is known."""
        return self.probes.get(f"{form.split()[0]} f32", self.probes[self.start])[1]

    def room(self, candidate: Candidate, rise: float) -> float:
        """Share by which the loss of its shape may still rise, where the input's may by `rise` nats."""
        return (self.loss + rise) / self._floor(candidate) - 1

    def recovery(self) -> float:
        """Share of the rise by pruning that healing takes back: the mean of the shapes that were healed."""
        found = self._recovered()
        return min(1.0, sum(found) / len(found)) if found else RECOVERED

    def _recovered(self) -> list[float]:
        """That share of each healed shape."""
        losses = [(self.cuts[name].rise, loss - self.loss) for name, loss in self.healed.items()]
        return [1 - left / rise for rise, left in losses if rise > 0]

    def _size(self, candidate: Candidate) -> tuple[float, float]:
        """Bytes and seconds a token."""
        bytes_, probe = self.probes[candidate.form]
        if not candidate.shape:
            return float(bytes_), probe.best
        ours, theirs = (flops.params_total(m) for m in (self._shape(candidate), self.model))
        exact = self.probes.get(f"{candidate.format} f32")
        beside = max(0.0, exact[0] - flops.BYTES_FLOAT32 * theirs) if exact else 0.0
        share = ours / theirs
        return beside + (bytes_ - beside) * share, probe.best * share

    def _floor(self, candidate: Candidate) -> float:
        """The loss of its shape in float32 at best."""
        if not candidate.shape:
            return self.loss
        name = candidate.shape_name
        if name in self.healed:
            return self.healed[name]
        held = [
            loss * (1 - CLOSE)
            for other, loss in self.healed.items()
            if all(candidate.shape[size] <= n for size, n in self.cuts[other].sizes.items())
        ]
        unhealed = LEFT * (1 - max(self._recovered(), default=1.0))
        by_others = self.loss + max(0.0, unhealed * self.cuts[name].rise)
        return max([self.loss * self.floors.get(name, 1.0), by_others, *held])

    def _shape(self, candidate: Candidate) -> ModelConfig:
        return smaller(self.model, **candidate.shape)


def floors(
    project: Project, corpus: Corpus, folder: Path, model: ModelConfig, found: Sequence[Cut], tokens: int
) -> dict[str, float]:
    """L(N', D) / L(N, D) of each shape by the project's law; nothing without one that asks for N and D alone.

    D are the training tokens of the input, whose run the project must have, and those of healing.
    """
    ladder, fit, seen = (
        project.latest("ladder", Ladder),
        project.latest("fit", Fit),
        tokens_seen(project, folder),
    )
    if fit is None or ladder is None or seen is None or not {*fit.columns} <= {"params", "tokens"}:
        return {}
    if ladder.corpus_id != corpus.id or ladder.members[0].config.model.kind != model.kind:
        return {}
    sizes = [flops.params_matmul(m) for m in (model, *(smaller(model, **cut.sizes) for cut in found))]
    losses = fit.loss(sizes, seen + tokens)
    return {shape_name(c.sizes): float(x / losses[0]) for c, x in zip(found, losses[1:], strict=True)}


def tokens_seen(project: Project, folder: Path) -> int | None:
    """Training tokens of a model of this project; those of its teachers and ancestors are left out.

    None for a folder that no run of it made.
    """
    made = [run for run in project.all("run", Run) if run.model and (project.folder / run.model).exists()]
    found = [run for run in made if (project.folder / str(run.model)).samefile(folder)]
    return found[-1].tokens if found else None


def _apart(one: Probe, other: Probe) -> tuple[float, float]:
    """Difference of their losses, window by window, and its standard error."""
    apart = np.subtract(one.windows, other.windows)
    se = mean_se(apart)
    return float(apart.mean()), 0.0 if math.isnan(se) else se
