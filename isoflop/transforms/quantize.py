"""Quantization by measured sensitivity: each matrix has as many bits as its errors are worth.

What rounding a matrix costs is the divergence KL(p, q) of the next-token probabilities p of the model from q
with that matrix alone rounded, in nats a token, on training text. For small errors these costs add up, and on
text that the model describes well their sum is the rise of the loss. From the fewest bits on, types are
exchanged for larger ones where a byte buys the largest fall of the sum, along the lower convex hull of each
matrix's costs by bytes: the best choice for every number of bytes at which it stops (Everett's multipliers).
What comes out is measured: the loss in llama.cpp, on held-out text.
"""

from __future__ import annotations

import heapq
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from isoflop import corpus as texts
from isoflop import flops
from isoflop.engines import GGUF
from isoflop.errors import TrainError
from isoflop.evaluate import HeldOut
from isoflop.export.calibrate import tokens_read, windows
from isoflop.export.gated import FORMATS, Export, chosen_rounding, exportable, kept
from isoflop.export.gguf import Rounder, restored, write_gguf
from isoflop.export.huggingface import tokenizer_of
from isoflop.export.rounders import rounder_of
from isoflop.gpt import GPT
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Record, digest
from isoflop.store import Project
from isoflop.transforms import (
    EVAL_TOKENS,
    MODEL,
    Scores,
    Source,
    Transform,
    scores_of,
    source_of,
    transform_id,
)
from isoflop.using import evaluate_model

KIND, MIXED = "quantize", "mixed"
KINDS = ("q4_0", "iq4_nl", "q5_0", "q5_1", "q8_0", "f16")  # that a matrix may have; its hull drops some
SENSITIVITY_TOKENS = 8192
MOST_LOGITS = 1 << 26  # of the original that are kept in memory: 256 MB
STAGE = "sensitivity"


class Choice(Record):
    """A type that a matrix may have."""

    kind: str
    bytes: int
    nats: float  # KL a token with this matrix alone rounded


class Sensitivity(Record):
    """What a matrix may have, on its hull: the fewest bytes first."""

    name: str
    choices: tuple[Choice, ...]


class Quantized(Record):
    """A file whose matrices have types of their own."""

    transform: Transform
    export: Export
    matrices: dict[str, Choice]  # by name
    expected: float  # nats a token: the sum of their costs
    found: float  # nats a token by which the held-out loss rose


Chosen = Mapping[str, Choice]


def quantize(
    project: Project, corpus: Corpus, folder: Path, *, max_bytes: float | None = None,
    max_loss_increase: float | None = None, rounding: str | None = None, calibrate: int | None = None,
    eval_tokens: int = EVAL_TOKENS, progress: Progress | None = None,
) -> Quantized:  # fmt: skip
    """The best GGUF file of a model folder within a limit on its bytes, or on the share its loss may rise.

    With `max_loss_increase` the smallest file, of those that the exchanges lead to, whose held-out loss in
    llama.cpp is above the original's by no more than that share. Weights are rounded as `rounding` and
    `calibrate` say (`export`). Sensitivities are kept, matrix by matrix.

    Raises TrainError for limits that mean nothing, or that nothing meets, with the nearest that can be met;
    ProjectError or CorruptError as `export` does; CorpusError for text that is too short.
    """
    _check(max_bytes, max_loss_increase)
    rounding, calibrate = chosen_rounding(rounding, calibrate)
    progress, model, start = progress or Silent(), exportable(folder, corpus), time.perf_counter()
    source = source_of(project, MODEL, folder, scores_of(model, corpus, eval_tokens))
    options = {
        "max_bytes": max_bytes, "max_loss_increase": max_loss_increase, "rounding": rounding,
        "calibrate": calibrate, "eval_tokens": eval_tokens,
    }  # fmt: skip
    id = transform_id(KIND, corpus, (source,), options)
    done = project.get(KIND, id, Quantized)
    if done is not None and (project.folder / done.export.path).exists():
        return done
    rounder = rounder_of(model, corpus, rounding, calibrate)
    found = _sensitivities(project, model, corpus, source, (rounding, calibrate), rounder, progress)
    trial = _Trial(model, corpus, rounder, eval_tokens)
    if max_bytes is not None:
        chosen = _within_bytes(list(_exchanges(found)), max_bytes, trial)
    else:
        assert max_loss_increase is not None
        assert source.scores is not None
        chosen = _within_loss(list(_exchanges(found)), max_loss_increase, source.scores.loss, trial, progress)
    kinds = {name: choice.kind for name, choice in chosen.items()}
    known = FORMATS["gguf"]._replace(write=partial(_write, kinds=kinds, rounder=rounder))
    export = kept(
        project, corpus, folder, known, to="gguf", kind=MIXED, calibrate=calibrate, rounding=rounding,
        options=kinds, progress=progress,
    )  # fmt: skip
    after = evaluate_model(project.folder / export.path, corpus, eval_tokens=eval_tokens)
    read = tokens_read(corpus, model.config.context, _probe_tokens(model))
    asked = len(found) * len(KINDS) * read + calibrate
    cost = {STAGE: flops.forward_flops_per_token(model.config) * asked}
    made = _record(id, corpus, source, options, cost, export, after, chosen, time.perf_counter() - start)
    project.put("transform", made.transform)
    project.put(KIND, made, id)
    return made


def _check(max_bytes: float | None, max_loss_increase: float | None) -> None:
    """Raises TrainError for limits that mean nothing."""
    limits = [limit for limit in (max_bytes, max_loss_increase) if limit is not None]
    if len(limits) != 1:
        raise TrainError("quantizing needs one limit", hint="give --max-bytes or --max-loss-increase")
    if not 0 < limits[0] < math.inf:
        raise TrainError(
            f"a limit of {limits[0]:g} means nothing", hint="give e.g. --max-bytes 1MB, or 1% of the loss"
        )


# -- what each matrix costs ----------------------------------------------------------------------------


def _sensitivities(
    project: Project, model: GPT, corpus: Corpus, source: Source, how: tuple[str, int], rounder: Rounder,
    progress: Progress,
) -> list[Sensitivity]:  # fmt: skip
    """Of every matrix; those in the ledger are not measured again."""
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    probe: _Probe | None = None
    found = []
    progress.start(STAGE, len(matrices), "matrices")
    for number, (name, weight) in enumerate(matrices.items()):
        key = digest([source.hash, corpus.id, how, KINDS, name])
        known = project.get(STAGE, key, Sensitivity)
        if known is None:
            probe = probe or _Probe(model, corpus)
            known = Sensitivity(name=name, choices=_choices(probe, name, weight, rounder))
            project.put(STAGE, known, key)
        found.append(known)
        progress.update(STAGE, number + 1, name)
    progress.finish(STAGE)
    return found


def _probe_tokens(model: GPT) -> int:
    """Of training text, as far as the original's logits fit into memory."""
    return max(1, min(SENSITIVITY_TOKENS, MOST_LOGITS // model.config.vocab_size))


class _Probe:
    """The model's next-token probabilities on training text, and how far a change moves them."""

    def __init__(self, model: GPT, corpus: Corpus) -> None:
        read = windows(corpus, model.config.context, _probe_tokens(model))
        self.model, self.ids = model, torch.cat(list(read))[:, :-1]
        self.logp = [self._log_probs(row) for row in self.ids]

    @torch.no_grad()
    def _log_probs(self, row: Tensor) -> Tensor:
        return F.log_softmax(self.model(row[None])[0], dim=-1)

    @torch.no_grad()
    def nats(self, weight: Tensor, value: NDArray[np.float32]) -> float:
        """KL a token of the original from the model with `weight` at that value."""
        before = weight.detach().clone()
        weight.copy_(torch.from_numpy(value))
        try:
            rows = zip(self.logp, self.ids, strict=True)
            apart = [F.kl_div(self._log_probs(i), p, reduction="batchmean", log_target=True) for p, i in rows]
        finally:
            weight.copy_(before)
        return max(0.0, float(torch.stack(apart).mean()))


def _choices(probe: _Probe, name: str, weight: Tensor, rounder: Rounder) -> tuple[Choice, ...]:
    """The lower convex hull of costs by bytes."""
    original = weight.detach().numpy()
    by_bytes: dict[int, Choice] = {}
    for kind in KINDS:
        values, type = rounder(name, original, kind)
        cost = Choice(kind=kind, bytes=values.nbytes, nats=probe.nats(weight, restored(values, type)))
        if cost.bytes not in by_bytes or cost.nats < by_bytes[cost.bytes].nats:
            by_bytes[cost.bytes] = cost
    hull: list[Choice] = []
    for choice in (by_bytes[size] for size in sorted(by_bytes)):
        if hull and choice.nats >= hull[-1].nats:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return tuple(hull)


def _slope(less: Choice, more: Choice) -> float:
    """Nats that a byte buys."""
    return (less.nats - more.nats) / (more.bytes - less.bytes)


# -- which of them to take -----------------------------------------------------------------------------


def _exchanges(found: Sequence[Sensitivity]) -> Iterator[Chosen]:
    """From the fewest bytes on, one matrix after the other gets its next type, where a byte buys most."""
    at = {s.name: 0 for s in found}
    hulls = {s.name: s.choices for s in found}
    queue: list[tuple[float, str]] = []

    def offer(name: str) -> None:
        i, hull = at[name], hulls[name]
        if i + 1 < len(hull):
            heapq.heappush(queue, (-_slope(hull[i], hull[i + 1]), name))

    for name in at:
        offer(name)
    yield {name: hulls[name][i] for name, i in at.items()}
    while queue:
        _, name = heapq.heappop(queue)
        at[name] += 1
        offer(name)
        yield {name: hulls[name][i] for name, i in at.items()}


class _Trial:
    """Files that are written to be measured, and not kept."""

    def __init__(self, model: GPT, corpus: Corpus, rounder: Rounder, eval_tokens: int) -> None:
        self.model, self.corpus, self.rounder, self.eval_tokens = model, corpus, rounder, eval_tokens

    def beside(self, chosen: Chosen) -> int:
        """Bytes of a file beside its matrices."""
        with tempfile.TemporaryDirectory() as folder:
            path = self._written(chosen, Path(folder))
            return path.stat().st_size - _bytes(chosen)

    def loss(self, chosen: Chosen) -> float:
        """In llama.cpp, on held-out text."""
        with tempfile.TemporaryDirectory() as folder:
            path = self._written(chosen, Path(folder))
            return evaluate_model(path, self.corpus, eval_tokens=self.eval_tokens).loss

    def _written(self, chosen: Chosen, folder: Path) -> Path:
        kinds = {name: choice.kind for name, choice in chosen.items()}
        return _write(self.model, self.corpus, folder, MIXED, kinds=kinds, rounder=self.rounder)


def _write(
    model: GPT,
    corpus: Corpus,
    folder: Path,
    kind: str,
    *_: object,
    kinds: Mapping[str, str],
    rounder: Rounder,
) -> Path:
    path = folder / f"model-{kind}{GGUF}"
    tokenizer, end = tokenizer_of(model.config, corpus)[0], texts.end_token(corpus)
    write_gguf(model, tokenizer, end, path, kind=kinds, rounder=rounder)
    return path


def _bytes(chosen: Chosen) -> int:
    return sum(choice.bytes for choice in chosen.values())


def _nats(chosen: Chosen) -> float:
    return sum(choice.nats for choice in chosen.values())


def _within_bytes(path: Sequence[Chosen], limit: float, trial: _Trial) -> Chosen:
    """The last that fits. Raises TrainError when none does."""
    beside = trial.beside(path[0])
    fitting = [chosen for chosen in path if _bytes(chosen) + beside <= limit]
    if not fitting:
        raise TrainError(
            f"no file of this model has {limit:,.0f} bytes or fewer: the smallest has "
            f"{_bytes(path[0]) + beside:,}",
            hint="give more bytes, or prune the model first (isoflop prune)",
        )
    return fitting[-1]


def _within_loss(
    path: Sequence[Chosen], share: float, before: float, trial: _Trial, progress: Progress
) -> Chosen:
    """The first whose measured loss is within the limit. Raises TrainError when none is."""
    limit = allowed = share * before
    nearest = math.inf
    while True:
        chosen = next((c for c in path if _nats(c) <= allowed), path[-1])
        rise = trial.loss(chosen) - before
        progress.log(f"{_bytes(chosen):,} bytes of matrices: loss {rise:+.4f}, {_nats(chosen):.4f} expected")
        if rise <= limit:
            return chosen
        nearest = min(nearest, rise)
        if chosen is path[-1]:
            raise TrainError(
                f"no file of this model is within {share:.3%} of its loss: the nearest is "
                f"{nearest / before:.3%} above it",
                hint="allow more, or export it as f32",
            )
        # By what was measured, and on by one exchange at least.
        allowed = min(_nats(chosen) * limit / rise, math.nextafter(_nats(chosen), 0.0))


def _record(
    id: str, corpus: Corpus, source: Source, options: Mapping[str, Any], cost: dict[str, float],
    export: Export, after: HeldOut, chosen: Chosen, seconds: float,
) -> Quantized:  # fmt: skip
    before = source.scores
    assert before is not None
    scores = Scores(
        loss=after.loss, loss_se=after.loss_se, bpb=after.bpb, bpb_se=after.bpb_se,
        params_total=before.params_total, params_matmul=before.params_matmul,
    )  # fmt: skip
    made = Transform(
        id=id, kind=KIND, corpus_id=corpus.id, sources=(source,), options=dict(options),
        flops=cost, seconds=seconds, eval_tokens=int(options["eval_tokens"] or 0), after=scores,
        model=str(Path(export.path).parent),
    )  # fmt: skip
    return Quantized(
        transform=made, export=export, matrices=dict(chosen), expected=_nats(chosen),
        found=after.loss - before.loss,
    )  # fmt: skip
