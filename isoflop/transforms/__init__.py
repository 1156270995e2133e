"""Transforms: from a finished model folder to another, each with a record of what it read, cost and gave.

A result is a plain model folder among the project's artifacts, which any other transform takes. A transform
asked for twice is done once: its id is made of what it reads and of its options, and `finished` looks for it
first.

    sources = (source_of(project, "model", folder, scores_of(model, corpus, eval_tokens)), ...)
    id = transform_id("prune", corpus, sources, options)
    if (done := finished(project, id)) is None: ...
    kept = keep_model(project, corpus, "prune", id, changed)
    project.put("transform", Transform(id=id, kind="prune", ..., model=kept))
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from isoflop import flops
from isoflop.records import Corpus, Interval, Record, digest
from isoflop.store import HASH_DIGITS, Project, content_hash

if TYPE_CHECKING:
    from isoflop.model import LanguageModel

EVAL_TOKENS = 131_072  # held-out, as runs have
MODEL, TEACHER = "model", "teacher"  # what a source is to a transform


class Scores(Record):
    """A model on held-out text, and its size."""

    loss: float  # nats a predicted token
    loss_se: float  # standard error over windows
    bpb: float | None
    bpb_se: float | None
    params_total: int
    params_matmul: int  # N


class Source(Record):
    """A model folder that a transform read."""

    role: str  # MODEL: it was changed; TEACHER: it was asked
    hash: str  # of its content
    path: str  # from the project's folder
    scores: Scores | None = None  # on the windows of the result; None where nobody asked


class Transform(Record):
    """A model made of others."""

    id: str
    kind: str  # "distill", "prune", "average", "quantize" ...
    corpus_id: str
    sources: tuple[Source, ...]  # in the order that was given
    options: dict[str, Any]  # plain JSON values
    flops: dict[str, float]  # by what they were spent on, e.g. "training" and "teacher"
    seconds: float
    eval_tokens: int  # held-out tokens at most, for all scores
    after: Scores
    model: str  # artifact folder, relative to the project
    run_id: str | None = None  # of the run that trained it, if one did
    change: float | None = None  # after - before in nats a token, window by window
    change_se: float | None = None  # its standard error over windows, which are paired
    measured: dict[str, float] = Field(default_factory=dict)  # what else was, e.g. an approximation's error
    predicted: dict[str, Interval] = Field(default_factory=dict)  # losses, written before it was made
    verdict: str = ""  # what was said of it then, for people; empty: no law could

    @property
    def before(self) -> Scores | None:
        """Of the model that was changed; None where there is none, or several were put together."""
        changed = [source.scores for source in self.sources if source.role == MODEL]
        return changed[0] if len(changed) == 1 else None

    @property
    def flops_total(self) -> float:
        return sum(self.flops.values())


def transform_id(kind: str, corpus: Corpus, sources: Sequence[Source], options: Mapping[str, Any]) -> str:
    """Names what a transform makes: sources by content, wherever they lie."""
    return digest([kind, corpus.id, [(s.role, s.hash) for s in sources], dict(options)])


def source_of(project: Project, role: str, folder: Path, scores: Scores | None = None) -> Source:
    """A model folder, here or elsewhere, as a transform's record names it."""
    path = Path(os.path.relpath(folder.absolute(), project.folder.absolute())).as_posix()
    return Source(role=role, hash=content_hash(folder)[:HASH_DIGITS], path=path, scores=scores)


def scores_of(model: LanguageModel, corpus: Corpus, eval_tokens: int) -> Scores:
    """Held-out scores and size of a model, in windows of its context."""
    from isoflop.evaluate import heldout

    found = heldout(model, corpus, eval_tokens=eval_tokens)
    return Scores(
        loss=found.loss, loss_se=found.loss_se, bpb=found.bpb, bpb_se=found.bpb_se,
        params_total=flops.params_total(model.config), params_matmul=flops.params_matmul(model.config),
    )  # fmt: skip


def change_of(
    before: LanguageModel, after: LanguageModel, corpus: Corpus, eval_tokens: int
) -> tuple[float, float]:
    """Held-out loss after - before in nats a token, with its standard error over the same windows.

    Both models have one context.
    """
    from isoflop.evaluate import mean_se, window_losses

    losses = [window_losses(model, corpus, eval_tokens=eval_tokens) for model in (before, after)]
    more = losses[1] - losses[0]
    return float(more.mean()), mean_se(more)


def keep_model(project: Project, corpus: Corpus, kind: str, id: str, model: LanguageModel) -> str:
    """Keep a result as a model folder, whole or not at all; returns its place in the project."""
    from isoflop.export import save_pretrained

    return project.add_artifact(f"{kind}-{id}", lambda folder: save_pretrained(model, corpus, folder))


def finished(project: Project, id: str) -> Transform | None:
    """The transform of that id, if it was made and its folder is still there."""
    done = project.get("transform", id, Transform)
    return done if done is not None and (project.folder / done.model).is_dir() else None
