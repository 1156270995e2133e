"""One model from several of the same shape: the average of their weights.

Model soups (Wortsman et al., arXiv 2203.05482) help where the models are near one another, such as those that
one trunk or one model led to; the average of models that began or went apart is worse than each, which the
scores then show.
"""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from isoflop.errors import ProjectError, TrainError
from isoflop.evaluate import HeldOut, heldout
from isoflop.export import load_pretrained, save_pretrained
from isoflop.families.foreign import read_config
from isoflop.model import LanguageModel
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Record
from isoflop.store import disk_errors, keep_folder
from isoflop.using import check_vocabulary

CONFIG = "config.json"
NOT_COMPARED = ("transformers_version", "dtype", "torch_dtype", "_name_or_path")  # nothing depends on these
MISSING = "nothing"

Weights = dict[str, Tensor]


class Scored(Record):
    """A model folder with its share of the average and its held-out scores."""

    folder: Path
    share: float  # 0: left out by the greedy choice; 1: the average
    loss: float  # nats a predicted token
    loss_se: float
    bpb: float | None
    bpb_se: float | None


class Averaged(Record):
    """An average and what it is made of, in the order that was given."""

    ingredients: tuple[Scored, ...]
    average: Scored


def average(
    folders: Sequence[Path], out: Path, corpus: Corpus, *, weights: Sequence[float] | None = None,
    greedy: bool = False, eval_tokens: int = 1 << 20, progress: Progress | None = None,
) -> Averaged:  # fmt: skip
    """Write the average of model folders to `out`, a new model folder, and score all on the held-out text.

    `weights` are relative (None: equal). `greedy` takes the models from the best on, and each further one
    only if the average gets no worse by it (Wortsman et al., recipe 1); the same held-out text chooses and
    scores, which flatters the average a little. Sums are float64; `out` appears whole or not at all.

    Raises ProjectError when the models are fewer than two, differ in a field of their configs or a weight, or
    `out` exists; CorruptError for a folder that cannot be read or has another tokenizer than the corpus.
    """
    progress = progress or Silent()
    folders = [Path(folder) for folder in folders]
    shares = _shares(folders, weights, greedy)
    if out.exists():
        raise ProjectError(f"{out} exists already", hint="name a new folder with --out")
    _check_alike(folders)
    scores: list[HeldOut] = []
    for folder in folders:
        model = load_pretrained(folder)
        check_vocabulary(model, folder, corpus)
        scores.append(heldout(model, corpus, eval_tokens=eval_tokens))
        progress.log(f"{folder}: loss {scores[-1].loss:.4f}")
    if greedy:
        shares = _greedy(folders, model, scores, corpus, eval_tokens, progress)
    _set(model, _mean(folders, shares))
    made = heldout(model, corpus, eval_tokens=eval_tokens)
    _write(model, corpus, out)
    parts = [_scored(f, share, s) for f, share, s in zip(folders, shares, scores, strict=True)]
    return Averaged(ingredients=tuple(parts), average=_scored(out, 1.0, made))


def _shares(folders: Sequence[Path], weights: Sequence[float] | None, greedy: bool) -> list[float]:
    """Shares of the average that add up to 1. Raises ProjectError."""
    if len(folders) < 2:
        raise ProjectError("an average needs two models or more", hint="name their folders")
    if greedy and weights is not None:
        raise ProjectError("the greedy choice decides the weights itself", hint="leave --weights out")
    found = [1.0] * len(folders) if weights is None else list(weights)
    if len(found) != len(folders):
        raise ProjectError(
            f"there are {len(found)} weights for {len(folders)} models",
            hint="give one a model: --weights 2,1",
        )
    if not all(math.isfinite(w) and w >= 0 for w in found) or sum(found) == 0:
        raise ProjectError(
            f"the weights {', '.join(f'{w:g}' for w in found)} are no shares of an average",
            hint="give numbers from zero on, and one above zero",
        )
    return [w / sum(found) for w in found]


def _check_alike(folders: Sequence[Path]) -> None:
    """Raises ProjectError naming the first file and field in which a model differs from the first."""
    first = _config(folders[0])
    for folder in folders[1:]:
        other = _config(folder)
        for name in sorted(first.keys() | other.keys()):
            ours, theirs = first.get(name, MISSING), other.get(name, MISSING)
            if ours != theirs:
                raise ProjectError(
                    f"{folder / CONFIG} says {name} {theirs}, {folders[0] / CONFIG} says {ours}",
                    hint="average models of one shape",
                )


def _config(folder: Path) -> dict[str, Any]:
    """What the shape depends on; what cannot be read, `load_pretrained` explains."""
    try:
        raw = read_config(folder / CONFIG)
    except TrainError:
        load_pretrained(folder)
        raise
    return {k: v for k, v in raw.items() if k not in NOT_COMPARED and "drop" not in k}


def _greedy(
    folders: Sequence[Path], model: LanguageModel, scores: Sequence[HeldOut], corpus: Corpus,
    eval_tokens: int, progress: Progress,
) -> list[float]:  # fmt: skip
    """Equal shares of those that were chosen. `model` is any of them; it ends with other weights."""
    best, *others = sorted(range(len(folders)), key=lambda i: scores[i].loss)
    chosen, lowest, total = [best], scores[best].loss, _mean([folders[best]], [1.0])
    for i in others:
        tried = {k: v + w for (k, v), w in zip(total.items(), _wide(folders[i]).values(), strict=True)}
        _set(model, {k: v / (len(chosen) + 1) for k, v in tried.items()})
        loss = heldout(model, corpus, eval_tokens=eval_tokens).loss
        progress.log(f"with {folders[i]}: loss {loss:.4f}, {'kept' if loss <= lowest else 'left out'}")
        if loss <= lowest:
            chosen, lowest, total = [*chosen, i], loss, tried
    return [1 / len(chosen) if i in chosen else 0.0 for i in range(len(folders))]


def _mean(folders: Sequence[Path], shares: Sequence[float]) -> Weights:
    """The weighted mean in float64, one model in memory at a time."""
    total: Weights = {}
    for folder, share in zip(folders, shares, strict=True):
        if share:
            wide = _wide(folder)
            total = {k: share * v + (total[k] if total else 0.0) for k, v in wide.items()}
    return total


def _wide(folder: Path) -> Weights:
    """The weights of a model in float64."""
    return {k: v.double() for k, v in load_pretrained(folder).state_dict().items() if v.is_floating_point()}


def _set(model: LanguageModel, weights: Weights) -> None:
    """Round the weights into the model's own precision."""
    model.load_state_dict(model.state_dict() | weights)


def _write(model: LanguageModel, corpus: Corpus, out: Path) -> None:
    """A model folder that appears whole or not at all."""
    temp = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    with disk_errors(f"the model {out}"):
        try:
            save_pretrained(model, corpus, temp)
            keep_folder(temp, out)
        finally:
            shutil.rmtree(temp, ignore_errors=True)


def _scored(folder: Path, share: float, s: HeldOut) -> Scored:
    return Scored(folder=folder, share=share, loss=s.loss, loss_se=s.loss_se, bpb=s.bpb, bpb_se=s.bpb_se)
