"""The tasks' peer: a model adapted by hand, with `transformers.Trainer` and its defaults, in a given time.

Defaults are those of TrainingArguments (AdamW, 5e-5 falling to zero, batches of 8, three epochs) and of
`peft.LoraConfig`. Where three epochs do not fit into the time, as many steps are planned as do, by a pace
that is measured first: the rate falls to zero in them too. Heads, inputs and the loss are the task's.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from isoflop.tasks.protocol import SPEECH, VISION, Base, LossOptions, Spec, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

PACE, PACE_SECONDS = 3, 2.0  # steps whose time is measured, and how long that takes at least
MARGIN = 0.95  # of the time, that steps are planned for
HEADED = (
    "classification",
    "tagging",
    "question-answering",
    "image-classification",
)  # a probe trains the head
PEFT = {
    "classification": "SEQ_CLS", "tagging": "TOKEN_CLS", "question-answering": "QUESTION_ANS",
    "embedding": "FEATURE_EXTRACTION",
}  # fmt: skip


def whole(task: Task, model: nn.Module) -> nn.Module:
    """All weights learn."""
    return model


def lora(task: Task, model: nn.Module) -> nn.Module:
    """peft's defaults; every linear layer of an architecture for which it has none."""
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    config: Any = model.config
    where = None if config.model_type in KNOWN else "all-linear"
    made: nn.Module = get_peft_model(model, LoraConfig(task_type=PEFT.get(task.name), target_modules=where))
    return made


def probe(task: Task, model: nn.Module) -> nn.Module:
    """The head alone learns."""
    model.base_model.requires_grad_(False)
    return model


WAYS: dict[str, Callable[[Task, nn.Module], nn.Module]] = {"full": whole, "lora": lora, "probe": probe}


def ways(task: Task, scratch: bool) -> list[str]:
    """What can be done by hand: of random weights all must learn, and a probe needs a head."""
    if scratch:
        return ["full"]
    return [name for name in WAYS if name != "probe" or task.name in HEADED]


class ByHand(Trainer):  # type: ignore[misc]
    """A Trainer that has the task's loss."""

    task: Task

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        return self.task.loss(self.task.logits(model, inputs), inputs, LossOptions()).mean()


class Paced(TrainerCallback):  # type: ignore[misc]
    """Ends a training as soon as its pace is known: the first step is not like the others."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended.append(time.monotonic())
        control.should_training_stop |= (
            len(self.ended) >= PACE and self.ended[-1] - self.ended[0] > PACE_SECONDS
        )

    @property
    def each(self) -> float:
        """Seconds of a step."""
        return (self.ended[-1] - self.ended[0]) / (len(self.ended) - 1)


class InTime(TrainerCallback):  # type: ignore[misc]
    """Ends a training when its time is over, whatever was planned."""

    def __init__(self, end: float) -> None:
        self.end = end

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= time.monotonic() > self.end


def adapted_by_hand(
    task: Task, base: Base, spec: Spec, rows: Dataset, way: str, *, seconds: float, seed: int
) -> tuple[nn.Module, int]:
    """The model, and the steps that it was trained for."""
    began = time.monotonic()
    features = encoded(task, base, spec, rows)

    def train(steps: int, callback: TrainerCallback, folder: str) -> tuple[nn.Module, int]:
        torch.manual_seed(seed)
        model = WAYS[way](task, task.build(base, spec))
        options = TrainingArguments(
            folder, max_steps=steps, seed=seed, save_strategy="no", report_to=[], disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = ByHand(
            model, options, train_dataset=features, callbacks=[callback],
            data_collator=lambda some: task.collate(base, spec, some),
        )  # fmt: skip
        trainer.task = task
        trainer.train()
        return model.eval(), trainer.state.global_step

    with tempfile.TemporaryDirectory() as folder:
        epochs = TrainingArguments(folder).num_train_epochs
        wanted = math.ceil(len(features) / TrainingArguments(folder).per_device_train_batch_size) * epochs
        paced = Paced()
        train(int(wanted), paced, str(Path(folder, "pace")))
        left = MARGIN * (began + seconds - time.monotonic())
        steps = max(1, min(int(wanted), int(left / paced.each)))
        return train(steps, InTime(began + seconds), str(Path(folder, "whole")))


def encoded(task: Task, base: Base, spec: Spec, rows: Dataset) -> Dataset:
    """Inputs of the task; those of images and sounds are made as they are read, for they are large."""
    if base.kind in (VISION, SPEECH):
        return rows.with_transform(lambda some: task.encode(base, spec, some))
    return rows.map(
        lambda some: task.encode(base, spec, some), batched=True, remove_columns=rows.column_names
    )
