"""transformers' Trainer on a LlamaForCausalLM of a given shape, timed step by step, in a process of its own.

Asked in JSON on stdin, answers in JSON on stdout. Everything that is not asked is the Trainer's default; it
is told to use the CPU, and not to save, log or report.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparing import SETTLE_STEPS, ask, steady

from isoflop.corpus import load_corpus, train_tokens
from isoflop.families import find
from isoflop.flops import weights_that_multiply
from isoflop.records import Corpus, ModelConfig

ENDLESS_STEPS = 10**8


def missing() -> str | None:
    """What the Trainer lacks here, in a sentence."""
    if importlib.util.find_spec("accelerate") is None:
        return "transformers' Trainer needs the package accelerate: pip install accelerate"
    return None


def speed(model: ModelConfig, corpus: Corpus, rows: int, threads: int, seconds: float) -> dict[str, float]:
    """Start-up and steady speed of the Trainer, which is stopped after `seconds` of steady state."""
    asked = {
        "born": time.time(), "model": model.model_copy(update={"family": "llama"}).model_dump(mode="json"),
        "corpus": str(corpus.folder.absolute()), "rows": rows, "seconds": seconds,
    }  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    answer = ask([sys.executable, __file__], input=json.dumps(asked), env=env)
    return steady(answer["marks"]) | {"params": answer["params"]}


class Windows(torch.utils.data.Dataset[dict[str, Any]]):
    """Consecutive windows of the training tokens; the model shifts the labels by itself."""

    def __init__(self, corpus: Corpus, context: int) -> None:
        self.tokens, self.context = train_tokens(corpus), context

    def __len__(self) -> int:
        return len(self.tokens) // self.context

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = index * self.context
        ids = torch.from_numpy(self.tokens[start : start + self.context].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def train(asked: dict[str, Any], folder: str) -> dict[str, Any]:
    """Marks after each step, and N of the model."""
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    shape, corpus = ModelConfig.model_validate(asked["model"]), load_corpus(Path(asked["corpus"]))
    rows, marks = asked["rows"], []

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            marks.append((time.time() - asked["born"], state.global_step * rows * shape.context))
            if len(marks) > SETTLE_STEPS and marks[-1][0] - marks[SETTLE_STEPS - 1][0] >= asked["seconds"]:
                control.should_training_stop = True

    model = LlamaForCausalLM(find("llama").config(shape))  # type: ignore[attr-defined]
    settings = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=rows, max_steps=ENDLESS_STEPS, use_cpu=True,
        report_to=[], logging_strategy="no", save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model, settings, train_dataset=Windows(corpus, shape.context), callbacks=[Stop()]).train()
    return {"marks": marks, "params": weights_that_multiply(model)}


def main() -> None:
    asked = json.load(sys.stdin)
    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        answer = train(asked, folder)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
