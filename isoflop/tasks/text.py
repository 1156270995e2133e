"""What tasks on text share: inputs of a tokenizer, padding, and heads of transformers' Auto classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from isoflop.errors import AdaptError
from isoflop.tasks.base import opened
from isoflop.tasks.protocol import MIDDLE, VISION, Base, Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from isoflop.tasks.protocol import Task


def encode_texts(base: Base, spec: Spec, texts: Sequence[str]) -> dict[str, list[Any]]:
    """Ids of each text, cut to what the spec allows; `cut` says whether it was."""
    found, cut = tokenized(base, spec, texts)
    return {name: values for name, values in found.items() if name in NAMES} | {"cut": cut}


def tokenized(
    base: Base, spec: Spec, texts: Sequence[str], **options: Any
) -> tuple[dict[str, list[Any]], list[bool]]:
    """What the tokenizer makes of each text, and whether that was cut.

    Without its middle a text keeps its first and its last tokens, half of them each: what is said of whole
    texts is better learned from both ends than from one (Sun et al., arXiv 1905.05583, section 5.3.1).
    """
    most, plain = spec.max_length or base.max_length, [str(text) for text in texts]
    if spec.cut == MIDDLE:
        whole = base.processor(plain, verbose=False, **options)
        cut = [len(ids) > most for ids in whole["input_ids"]]
        return {name: [_ends(values, most) for values in column] for name, column in whole.items()}, cut
    found = base.processor(plain, truncation=True, max_length=most, **options)
    if base.processor.is_fast:
        return dict(found), [bool(encoding.overflowing) for encoding in found.encodings]
    return dict(found), [len(ids) > most for ids in base.processor(plain, **options)["input_ids"]]


def _ends(values: list[Any], most: int) -> list[Any]:
    return values if len(values) <= most else values[: most - most // 2] + values[len(values) - most // 2 :]


NAMES = ("input_ids", "attention_mask", "token_type_ids")


def labelled(
    base: Base, features: Sequence[Mapping[str, Any]], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """As `padded`, with the "labels" of the examples where they have some, (b,) or (b, C)."""
    batch = padded(base, features)
    if "labels" in features[0]:
        batch["labels"] = torch.tensor([f["labels"] for f in features], dtype=dtype)
    return batch


def padded(base: Base, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Inputs of one length, (b, t)."""
    inputs = [{name: f[name] for name in NAMES if name in f} for f in features]
    return dict(base.processor.pad(inputs, return_tensors="pt"))


def headed(auto_class: str, task: Task, base: Base, spec: Spec) -> nn.Module:
    """The base under a head of transformers for the spec's labels; new weights of it are random.

    Raises AdaptError for a base of another kind.
    """
    check_kind(task, base)
    numbers = {"num_labels": len(spec.labels)}
    if base.kind != VISION:
        numbers["pad_token_id"] = base.processor.pad_token_id
    names = {
        "id2label": dict(enumerate(spec.labels)),
        "label2id": {label: number for number, label in enumerate(spec.labels)},
    }
    return opened(auto_class, base.folder, **numbers, **names)


def check_kind(task: Task, base: Base) -> None:
    """Raises AdaptError for a base of a kind that the task does not take, and names the tasks that do."""
    from isoflop.tasks import fits  # it imports every task

    if base.kind not in task.kinds:
        raise AdaptError(
            f"{base.folder} is of the kind {base.kind}, and {task.name} takes {', '.join(task.kinds)}",
            hint=f"name another model, or a task that it fits: {', '.join(fits(base))}",
        )


def head_logits(model: nn.Module, batch: Mapping[str, Tensor], but: Sequence[str] = ("labels",)) -> Tensor:
    """What the model's head says of the batch's inputs: of all in it but for those names."""
    found: Tensor = model(**{name: value for name, value in batch.items() if name not in but}).logits
    return found
