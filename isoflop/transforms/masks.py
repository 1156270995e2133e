"""Weights set to zero one by one, for research: they take less room on disk, and no time less.

By magnitude (Han et al., arXiv 1506.02626) or Wanda (Sun et al., arXiv 2306.11695), a share of each matrix or
two of every four (Mishra et al., arXiv 2104.08378). The blocks' matrices alone are masked, as in Wanda.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoflop.errors import TrainError
from isoflop.export import save_pretrained
from isoflop.export.calibrate import CALIBRATION_TOKENS, importance, tokens_read
from isoflop.families.sparse import compact
from isoflop.gpt import GPT
from isoflop.records import Corpus
from isoflop.store import Project
from isoflop.transforms import (
    EVAL_TOKENS,
    MODEL,
    Transform,
    change_of,
    finished,
    scores_of,
    source_of,
    transform_id,
)
from isoflop.transforms.importance import blocks, pass_flops
from isoflop.using import decoder_of

KIND = "mask"
RULES = ("wanda", "magnitude")
TWO_FOUR = "2:4"
RUN = 4  # neighbours in a row, of which 2:4 keeps two


@torch.no_grad()
def mask(
    model: GPT, share: float, squares: Mapping[str, NDArray[np.float32]] | None, *, two_four: bool
) -> None:
    """Set weights of the blocks' matrices to zero, in place.

    With `squares`, the mean square of each input by weight name, the score of a weight is
    |W_ij| sqrt(E[x_j^2]) and weights are compared within a row (Wanda, equation 1); without, it is |W_ij|,
    compared within the matrix. The inputs are those of the model as it was: Wanda has them of the layers
    before, already masked. `share` of the weights go, or with `two_four` two of every four neighbours of a
    row. Raises TrainError for a share that is none, or rows that do not divide into fours.
    """
    if not 0 < share < 1:
        raise TrainError(f"a share of {share:g} of the weights is not between 0 and 1", hint="give e.g. 0.5")
    for name, weight in matrices(model).items():
        score = weight.abs()
        if squares is not None:
            score = score * torch.from_numpy(squares[name]).sqrt()
        if two_four:
            if weight.shape[1] % RUN:
                raise TrainError(
                    f"the rows of {name} have {weight.shape[1]} weights, no multiple of {RUN}",
                    hint="give --unstructured 0.5",
                )
            gone = _lowest(score.view(-1, RUN), RUN // 2)
        elif squares is not None:
            gone = _lowest(score, round(share * weight.shape[1]))
        else:
            gone = _lowest(score.view(1, -1), round(share * weight.numel()))
        weight[gone.view_as(weight)] = 0.0


def matrices(model: GPT) -> dict[str, Tensor]:
    """The blocks' matrices by name."""
    inside = {id(m) for block in blocks(model) for m in block.modules() if isinstance(m, nn.Linear)}
    return {f"{n}.weight": m.weight for n, m in model.named_modules() if id(m) in inside}


def zero_share(model: GPT) -> float:
    """Of all stored weights, those that are zero."""
    found = [(int((p == 0).sum()), p.numel()) for p in model.parameters()]
    return sum(zeros for zeros, _ in found) / sum(size for _, size in found)


def _lowest(score_rc: Tensor, count: int) -> Tensor:
    """Where the `count` lowest scores of each row are; of equal ones the first."""
    order = score_rc.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(score_rc, dtype=torch.bool).scatter_(1, order, True)


def mask_model(
    project: Project, corpus: Corpus, folder: Path, *, share: float = 0.5, two_four: bool = False,
    rule: str = RULES[0], tokens: int = CALIBRATION_TOKENS, eval_tokens: int = EVAL_TOKENS,
) -> Transform:  # fmt: skip
    """Mask a model folder and keep it in the sparse form, which `load_pretrained` opens.

    Raises ProjectError for another architecture, TrainError for a rule or share that cannot be, CorruptError
    for a folder that is damaged, CorpusError when the text is too short.
    """
    if rule not in RULES:
        raise TrainError(f"--by {rule} is no rule for masks", hint=f"name one of {', '.join(RULES)}")
    model = decoder_of(folder, corpus, "pruned")
    source = source_of(project, MODEL, folder)
    options: dict[str, Any] = {
        "pattern": TWO_FOUR if two_four else "unstructured",
        "share": share,
        "by": rule,
    }
    calibrated = rule == "wanda"
    options |= {"calibrate": tokens} if calibrated else {}
    id = transform_id(KIND, corpus, [source], {**options, "eval_tokens": eval_tokens})
    if (done := finished(project, id)) is not None:
        return done
    began, spent = time.perf_counter(), dict[str, float]()
    if calibrated:
        read = tokens_read(corpus, model.config.context, tokens)
        spent["calibration"] = pass_flops(model.config, read, backward=False)
    source = source.model_copy(update={"scores": scores_of(model, corpus, eval_tokens)})
    mask(model, share, importance(model, corpus, tokens) if calibrated else None, two_four=two_four)
    change, change_se = change_of(decoder_of(folder, corpus, "pruned"), model, corpus, eval_tokens)

    def write(target: Path) -> None:
        save_pretrained(model, corpus, target)
        compact(target)

    kept = project.add_artifact(f"{KIND}-{id}", write)
    record = Transform(
        id=id, kind=KIND, corpus_id=corpus.id, sources=(source,),
        options={**options, "zeros": zero_share(model)},
        flops=spent,
        seconds=time.perf_counter() - began, eval_tokens=eval_tokens,
        after=scores_of(model, corpus, eval_tokens), model=kept, change=change, change_se=change_se,
    )  # fmt: skip
    project.put("transform", record)
    return record
