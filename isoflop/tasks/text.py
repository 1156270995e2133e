"""What tasks on text share: inputs of a tokenizer, padding, and heads of transformers' Auto classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isoflop.errors import AdaptError
from isoflop.tasks.base import opened
from isoflop.tasks.protocol import VISION, Base, Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from isoflop.tasks.protocol import Task


def encode_texts(base: Base, spec: Spec, texts: Sequence[str], **options: Any) -> dict[str, list[Any]]:
    """Ids of each text, cut to what the spec allows; `cut` says whether it was."""
    most = spec.max_length or base.max_length
    found = base.processor([str(text) for text in texts], truncation=True, max_length=most, **options)
    whole = base.processor([str(text) for text in texts], **options)["input_ids"]
    features = {name: list(values) for name, values in found.items() if name in NAMES}
    features["cut"] = [len(ids) > most for ids in whole]
    return features


NAMES = ("input_ids", "attention_mask", "token_type_ids")


def padded(base: Base, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Inputs of one length, (b, t)."""
    inputs = [{name: f[name] for name in NAMES if name in f} for f in features]
    return dict(base.processor.pad(inputs, return_tensors="pt"))


def headed(auto_class: str, task: Task, base: Base, spec: Spec) -> nn.Module:
    """The base under a head of transformers for the spec's labels; new weights of it are random.

    Raises AdaptError for a base of another kind.
    """
    if base.kind not in task.kinds:
        fits = ", ".join(task.kinds)
        raise AdaptError(
            f"{base.folder} is of the kind {base.kind}, and {task.name} takes {fits}",
            hint="name another model, or another --task",
        )
    numbers = {"num_labels": len(spec.labels)}
    if base.kind != VISION:
        numbers["pad_token_id"] = base.processor.pad_token_id
    names = {
        "id2label": dict(enumerate(spec.labels)),
        "label2id": {label: number for number, label in enumerate(spec.labels)},
    }
    return opened(auto_class, base.folder, **numbers, **names)
